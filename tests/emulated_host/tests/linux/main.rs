//! Unmodified Linux under our VMM, in an emulated host.
//!
//! The short form ([`kernels`]) is part of all tests. With `DROVER_LINUX_LONG` set (`cargo xtask test --linux`) the others
//! run as well.
#![allow(clippy::disallowed_methods, reason = "tests measure how long they take, to say so")]

mod hosts;
mod kernels;
