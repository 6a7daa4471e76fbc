//! Real Drover clusters on one machine, for tests and for the demo.
//!
//! A [`TestCluster`] is one control plane, some node agents and the vmmds that they spawn, all of them the real binaries as
//! separate processes with state directories below one folder. Its methods kill them the way machines die (SIGKILL) and
//! start them again. [`ledger`] says what guests acknowledged and whether their disks hold it; [`observer`] watches that no
//! VM runs twice.
//!
//! Nothing here asserts a time. Waiting is always for a state, with a deadline.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "this crate drives real processes: it owns the clock and its waits"
)]

mod binaries;
mod cluster;
pub mod ledger;
pub mod observer;
pub mod probe_vm;
mod process;
mod wait;

pub use binaries::Binaries;
pub use cluster::{ClusterOptions, TestCluster};
/// A real Ceph cluster, from the crate that lower layers use directly.
pub use drover_test_ceph_cluster as ceph_cluster;
pub use drover_test_ceph_cluster::CephCluster;
pub use process::{Process, VmmdProcess};
pub use wait::{eventually, eventually_async};
