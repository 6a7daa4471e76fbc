//! Virtio entropy device (section 5.4): the host kernel's random numbers, a bounded number of bytes to a request and to
//! a time.
//!
//! A guest needs a few hundred bytes when it boots and as much now and then; one that asks for ever costs the host a
//! bounded share of a processor.

mod device;
mod request;
mod state;

pub use device::{RngConfig, RngMetrics, VirtioRng};
