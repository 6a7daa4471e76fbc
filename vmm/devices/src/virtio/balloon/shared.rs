//! What the device, its thread and the host's side of a balloon have in common.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drover_guest_memory::{DirtyPages, GuestMemory, PageRun, RamLayout};
use drover_units::{Bytes, PAGE_SIZE, Pages};
use vmm_sys_util::eventfd::EventFd;

use super::{
    config::{HINT_DONE, Space},
    hints::Hints,
    request::GuestStatistics,
};
use crate::VirtioInterrupt;

/// The host's side of a balloon. Clones are the same; works at any time from any thread and never waits for the guest.
#[derive(Clone, Debug)]
pub struct Balloon(pub(super) Arc<Shared>);

/// How a balloon stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonStatus {
    /// A driver works it.
    pub driver: bool,
    /// What should be in it.
    pub target: Bytes,
    /// What is, as the driver says; at most the machine's RAM.
    pub actual: Bytes,
    /// Memory given back by inflating, all in all.
    pub inflated: Bytes,
    /// Memory given back because the guest reported it free, all in all.
    pub reported: Bytes,
    /// The guest's newest statistics.
    pub statistics: GuestStatistics,
    /// How many times statistics have come: another number, other statistics.
    pub statistics_received: u64,
    /// Pages that the driver named and that are no RAM.
    pub strange_pages: u64,
}

#[derive(Debug)]
pub(super) struct Shared {
    ram: RamLayout,
    inner: Mutex<Inner>,
    /// Rings when the host wants statistics.
    pub(super) wanted: EventFd,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) space: Space,
    /// Grows with every change of the host's fields.
    pub(super) generation: u32,
    /// How to tell the driver of a change; nothing while there is no driver.
    pub(super) interrupt: Option<Arc<dyn VirtioInterrupt>>,
    /// The driver takes free page hints.
    pub(super) hinting: bool,
    /// The driver says what free pages hold.
    pub(super) poisons: bool,
    pub(super) hints: Option<Hints>,
    last_command: u32,
    pub(super) inflated: Pages,
    pub(super) reported: Pages,
    pub(super) strange: u64,
    pub(super) statistics: GuestStatistics,
    pub(super) statistics_received: u64,
}

impl Inner {
    /// Free pages must read as something else than zeros.
    pub(super) fn keeps_free_pages(&self) -> bool {
        self.poisons && self.space.poison != 0
    }

    pub(super) fn changed(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        if let Some(interrupt) = &self.interrupt {
            interrupt.config_changed();
        }
    }
}

impl Shared {
    pub(super) fn new(ram: RamLayout, wanted: EventFd) -> Self {
        let space = Space { target: 0, actual: 0, hint_command: HINT_DONE, poison: 0 };
        let inner = Inner {
            space,
            generation: 0,
            interrupt: None,
            hinting: false,
            poisons: false,
            hints: None,
            last_command: HINT_DONE,
            inflated: Pages::ZERO,
            reported: Pages::ZERO,
            strange: 0,
            statistics: GuestStatistics::default(),
            statistics_received: 0,
        };
        Self { ram, inner: Mutex::new(inner), wanted }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All RAM, in the pages of the configuration space: beyond 16 TiB a balloon has no numbers, and no machine is that
    /// large.
    pub(super) fn pages_max(&self) -> u32 {
        u32::try_from(self.ram.size().get() / PAGE_SIZE).unwrap_or(u32::MAX)
    }
}

/// Gives a run of pages, all RAM, back to the host.
pub(super) fn give_back(memory: &GuestMemory, run: PageRun) -> Pages {
    match memory.zero_pages(run) {
        Ok(()) => run.pages,
        Err(error) => {
            // The guest does not depend on it.
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "cannot give memory back to the host");
            Pages::ZERO
        }
    }
}

impl Balloon {
    /// Asks the guest to have so much in its balloon, in whole pages and at most all its RAM. Returns what was asked.
    pub fn set_target(&self, target: Bytes) -> Bytes {
        let pages = u32::try_from(target.get() / PAGE_SIZE).unwrap_or(u32::MAX).min(self.0.pages_max());
        let mut inner = self.0.lock();
        if inner.space.target != pages {
            inner.space.target = pages;
            inner.changed();
        }
        bytes(pages)
    }

    /// How it stands.
    pub fn status(&self) -> BalloonStatus {
        let inner = self.0.lock();
        let total = |pages: Pages| pages.to_bytes().unwrap_or(Bytes::new(u64::MAX));
        BalloonStatus {
            driver: inner.interrupt.is_some(),
            target: bytes(inner.space.target),
            actual: bytes(inner.space.actual.min(self.0.pages_max())),
            inflated: total(inner.inflated),
            reported: total(inner.reported),
            statistics: inner.statistics,
            statistics_received: inner.statistics_received,
            strange_pages: inner.strange,
        }
    }

    /// Asks the guest for new statistics: they have come when [`BalloonStatus::statistics_received`] has grown.
    pub fn refresh_statistics(&self) {
        // Fails only where the counter is full, and then it rings already.
        let _ = self.0.wanted.write(1);
    }

    /// Asks the guest which pages are free. Whatever an earlier session has brought is forgotten. Says whether there is
    /// a driver that can tell.
    ///
    /// The pages are only hints: the guest may take one back and write it without a word. Whoever uses them logs
    /// writes from before this call on and leaves out what was written (5.5.6.7).
    pub fn start_hinting(&self) -> bool {
        let mut inner = self.0.lock();
        if inner.interrupt.is_none() || !inner.hinting || inner.keeps_free_pages() {
            return false;
        }
        // Not one of the two that are no session.
        inner.last_command = inner.last_command.checked_add(1).unwrap_or(HINT_DONE + 1);
        let command = inner.last_command;
        inner.space.hint_command = command;
        inner.hints = Some(Hints::new(command, self.0.ram.clone()));
        inner.changed();
        true
    }

    /// The pages of the session, once the guest has named them all.
    pub fn hinted(&self) -> Option<DirtyPages> {
        self.0.lock().hints.as_ref().and_then(Hints::complete)
    }

    /// Ends the session: the guest may use the pages it has named again.
    pub fn finish_hinting(&self) {
        let mut inner = self.0.lock();
        if inner.hints.take().is_some() {
            inner.space.hint_command = HINT_DONE;
            inner.changed();
        }
    }
}

fn bytes(pages: u32) -> Bytes {
    Bytes::new(u64::from(pages) * PAGE_SIZE)
}
