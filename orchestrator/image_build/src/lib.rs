//! Builds a Debian guest on this machine: a root disk, a kernel and an initramfs, from Debian's packages.
//!
//! The recipe is in `guest-images/linux` and is part of this crate, so that it needs no files beside the program. The work is
//! `mmdebstrap`'s and `mke2fs`'s: as root in a mount namespace of its own, otherwise in a user namespace.
//!
//! [`build`] blocks; it says what it is doing through [`Order::progress`], and ends soon after [`Order::cancelled`] has been
//! set. Whatever happens, no files stay but the three that were asked for, and they appear only when all is done.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "it waits for the programs that it runs")]

mod build;
mod error;
mod order;
mod program;

pub use build::{Built, build};
pub use error::BuildError;
pub use order::{Order, Recipe, Suite};
