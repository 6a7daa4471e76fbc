//! The virtual machine monitors that benches start.
//!
//! [`Launcher`] starts our vmmd as the node agent does, and [`Vmmd`] speaks to it. A [`Peer`] is one of the others, started
//! with the same [`Guest`], and [`Peers`] the command line that says where they are. [`Console`] tells when a guest said
//! something, in the same way for all. [`Ended`] keeps whatever is started from outliving the bench, and
//! [`heed_interruptions`] lets a bench that is interrupted remove what it has made. What is measured is the bench's own.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "waits have deadlines")]

mod console;
mod ended;
mod guest;
mod interruption;
mod jail;
mod peers;
mod vmmd;

pub use console::Console;
pub use ended::Ended;
pub use guest::{DiskLimit, Guest};
pub use interruption::{ensure_uninterrupted, heed_interruptions};
pub use peers::{Peer, Peers, Prepared, Running};
pub use vmmd::{Born, Launcher, Vmmd, build, command};
