//! A virtio driver (virtio 1.2) for one block device on the MMIO transport.

pub(crate) mod block;
mod queue;
mod transport;
