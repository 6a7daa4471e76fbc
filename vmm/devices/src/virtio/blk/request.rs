//! What a descriptor chain asks of a disk (section 5.2.6).
//!
//! Pure parsing of hostile numbers (invariant B3): every descriptor is read once, the header is copied out once, and
//! what comes back holds only ranges of RAM that are known to exist. A chain may be cut into descriptors in any way
//! (2.7.4): the header is the first 16 bytes the device may read, the status byte is the last it may write, and what
//! is between is data.

use drover_block::Segments;
use drover_guest_memory::{GuestMemory, MemoryError};
use drover_rate_limit::{Cost, Direction};
use drover_units::{Bytes, Gpa, Sectors};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::desc::split::Descriptor;

use super::ranges::{self, Ranges, SEGMENT_LEN, SEGMENTS_MAX};
use crate::virtio::chain::{self, Buffer};

/// Length of a request's header: type, reserved, sector.
const HEADER_LEN: usize = 16;

/// A request that can be answered.
#[derive(Debug)]
pub(super) struct Parsed {
    /// Where the status byte goes.
    pub(super) status: Gpa,
    /// What to do.
    pub(super) action: Action,
}

/// What a request asks for.
#[derive(Debug)]
pub(super) enum Action {
    /// Fill these from the disk.
    Read(Sectors, Segments),
    /// Write these to the disk.
    Write(Sectors, Segments),
    /// Make completed writes durable.
    Flush,
    /// Fill these with the disk's name.
    GetId(Segments),
    /// Give these ranges up.
    Discard(Ranges),
    /// Make these ranges read as zeros, giving them back or not.
    WriteZeroes(Ranges, bool),
    /// A type that was not offered.
    Unsupported(u32),
    /// Ranges with flags that mean nothing.
    UnsupportedFlags,
    /// This many bytes are not the ranges that this type of request needs. The driver is told that the request failed.
    NotRanges(usize),
    /// A piece of data of this many bytes, which is longer than the driver was told. The request fails.
    TooLongPiece(u32),
    /// A buffer that is not RAM. The driver is told that the request failed.
    NotRam(MemoryError),
}

/// What chains have to keep to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Descriptors of one chain (2.7.5).
    pub(super) descriptors_max: u16,
    /// Bytes of one piece of data, where the driver has asked what the limit is (5.2.6.1, `size_max`).
    pub(super) piece_bytes_max: Option<u32>,
}

/// Lists that parsing fills, kept from one request to the next: a steady stream of requests allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
    /// Of a request that has been answered.
    room: Vec<Segments>,
    ranges: Ranges,
}

impl Scratch {
    /// For a queue of this size.
    pub(super) fn for_queue(size: u16) -> Self {
        let buffers = || Vec::with_capacity(size.into());
        let ranges = Vec::with_capacity(SEGMENTS_MAX);
        Self { readable: buffers(), writable: buffers(), room: Vec::with_capacity(size.into()), ranges }
    }

    /// Takes back the list of a request that has been answered. It is empty; what counts is how long it may become
    /// without an allocation.
    pub(super) fn give_back(&mut self, room: Segments) {
        // Never more than there are requests at a time, as each takes one before it gives one back.
        if room.spilled() && self.room.len() < self.room.capacity() {
            self.room.push(room);
        }
    }

    /// Takes back what a request has that is not begun now.
    pub(super) fn reclaim(&mut self, action: Action) {
        match action {
            Action::Read(_, mut segments) | Action::Write(_, mut segments) | Action::GetId(mut segments) => {
                segments.clear();
                self.give_back(segments);
            }
            Action::Discard(ranges) | Action::WriteZeroes(ranges, _) => self.give_back_ranges(ranges),
            _ => {}
        }
    }

    /// Takes back the list of a request for ranges.
    pub(super) fn give_back_ranges(&mut self, ranges: Ranges) {
        self.ranges = ranges;
    }
}

/// A chain that cannot even be answered: the driver has broken the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// No chain at all.
    #[error(transparent)]
    Chain(#[from] chain::Malformed),
    /// Fewer than 16 bytes to read from, or a header that is not RAM.
    #[error("a request without a header")]
    NoHeader,
    /// No byte to write the status to, or one that is not RAM.
    #[error("a request without a status byte")]
    NoStatus,
}

impl Action {
    /// What the disk's limits count it as. What moves nothing and changes nothing is free.
    pub(super) fn cost(&self) -> Option<Cost> {
        let (direction, bytes) = match self {
            Self::Read(_, segments) => (Direction::Inbound, length(segments)),
            Self::Write(_, segments) => (Direction::Outbound, length(segments)),
            Self::Flush | Self::Discard(_) | Self::WriteZeroes(..) => (Direction::Outbound, 0),
            _ => return None,
        };
        Some(Cost { direction, bytes: bytes.into() })
    }
}

/// How much data a request moves. A chain is shorter than 2^32 bytes (2.7.5.2), which virtio-queue sees to.
pub(super) fn length(segments: &Segments) -> u32 {
    segments
        .iter()
        .fold(0, |sum: u32, segment| sum.saturating_add(u32::try_from(segment.len()).unwrap_or(u32::MAX)))
}

/// Parses one chain. `descriptors` ends early where the chain is broken.
pub(super) fn parse(
    descriptors: impl Iterator<Item = Descriptor>,
    limits: Limits,
    memory: &GuestMemory,
    scratch: &mut Scratch,
) -> Result<Parsed, Malformed> {
    let Scratch { readable, writable, .. } = &mut *scratch;
    chain::take_apart(descriptors, limits.descriptors_max, readable, writable)?;
    let (header, first) = take_header(&mut scratch.readable, memory)?;
    let status = take_status(&mut scratch.writable, memory)?;
    let sector = Sectors::new(u64::from_le_bytes(header[8..].try_into().expect("8 bytes")));
    let kind = u32::from_le_bytes(header[..4].try_into().expect("4 bytes"));
    let Scratch { readable, writable, room, ranges } = scratch;
    let readable = &readable[first..];
    let data = Data { limits, memory, room };
    let action = match kind {
        VIRTIO_BLK_T_IN => data.segments(writable, |data| Action::Read(sector, data)),
        VIRTIO_BLK_T_OUT => data.segments(readable, |data| Action::Write(sector, data)),
        VIRTIO_BLK_T_FLUSH => Action::Flush,
        VIRTIO_BLK_T_GET_ID => data.segments(writable, Action::GetId),
        VIRTIO_BLK_T_DISCARD => {
            data.ranges(readable, |data| match ranges::discard(data, std::mem::take(ranges)) {
                ranges::Parsed::Ranges(ranges, _) => Action::Discard(ranges),
                ranges::Parsed::Flags => Action::UnsupportedFlags,
                ranges::Parsed::Length(length) => Action::NotRanges(length),
            })
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            data.ranges(readable, |data| match ranges::write_zeroes(data, std::mem::take(ranges)) {
                ranges::Parsed::Ranges(ranges, may_unmap) => Action::WriteZeroes(ranges, may_unmap),
                ranges::Parsed::Flags => Action::UnsupportedFlags,
                ranges::Parsed::Length(length) => Action::NotRanges(length),
            })
        }
        other => Action::Unsupported(other),
    };
    Ok(Parsed { status, action })
}

/// Takes the first 16 bytes off the front. Returns them, and which buffer is the first behind them.
fn take_header(
    readable: &mut [Buffer],
    memory: &GuestMemory,
) -> Result<([u8; HEADER_LEN], usize), Malformed> {
    let mut header = [0; HEADER_LEN];
    let (mut filled, mut first) = (0, 0);
    while filled < HEADER_LEN {
        let buffer = readable.get_mut(first).ok_or(Malformed::NoHeader)?;
        let piece = (HEADER_LEN - filled).min(buffer.len as usize);
        memory.read(buffer.start, &mut header[filled..filled + piece]).map_err(|_| Malformed::NoHeader)?;
        filled += piece;
        if piece == buffer.len as usize {
            first += 1;
        } else {
            // The bytes just read are RAM, so the address after them does not wrap.
            buffer.start = Gpa::new(buffer.start.get() + piece as u64);
            buffer.len -= piece as u32;
        }
    }
    Ok((header, first))
}

/// Takes the last byte off the end.
fn take_status(writable: &mut Vec<Buffer>, memory: &GuestMemory) -> Result<Gpa, Malformed> {
    let last = writable.last_mut().ok_or(Malformed::NoStatus)?;
    last.len -= 1;
    let start = last.start.get().checked_add(u64::from(last.len)).map(Gpa::new).ok_or(Malformed::NoStatus)?;
    if last.len == 0 {
        writable.pop();
    }
    if memory.contains(start, Bytes::new(1)) { Ok(start) } else { Err(Malformed::NoStatus) }
}

/// What is between header and status.
struct Data<'a> {
    limits: Limits,
    memory: &'a GuestMemory,
    room: &'a mut Vec<Segments>,
}

impl Data<'_> {
    /// The buffers as pieces of RAM.
    fn segments(self, buffers: &[Buffer], action: impl FnOnce(Segments) -> Action) -> Action {
        let longest = buffers.iter().map(|buffer| buffer.len).max().unwrap_or(0);
        if self.limits.piece_bytes_max.is_some_and(|max| longest > max) {
            return Action::TooLongPiece(longest);
        }
        let mut segments = Segments::new();
        if buffers.len() > segments.inline_size() {
            segments = self.room.pop().unwrap_or(segments);
        }
        for buffer in buffers {
            match self.memory.segment(buffer.start, buffer.len as usize) {
                Ok(segment) => segments.push(segment),
                Err(error) => return Action::NotRam(error),
            }
        }
        action(segments)
    }

    /// Copies the data of a request for ranges out of guest RAM, once. At most one byte more than the longest: that is
    /// enough to see that it is too long.
    fn ranges(self, buffers: &[Buffer], action: impl FnOnce(&[u8]) -> Action) -> Action {
        let mut data = [0; SEGMENTS_MAX * SEGMENT_LEN + 1];
        let mut filled = 0;
        for buffer in buffers {
            let piece = (data.len() - filled).min(buffer.len as usize);
            if piece == 0 {
                break;
            }
            if let Err(error) = self.memory.read(buffer.start, &mut data[filled..filled + piece]) {
                return Action::NotRam(error);
            }
            filled += piece;
        }
        action(&data[..filled])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: u16 = 1;
    const WRITE: u16 = 2;

    fn memory_with_header(kind: u32) -> GuestMemory {
        let memory = GuestMemory::anonymous(Bytes::kib(64));
        memory.write(Gpa::new(0x1000), &kind.to_le_bytes()).unwrap();
        memory.write(Gpa::new(0x1008), &7_u64.to_le_bytes()).unwrap();
        memory
    }

    /// Descriptors as (address, length, flags); the last one's NEXT says whether the chain is whole.
    fn check(kind: u32, chain: &[(u64, u32, u16)], expect: &str) {
        let descriptors =
            chain.iter().map(|(address, len, flags)| Descriptor::new(*address, *len, *flags, 0));
        let limits = Limits { descriptors_max: 4, piece_bytes_max: Some(0x4000) };
        let text = match parse(descriptors, limits, &memory_with_header(kind), &mut Scratch::default()) {
            Ok(Parsed { status, action }) => format!("{action:?}, status at {status}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(text, expect, "{chain:x?}");
    }

    #[test]
    fn a_chain_becomes_a_request() {
        let header = (0x1000, 16, NEXT);
        let status = (0x2000, 1, WRITE);
        check(
            0,
            &[header, (0x3000, 512, NEXT | WRITE), status],
            "Read(Sectors(7), [Segment(0x3000 + 0x200)]), status at 0x2000",
        );
        check(
            1,
            &[header, (0x3000, 512, NEXT), status],
            "Write(Sectors(7), [Segment(0x3000 + 0x200)]), status at 0x2000",
        );
        // Data behind the header in one piece, and before the status in another.
        check(
            1,
            &[(0x1000, 20, NEXT), status],
            "Write(Sectors(7), [Segment(0x1010 + 0x4)]), status at 0x2000",
        );
        check(
            0,
            &[header, (0x3000, 513, WRITE)],
            "Read(Sectors(7), [Segment(0x3000 + 0x200)]), status at 0x3200",
        );
        check(4, &[header, status], "Flush, status at 0x2000");
        check(8, &[header, status], "GetId([]), status at 0x2000");
        check(99, &[header, status], "Unsupported(99), status at 0x2000");
    }

    #[test]
    fn ranges_are_copied_out_however_they_are_cut() {
        let header = (0x1000, 16, NEXT);
        let status = (0x2000, 1, WRITE);
        // The header itself serves as a range: sector 11 or 13, and 7 sectors.
        let cut = [header, (0x1000, 9, NEXT), (0x1009, 7, NEXT), status];
        check(11, &cut, "Discard([(Sectors(11), Sectors(7))]), status at 0x2000");
        check(13, &cut, "WriteZeroes([(Sectors(13), Sectors(7))], false), status at 0x2000");
        check(11, &[header, status], "NotRanges(0), status at 0x2000");
        check(11, &[header, (0x1000, 15, NEXT), status], "NotRanges(15), status at 0x2000");
        check(13, &[header, (0x3000, 0x4000, NEXT), status], "NotRanges(257), status at 0x2000");
        check(
            11,
            &[header, (0xffff_0000, 16, NEXT), status],
            "NotRam(OutsideRam { start: Gpa(4294901760), len: Bytes(16) }), status at 0x2000",
        );
    }

    #[test]
    fn a_chain_against_the_rules_is_malformed() {
        let header = (0x1000, 16, NEXT);
        let status = (0x2000, 1, WRITE);
        check(4, &[], "a chain that breaks off");
        check(4, &[header], "a chain that breaks off");
        check(4, &[header, (0x2000, 1, NEXT | WRITE)], "a chain that breaks off");
        check(4, &[header, header, header, header, status], "a chain of more than 4 descriptors");
        check(4, &[(0x2000, 1, NEXT | WRITE), (0x1000, 16, 0)], "a readable descriptor after a writable one");
        check(4, &[status], "a request without a header");
        check(4, &[(0x1000, 15, NEXT), status], "a request without a header");
        check(4, &[(0xfff8, 16, NEXT), status], "a request without a header");
        check(4, &[(0x1000, 16, 0)], "a request without a status byte");
        check(4, &[header, (0x1_0000, 1, WRITE)], "a request without a status byte");
        check(4, &[header, (u64::MAX, 2, WRITE)], "a request without a status byte");
        check(4, &[header, (0x2000, 0, WRITE)], "a request without a status byte");
    }

    #[test]
    fn a_piece_that_is_longer_than_the_driver_was_told_can_still_be_answered() {
        let (header, status) = ((0x1000, 16, NEXT), (0x2000, 1, WRITE));
        check(0, &[header, (0x4000, 0x4001, NEXT | WRITE), status], "TooLongPiece(16385), status at 0x2000");
        check(
            1,
            &[header, (0x4000, 0x4000, NEXT), status],
            "Write(Sectors(7), [Segment(0x4000 + 0x4000)]), status at 0x2000",
        );
    }

    #[test]
    fn a_long_list_is_used_again() {
        let memory = memory_with_header(0);
        let limits = Limits { descriptors_max: 16, piece_bytes_max: None };
        let mut scratch = Scratch::for_queue(16);
        let mut rooms = Vec::new();
        for _ in 0..3 {
            let pieces = (0..9).map(|n| Descriptor::new(0x3000 + n * 512, 512, NEXT | WRITE, 0));
            let chain = [Descriptor::new(0x1000, 16, NEXT, 0)].into_iter().chain(pieces);
            let chain = chain.chain([Descriptor::new(0x2000, 1, WRITE, 0)]);
            let parsed = parse(chain, limits, &memory, &mut scratch).unwrap();
            let Action::Read(_, mut segments) = parsed.action else { panic!("{:?}", parsed.action) };
            assert_eq!(segments.len(), 9);
            rooms.push(segments.as_ptr());
            segments.clear();
            scratch.give_back(segments);
        }
        assert_eq!(rooms, [rooms[0]; 3]);
    }

    #[test]
    fn data_that_is_not_ram_can_still_be_answered() {
        check(
            0,
            &[(0x1000, 16, NEXT), (0xff00, 512, NEXT | WRITE), (0x2000, 1, WRITE)],
            "NotRam(OutsideRam { start: Gpa(65280), len: Bytes(512) }), status at 0x2000",
        );
    }
}
