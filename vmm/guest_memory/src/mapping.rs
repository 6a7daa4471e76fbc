//! The one place that maps guest RAM into this process.
#![expect(unsafe_code, reason = "mmap and munmap; the vm-memory view over a mapping that this module owns")]

use std::{
    num::NonZeroUsize,
    os::fd::{AsFd, BorrowedFd},
    ptr::NonNull,
};

use drover_units::PAGE_SIZE;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
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

/// An address range of this process that this value has mapped and will unmap.
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
    /// Maps `len` bytes of `file` from `offset`, shared, readable and writable, on an [`ALIGNMENT`] boundary.
    fn new(file: BorrowedFd<'_>, offset: u64, len: NonZeroUsize) -> nix::Result<Self> {
        let reserved_len = len.checked_add(ALIGNMENT).ok_or(nix::Error::ENOMEM)?;
        // SAFETY: a private reservation at an address of the kernel's choosing overlaps nothing.
        let reserved = unsafe {
            mmap_anonymous(
                None,
                reserved_len,
                ProtFlags::PROT_NONE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
            )
        }?;
        // From here on dropping the guard gives the whole reservation back, whatever has been mapped over it.
        let reservation = Self { start: reserved, len: reserved_len.get() };

        let head = reserved.addr().get().next_multiple_of(ALIGNMENT) - reserved.addr().get();
        let start = reserved.map_addr(|address| address.saturating_add(head));
        // SAFETY: MAP_FIXED replaces pages of the reservation above only: head < ALIGNMENT, so head + len lies in it.
        unsafe {
            mmap(
                Some(start.addr()),
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE,
                file,
                i64::try_from(offset).map_err(|_| nix::Error::EOVERFLOW)?,
            )
        }?;
        std::mem::forget(reservation);

        // SAFETY: the address range was mapped just above. Advice that the kernel does not know changes nothing; a
        // core dump of the VMM must not carry the guest's memory.
        let _ = unsafe { madvise(start, len.get(), MmapAdvise::MADV_DONTDUMP) };
        // What is left of the reservation before and behind the mapping costs address space only; a failure to give
        // it back is harmless.
        if head > 0 {
            // SAFETY: the first `head` bytes of the reservation, which nothing else uses.
            let _ = unsafe { munmap(reserved, head) };
        }
        let page_end = len.get().next_multiple_of(PAGE_SIZE as usize);
        let tail = reserved_len.get() - head - page_end;
        if tail > 0 {
            let tail_start = start.map_addr(|address| address.saturating_add(page_end));
            // SAFETY: the bytes of the reservation behind the mapping, which nothing else uses.
            let _ = unsafe { munmap(tail_start, tail) };
        }
        Ok(Self { start, len: len.get() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value owns the range, and whoever uses the addresses holds it (`RamRegion` keeps it beside the
        // view, KVM slots and segments keep the region).
        let _ = unsafe { munmap(self.start, self.len) };
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
    _mapping: Mapping,
}

impl RamRegion {
    pub(crate) fn map(file: BorrowedFd<'_>, range: RamRange) -> Result<Self, std::io::Error> {
        let too_big = || std::io::Error::from(std::io::ErrorKind::OutOfMemory);
        let len = usize::try_from(range.len.get()).ok().and_then(NonZeroUsize::new).ok_or_else(too_big)?;
        let mapping = Mapping::new(file.as_fd(), range.file_offset.get(), len)?;
        let page = NonZeroUsize::new(PAGE_SIZE as usize).expect("a page is not empty");
        let builder = MmapRegionBuilder::new_with_bitmap(len.get(), AtomicBitmap::new(len.get(), page))
            .with_mmap_prot((ProtFlags::PROT_READ | ProtFlags::PROT_WRITE).bits())
            .with_mmap_flags((MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE).bits());
        // SAFETY: `mapping` covers exactly `len` bytes from its start, and lives as long as the view beside it.
        let builder = unsafe { builder.with_raw_mmap_pointer(mapping.start.as_ptr().cast()) };
        let view = builder.build().map_err(std::io::Error::other)?;
        Ok(Self { view, range, _mapping: mapping })
    }

    pub(crate) fn range(&self) -> RamRange {
        self.range
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
