//! A 16550A serial port: the guest's console.

mod device;
mod state;

pub use device::{ConsoleSink, Serial};
