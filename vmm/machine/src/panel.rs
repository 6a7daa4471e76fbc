//! What others than a machine's owner may do with it at any time.

use std::sync::Arc;

use drover_devices::{BlkMetrics, BlkMetricsSnapshot, Serial};

/// A machine's console input and counters. Clones share them. It keeps neither the guest nor its disks alive: on a
/// machine that has gone, typing has no effect and the counters stand still.
#[derive(Clone, Debug)]
pub struct Panel {
    pub(crate) serial: Arc<Serial>,
    pub(crate) disk_metrics: Arc<[Arc<BlkMetrics>]>,
}

impl Panel {
    /// Types on the serial console. Returns how many bytes the guest's port had room for. Never waits.
    pub fn console_input(&self, bytes: &[u8]) -> usize {
        self.serial.input(bytes)
    }

    /// Each disk's counters, in the order in which the disks were given.
    pub fn disk_metrics(&self) -> impl Iterator<Item = BlkMetricsSnapshot> {
        self.disk_metrics.iter().map(|metrics| metrics.snapshot())
    }
}
