//! What an interface has done since its VMM started.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters, updated by workers and read by anyone at any time. Each is exact; together they are not a snapshot of one
/// moment.
#[derive(Debug, Default)]
pub struct NetMetrics {
    pub(super) packets_received: AtomicU64,
    pub(super) bytes_received: AtomicU64,
    pub(super) packets_sent: AtomicU64,
    pub(super) bytes_sent: AtomicU64,
    pub(super) filtered: AtomicU64,
    pub(super) too_long: AtomicU64,
    pub(super) refused: AtomicU64,
}

/// The counters' values. Bytes are those of packets without their virtio header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetMetricsSnapshot {
    /// Packets that the driver was given.
    pub packets_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Packets that the host's network took.
    pub packets_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Packets that the driver's receive filter kept out.
    pub filtered: u64,
    /// Packets that were longer than the buffers that the driver had posted. They are lost.
    pub too_long: u64,
    /// Packets of the driver that are none, or that the host's network did not take. They are lost.
    pub refused: u64,
}

impl NetMetrics {
    /// The values now.
    pub fn snapshot(&self) -> NetMetricsSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetMetricsSnapshot {
            packets_received: get(&self.packets_received),
            bytes_received: get(&self.bytes_received),
            packets_sent: get(&self.packets_sent),
            bytes_sent: get(&self.bytes_sent),
            filtered: get(&self.filtered),
            too_long: get(&self.too_long),
            refused: get(&self.refused),
        }
    }
}

/// Adds to a counter. Relaxed: nothing is inferred from one about another.
pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
