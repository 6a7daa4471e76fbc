//! PCI devices that come and go while a guest runs.

mod device;
mod state;

pub use device::Hotplug;
