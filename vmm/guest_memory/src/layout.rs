//! Where RAM lies in the guest's physical address space.

use drover_units::{Bytes, Gpa, PAGE_SIZE};

use crate::MemoryError;

/// End of low RAM. What lies between here and 4 GiB belongs to devices: virtio-mmio windows, PCI, the I/O APIC
/// (0xfec0_0000), the local APICs (0xfee0_0000), and KVM's own pages just below 4 GiB.
pub const LOW_RAM_END: Gpa = Gpa::new(0xc000_0000);
/// Where RAM goes on above the 32-bit device hole.
pub const HIGH_RAM_START: Gpa = Gpa::new(0x1_0000_0000);
/// The most RAM one guest can have: 4 TiB keeps every address below 2^43, within the 46 physical bits that the
/// smallest supported hosts have, and bounds the dirty bitmap to 128 MiB.
pub const MAX_RAM: Bytes = Bytes::gib(4096);

/// One contiguous range of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First address, page-aligned.
    pub start: Gpa,
    /// Length: whole pages, never zero.
    pub len: Bytes,
    /// Where the range starts in a file that holds RAM without its hole.
    pub file_offset: Bytes,
}

impl RamRange {
    /// First address after the range.
    pub fn end(&self) -> Gpa {
        self.start.checked_offset(self.len).expect("a layout stays below MAX_RAM plus the hole")
    }
}

/// The ranges of a guest's RAM, in ascending order: one below [`LOW_RAM_END`], and one from [`HIGH_RAM_START`] where
/// the size needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamLayout {
    ranges: Vec<RamRange>,
}

impl RamLayout {
    /// Lays out `size` bytes of RAM.
    ///
    /// # Errors
    /// [`MemoryError::InvalidSize`] if the size is zero, not whole pages, or above [`MAX_RAM`].
    pub fn for_size(size: Bytes) -> Result<Self, MemoryError> {
        if size == Bytes::ZERO || size > MAX_RAM || !size.get().is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::InvalidSize { size });
        }
        let low = size.min(Bytes::new(LOW_RAM_END.get()));
        let mut ranges = vec![RamRange { start: Gpa::ZERO, len: low, file_offset: Bytes::ZERO }];
        let high = size.saturating_sub(low);
        if high > Bytes::ZERO {
            ranges.push(RamRange { start: HIGH_RAM_START, len: high, file_offset: low });
        }
        Ok(Self { ranges })
    }

    /// The ranges, in ascending order. There is at least one.
    pub fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    /// All RAM.
    pub fn size(&self) -> Bytes {
        self.ranges.iter().fold(Bytes::ZERO, |sum, range| sum.saturating_add(range.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(size: Bytes, expect: &[(u64, u64, u64)]) {
        let layout = RamLayout::for_size(size).unwrap();
        let ranges: Vec<_> =
            layout.ranges().iter().map(|r| (r.start.get(), r.len.get(), r.file_offset.get())).collect();
        assert_eq!(ranges, expect, "{size}");
        assert_eq!(layout.size(), size);
    }

    #[test]
    fn ram_leaves_the_device_hole_free() {
        check(Bytes::new(4096), &[(0, 4096, 0)]);
        check(Bytes::gib(3), &[(0, 0xc000_0000, 0)]);
        check(Bytes::new((3 << 30) + 4096), &[(0, 0xc000_0000, 0), (1 << 32, 4096, 0xc000_0000)]);
        check(Bytes::gib(8), &[(0, 0xc000_0000, 0), (1 << 32, 5 << 30, 0xc000_0000)]);
    }

    #[test]
    fn sizes_that_cannot_be_ram_are_refused() {
        for size in [Bytes::ZERO, Bytes::new(4095), Bytes::new(MAX_RAM.get() + 4096), Bytes::new(u64::MAX)] {
            assert!(matches!(RamLayout::for_size(size), Err(MemoryError::InvalidSize { .. })), "{size}");
        }
    }
}
