//! A piece of guest RAM that I/O works on.

use std::{fmt, sync::Arc};

use drover_units::{Bytes, Gpa};
use vm_memory::{
    Bytes as _, VolatileMemory as _, VolatileSlice,
    bitmap::{AtomicBitmap, BS},
};

use crate::{MemoryError, mapping::RamRegion};

/// A contiguous range of guest RAM that stays mapped while this value lives.
///
/// Requests carry segments to backends, which read and write by copy, or hand [`iovec`](Self::iovec) to the kernel.
/// The guest may change the bytes at any time; a segment promises only that the addresses stay valid.
#[derive(Clone)]
pub struct Segment {
    region: Arc<RamRegion>,
    offset: u64,
    len: usize,
}

impl Segment {
    pub(crate) fn new(region: Arc<RamRegion>, offset: u64, len: usize) -> Self {
        debug_assert!(region.slice(offset, len).is_some(), "callers have checked the range");
        Self { region, offset, len }
    }

    /// Where the segment starts in the guest.
    pub fn gpa(&self) -> Gpa {
        Gpa::new(self.region.range().start.get() + self.offset)
    }

    /// Its length in bytes; never zero.
    #[expect(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The part of `len` bytes from `offset` on.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`] if it is empty or not inside this segment.
    pub fn part(&self, offset: usize, len: usize) -> Result<Self, MemoryError> {
        self.check(offset, len)?;
        Ok(Self { region: Arc::clone(&self.region), offset: self.offset + offset as u64, len })
    }

    /// Copies `buffer.len()` bytes from `offset` on out of guest RAM.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`] if they are not all inside the segment.
    pub fn read(&self, offset: usize, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.check(offset, buffer.len())?;
        self.slice().read_slice(buffer, offset).map_err(|_| self.outside(offset, buffer.len()))
    }

    /// Copies `bytes` into guest RAM from `offset` on, and marks the pages.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`] if they are not all inside the segment; nothing has been written then.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), MemoryError> {
        self.check(offset, bytes.len())?;
        self.slice().write_slice(bytes, offset).map_err(|_| self.outside(offset, bytes.len()))
    }

    /// Marks every page of the segment as written. Call it after the kernel or a library has written through
    /// [`iovec`](Self::iovec), and before the guest is told: a page that is copied before its mark is copied again.
    pub fn mark_dirty(&self) {
        self.mark_dirty_up_to(self.len);
    }

    /// The same for the first `len` bytes.
    pub(crate) fn mark_dirty_up_to(&self, len: usize) {
        use vm_memory::bitmap::Bitmap as _;
        self.slice().bitmap().mark_dirty(0, len.min(self.len));
    }

    /// The segment's address and length in this process, for system calls. Valid while this segment (or any other
    /// handle to the same memory) lives; whoever passes it on keeps the segment until the I/O is over.
    pub fn iovec(&self) -> libc::iovec {
        let base = self.region.host_address().wrapping_add(self.offset as usize);
        libc::iovec { iov_base: base.cast(), iov_len: self.len }
    }

    fn slice(&self) -> VolatileSlice<'_, BS<'_, AtomicBitmap>> {
        self.region
            .slice(self.offset, self.len)
            .expect("checked when the segment was made; RAM never shrinks")
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), MemoryError> {
        let fits = len > 0 && self.slice().compute_end_offset(offset, len).is_ok();
        if fits { Ok(()) } else { Err(self.outside(offset, len)) }
    }

    fn outside(&self, offset: usize, len: usize) -> MemoryError {
        let start = Gpa::new(self.gpa().get().saturating_add(offset as u64));
        MemoryError::OutsideRam { start, len: Bytes::new(len as u64) }
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({} + {:#x})", self.gpa(), self.len)
    }
}

#[cfg(test)]
mod tests {
    use crate::{DirtyTracker, GuestMemory};

    use super::*;

    #[test]
    fn what_a_segment_writes_is_marked_and_readable_from_the_guest_side() {
        let memory = GuestMemory::anonymous(Bytes::kib(64));
        let mut tracker = DirtyTracker::new(&memory);
        let segment = memory.segment(Gpa::new(0x1ffe), 8).unwrap();
        segment.write(1, b"abc").unwrap();
        let mut seen = [0; 3];
        memory.read(Gpa::new(0x1fff), &mut seen).unwrap();
        assert_eq!(&seen, b"abc");
        // Byte 1 of the segment is the last of page 1, the rest is page 2.
        assert_eq!(tracker.take().iter().map(Gpa::get).collect::<Vec<_>>(), [0x1000, 0x2000]);
    }

    #[test]
    fn a_mark_covers_the_whole_segment() {
        let memory = GuestMemory::anonymous(Bytes::kib(64));
        let mut tracker = DirtyTracker::new(&memory);
        memory.segment(Gpa::new(0x3000), 0x2001).unwrap().mark_dirty();
        assert_eq!(tracker.take().iter().map(Gpa::get).collect::<Vec<_>>(), [0x3000, 0x4000, 0x5000]);
    }

    #[test]
    fn parts_and_copies_outside_the_segment_are_refused() {
        let memory = GuestMemory::anonymous(Bytes::kib(64));
        let segment = memory.segment(Gpa::new(0x1000), 16).unwrap();
        for (offset, len) in [(0, 17), (16, 1), (17, 0), (usize::MAX, 2), (0, 0)] {
            assert!(segment.part(offset, len).is_err(), "part {offset}+{len}");
        }
        assert!(segment.write(10, &[0; 7]).is_err());
        assert!(segment.read(usize::MAX, &mut [0; 2]).is_err());
        assert_eq!(segment.part(4, 12).unwrap().gpa(), Gpa::new(0x1004));
    }

    #[test]
    fn a_segment_outlives_the_handle_it_came_from() {
        let memory = GuestMemory::anonymous(Bytes::kib(64));
        let segment = memory.segment(Gpa::new(0x1000), 4).unwrap();
        drop(memory);
        segment.write(0, &[1, 2, 3, 4]).unwrap();
        let mut seen = [0; 4];
        segment.read(0, &mut seen).unwrap();
        assert_eq!(seen, [1, 2, 3, 4]);
    }
}
