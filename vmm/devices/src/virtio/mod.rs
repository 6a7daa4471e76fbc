//! Virtio: the seam between transports and devices. Section numbers are of virtio 1.2.

pub(crate) mod blk;
mod device;
pub(crate) mod mmio;
mod negotiation;
pub(crate) mod pci;

pub use device::{ActivateError, Activation, ActiveQueue, VirtioDevice, VirtioInterrupt};
