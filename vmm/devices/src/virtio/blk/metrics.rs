//! What a disk has done since its VMM started.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters, updated by workers and read by anyone at any time. Each is exact; together they are not a snapshot of one
/// moment.
#[derive(Debug, Default)]
pub struct BlkMetrics {
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) discards: AtomicU64,
    pub(super) zeroings: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) errors: AtomicU64,
}

/// The counters' values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlkMetricsSnapshot {
    /// Reads that succeeded.
    pub reads: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Discards that succeeded.
    pub discards: u64,
    /// Writes of zeros without data that succeeded.
    pub zeroings: u64,
    /// Bytes that successful reads moved.
    pub bytes_read: u64,
    /// Bytes that successful writes moved.
    pub bytes_written: u64,
    /// Requests that were answered with an error, unsupported ones included.
    pub errors: u64,
}

impl BlkMetrics {
    /// The values now.
    pub fn snapshot(&self) -> BlkMetricsSnapshot {
        BlkMetricsSnapshot {
            reads: self.reads.load(Ordering::Relaxed),
            writes: self.writes.load(Ordering::Relaxed),
            flushes: self.flushes.load(Ordering::Relaxed),
            discards: self.discards.load(Ordering::Relaxed),
            zeroings: self.zeroings.load(Ordering::Relaxed),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }
}

/// Adds to a counter. Relaxed: nothing is inferred from one about another.
pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
