//! A virtualisation host inside this machine: QEMU emulates an AMD processor with SVM, so that a Debian kernel in it has
//! the genuine `kvm_amd`, in which an unmodified Linux boots under our VMM. It needs neither root nor a `/dev/kvm`.
//!
//! ```text
//!  this machine      EmulatedHost ---- TCP on loopback ---+
//!    QEMU (TCG)                                           |
//!      emulated host: Debian's kernel, busybox,   door: runs programs, moves files, reaches unix sockets
//!                     our programs as built here          |
//!        Linux guest: Debian's kernel and root disk <-- the VMM under test, on the emulated host's /dev/kvm
//! ```
//!
//! Programs in the host are the very files that this workspace's build made: dynamically linked, with the shared
//! libraries of this machine beside them (so that librbd can be given to them as well).
//!
//! - [`debian`]: kernels and busybox from Debian's packages, kept below `target/`
//! - [`EmulatedHost`]: start it, put files in, run programs, reach sockets; dropping it ends it, and so does the death of
//!   its owner
//! - [`guest`]: the small Linux guest of the tests, and the proof that it really ran from its disk
//!
//! What it does not do: measure. Emulated time says nothing about speed.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a driver of processes owns its deadlines")]

mod archive;
mod command;
pub mod debian;
pub mod door;
pub mod ext4;
pub mod guest;
mod host;
mod initramfs;
mod kernel_image;
mod qemu;
mod shared_libraries;

pub use host::{EmulatedHost, HostDisk, HostOptions, Link, Running, free_port};
