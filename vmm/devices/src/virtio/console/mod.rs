//! Virtio console (section 5.3) with one port: faster than a serial port, which costs the guest an exit for each byte.
//!
//! What the guest writes goes to a [`ConsoleSink`](crate::ConsoleSink); what a person types waits in a bounded buffer
//! until the guest has room for it. Emergency writes, one byte to the configuration space, work without queues.

mod config;
mod device;
mod request;
mod state;

pub use config::ConsoleSize;
pub use device::{ConsoleConfig, ConsolePort, VirtioConsole};
