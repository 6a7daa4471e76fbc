//! Hands out RAM that the probe does not occupy, for good.

use core::slice;

use crate::pvh::RamRange;

const RANGES_MAX: usize = 8;
/// All that the page tables map.
const MAPPED_END: u64 = 1 << 32;

unsafe extern "C" {
    static __image_end: u8;
}

/// The RAM that is left.
pub(crate) struct Ram {
    free: [RamRange; RANGES_MAX],
}

impl Ram {
    /// Takes what lies between the probe's image and 4 GiB.
    pub(crate) fn new(ranges: &[RamRange]) -> Self {
        let image_end = &raw const __image_end as u64;
        let mut free = [RamRange::default(); RANGES_MAX];
        for (slot, range) in free.iter_mut().zip(ranges.iter().filter(|range| range.end > image_end)) {
            *slot = RamRange { start: range.start.max(image_end), end: range.end.min(MAPPED_END) };
        }
        Ram { free }
    }

    /// Takes `count` zeroable values; their first contents are whatever is in the RAM.
    ///
    /// # Safety
    /// Every bit pattern is a `T`.
    ///
    /// # Errors
    /// MiB of the largest free range, which is too small.
    pub(crate) unsafe fn take<T>(&mut self, count: usize) -> Result<&'static mut [T], u64> {
        let bytes = (count as u64).saturating_mul(size_of::<T>() as u64);
        let align = align_of::<T>() as u64;
        for range in &mut self.free {
            let start = range.start.next_multiple_of(align);
            if let Some(end) = start.checked_add(bytes).filter(|&end| end <= range.end) {
                range.start = end;
                // SAFETY: free RAM, mapped, aligned, given out once; any contents are a `T` by the caller's promise.
                return Ok(unsafe { slice::from_raw_parts_mut(start as usize as *mut T, count) });
            }
        }
        let largest = self.free.iter().map(|range| range.end.saturating_sub(range.start)).max();
        Err(largest.unwrap_or(0) >> 20)
    }
}
