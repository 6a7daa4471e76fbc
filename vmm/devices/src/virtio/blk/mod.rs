//! Virtio block device (section 5.2): a thread per queue between the rings and a backend.
//!
//! ```text
//! driver --avail ring, doorbell--> worker --parse--> Request --submit--> backend
//! driver <--used ring, interrupt-- worker <--reap--- Completion <--event--+
//! ```
//!
//! Pausing stops taking from the avail ring and waits until everything taken has been answered, so that a request is
//! either in the ring, and moves with guest RAM, or done. A backend that says that this process has lost the disk stops
//! the worker and the VM; the guest never hears of it.

mod announcer;
mod config;
mod device;
mod metrics;
mod ranges;
mod request;
mod state;
mod worker;

pub use device::{BLK_QUEUES_MAX, BlkConfig, VirtioBlk};
pub use metrics::{BlkMetrics, BlkMetricsSnapshot};
