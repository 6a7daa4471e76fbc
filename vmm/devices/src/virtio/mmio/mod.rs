//! Virtio over MMIO, version 2 (section 4.2).

mod device;
mod interrupt;
mod request;
mod state;

pub use device::{MmioConfig, VirtioMmio};
