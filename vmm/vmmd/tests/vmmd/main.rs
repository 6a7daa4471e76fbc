//! The real binary, the real probe, real KVM: each test starts its own processes in its own directory.
#![allow(clippy::disallowed_methods, reason = "tests wait for processes, with deadlines")]

mod ahead;
mod ceph;
mod ceph_faults;
mod ceph_owners;
mod devices;
mod footprint;
mod hotplug;
mod isolation;
mod jailed;
mod lease;
mod life;
mod migration;
mod support;
mod suspend;
mod volumes;
