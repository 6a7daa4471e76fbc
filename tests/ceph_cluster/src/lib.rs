//! A real Ceph cluster on one machine, for tests and benches: [`CephCluster`].
//!
//! The daemons are the distribution's own (`ceph-mon`, `ceph-osd`, from version 16), with cephx on and BlueStore below, in a
//! private directory in memory, on a loopback address of their own, so that several clusters run side by side. One is up in
//! about two seconds and gone in a fraction of one.
//!
//! Nothing survives the process that started it: dropping the value takes the cluster down, and a watcher process does so when
//! the owner is killed. Should the watcher be killed too, the next start finds the directory of a dead owner and clears it.
//! [`CephCluster::leave_running`] is the exception, for a cluster that a developer starts by hand.
//!
//! Calls block. This crate depends on no other layer, so that the lowest crates may use it in their tests; a test begins with
//! `if !drover_test_prerequisites::ceph() { return; }`.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "this crate drives real processes: it owns the clock and its waits"
)]

mod admin_socket;
mod cluster;
mod command;
mod configuration;
mod daemon;
mod directory;
mod error;
mod leaks;
mod left_running;
mod options;
mod start;

pub use cluster::CephCluster;
pub use daemon::Daemon;
pub use error::CephError;
pub use leaks::LeakReport;
pub use left_running::LeftRunning;
pub use options::{CephOptions, Heartbeats, Paxos, PoolOptions};
