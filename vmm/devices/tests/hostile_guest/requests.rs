//! Requests that are almost right: what a driver of each kind would send, with fields that the script chooses.
//!
//! Without them a script is refused at the first field, and nothing behind it is ever tried.

use super::Script;

/// What a driver writes into the readable part of a chain, and whether one byte for a status belongs behind it.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) has_status: bool,
}

/// A message for this queue of so many of a device of this kind.
pub(super) fn message(kind: &str, queue: u64, queues: u64, script: &mut Script<'_>) -> Message {
    let has_status = kind == "blk" || kind == "net" && queue + 1 == queues;
    let bytes = match kind {
        "blk" => disk(script),
        "net" if has_status => control(script),
        "net" => packet(script),
        "vsock" => socket(script),
        "balloon" => balloon(queue, script),
        _ => some(script),
    };
    Message { bytes, has_status }
}

/// Up to 63 bytes of any kind.
fn some(script: &mut Script<'_>) -> Vec<u8> {
    (0..script.small() % 64).map(|_| script.small() as u8).collect()
}

/// A header of section 5.2.6, and the ranges of a discard behind it.
fn disk(script: &mut Script<'_>) -> Vec<u8> {
    const KINDS: [u32; 8] = [0, 1, 1, 4, 8, 11, 13, 99];
    let kind = script.small();
    let mut bytes = KINDS[kind as usize % KINDS.len()].to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    // Mostly in the first sectors of two thousand, or about at their end.
    let mut sector = || match script.small() {
        near @ 0..200 => near,
        end @ 200..250 => 2048 - (end - 200),
        _ => script.number(),
    };
    bytes.extend(sector().to_le_bytes());
    if matches!(kind % 8, 5 | 6) {
        for _ in 0..=kind >> 6 {
            let start = sector();
            bytes.extend(start.to_le_bytes());
            bytes.extend((sector() as u32).to_le_bytes());
            bytes.extend((kind as u32 >> 5 & 1).to_le_bytes());
        }
    }
    bytes
}

/// A command of section 5.1.6.5.
fn control(script: &mut Script<'_>) -> Vec<u8> {
    let mut bytes = vec![script.small() as u8 % 7, script.small() as u8 % 4];
    if bytes[0] == 1 && bytes[1] == 0 {
        // Two tables of addresses.
        for _ in 0..2 {
            let count = script.small() as u32 % 80;
            bytes.extend(count.to_le_bytes());
            (0..count * 6).for_each(|_| bytes.push(script.small() as u8));
        }
    } else {
        (0..script.small() % 10).for_each(|_| bytes.push(script.small() as u8));
    }
    bytes
}

/// A header of section 5.1.6 before a frame.
fn packet(script: &mut Script<'_>) -> Vec<u8> {
    let mut bytes = vec![script.small() as u8 % 8, script.small() as u8 % 8];
    for _ in 0..5 {
        bytes.extend((script.small() as u16).to_le_bytes());
    }
    let frame = script.small() as usize * 8;
    bytes.extend([script.small() as u8; 12]);
    bytes.resize(12 + frame, 0x5a);
    bytes
}

/// A header of section 5.10.6, and data.
fn socket(script: &mut Script<'_>) -> Vec<u8> {
    let choice = script.small();
    let mut bytes = Vec::with_capacity(44);
    bytes.extend(if choice & 0x80 == 0 { 42_u64 } else { script.number() }.to_le_bytes());
    bytes.extend(if choice & 0x40 == 0 { 2_u64 } else { script.number() }.to_le_bytes());
    let (guest, host) = (script.small() as u32 % 4, script.small() as u32);
    // Port 1 of the host listens; high ones belong to processes that connected first.
    let host = if host & 0x80 == 0 { host % 4 } else { (1 << 31) + (host & 3) };
    let data = if choice & 0x20 == 0 { script.small() as u32 } else { 0 };
    bytes.extend([guest.to_le_bytes(), host.to_le_bytes(), data.to_le_bytes()].concat());
    bytes.extend([1, 0]);
    bytes.extend((choice as u16 & 7).to_le_bytes());
    bytes.extend((script.small() as u32 & 3).to_le_bytes());
    for _ in 0..2 {
        bytes.extend(((script.small() as u32) << (choice & 0x18)).to_le_bytes());
    }
    bytes.resize(44 + data as usize, 0x5a);
    bytes
}

/// Page numbers, statistics, or the number of a session of hints.
fn balloon(queue: u64, script: &mut Script<'_>) -> Vec<u8> {
    let count = script.small() % 40;
    let mut bytes = Vec::new();
    match queue {
        // Not the rings: a driver that gives those away has nothing to say afterwards.
        0 | 1 => {
            for _ in 0..count {
                bytes.extend((64 + script.small() as u32).to_le_bytes());
            }
        }
        2 => {
            for _ in 0..count {
                bytes.extend((script.small() as u16 % 20).to_le_bytes());
                bytes.extend(script.small().to_le_bytes());
            }
        }
        _ => bytes.extend((script.small() as u32 % 8).to_le_bytes()),
    }
    bytes
}
