//! One session of free page hints: which pages the driver has named, and whether it has named them all.

use drover_guest_memory::{DirtyPages, PageRun, RamLayout};
use drover_units::{PAGE_SIZE, Pages};

/// A bit for each page of RAM, whatever the driver says and how often.
#[derive(Debug)]
pub(super) struct Hints {
    command: u32,
    layout: RamLayout,
    /// By range of the layout.
    bitmaps: Vec<Vec<u64>>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The driver has not taken note of the session.
    Asked,
    /// Pages that come belong to this session.
    Open,
    /// The driver has named all it wants to name.
    Complete,
}

impl Hints {
    pub(super) fn new(command: u32, layout: RamLayout) -> Self {
        let words =
            |len: u64| usize::try_from((len / PAGE_SIZE).div_ceil(64)).expect("MAX_RAM bounds the bitmap");
        let bitmaps = layout.ranges().iter().map(|range| vec![0; words(range.len.get())]).collect();
        Self { command, layout, bitmaps, phase: Phase::Asked }
    }

    /// The driver says which session its pages belong to from now on, or that there are no more.
    pub(super) fn command(&mut self, command: u32) {
        self.phase = match self.phase {
            Phase::Asked | Phase::Open if command == self.command => Phase::Open,
            Phase::Open => Phase::Complete,
            other => other,
        };
    }

    /// The driver names a run of pages, whole and in RAM or not at all. Outside a session that means nothing.
    pub(super) fn add(&mut self, run: PageRun) {
        if self.phase != Phase::Open {
            return;
        }
        let Some(end) = run.end() else { return };
        for (range, bitmap) in self.layout.ranges().iter().zip(&mut self.bitmaps) {
            if run.start < range.start || end > range.end() {
                continue;
            }
            let first = (run.start.get() - range.start.get()) / PAGE_SIZE;
            for page in first..first + run.pages.get() {
                bitmap[(page / 64) as usize] |= 1 << (page % 64);
            }
        }
    }

    /// The pages, once the driver has named them all.
    pub(super) fn complete(&self) -> Option<DirtyPages> {
        (self.phase == Phase::Complete).then(|| {
            let mut pages = DirtyPages::new();
            for (range, bitmap) in self.layout.ranges().iter().zip(&self.bitmaps) {
                pages.push_bitmap(range.start, Pages::new(range.len.get() / PAGE_SIZE), bitmap);
            }
            pages
        })
    }
}

#[cfg(test)]
mod tests {
    use drover_units::{Bytes, Gpa};

    use super::*;

    fn run(page: u64, pages: u64) -> PageRun {
        PageRun { start: Gpa::new(page * PAGE_SIZE), pages: Pages::new(pages) }
    }

    #[test]
    fn pages_count_between_the_sessions_begin_and_its_end() {
        let mut hints = Hints::new(7, RamLayout::for_size(Bytes::mib(1)).unwrap());
        hints.add(run(0, 1));
        hints.command(6);
        hints.add(run(1, 1));
        assert_eq!(hints.complete(), None);
        hints.command(7);
        for named in [run(10, 70), run(79, 2), run(255, 1), run(255, 2), run(1 << 40, 1), run(0, u64::MAX)] {
            hints.add(named);
        }
        hints.command(0);
        hints.add(run(2, 1));
        hints.command(7);
        hints.add(run(3, 1));
        assert_eq!(hints.complete().unwrap().runs(), [run(10, 71), run(255, 1)]);
    }
}
