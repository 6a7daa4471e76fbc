//! The keyboard controller, of which only the reset line is left.

mod device;

pub use device::I8042;
