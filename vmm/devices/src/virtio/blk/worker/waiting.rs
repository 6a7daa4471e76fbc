//! How a worker waits: with its eyes open for a moment where that has paid off lately, and asleep otherwise.
//!
//! ```text
//! nothing to do --> looks at the ring and at the storage's answers --something--> works
//!                    |  for as long as its patience lasts
//!                    v
//!                   asks for the bell again, sleeps until any event
//! ```
//!
//! A doorbell costs the guest an exit and the worker a wake-up, which is more than a read from the page cache takes. A driver
//! that has one request under way at a time sends the next one within microseconds of the last answer: while the worker looks, it
//! rings no bell. Whoever does not come back that soon finds the worker asleep after one look in vain.

#![allow(clippy::disallowed_methods, reason = "the clock of a wait")]

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use virtio_queue::QueueT;
use vmm_sys_util::epoll::{Epoll, EpollEvent};

use super::{Order, RingError, Source, Worker, lock};

/// Longest look without sleep where the last one found something. About what a sleep and a doorbell cost, which bounds what
/// looking in vain can waste.
const LOOK: Duration = Duration::from_micros(32);
/// A trial look: who has seen an answer and asks on is back sooner.
const TRIAL: Duration = Duration::from_micros(8);
/// Most sleeps between two trials.
const SLEEPS_MAX: u32 = 64;
/// Pauses of the processor between two looks: they leave the ring's cache line to the driver.
const PAUSES: u32 = 8;
/// So many times in a row something may be found by looking, before the worker looks for orders as well.
const FINDS_MAX: u32 = 64;

/// How long to look before sleeping.
///
/// Whether looking pays off cannot be seen from how long a sleep took, since the bell and the wake-up are most of that. So it is
/// tried now and then, the more seldom the longer in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    limit: Duration,
    /// Until the next trial.
    sleeps: u32,
    /// Until the one after that, if the next is in vain.
    pause: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { limit: Duration::ZERO, sleeps: 1, pause: 1 }
    }
}

impl Patience {
    pub(super) fn is_none(self) -> bool {
        self.limit.is_zero()
    }

    /// A look has found something.
    fn found(&mut self) {
        *self = Self { limit: LOOK, ..Self::default() };
    }

    /// The worker has slept, whether or not it looked before.
    fn slept(&mut self) {
        if !self.is_none() {
            *self =
                Self { limit: Duration::ZERO, sleeps: self.pause, pause: (self.pause * 2).min(SLEEPS_MAX) };
            return;
        }
        self.sleeps -= 1;
        if self.sleeps == 0 {
            self.limit = TRIAL;
        }
    }
}

impl Worker {
    /// Waits until there is something to do, and takes note of it.
    pub(super) fn wait(&mut self, waiting: &Epoll) {
        let timeout = if self.look_out() {
            self.patience.found();
            self.finds += 1;
            if self.finds < FINDS_MAX {
                return;
            }
            0
        } else if self.listen() {
            return;
        } else {
            -1
        };
        self.finds = 0;
        let mut events = [EpollEvent::default(); Source::ALL.len()];
        let count = match waiting.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return,
            Err(error) => panic!("waiting on an epoll of our own fails by a signal only: {error}"),
        };
        if timeout < 0 {
            self.patience.slept();
        }
        for event in &events[..count] {
            self.note(event.data());
        }
    }

    /// Looks at the ring and at the storage for as long as patience lasts. Returns whether there was something.
    fn look_out(&mut self) -> bool {
        // Where chains have been left in the ring, room or a bell is what it takes.
        if self.patience.is_none() || self.starved || !self.serves() || !self.setup.gate.is_open() {
            return false;
        }
        let began = Instant::now();
        loop {
            if self.backend.has_answers() {
                self.reap();
                return true;
            }
            if self.ring_has_more() {
                self.starved = true;
                return true;
            }
            if began.elapsed() >= self.patience.limit {
                return false;
            }
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
        }
    }

    /// Has the driver ring again, if it need not have for the moment. Returns whether something came meanwhile.
    ///
    /// Not while paused: guest RAM is nobody's to write then, and the order to go on looks at the ring anyway.
    fn listen(&mut self) -> bool {
        if !self.serves() || !std::mem::take(&mut self.unannounced) {
            return false;
        }
        let ram = self.setup.memory.as_vm_memory();
        let more = lock(&self.queue.queue).enable_notification(ram);
        match more {
            Ok(more) => self.starved |= more,
            Err(error) => self.give_up(&RingError::from(error)),
        }
        self.starved
    }

    fn serves(&self) -> bool {
        self.order == Order::Run && self.halted.is_none()
    }

    /// A ring that cannot be read has something: whoever takes it finds out what is wrong.
    fn ring_has_more(&self) -> bool {
        let queue = lock(&self.queue.queue);
        let index = queue.avail_idx(self.setup.memory.as_vm_memory(), Ordering::Acquire);
        index.map_or(true, |index| index.0 != queue.next_avail())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sleeps until there is patience again; how often.
    fn sleeps(patience: &mut Patience) -> u32 {
        let mut sleeps = 0;
        while patience.is_none() {
            patience.slept();
            sleeps += 1;
        }
        sleeps
    }

    #[test]
    fn looking_is_tried_the_more_seldom_the_longer_it_is_in_vain() {
        let mut patience = Patience::default();
        let mut between = Vec::new();
        for _ in 0..9 {
            between.push(sleeps(&mut patience));
            assert_eq!(patience.limit, TRIAL);
            patience.slept();
        }
        assert_eq!(between, [1, 1, 2, 4, 8, 16, 32, 64, 64]);
    }

    #[test]
    fn who_has_found_something_looks_longer_until_it_is_in_vain() {
        let mut patience = Patience::default();
        for _ in 0..5 {
            sleeps(&mut patience);
            patience.slept();
        }
        sleeps(&mut patience);
        patience.found();
        assert_eq!(patience.limit, LOOK);
        patience.found();
        assert_eq!(patience.limit, LOOK);
        patience.slept();
        assert!(patience.is_none());
        assert_eq!(sleeps(&mut patience), 1, "and tries again soon");
    }
}
