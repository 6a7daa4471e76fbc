//! Since when requests have been under way, for noticing storage that does not answer.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

/// The queues of an image.
#[derive(Debug, Default)]
pub struct RequestAges {
    queues: Mutex<Vec<Weak<QueueAges>>>,
}

/// The requests of one queue, by slot. Written by its worker, read by whoever asks.
#[derive(Debug)]
pub struct QueueAges {
    /// When the slot's request was submitted, milliseconds of [`now`]; 0 where there is none.
    since: Box<[AtomicU64]>,
}

impl RequestAges {
    /// Takes in a queue with `depth` slots. It is forgotten when its worker drops it.
    pub fn queue(&self, depth: usize) -> Arc<QueueAges> {
        let queue = Arc::new(QueueAges { since: (0..depth).map(|_| AtomicU64::new(0)).collect() });
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|queue| queue.strong_count() > 0);
        queues.push(Arc::downgrade(&queue));
        queue
    }

    /// As [`Backend::oldest_request`](crate::Backend::oldest_request).
    pub fn oldest(&self) -> Option<Duration> {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = queues.iter().filter_map(Weak::upgrade).filter_map(|queue| queue.oldest()).min()?;
        Some(Duration::from_millis(now().saturating_sub(oldest)))
    }
}

impl QueueAges {
    /// The slot's request is under way from now on.
    pub fn begin(&self, slot: usize) {
        self.since[slot].store(now(), Ordering::Relaxed);
    }

    /// The slot's request has been answered.
    pub fn end(&self, slot: usize) {
        self.since[slot].store(0, Ordering::Relaxed);
    }

    fn oldest(&self) -> Option<u64> {
        self.since.iter().map(|since| since.load(Ordering::Relaxed)).filter(|since| *since > 0).min()
    }
}

/// Milliseconds of the coarse monotonic clock: read for every request, it costs a few nanoseconds and is right to a
/// timer tick, which is plenty for storage that has not answered for seconds.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("Linux has this clock");
    let milliseconds = time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000;
    // Zero means "none".
    u64::try_from(milliseconds).unwrap_or(0).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_request_of_all_queues_counts() {
        let ages = RequestAges::default();
        let (one, other) = (ages.queue(2), ages.queue(1));
        assert_eq!(ages.oldest(), None);
        one.since[1].store(now() - 500, Ordering::Relaxed);
        other.begin(0);
        assert!(ages.oldest().unwrap() >= Duration::from_millis(500));
        one.end(1);
        assert!(ages.oldest().unwrap() < Duration::from_millis(500));
        drop(other);
        assert_eq!(ages.oldest(), None);
    }
}
