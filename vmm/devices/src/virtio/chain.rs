//! A descriptor chain as buffers: what a device may read, and what it may write.
//!
//! Every descriptor is read once (invariant B3). A buffer is an address and a length as the driver named them: whether
//! they are RAM shows when they are used, each time.

use drover_guest_memory::{GuestMemory, MemoryError};
use drover_units::Gpa;
use virtio_queue::desc::split::Descriptor;

/// One buffer. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio) struct Buffer {
    pub(in crate::virtio) start: Gpa,
    pub(in crate::virtio) len: u32,
}

/// One chain. Made once for a queue and filled again and again, so that a request costs no allocation.
#[derive(Debug)]
pub(in crate::virtio) struct Chain {
    head: u16,
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

/// A chain that breaks the rules: the device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::virtio) enum Malformed {
    /// More descriptors than a chain may have (2.7.5).
    #[error("a chain of more than {0} descriptors")]
    TooLong(u16),
    /// A descriptor that cannot be read, a loop, or a bad indirect table.
    #[error("a chain that breaks off")]
    BrokenOff,
    /// A descriptor to read from after one to write to (2.7.4.2).
    #[error("a readable descriptor after a writable one")]
    OutOfOrder,
}

/// Puts a chain of at most `length_max` descriptors into these lists, in place of what they hold. `descriptors` ends early
/// where the chain is broken.
pub(in crate::virtio) fn take_apart(
    descriptors: impl Iterator<Item = Descriptor>,
    length_max: u16,
    readable: &mut Vec<Buffer>,
    writable: &mut Vec<Buffer>,
) -> Result<(), Malformed> {
    readable.clear();
    writable.clear();
    let mut complete = false;
    for (count, descriptor) in descriptors.enumerate() {
        if count >= usize::from(length_max) {
            return Err(Malformed::TooLong(length_max));
        }
        complete = !descriptor.has_next();
        let buffer = Buffer { start: Gpa::new(descriptor.addr().0), len: descriptor.len() };
        if buffer.len == 0 {
            continue;
        }
        if descriptor.is_write_only() {
            writable.push(buffer);
        } else if writable.is_empty() {
            readable.push(buffer);
        } else {
            return Err(Malformed::OutOfOrder);
        }
    }
    // The iterator ends without a word where the next descriptor cannot be had.
    if complete { Ok(()) } else { Err(Malformed::BrokenOff) }
}

impl Chain {
    /// Room for chains of a queue of this size.
    pub(in crate::virtio) fn with_capacity(queue_size: u16) -> Self {
        let room = || Vec::with_capacity(queue_size.into());
        Self { head: 0, readable: room(), writable: room() }
    }

    /// Takes a chain of at most `length_max` descriptors apart. `descriptors` ends early where the chain is broken.
    pub(in crate::virtio) fn fill(
        &mut self,
        head: u16,
        descriptors: impl Iterator<Item = Descriptor>,
        length_max: u16,
    ) -> Result<(), Malformed> {
        self.head = head;
        take_apart(descriptors, length_max, &mut self.readable, &mut self.writable)
    }

    /// How the driver names the chain.
    pub(in crate::virtio) fn head(&self) -> u16 {
        self.head
    }

    pub(in crate::virtio) fn readable(&self) -> &[Buffer] {
        &self.readable
    }

    pub(in crate::virtio) fn writable(&self) -> &[Buffer] {
        &self.writable
    }

    /// How much there is to read.
    pub(in crate::virtio) fn readable_len(&self) -> u64 {
        length(&self.readable)
    }

    /// How much may be written.
    pub(in crate::virtio) fn writable_len(&self) -> u64 {
        length(&self.writable)
    }

    /// Copies what there is to read from `offset` on, as far as it fills `data`. Returns how much that was.
    pub(in crate::virtio) fn read(
        &self,
        memory: &GuestMemory,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, MemoryError> {
        let mut done = 0;
        for (start, len) in pieces(&self.readable, offset, data.len()) {
            memory.read(start, &mut data[done..done + len])?;
            done += len;
        }
        Ok(done)
    }

    /// Copies `data` to what may be written from `offset` on, as far as there is room. Returns how much that was.
    pub(in crate::virtio) fn write(
        &self,
        memory: &GuestMemory,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, MemoryError> {
        let mut done = 0;
        for (start, len) in pieces(&self.writable, offset, data.len()) {
            memory.write(start, &data[done..done + len])?;
            done += len;
        }
        Ok(done)
    }
}

fn length(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}

/// The pieces of `buffers` that hold at most `len` bytes from `offset` on.
pub(in crate::virtio) fn pieces(
    buffers: &[Buffer],
    offset: u64,
    len: usize,
) -> impl Iterator<Item = (Gpa, usize)> {
    let (mut skip, mut left) = (offset, len);
    buffers.iter().filter_map(move |buffer| {
        let before = skip.min(buffer.len.into());
        skip -= before;
        let piece = (u64::from(buffer.len) - before).min(left as u64) as usize;
        left -= piece;
        // An address that wraps is not RAM, whatever its length says.
        let start = Gpa::new(buffer.start.get().wrapping_add(before));
        (piece > 0).then_some((start, piece))
    })
}

#[cfg(test)]
mod tests {
    use drover_units::Bytes;

    use super::*;

    const NEXT: u16 = 1;
    const WRITE: u16 = 2;

    fn check(chain: &[(u64, u32, u16)], expect: Result<(u64, u64), Malformed>) {
        let descriptors =
            chain.iter().map(|(address, len, flags)| Descriptor::new(*address, *len, *flags, 0));
        let mut parsed = Chain::with_capacity(4);
        let outcome = parsed.fill(7, descriptors, 4);
        assert_eq!(outcome.map(|()| (parsed.readable_len(), parsed.writable_len())), expect, "{chain:x?}");
    }

    #[test]
    fn a_chain_is_what_may_be_read_and_then_what_may_be_written() {
        let read = (0x1000, 16, NEXT);
        check(&[read, (0x2000, 8, WRITE)], Ok((16, 8)));
        check(&[read, (0, u32::MAX, NEXT), (0x2000, 0, 0)], Ok((16 + u64::from(u32::MAX), 0)));
        check(&[read, (0x2000, 8, WRITE | NEXT), read, (0, 1, 0)], Err(Malformed::OutOfOrder));
        check(&[read], Err(Malformed::BrokenOff));
        check(&[], Err(Malformed::BrokenOff));
        check(&[read, read, read, read, (0, 1, 0)], Err(Malformed::TooLong(4)));
    }

    #[test]
    fn bytes_run_across_buffers_and_end_with_them() {
        let memory = GuestMemory::anonymous(Bytes::kib(16));
        let mut chain = Chain::with_capacity(4);
        let descriptors = [(0x10, 3, NEXT), (0x20, 3, NEXT), (0x1000, 2, NEXT | WRITE), (0x2000, 4, WRITE)]
            .map(|(address, len, flags)| Descriptor::new(address, len, flags, 0));
        chain.fill(0, descriptors.into_iter(), 4).unwrap();
        memory.write(Gpa::new(0x10), b"abc").unwrap();
        memory.write(Gpa::new(0x20), b"def").unwrap();
        let mut data = [0; 8];
        assert_eq!(chain.read(&memory, 2, &mut data).unwrap(), 4);
        assert_eq!(&data[..4], b"cdef");
        assert_eq!(chain.read(&memory, 6, &mut data).unwrap(), 0);
        assert_eq!(chain.write(&memory, 1, b"12345678").unwrap(), 5);
        let mut there = [0; 4];
        memory.read(Gpa::new(0x2000), &mut there).unwrap();
        assert_eq!(&there, b"2345");
    }

    #[test]
    fn what_is_not_ram_is_an_error_when_it_is_used() {
        let memory = GuestMemory::anonymous(Bytes::kib(4));
        let mut chain = Chain::with_capacity(4);
        let descriptors = [(u64::MAX - 1, 8, NEXT), (0xfff, 8, WRITE)]
            .map(|(address, len, flags)| Descriptor::new(address, len, flags, 0));
        chain.fill(0, descriptors.into_iter(), 4).unwrap();
        assert!(chain.read(&memory, 4, &mut [0; 1]).is_ok(), "it has wrapped to an address that is RAM");
        assert!(chain.read(&memory, 0, &mut [0; 8]).is_err());
        assert!(chain.write(&memory, 0, &[0; 8]).is_err());
    }
}
