//! Virtio drivers (virtio 1.2) on the MMIO transport and on PCI: block devices, and queues for whatever else there is.

pub(crate) mod block;
pub(crate) mod pci;
mod queue;
pub(crate) mod single;
pub(crate) mod transport;
