//! Virtio: the seam between transports and devices. Section numbers are of virtio 1.2.

pub(crate) mod balloon;
pub(crate) mod blk;
mod chain;
pub(crate) mod console;
mod control;
mod device;
mod kind;
pub(crate) mod mmio;
mod negotiation;
pub(crate) mod net;
pub(crate) mod pci;
mod ring;
pub(crate) mod rng;
mod service;
mod throttle;
pub(crate) mod vsock;

pub use device::{ActivateError, Activation, ActiveQueue, VirtioDevice, VirtioInterrupt};
pub use kind::VirtioKind;
pub use throttle::Throttle;
