//! The steps from a configuration to a machine. Each consumes the one before; dropping one undoes them all.

mod devices_ready;
mod memory_ready;
mod planned;
mod volumes_open;

pub use devices_ready::DevicesReady;
pub use memory_ready::MemoryReady;
pub use planned::Planned;
pub use volumes_open::VolumesOpen;
