//! Virtio over PCI, without the legacy interface (section 4.1).

mod device;
mod interrupt;
mod layout;
mod request;
mod state;

pub use device::{PciConfig, VirtioPci};
