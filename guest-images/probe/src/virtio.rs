//! Virtio drivers (virtio 1.2) on the MMIO transport: the block device, and queues for whatever else there is.

pub(crate) mod block;
mod queue;
pub(crate) mod single;
pub(crate) mod transport;
