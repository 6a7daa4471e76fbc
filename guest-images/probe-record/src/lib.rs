//! What the probe guest is told, writes and reports: one vocabulary for the guest and for every test that judges it.
//!
//! | module | the guest uses it to | the host uses it to |
//! |---|---|---|
//! | [`command_line`] | learn its work and its devices | say what the work is ([`Workload`] displays as a command line) |
//! | [`mod@bench`] | measure a disk | say what to measure |
//! | [`event`] | write JSON lines on the serial port | read them back (feature `std`) |
//! | [`stamp`] | write and check 4 KiB disk blocks | judge a disk image |
//! | [`recovery`], [`window`] | resume its sequence after a restart, keep it in order | - |
//! | [`pace`], [`page`] | hold a rate; fill and check pages of RAM | - |
//! | [`console`], [`image`] (`std`) | - | summarise console logs; prove that no acknowledged write is lost |
//!
//! Without the default feature `std` the crate needs `core` alone. It does no I/O, but for [`image`] that reads a disk.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

pub mod bench;
pub mod command_line;
pub mod event;
pub mod pace;
pub mod page;
pub mod recovery;
pub mod stamp;
pub mod window;

#[cfg(feature = "std")]
pub mod console;
#[cfg(feature = "std")]
pub mod image;

pub use bench::BenchWork;
pub use command_line::{
    CommandLine, DirtyWork, DiskWork, MmioDevice, OrderedWork, ParseError, VisitorWork, Workload,
};
pub use event::{BenchFigures, DiskState, Event, VisitorState};
pub use stamp::{BLOCK_BYTES, Block, Life, Stamp, StampError};

#[cfg(feature = "std")]
pub use console::{ConsoleLog, HeartbeatGap, LogLife, VisitorLog};
#[cfg(feature = "std")]
pub use image::{Claim, ImageReport, verify_image};

/// Mixes a number into one whose bits all depend on all of its bits (the finaliser of SplitMix64,
/// Steele, Lea and Flood, OOPSLA 2014).
pub(crate) const fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
