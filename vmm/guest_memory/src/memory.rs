//! The handle on a guest's RAM.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use drover_units::{Bytes, Gpa, PAGE_SIZE};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestRegionCollection};

use crate::{DirtyPages, PageRun, RamLayout, Segment, lazy::Loading, mapping::RamRegion, residency};

/// The vm-memory view of guest RAM, for virtio-queue and linux-loader.
pub type GuestRam = GuestRegionCollection<RamRegion>;

/// What can be wrong with guest RAM or a range of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The size cannot be a guest's.
    #[error(
        "guest memory of {size} is not possible: it must be whole 4 KiB pages, at least one, at most 4 TiB"
    )]
    InvalidSize {
        /// What was asked for.
        size: Bytes,
    },
    /// The host did not give the memory.
    #[error("cannot map {size} of guest memory")]
    Allocate {
        /// What was asked for.
        size: Bytes,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A range that is empty, or not RAM from its first to its last byte. The usual answer to a hostile address.
    #[error("{len} at {start} is not a range of guest RAM")]
    OutsideRam {
        /// First address.
        start: Gpa,
        /// Length.
        len: Bytes,
    },
    /// Pages are still being brought by a [`Loader`](crate::Loader).
    #[error("guest memory is still being loaded")]
    Loading,
    /// Pages cannot be brought on demand.
    #[error("cannot {attempt} guest memory that is loaded on demand")]
    Lazy {
        /// What was tried.
        attempt: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The host refused an operation on pages.
    #[error("cannot {attempt} guest memory")]
    Pages {
        /// What was tried.
        attempt: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
}

/// A region of guest RAM as a hypervisor registers it.
#[derive(Clone, Copy, Debug)]
pub struct HostRegion {
    /// First guest address.
    pub start: Gpa,
    /// Length, whole pages.
    pub len: Bytes,
    /// Address in this process. Valid while a handle to the memory lives.
    pub host_address: *mut u8,
}

/// A guest's RAM. Clones share it.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ram: GuestRam,
    regions: Vec<Arc<RamRegion>>,
    layout: RamLayout,
    /// There once pages have been loaded on demand.
    loading: OnceLock<Arc<Loading>>,
}

impl GuestMemory {
    /// Makes RAM of this size, all zeroes. Costs address space only: pages are allocated when they are first touched.
    ///
    /// # Errors
    /// [`MemoryError::InvalidSize`], or [`MemoryError::Allocate`] where the host refuses.
    pub fn allocate(size: Bytes) -> Result<Self, MemoryError> {
        let layout = RamLayout::for_size(size)?;
        let regions = layout
            .ranges()
            .iter()
            .map(|&range| RamRegion::map(range).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| MemoryError::Allocate { size, source })?;
        let ram =
            GuestRam::from_arc_regions(regions.clone()).expect("a layout is sorted and does not overlap");
        Ok(Self { shared: Arc::new(Shared { ram, regions, layout, loading: OnceLock::new() }) })
    }

    /// RAM for tests.
    ///
    /// # Panics
    /// Where [`allocate`](Self::allocate) fails.
    pub fn anonymous(size: Bytes) -> Self {
        Self::allocate(size).expect("a test machine has memory for its guests")
    }

    /// Has the host allocate the first page, which every guest that is booted has: where that is a huge one, it takes as long as
    /// loading a small kernel into it, and can be done before. For RAM that nothing will be brought into as it is touched.
    pub fn populate_first(&self) {
        if let Some(region) = self.shared.regions.first() {
            region.populate_first();
        }
    }

    /// All RAM.
    pub fn size(&self) -> Bytes {
        self.shared.layout.size()
    }

    /// Where RAM lies.
    pub fn layout(&self) -> &RamLayout {
        &self.shared.layout
    }

    /// The regions in ascending order, as a hypervisor maps them. Their index is the slot number.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = HostRegion> + '_ {
        self.shared.regions.iter().map(|region| {
            let range = region.range();
            HostRegion { start: range.start, len: range.len, host_address: region.host_address() }
        })
    }

    pub(crate) fn ram_regions(&self) -> impl Iterator<Item = &RamRegion> {
        self.shared.regions.iter().map(Arc::as_ref)
    }

    /// The vm-memory view. Writes through it are marked.
    pub fn as_vm_memory(&self) -> &GuestRam {
        &self.shared.ram
    }

    /// A range of RAM that I/O can work on.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`] if it is empty, wraps, or is not inside one region.
    pub fn segment(&self, start: Gpa, len: usize) -> Result<Segment, MemoryError> {
        let (region, offset) = self.locate(start, len as u64)?;
        Ok(Segment::new(Arc::clone(region), offset, len))
    }

    /// Whether the range is RAM, whole and in one region.
    pub fn contains(&self, start: Gpa, len: Bytes) -> bool {
        self.locate(start, len.get()).is_ok()
    }

    /// Copies `buffer.len()` bytes at `start` out of guest RAM.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`] unless all of them are RAM.
    pub fn read(&self, start: Gpa, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.shared
            .ram
            .read_slice(buffer, GuestAddress(start.get()))
            .map_err(|_| MemoryError::OutsideRam { start, len: Bytes::new(buffer.len() as u64) })
    }

    /// Copies `bytes` into guest RAM at `start`, and marks the pages.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`] unless all of the range is RAM; nothing has been written then.
    pub fn write(&self, start: Gpa, bytes: &[u8]) -> Result<(), MemoryError> {
        let outside = || MemoryError::OutsideRam { start, len: Bytes::new(bytes.len() as u64) };
        if !self.shared.ram.check_range(GuestAddress(start.get()), bytes.len()) {
            return Err(outside());
        }
        self.shared.ram.write_slice(bytes, GuestAddress(start.get())).map_err(|_| outside())
    }

    /// Copies a run of pages into `buffer`, which has exactly the run's size.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`] if the run is not RAM or the buffer is not its size.
    pub fn read_pages(&self, run: PageRun, buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.check_pages(run, buffer.len())?;
        self.read(run.start, buffer)
    }

    /// Writes a run of pages, and marks them. `bytes` has exactly the run's size.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`] if the run is not RAM, not page-aligned, or `bytes` is not its size.
    pub fn write_pages(&self, run: PageRun, bytes: &[u8]) -> Result<(), MemoryError> {
        self.check_pages(run, bytes.len())?;
        self.write(run.start, bytes)
    }

    /// Makes a run of pages read as zeroes, gives their memory back to the host, and marks them.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`], or [`MemoryError::Pages`] where the host refuses.
    pub fn zero_pages(&self, run: PageRun) -> Result<(), MemoryError> {
        use vm_memory::bitmap::Bitmap as _;
        let len = run.bytes().get();
        self.check_pages(run, usize::try_from(len).unwrap_or(usize::MAX))?;
        let (region, offset) = self.locate(run.start, len)?;
        let (offset, len) = (offset as usize, len as usize);
        let discard = || {
            region
                .discard(offset, len)
                .map_err(|source| MemoryError::Pages { attempt: "give back pages of", source })
        };
        match self.loading() {
            Some(loading) => loading.settle(run, discard)?,
            None => discard()?,
        }
        region.dirty_bitmap().mark_dirty(offset, len);
        Ok(())
    }

    /// Who is to hear of pages that are given back, while pages are still to come.
    fn loading(&self) -> Option<&Loading> {
        self.shared.loading.get().map(Arc::as_ref).filter(|loading| loading.is_under_way())
    }

    /// Whether pages are still to come.
    pub fn is_loading(&self) -> bool {
        self.loading().is_some()
    }

    /// Waits until all pages have come. Says whether they have.
    pub fn wait_loaded(&self, limit: Duration) -> bool {
        self.loading().is_none_or(|loading| loading.wait(limit))
    }

    pub(crate) fn begin_loading(&self, loading: Arc<Loading>) -> Result<(), MemoryError> {
        self.shared.loading.set(loading).map_err(|_| MemoryError::Loading)
    }

    /// The pages that the host has allocated. Every other page has never been written and reads as zeroes; asking
    /// here, instead of reading it, leaves it unallocated. With huge pages that is a multiple of 2 MiB.
    ///
    /// # Errors
    /// [`MemoryError::Pages`] where the host refuses, or the process has been jailed without
    /// [`prepare`](crate::prepare); [`MemoryError::Loading`] while pages are still to come.
    pub fn populated(&self) -> Result<DirtyPages, MemoryError> {
        if self.is_loading() {
            return Err(MemoryError::Loading);
        }
        let mut pages = DirtyPages::new();
        for region in self.regions() {
            residency::scan(region, &mut pages)
                .map_err(|source| MemoryError::Pages { attempt: "find the allocated pages of", source })?;
        }
        Ok(pages)
    }

    fn locate(&self, start: Gpa, len: u64) -> Result<(&Arc<RamRegion>, u64), MemoryError> {
        let inside = |region: &&Arc<RamRegion>| {
            let range = region.range();
            let end = start.get().checked_add(len);
            len > 0 && start >= range.start && end.is_some_and(|end| end <= range.end().get())
        };
        let region = self
            .shared
            .regions
            .iter()
            .find(inside)
            .ok_or(MemoryError::OutsideRam { start, len: Bytes::new(len) })?;
        Ok((region, start.get() - region.range().start.get()))
    }

    fn check_pages(&self, run: PageRun, buffer_len: usize) -> Result<(), MemoryError> {
        let aligned = run.start.get().is_multiple_of(PAGE_SIZE);
        if aligned && run.bytes().get() == buffer_len as u64 && self.contains(run.start, run.bytes()) {
            Ok(())
        } else {
            Err(MemoryError::OutsideRam { start: run.start, len: run.bytes() })
        }
    }
}

#[cfg(test)]
mod tests {
    use drover_units::Pages;

    use super::*;
    use crate::{DirtyTracker, HIGH_RAM_START};

    fn run(start: u64, pages: u64) -> PageRun {
        PageRun { start: Gpa::new(start), pages: Pages::new(pages) }
    }

    #[test]
    fn nobody_may_touch_the_pages_before_and_behind_ram() {
        let memory = GuestMemory::anonymous(Bytes::kib(12));
        let region = memory.regions().next().unwrap();
        let start = region.host_address as u64;
        let end = start + region.len.get();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let access = |page: u64| {
            let of_line = |line: &'_ str| {
                let (range, rest) = line.split_once(' ')?;
                let (from, to) = range.split_once('-')?;
                let number = |hex| u64::from_str_radix(hex, 16).unwrap();
                (number(from)..number(to)).contains(&page).then(|| rest[..3].to_owned())
            };
            maps.lines().find_map(of_line)
        };
        let found = [start - PAGE_SIZE, start, end - PAGE_SIZE, end].map(access);
        let (none, all) = (Some("---".to_owned()), Some("rw-".to_owned()));
        assert_eq!(found, [none.clone(), all.clone(), all, none]);
    }

    #[test]
    fn ram_starts_zeroed_on_a_huge_page_boundary_and_costs_nothing() {
        let memory = GuestMemory::anonymous(Bytes::gib(5));
        for region in memory.regions() {
            assert_eq!(region.host_address.addr() % (2 << 20), 0);
        }
        assert_eq!(memory.regions().len(), 2);
        assert!(memory.populated().unwrap().is_empty());
        let mut word = [1; 8];
        memory.read(HIGH_RAM_START, &mut word).unwrap();
        assert_eq!(word, [0; 8]);
    }

    /// Whether all pages of these runs are populated, and that within 2 MiB of them only.
    fn populated_around(memory: &GuestMemory, touched: &[PageRun]) -> bool {
        let populated = memory.populated().unwrap();
        let huge = |page: Gpa| page.get() >> 21;
        let near =
            |page: Gpa| touched.iter().flat_map(|run| run.iter()).any(|other| huge(other) == huge(page));
        let is_there = |page| populated.iter().any(|there| there == page);
        touched.iter().flat_map(|run| run.iter()).all(is_there) && populated.iter().all(near)
    }

    #[test]
    fn populated_pages_are_those_that_were_touched() {
        let memory = GuestMemory::anonymous(Bytes::gib(4));
        memory.write(Gpa::new(0x5000), &[1; 4097]).unwrap();
        memory.write(Gpa::new(0x1_0000_3000), &[1]).unwrap();
        assert!(populated_around(&memory, &[run(0x5000, 2), run(0x1_0000_3000, 1)]));
        // Too small for a huge page.
        let memory = GuestMemory::anonymous(Bytes::mib(1));
        memory.write(Gpa::new(0x5000), &[1; 4097]).unwrap();
        assert_eq!(memory.populated().unwrap().runs(), [run(0x5000, 2)]);
    }

    #[test]
    fn the_first_page_is_there_when_it_was_asked_for_and_reads_as_zeros() {
        let memory = GuestMemory::anonymous(Bytes::mib(4));
        memory.populate_first();
        assert!(populated_around(&memory, &[run(0, 1)]));
        let mut byte = [1];
        memory.read(Gpa::ZERO, &mut byte).unwrap();
        assert_eq!(byte, [0]);
    }

    #[test]
    fn zeroed_pages_are_given_back_and_marked() {
        let memory = GuestMemory::anonymous(Bytes::mib(4));
        memory.write(Gpa::new(0x5000), &[1; 8192]).unwrap();
        let mut tracker = DirtyTracker::new(&memory);
        memory.zero_pages(run(0x6000, 1)).unwrap();
        let populated = memory.populated().unwrap();
        assert!(populated.iter().any(|page| page == Gpa::new(0x5000)), "{populated:?}");
        assert!(!populated.iter().any(|page| page == Gpa::new(0x6000)), "{populated:?}");
        assert_eq!(tracker.take().runs(), [run(0x6000, 1)]);
        let mut page = [1; 4096];
        memory.read_pages(run(0x6000, 1), &mut page).unwrap();
        assert_eq!(page, [0; 4096]);
    }

    #[test]
    fn ranges_that_are_not_ram_are_refused() {
        let memory = GuestMemory::anonymous(Bytes::gib(4));
        let hostile = [
            (0xbfff_ffff, 2),
            (0xc000_0000, 1),
            (0xffff_ffff, 2),
            (0x1_3fff_ffff, 2),
            (u64::MAX, 1),
            (u64::MAX - 1, 4),
            (0, 0),
        ];
        for (start, len) in hostile {
            assert!(memory.segment(Gpa::new(start), len).is_err(), "{start:#x}+{len}");
        }
        assert!(memory.segment(Gpa::ZERO, usize::MAX).is_err());
        assert!(memory.write(Gpa::new(0xbfff_fffe), &[1; 4]).is_err());
        let mut untouched = [9; 2];
        memory.read(Gpa::new(0xbfff_fffe), &mut untouched).unwrap();
        assert_eq!(untouched, [0, 0], "a refused write writes nothing");
    }

    #[test]
    fn page_access_checks_alignment_and_size() {
        let memory = GuestMemory::anonymous(Bytes::kib(16));
        assert!(memory.write_pages(run(0x10, 1), &[0; 4096]).is_err());
        assert!(memory.write_pages(run(0, 2), &[0; 4096]).is_err());
        assert!(memory.write_pages(run(0x3000, 2), &[0; 8192]).is_err());
        assert!(memory.zero_pages(run(0, u64::MAX)).is_err());
        memory.write_pages(run(0x3000, 1), &[7; 4096]).unwrap();
    }

    #[test]
    fn clones_share_the_memory() {
        let memory = GuestMemory::anonymous(Bytes::kib(4));
        memory.clone().write(Gpa::ZERO, &[5]).unwrap();
        let mut byte = [0];
        memory.read(Gpa::ZERO, &mut byte).unwrap();
        assert_eq!(byte, [5]);
    }
}
