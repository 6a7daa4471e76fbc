//! The wrapper on a real cluster.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod clusters;
mod images;
mod support;
