//! Sets of guest pages, as runs.

use drover_units::{Bytes, Gpa, PAGE_SIZE, Pages};

/// Consecutive guest pages: `pages` of them from `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Address of the first page; a multiple of the page size.
    pub start: Gpa,
    /// How many pages. Never zero in a [`DirtyPages`].
    pub pages: Pages,
}

impl PageRun {
    /// The run's size.
    pub fn bytes(&self) -> Bytes {
        self.pages.to_bytes().unwrap_or(Bytes::new(u64::MAX))
    }

    /// First address behind the run, or `None` past the end of the address space.
    pub fn end(&self) -> Option<Gpa> {
        self.start.checked_offset(self.pages.to_bytes()?)
    }

    /// The run's pages one by one.
    pub fn iter(self) -> impl Iterator<Item = Gpa> {
        (0..self.pages.get()).map_while(move |n| {
            let offset = Pages::new(n).to_bytes()?;
            self.start.checked_offset(offset)
        })
    }

    /// The run in pieces of at most `limit` pages (at least one), for bounded buffers.
    pub fn chunks(self, limit: Pages) -> impl Iterator<Item = PageRun> {
        let step = limit.get().max(1);
        (0..self.pages.get()).step_by(usize::try_from(step).unwrap_or(usize::MAX)).filter_map(move |first| {
            let start = self.start.checked_offset(Pages::new(first).to_bytes()?)?;
            Some(PageRun { start, pages: Pages::new(step.min(self.pages.get() - first)) })
        })
    }
}

/// Whether all bytes are zero, so that a page need not be sent. Works in blocks that the compiler vectorises.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<64>();
    blocks.iter().all(|block| block.iter().fold(0, |any, byte| any | byte) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

/// A set of guest pages: runs in ascending order that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirtyPages {
    runs: Vec<PageRun>,
}

impl DirtyPages {
    /// No pages.
    pub const fn new() -> Self {
        Self { runs: Vec::new() }
    }

    /// The runs, ascending.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// How many pages there are in all.
    pub fn count(&self) -> Pages {
        self.runs.iter().fold(Pages::ZERO, |sum, run| sum.saturating_add(run.pages))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Every page's address, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Gpa> + '_ {
        self.runs.iter().flat_map(|run| run.iter())
    }

    /// Adds a run at the end.
    ///
    /// # Panics
    /// If it starts before the end of what is there: callers go through memory in ascending order.
    pub fn push(&mut self, run: PageRun) {
        if run.pages == Pages::ZERO {
            return;
        }
        if let Some(last) = self.runs.last_mut() {
            let end = last.end().expect("runs of RAM end below 2^64");
            assert!(run.start >= end, "runs are pushed in ascending order");
            if run.start == end {
                last.pages = last.pages.saturating_add(run.pages);
                return;
            }
        }
        self.runs.push(run);
    }

    /// Adds the pages whose bits are set; bit 0 of the first word is the page at `start`. Bits from `pages` on are
    /// ignored: the last word of a bitmap is padded.
    ///
    /// # Panics
    /// As [`push`](Self::push).
    pub fn push_bitmap(&mut self, start: Gpa, pages: Pages, words: &[u64]) {
        for (index, &word) in words.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                let first = rest.trailing_zeros();
                let ones = (rest >> first).trailing_ones();
                rest &= u64::MAX.checked_shl(first + ones).unwrap_or(0);
                let page = index as u64 * u64::from(u64::BITS) + u64::from(first);
                if page >= pages.get() {
                    return;
                }
                let count = u64::from(ones).min(pages.get() - page);
                self.push(PageRun {
                    start: Gpa::new(start.get() + page * PAGE_SIZE),
                    pages: Pages::new(count),
                });
            }
        }
    }

    /// The pages of this set that are not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Self::new();
        let mut others = other.runs.iter().peekable();
        for run in &self.runs {
            let end = run.end().expect("runs of RAM end below 2^64");
            let mut at = run.start;
            while at < end {
                while others.next_if(|cut| cut.end().is_some_and(|end| end <= at)).is_some() {}
                let cut = others.peek().map_or(end, |cut| cut.start.clamp(at, end));
                let pages = Pages::new(cut.saturating_sub(at).get() / PAGE_SIZE);
                left.push(PageRun { start: at, pages });
                at = match others.peek() {
                    Some(other) if other.start < end => {
                        other.end().expect("runs of RAM end below 2^64").clamp(at, end)
                    }
                    _ => end,
                };
            }
        }
        left
    }

    /// Both sets' pages.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut all: Vec<PageRun> = self.runs.iter().chain(&other.runs).copied().collect();
        all.sort_by_key(|run| run.start);
        let mut union = Self::new();
        for run in all {
            let covered = union.runs.last().and_then(PageRun::end).unwrap_or(Gpa::ZERO);
            let skip = covered.saturating_sub(run.start).get() / PAGE_SIZE;
            if let Some(pages) = run.pages.checked_sub(Pages::new(skip)) {
                union.push(PageRun { start: run.start.max(covered), pages });
            }
        }
        union
    }
}

impl FromIterator<PageRun> for DirtyPages {
    /// Collects runs in any order; they may overlap.
    fn from_iter<I: IntoIterator<Item = PageRun>>(runs: I) -> Self {
        let mut runs: Vec<PageRun> = runs.into_iter().collect();
        runs.sort_by_key(|run| run.start);
        Self::new().union(&Self { runs })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn runs(list: &[(u64, u64)]) -> DirtyPages {
        list.iter()
            .map(|&(page, pages)| PageRun { start: Gpa::new(page * PAGE_SIZE), pages: Pages::new(pages) })
            .collect()
    }

    fn page_numbers(pages: &DirtyPages) -> BTreeSet<u64> {
        pages.iter().map(|gpa| gpa.get() / PAGE_SIZE).collect()
    }

    #[test]
    fn one_bit_anywhere_makes_a_page_not_zero() {
        let mut page = [0; 4099];
        assert!(is_zero(&page) && is_zero(&[]));
        for at in [0, 63, 64, 4095, 4098] {
            page[at] = 0x80;
            assert!(!is_zero(&page), "byte {at}");
            page[at] = 0;
        }
    }

    #[test]
    fn a_bitmap_becomes_runs_that_cross_words() {
        let mut pages = DirtyPages::new();
        pages.push_bitmap(Gpa::ZERO, Pages::new(130), &[1 << 63 | 0b110, 0b1, u64::MAX]);
        assert_eq!(pages, runs(&[(1, 2), (63, 2), (128, 2)]));
        assert_eq!(pages.count(), Pages::new(6));
    }

    #[test]
    fn a_full_bitmap_is_one_run() {
        let mut pages = DirtyPages::new();
        pages.push_bitmap(Gpa::new(1 << 32), Pages::new(128), &[u64::MAX; 2]);
        assert_eq!(pages.runs(), [PageRun { start: Gpa::new(1 << 32), pages: Pages::new(128) }]);
    }

    #[test]
    fn chunks_cover_the_run_and_keep_the_limit() {
        let run = PageRun { start: Gpa::new(8192), pages: Pages::new(5) };
        let chunks: Vec<_> = run.chunks(Pages::new(2)).map(|c| (c.start.get(), c.pages.get())).collect();
        assert_eq!(chunks, [(8192, 2), (16384, 2), (24576, 1)]);
    }

    proptest! {
        #[test]
        fn runs_hold_exactly_the_pages_of_the_bitmap(words in prop::collection::vec(any::<u64>(), 0..6), cut in 0u64..384) {
            let mut pages = DirtyPages::new();
            pages.push_bitmap(Gpa::ZERO, Pages::new(cut), &words);
            let expect: BTreeSet<u64> =
                (0..cut).filter(|n| words.get((n / 64) as usize).is_some_and(|w| w >> (n % 64) & 1 == 1)).collect();
            prop_assert_eq!(page_numbers(&pages), expect);
            prop_assert!(pages.runs().windows(2).all(|w| w[0].end().unwrap() < w[1].start));
        }

        #[test]
        fn a_difference_has_the_pages_of_one_only(
            a in prop::collection::vec((0u64..200, 0u64..20), 0..12),
            b in prop::collection::vec((0u64..200, 0u64..20), 0..12),
        ) {
            let (a, b) = (runs(&a), runs(&b));
            let left = a.without(&b);
            prop_assert_eq!(page_numbers(&left), &page_numbers(&a) - &page_numbers(&b));
            prop_assert!(left.runs().windows(2).all(|w| w[0].end().unwrap() < w[1].start));
        }

        #[test]
        fn a_union_has_the_pages_of_both(
            a in prop::collection::vec((0u64..200, 0u64..20), 0..12),
            b in prop::collection::vec((0u64..200, 0u64..20), 0..12),
        ) {
            let (a, b) = (runs(&a), runs(&b));
            let union = a.union(&b);
            prop_assert_eq!(page_numbers(&union), &page_numbers(&a) | &page_numbers(&b));
            prop_assert!(union.runs().windows(2).all(|w| w[0].end().unwrap() < w[1].start));
        }
    }
}
