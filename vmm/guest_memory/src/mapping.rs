//! The one place that maps guest RAM into this process.
#![expect(unsafe_code, reason = "mmap and munmap; the vm-memory view over a mapping that this module owns")]

use std::{num::NonZeroUsize, ptr::NonNull};

use drover_units::PAGE_SIZE;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};
use vm_memory::{
    GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, MemoryRegionAddress, MmapRegion, VolatileMemory,
    VolatileSlice,
    bitmap::{AtomicBitmap, BS, Bitmap},
    guest_memory,
    mmap::MmapRegionBuilder,
};

use crate::RamRange;

/// Mappings start on this boundary, so that the host can back them with huge pages and a nested guest's tables can
/// use 2 MiB entries.
const ALIGNMENT: usize = 2 << 20;

/// Before and behind each mapping: whoever gets past the checks and beyond RAM meets a page that nobody may touch, and not
/// what the process happens to have there.
const GUARD: usize = PAGE_SIZE as usize;

/// What the kernel is told of the guest's memory.
const ADVICE: [MmapAdvise; 3] = [
    // Fewer misses in the translation caches, and 2 MiB entries in the tables of nested guests.
    MmapAdvise::MADV_HUGEPAGE,
    // A core dump of the VMM must not carry the guest's memory.
    MmapAdvise::MADV_DONTDUMP,
    // A child would make pages private to one of the two while devices and vCPUs write to them.
    MmapAdvise::MADV_DONTFORK,
];

/// An address range of this process that this value has mapped and will unmap, with its two guards.
#[derive(Debug)]
struct Mapping {
    start: NonNull<std::ffi::c_void>,
    len: usize,
}

// SAFETY: the pointer is an address that this value alone unmaps; it is never dereferenced through this type.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; no method gives access to the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of zeros on an [`ALIGNMENT`] boundary, between two [`GUARD`]s.
    fn new(len: NonZeroUsize) -> nix::Result<Self> {
        let reserved_len = len.checked_add(ALIGNMENT + 2 * GUARD).ok_or(nix::Error::ENOMEM)?;
        // SAFETY: a new mapping at an address of the kernel's choosing overlaps nothing.
        let reserved = unsafe {
            mmap_anonymous(
                None,
                reserved_len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
            )
        }?;
        let head = (reserved.addr().get() + GUARD).next_multiple_of(ALIGNMENT) - reserved.addr().get();
        let start = reserved.map_addr(|address| address.saturating_add(head));

        // What lies before and behind the guards costs address space only; a failure to give it back is harmless.
        let unused = head - GUARD;
        if unused > 0 {
            // SAFETY: the first bytes of the mapping, up to the first guard, which nothing uses.
            let _ = unsafe { munmap(reserved, unused) };
        }
        let page_end = len.get().next_multiple_of(PAGE_SIZE as usize);
        let tail = reserved_len.get() - head - page_end - GUARD;
        if tail > 0 {
            let tail_start = start.map_addr(|address| address.saturating_add(page_end + GUARD));
            // SAFETY: the bytes of the mapping behind the second guard, which nothing uses.
            let _ = unsafe { munmap(tail_start, tail) };
        }
        let mapping = Self { start, len: len.get() };
        let first = reserved.map_addr(|address| address.saturating_add(unused));
        let second = start.map_addr(|address| address.saturating_add(page_end));
        for guard in [first, second] {
            // SAFETY: a page of this mapping beside the aligned part, which nothing uses.
            unsafe { mprotect(guard, GUARD, ProtFlags::PROT_NONE) }?;
        }
        for advice in ADVICE {
            // SAFETY: the address range was mapped just above. Advice that the kernel does not know changes nothing.
            let _ = unsafe { madvise(start, len.get(), advice) };
        }
        Ok(mapping)
    }

    /// Has the kernel allocate what the first byte is in: a huge page, where it has those.
    fn populate_first(&self) {
        // SAFETY: a page of this mapping, whose content stays as it is. A kernel that does not know the advice does nothing.
        let _ = unsafe { madvise(self.start, PAGE_SIZE as usize, MmapAdvise::MADV_POPULATE_WRITE) };
    }

    /// Gives the memory of a range of whole pages back: they read as zeros from now on. The caller has checked that
    /// they are inside.
    fn discard(&self, offset: usize, len: usize) -> nix::Result<()> {
        debug_assert!(offset.checked_add(len).is_some_and(|end| end <= self.len), "inside the mapping");
        let start = self.start.map_addr(|address| address.saturating_add(offset));
        // SAFETY: pages of this mapping. Whoever reads them sees either what was there or zeros, as with any write of
        // the guest's; nobody holds a reference into guest RAM.
        unsafe { madvise(start, len, MmapAdvise::MADV_DONTNEED) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let guarded = self.len.next_multiple_of(PAGE_SIZE as usize) + 2 * GUARD;
        let Some(first) = NonZeroUsize::new(self.start.addr().get() - GUARD) else { return };
        // SAFETY: this value owns the range with its guards, and whoever uses the addresses holds it (`RamRegion` keeps it
        // beside the view, KVM slots and segments keep the region).
        let _ = unsafe { munmap(self.start.with_addr(first), guarded) };
    }
}

/// One region of guest RAM: a vm-memory region whose mapping is aligned as we want it.
///
/// vm-memory's own region cannot choose an alignment; given a mapping from outside, it does not own it. This type
/// joins the two, and never gives the inner region away, which could outlive the mapping.
#[derive(Debug)]
pub struct RamRegion {
    view: MmapRegion<AtomicBitmap>,
    range: RamRange,
    // Dropped after the view, which points into it.
    mapping: Mapping,
}

impl RamRegion {
    pub(crate) fn map(range: RamRange) -> Result<Self, std::io::Error> {
        let too_big = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        let len = usize::try_from(range.len.get()).ok().and_then(NonZeroUsize::new).ok_or_else(too_big)?;
        let mapping = Mapping::new(len)?;
        let page = NonZeroUsize::new(PAGE_SIZE as usize).expect("a page is not empty");
        let builder = MmapRegionBuilder::new_with_bitmap(len.get(), AtomicBitmap::new(len.get(), page))
            .with_mmap_prot((ProtFlags::PROT_READ | ProtFlags::PROT_WRITE).bits())
            .with_mmap_flags((MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE).bits());
        // SAFETY: `mapping` covers exactly `len` bytes from its start, and lives as long as the view beside it.
        let builder = unsafe { builder.with_raw_mmap_pointer(mapping.start.as_ptr().cast()) };
        let view = builder.build().map_err(std::io::Error::other)?;
        Ok(Self { view, range, mapping })
    }

    pub(crate) fn range(&self) -> RamRange {
        self.range
    }

    /// Has the host allocate the region's first page.
    pub(crate) fn populate_first(&self) {
        self.mapping.populate_first();
    }

    /// Gives the memory of whole pages back. The caller has checked that they are inside.
    pub(crate) fn discard(&self, offset: usize, len: usize) -> Result<(), std::io::Error> {
        Ok(self.mapping.discard(offset, len)?)
    }

    pub(crate) fn dirty_bitmap(&self) -> &AtomicBitmap {
        self.view.bitmap()
    }

    /// Address of the region's first byte in this process. Valid while the region lives.
    pub(crate) fn host_address(&self) -> *mut u8 {
        self.view.as_ptr()
    }

    /// Bytes from `offset` on, or `None` where they are not all inside the region.
    pub(crate) fn slice(&self, offset: u64, len: usize) -> Option<VolatileSlice<'_, BS<'_, AtomicBitmap>>> {
        self.view.get_slice(usize::try_from(offset).ok()?, len).ok()
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = AtomicBitmap;

    fn len(&self) -> u64 {
        self.range.len.get()
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.range.start.get())
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        self.view.bitmap().slice_at(0)
    }

    fn get_host_address(&self, address: MemoryRegionAddress) -> guest_memory::Result<*mut u8> {
        let inside = self.check_address(address).ok_or(guest_memory::Error::InvalidBackendAddress)?;
        let offset = usize::try_from(inside.0).map_err(|_| guest_memory::Error::InvalidBackendAddress)?;
        Ok(self.view.as_ptr().wrapping_add(offset))
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> guest_memory::Result<VolatileSlice<'_, BS<'_, Self::B>>> {
        self.slice(offset.0, count).ok_or(guest_memory::Error::InvalidBackendAddress)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}
