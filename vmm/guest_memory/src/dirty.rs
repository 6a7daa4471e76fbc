//! Which pages have changed since they were last asked for.

use drover_units::{PAGE_SIZE, Pages};

use crate::{DirtyPages, GuestMemory};

/// Joins two sources of dirt: KVM's log (the guest's own writes) and the marks of the VMM's writes.
///
/// One round: pass KVM's words of every region to [`merge_kvm_log`](Self::merge_kvm_log), then [`take`](Self::take).
/// Pages taken and then not delivered go back with [`mark`](Self::mark). The VMM's marks are kept whether or not
/// anyone asks for them, so the first use of a tracker is to throw away the marks of the past: [`new`](Self::new) does.
#[derive(Debug)]
pub struct DirtyTracker {
    memory: GuestMemory,
    /// One bitmap per region: what KVM's log and `mark` have brought since the last `take`.
    pending: Vec<Vec<u64>>,
}

impl DirtyTracker {
    /// Starts tracking: everything written from now on.
    ///
    /// Turn KVM's log on first and call this second, then copy all of memory: a write between the two is in KVM's log
    /// or is copied.
    pub fn new(memory: &GuestMemory) -> Self {
        let pending = memory
            .ram_regions()
            .map(|region| {
                region.dirty_bitmap().reset();
                vec![0; bitmap_words(region.range().len.get())]
            })
            .collect();
        Self { memory: memory.clone(), pending }
    }

    /// Adds the words of KVM's dirty log of one region (by its index in [`GuestMemory::regions`]); bit 0 of the first
    /// word is the region's first page. Words past the region, and regions that do not exist, are ignored.
    pub fn merge_kvm_log(&mut self, region: usize, words: &[u64]) {
        if let Some(pending) = self.pending.get_mut(region) {
            for (mine, log) in pending.iter_mut().zip(words) {
                *mine |= log;
            }
        }
    }

    /// Marks pages again, for instance those of a round that failed. Pages outside RAM are ignored.
    pub fn mark(&mut self, pages: &DirtyPages) {
        for gpa in pages.iter() {
            let found = self.memory.ram_regions().zip(&mut self.pending).find_map(|(region, pending)| {
                let offset = gpa.get().checked_sub(region.range().start.get())?;
                (offset < region.range().len.get()).then_some((offset / PAGE_SIZE, pending))
            });
            if let Some((page, pending)) = found {
                pending[(page / 64) as usize] |= 1 << (page % 64);
            }
        }
    }

    /// Every page written since the last call, from both sources; all marks are cleared.
    pub fn take(&mut self) -> DirtyPages {
        let mut pages = DirtyPages::new();
        for (region, pending) in self.memory.ram_regions().zip(&mut self.pending) {
            for (mine, vmm) in pending.iter_mut().zip(region.dirty_bitmap().get_and_reset()) {
                *mine |= vmm;
            }
            let range = region.range();
            pages.push_bitmap(range.start, Pages::new(range.len.get() / PAGE_SIZE), pending);
            pending.fill(0);
        }
        pages
    }
}

/// Words of a bitmap with a bit for each page of `len` bytes.
fn bitmap_words(len: u64) -> usize {
    usize::try_from(len.div_ceil(PAGE_SIZE).div_ceil(64)).expect("MAX_RAM bounds the bitmap")
}

#[cfg(test)]
mod tests {
    use drover_units::{Bytes, Gpa};

    use super::*;
    use crate::PageRun;

    fn check(tracker: &mut DirtyTracker, expect: &[u64]) {
        assert_eq!(tracker.take().iter().map(Gpa::get).collect::<Vec<_>>(), expect);
    }

    #[test]
    fn a_round_joins_the_guests_and_the_vmms_writes_once() {
        let memory = GuestMemory::anonymous(Bytes::mib(1));
        memory.write(Gpa::new(0x9000), &[1]).unwrap();
        let mut tracker = DirtyTracker::new(&memory);
        memory.write(Gpa::new(0x3fff), &[1, 2]).unwrap();
        tracker.merge_kvm_log(0, &[0b1001, 1, 0, 0]);
        check(&mut tracker, &[0, 0x3000, 0x4000, 64 << 12]);
        check(&mut tracker, &[]);
    }

    #[test]
    fn pages_marked_again_come_out_again() {
        let memory = GuestMemory::anonymous(Bytes::mib(1));
        let mut tracker = DirtyTracker::new(&memory);
        tracker.merge_kvm_log(0, &[0b11]);
        let taken = tracker.take();
        tracker.mark(&taken);
        check(&mut tracker, &[0, 0x1000]);
    }

    #[test]
    fn what_is_not_ram_is_ignored() {
        let memory = GuestMemory::anonymous(Bytes::kib(8));
        let mut tracker = DirtyTracker::new(&memory);
        tracker.merge_kvm_log(0, &[u64::MAX, u64::MAX]);
        tracker.merge_kvm_log(7, &[u64::MAX]);
        let outside = PageRun { start: Gpa::new(0xd000_0000), pages: Pages::new(2) };
        tracker.mark(&[outside].into_iter().collect());
        check(&mut tracker, &[0, 0x1000]);
    }

    #[test]
    fn high_memory_has_its_own_bitmap() {
        let memory = GuestMemory::anonymous(Bytes::new((3 << 30) + 8192));
        let mut tracker = DirtyTracker::new(&memory);
        memory.write(Gpa::new(0x1_0000_1000), &[1]).unwrap();
        tracker.merge_kvm_log(1, &[1]);
        let high = PageRun { start: Gpa::new(1 << 32), pages: Pages::new(2) };
        assert_eq!(tracker.take().runs(), [high]);
    }
}
