//! Saved states as a migration's peer or a file may send them: as they come, and almost right, with checksums that fit.
#![no_main]

use std::path::Path;

use drover_bus::BusDevice;
use drover_devices::{ConsoleSink, Device, PciRoot, Rtc, Saved, Serial, WallClock};
use drover_fuzz::{
    bounded,
    envelope::{Changed, resealed},
    hostile_guest::{KINDS, Quiet, Transport, restore, saved},
};
use drover_hypervisor::{VcpuState, VmState};
use drover_saved_state::{Envelope, decode_list, encode_list};
use drover_suspend::SuspendFile;

libfuzzer_sys::fuzz_target!(|data: &[u8]| bounded(|| {
    let Some((&choice, rest)) = data.split_first() else { return };
    match usize::from(choice % 20) {
        number @ 0..12 => {
            let transport = if number % 2 == 0 { Transport::Mmio } else { Transport::Pci };
            virtio(KINDS[number / 2], transport, rest);
        }
        12 | 13 => platform(&Serial::new(std::sync::Arc::new(Quiet), Box::new(Nowhere)), rest),
        14 | 15 => platform(&Rtc::new(WallClock::new(|| 1_795_000_000)), rest),
        16 => {
            let root = std::sync::Arc::new(PciRoot::new());
            if let Ok(state) = Envelope::decode(&mut &rest[..]) {
                let _ = root.restore(&state);
            }
        }
        17 => processors(rest),
        18 => suspended(rest),
        _ => list(rest),
    }
}));

#[derive(Debug)]
struct Nowhere;

impl ConsoleSink for Nowhere {
    fn write(&mut self, _bytes: &[u8]) {}
}

/// Changes the state of a device in use, in its transport's part and in its own.
fn virtio(kind: &str, transport: Transport, changes: &[u8]) {
    let state = saved(kind, transport);
    let own = state.payload().windows(4).position(|bytes| bytes == b"DrvS").expect("the device's envelope");
    let mut device = &state.payload()[own..];
    let device = Envelope::decode(&mut device).expect("saved just now");
    let mut parts = [Changed::new(&state.payload()[..own - 4]), Changed::new(device.payload())];
    for change in changes.chunks(5) {
        parts[usize::from(change[0] >> 7)].apply(change);
    }
    let [mut registers, own] = parts.map(|part| part.bytes);
    // Older versions of a device's part, and newer.
    let version = device.version() - u16::from(changes.len() % 5 == 4 && device.version() > 1);
    let own = resealed(device.kind().as_str(), device.instance(), version, &own);
    registers.extend((own.len() as u32).to_le_bytes());
    registers.extend(own);
    let changed = resealed(state.kind().as_str(), state.instance(), state.version(), &registers);
    let changed = Envelope::decode(&mut &changed[..]).expect("sealed just now");
    restore(kind, transport, &changed);
}

/// Changes the state of a new device, and uses what takes it.
fn platform(device: &(impl Device + BusDevice), changes: &[u8]) {
    let Saved::State(state) = device.save() else { panic!("it has state") };
    let mut payload = Changed::new(state.payload());
    let (used, changes) = changes.split_at(changes.len() / 2);
    changes.chunks(5).for_each(|change| payload.apply(change));
    let changed = resealed(state.kind().as_str(), state.instance(), state.version(), &payload.bytes);
    let changed = Envelope::decode(&mut &changed[..]).expect("sealed just now");
    if device.restore(&changed).is_err() {
        return;
    }
    let Saved::State(taken) = device.save() else { panic!("it has state") };
    device.restore(&taken).expect("it takes what it has saved itself");
    for access in used.chunks(2) {
        let (at, mut data) = (u64::from(access[0] & 7), [0]);
        if access[0] >> 7 == 0 {
            device.read(at, &mut data);
        } else {
            device.write(at, &access[1..]);
        }
    }
}

fn processors(bytes: &[u8]) {
    if let Ok(state) = VmState::from_bytes(bytes) {
        assert!(VmState::from_bytes(&state.to_bytes()).is_ok());
    }
    if let Ok(state) = VcpuState::from_bytes(bytes) {
        assert!(VcpuState::from_bytes(&state.to_bytes()).is_ok());
    }
}

/// A suspended VM's file: the header that the bytes begin with, with a checksum that fits, and what is behind it.
fn suspended(bytes: &[u8]) {
    let mut file = vec![0; 4096];
    let (header, rest) = bytes.split_at(bytes.len().min(112));
    file[..header.len()].copy_from_slice(header);
    let checksum = crc32c::crc32c(&file[..108]);
    file[108..112].copy_from_slice(&checksum.to_le_bytes());
    file.extend(rest);
    // RAM of up to sixteen pages, and what is behind it.
    file.resize((64 << 10) + 16 * 4096 + 4096, 0);
    if let Ok(mut file) = SuspendFile::read(drover_fuzz::file_with(&file), Path::new("fuzz")) {
        let _ = (file.shape(), file.states(), file.memory());
        let _ = file.claim(file.identity().epoch);
    }
}

fn list(bytes: &[u8]) {
    if let Ok(envelopes) = decode_list(bytes) {
        assert_eq!(decode_list(&encode_list(&envelopes)).as_ref(), Ok(&envelopes));
    }
}
