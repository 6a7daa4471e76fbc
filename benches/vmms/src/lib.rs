//! The virtual machine monitors that benches start.
//!
//! [`Launcher`] starts our vmmd as the node agent does, and [`Vmmd`] speaks to it. [`Ended`] keeps whatever else is started
//! from outliving the bench. What is measured is the bench's own.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "waits have deadlines")]

mod ended;
mod vmmd;

pub use ended::Ended;
pub use vmmd::{Launcher, Vmmd, build, command};
