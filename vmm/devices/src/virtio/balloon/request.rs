//! What a driver tells by the queues of a balloon. Pure.

use drover_guest_memory::PageRun;
use drover_units::{Gpa, PAGE_SIZE, Pages};

use crate::virtio::{chain::Buffer, ring::RingError};

/// Page numbers that are looked at together.
pub(super) const BATCH: usize = 1024;
/// Length of a page number (5.5.6).
pub(super) const NUMBER_LEN: u64 = 4;
/// Most page numbers in one chain: a gigabyte's. Linux sends 256.
const NUMBERS_MAX: u64 = 1 << 18;

/// Length of a statistic: tag and value (5.5.6.3).
const STATISTIC_LEN: usize = 10;
/// Statistics of one chain that are looked at. Drivers know of sixteen.
const STATISTICS_MAX: usize = 64;
/// Most that is copied of a chain of statistics.
pub(super) const STATISTICS_BYTES_MAX: usize = STATISTIC_LEN * STATISTICS_MAX;

/// The length of a chain of page numbers, if it is one.
pub(super) fn numbers_len(readable: u64) -> Result<u64, RingError> {
    if !readable.is_multiple_of(NUMBER_LEN) {
        return Err(RingError::Request("page numbers that are cut short"));
    }
    if readable > NUMBERS_MAX * NUMBER_LEN {
        return Err(RingError::Request("more page numbers in one chain than a gigabyte has pages"));
    }
    Ok(readable)
}

/// Most memory that one chain may name as free. Linux names 128 MiB.
const FREE_BYTES_MAX: u64 = 4 << 30;

/// Whether a chain may name so much memory as free.
pub(super) fn check_free(writable: u64) -> Result<(), RingError> {
    if writable > FREE_BYTES_MAX {
        return Err(RingError::Request("more than 4 GiB of free pages in one chain"));
    }
    Ok(())
}

/// The pages that `bytes` numbers, in ascending order, as runs of pages that `is_ram` knows. Returns how many are not.
pub(super) fn runs(bytes: &[u8], is_ram: impl Fn(Gpa) -> bool, mut take: impl FnMut(PageRun)) -> u64 {
    let mut numbers = [0; BATCH];
    let (words, _) = bytes.as_chunks::<4>();
    let count = words.len().min(BATCH);
    for (number, word) in numbers.iter_mut().zip(words) {
        *number = u32::from_le_bytes(*word);
    }
    let numbers = &mut numbers[..count];
    numbers.sort_unstable();
    let mut strange = 0;
    let mut run: Option<PageRun> = None;
    let mut last = None;
    for number in numbers.iter().copied() {
        if last == Some(number) {
            continue;
        }
        last = Some(number);
        let start = Gpa::new(u64::from(number) * PAGE_SIZE);
        if !is_ram(start) {
            strange += 1;
            continue;
        }
        match &mut run {
            Some(run) if run.end() == Some(start) => run.pages = run.pages.saturating_add(Pages::new(1)),
            _ => {
                run.take().map(&mut take);
                run = Some(PageRun { start, pages: Pages::new(1) });
            }
        }
    }
    run.map(take);
    strange
}

/// The whole pages of a buffer. `None` where there is not one.
pub(super) fn whole_pages(buffer: Buffer) -> Option<PageRun> {
    let start = buffer.start.get().checked_next_multiple_of(PAGE_SIZE)?;
    let end = buffer.start.get().checked_add(buffer.len.into())? / PAGE_SIZE * PAGE_SIZE;
    let len = end.checked_sub(start).filter(|len| *len > 0)?;
    Some(PageRun { start: Gpa::new(start), pages: Pages::new(len / PAGE_SIZE) })
}

/// What a guest tells about its memory (5.5.6.4). The last word of each tag counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestStatistics {
    values: [Option<u64>; GuestStatistic::ALL.len()],
}

/// What a value is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum GuestStatistic {
    SwapInBytes = 0,
    SwapOutBytes = 1,
    MajorFaults = 2,
    MinorFaults = 3,
    FreeBytes = 4,
    TotalBytes = 5,
    AvailableBytes = 6,
    CacheBytes = 7,
    HugePageAllocations = 8,
    HugePageFailures = 9,
    OomKills = 10,
    AllocationStalls = 11,
    AsyncScans = 12,
    DirectScans = 13,
    AsyncReclaims = 14,
    DirectReclaims = 15,
}

impl GuestStatistic {
    /// All of them, by tag.
    pub const ALL: [Self; 16] = [
        Self::SwapInBytes,
        Self::SwapOutBytes,
        Self::MajorFaults,
        Self::MinorFaults,
        Self::FreeBytes,
        Self::TotalBytes,
        Self::AvailableBytes,
        Self::CacheBytes,
        Self::HugePageAllocations,
        Self::HugePageFailures,
        Self::OomKills,
        Self::AllocationStalls,
        Self::AsyncScans,
        Self::DirectScans,
        Self::AsyncReclaims,
        Self::DirectReclaims,
    ];
}

impl GuestStatistics {
    /// Reads a chain's bytes. Tags that are not known here are passed over, and so is what is cut short.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut values = [None; GuestStatistic::ALL.len()];
        let (entries, _) = bytes.as_chunks::<STATISTIC_LEN>();
        for entry in entries {
            let (tag, value) = entry.split_at(2);
            let tag = u16::from_le_bytes(tag.try_into().expect("2 bytes"));
            if let Some(slot) = values.get_mut(usize::from(tag)) {
                *slot = Some(u64::from_le_bytes(value.try_into().expect("8 bytes")));
            }
        }
        Self { values }
    }

    /// One value, where the guest tells it.
    pub fn get(&self, statistic: GuestStatistic) -> Option<u64> {
        self.values[statistic as usize]
    }

    /// What there is.
    pub fn iter(&self) -> impl Iterator<Item = (GuestStatistic, u64)> + '_ {
        GuestStatistic::ALL.into_iter().filter_map(|statistic| Some((statistic, self.get(statistic)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_runs(numbers: &[u32], expect: &[(u64, u64)], strange: u64) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut found = Vec::new();
        let outside = runs(
            &bytes,
            |start| start < Gpa::new(100 << 12),
            |run| found.push((run.start.get() >> 12, run.pages.get())),
        );
        assert_eq!((found.as_slice(), outside), (expect, strange), "{numbers:?}");
    }

    #[test]
    fn page_numbers_in_any_order_become_runs_of_ram() {
        check_runs(&[], &[], 0);
        check_runs(&[7, 6, 5], &[(5, 3)], 0);
        check_runs(&[5, 9, 6, 9, 9], &[(5, 2), (9, 1)], 0);
        check_runs(&[99, 100, 101, u32::MAX, 98], &[(98, 2)], 3);
    }

    #[test]
    fn chains_of_page_numbers_have_a_form() {
        assert_eq!(numbers_len(1024).unwrap(), 1024);
        assert!(numbers_len(1023).is_err());
        assert!(numbers_len(NUMBERS_MAX * NUMBER_LEN + 4).is_err());
    }

    #[test]
    fn only_whole_pages_of_a_buffer_are_free() {
        let check = |start: u64, len: u32, expect: Option<(u64, u64)>| {
            let run = whole_pages(Buffer { start: Gpa::new(start), len });
            assert_eq!(run.map(|run| (run.start.get(), run.pages.get())), expect, "{start:#x} + {len:#x}");
        };
        check(0x1000, 0x2000, Some((0x1000, 2)));
        check(0x1001, 0x2fff, Some((0x2000, 2)));
        check(0x1001, 0x1ffe, None);
        check(0x1000, 0xfff, None);
        check(u64::MAX - 0xfff, 0x1000, None);
        check(u64::MAX, u32::MAX, None);
    }

    #[test]
    fn statistics_that_are_not_known_are_passed_over() {
        let mut bytes = Vec::new();
        for (tag, value) in [(4_u16, 100_u64), (999, 1), (4, 200), (15, 7)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend([5, 0, 1]);
        let statistics = GuestStatistics::parse(&bytes);
        let found: Vec<_> = statistics.iter().collect();
        assert_eq!(found, [(GuestStatistic::FreeBytes, 200), (GuestStatistic::DirectReclaims, 7)]);
    }
}
