//! Disks on a real cluster.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "waits for real processes, with deadlines")]

mod conformance;
mod faults;
mod queues;
mod support;
