//! Sweeps over RAM: each page is verified, then rewritten for the next pass.

use core::slice;

use drover_probe_record::Event;
use drover_probe_record::pace::Pace;
use drover_probe_record::page::{Page, PageContent};

use crate::ram::Ram;
use crate::serial::{report, report_error};

const PAGES_PER_MIB: u64 = 256;
/// Between two turns: small against a migration's downtime, large against the cost of waking up.
const TURN_US: u64 = 2_000;
/// Turns' worth of pages that a late turn makes up for.
const TURNS_MADE_UP: u64 = 10;
const SUMMARY_US: u64 = 1_000_000;

/// The RAM that all sweeping vCPUs share.
pub(crate) struct Region {
    start: *mut Page,
    pages: u64,
    pages_per_s: u64,
    seed: u64,
}

// SAFETY: `share` hands out parts that do not overlap.
unsafe impl Sync for Region {}

/// One vCPU's part.
pub(crate) struct Sweep {
    pages: &'static mut [Page],
    first_page: u64,
    seed: u64,
    vcpu: usize,
    cursor: usize,
    /// What pages from the cursor on hold; 0 while they have never been written.
    pass: u64,
    pace: Pace,
    turn_us: u64,
    rewritten: u64,
    bad: u64,
    summary_us: u64,
}

impl Region {
    /// Takes the RAM.
    ///
    /// # Errors
    /// MiB that could be had at most.
    pub(crate) fn new(ram: &mut Ram, mib: u64, mib_per_s: u64, seed: u64) -> Result<Region, u64> {
        let pages = mib * PAGES_PER_MIB;
        // SAFETY: a page is any 512 numbers.
        let memory = unsafe { ram.take::<Page>(pages as usize) }?;
        Ok(Region { start: memory.as_mut_ptr(), pages, pages_per_s: mib_per_s * PAGES_PER_MIB, seed })
    }

    /// The part of worker `ordinal` of `workers`.
    ///
    /// # Safety
    /// Called once for each ordinal, always with the same number of workers.
    pub(crate) unsafe fn share(&self, ordinal: u32, workers: u32, vcpu: usize, now_us: u64) -> Sweep {
        let (ordinal, workers) = (u64::from(ordinal), u64::from(workers));
        let bound = |part: u64| part * self.pages / workers;
        let first_page = bound(ordinal);
        let count = (bound(ordinal + 1) - first_page) as usize;
        let start = self.start.wrapping_add(first_page as usize);
        // SAFETY: within the region, and by the caller's promise nobody else's.
        let pages = unsafe { slice::from_raw_parts_mut(start, count) };
        let per_s = self.pages_per_s / workers;
        let burst = (per_s * TURN_US * TURNS_MADE_UP / 1_000_000).max(1);
        Sweep {
            pages,
            first_page,
            seed: self.seed,
            vcpu,
            cursor: 0,
            pass: 0,
            pace: Pace::new(per_s, burst, now_us),
            turn_us: now_us,
            rewritten: 0,
            bad: 0,
            summary_us: now_us + SUMMARY_US,
        }
    }
}

impl Sweep {
    /// Rewrites the pages that have become due.
    pub(crate) fn poll(&mut self, now_us: u64) {
        if now_us < self.turn_us {
            return;
        }
        self.turn_us = now_us + TURN_US;
        for _ in 0..self.pace.due(now_us) {
            self.rewrite_next();
        }
        if now_us >= self.summary_us {
            self.summary_us = now_us + SUMMARY_US;
            report(&Event::Dirty { vcpu: self.vcpu as u32, pages: self.rewritten, bad: self.bad });
        }
    }

    /// When to poll next.
    pub(crate) fn wake_us(&self) -> u64 {
        self.turn_us
    }

    fn rewrite_next(&mut self) {
        let content =
            PageContent { seed: self.seed, page: self.first_page + self.cursor as u64, pass: self.pass };
        let Some(page) = self.pages.get_mut(self.cursor) else { return };
        if self.pass > 0 && !content.matches(page) {
            self.bad += 1;
            let stale = (1..self.pass).rev().find(|&pass| PageContent { pass, ..content }.matches(page));
            let PageContent { page, pass, .. } = content;
            match stale {
                Some(stale) => {
                    report_error(format_args!("page {page} is as pass {stale} left it, not pass {pass}"))
                }
                None => report_error(format_args!("page {page} is not as pass {pass} left it")),
            }
        }
        PageContent { pass: self.pass + 1, ..content }.write(page);
        self.rewritten += 1;
        self.cursor += 1;
        if self.cursor == self.pages.len() {
            self.cursor = 0;
            self.pass += 1;
        }
    }
}
