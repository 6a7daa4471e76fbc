//! Unmodified Linux under our VMM, in an emulated host.
//!
//! The short form ([`kernels`]) is part of all tests. With `DROVER_LINUX_LONG` set (`cargo xtask test --linux`) the others
//! run as well.
#![allow(clippy::disallowed_methods, reason = "tests measure how long they take, to say so")]

mod debian;
mod hosts;
mod hotplug;
mod kernels;
mod librbd;
mod migration;
mod vmmd;

use drover_test_prerequisites::skipped;

/// Whether the long form has been asked for.
fn wants_long() -> bool {
    std::env::var_os("DROVER_LINUX_LONG").is_some()
}

/// The same. Where it has not, the running test is recorded as skipped.
fn long() -> bool {
    let long = wants_long();
    if !long {
        skipped("a long test: `cargo xtask test --linux`");
    }
    long
}
