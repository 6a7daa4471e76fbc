//! Where a VM may run, and why not elsewhere.
//!
//! An embeddable engine for a control plane, a simulator or a bench: no I/O, no clock, no randomness. Three values meet in
//! a decision:
//!
//! - an [`Inventory`]: hosts ([`HostSpec`]: CPU, memory, hugepages, NUMA, labels, taints, topology, pools, networks) and the
//!   VMs they hold, kept up to date event by event. Cloning it is a snapshot that costs a pointer per 64 entries;
//! - a [`Request`]: one VM with its [`Profile`] (flavour, affinity, spread, labels, tolerations, project, priority …);
//! - a [`Policy`]: weights of terms, as plain data that may change between any two decisions.
//!
//! ```
//! use std::sync::Arc;
//! use drover_ids::{NodeId, VmId};
//! use drover_placement::{
//!     Affinity, Decider, Demand, Direction, HostSpec, Inventory, Peers, Policy, Profile, Request, Scope, Strength, explain,
//! };
//! use drover_units::{Bytes, VcpuCount};
//!
//! let mut inventory = Inventory::new();
//! for n in 1..=2 {
//!     let id = NodeId::from_u128(n);
//!     inventory.add_host(&HostSpec::new(id, format!("host-{n}"), VcpuCount::new(16), Bytes::gib(64)))?;
//! }
//! // Replicas of a database, each on a host of its own.
//! let apart = Affinity {
//!     peers: Peers::Group("db".into()),
//!     direction: Direction::Apart,
//!     scope: Scope::Host,
//!     strength: Strength::Required,
//! };
//! let replica = Arc::new(Profile {
//!     groups: ["db".into()].into(),
//!     affinity: vec![apart],
//!     ..Profile::new(Demand::new(VcpuCount::new(4), Bytes::gib(16)))
//! });
//! let policy = Policy::named("least-fragmentation")?;
//! let mut decider = Decider::new();
//! for n in 1..=2 {
//!     let request = Request::new(VmId::from_u128(n), Arc::clone(&replica));
//!     let decision = decider.decide(&inventory, &request, &policy)?;
//!     inventory.commit(&request, &decision)?;
//! }
//! let third = Request { name: "db-3".into(), ..Request::new(VmId::from_u128(3), replica) };
//! assert!(decider.decide(&inventory, &third, &policy).is_err());
//! println!("{}", explain(&inventory, &third, &policy));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What holds
//!
//! - **Exact.** A decision breaks no required rule and no capacity; a refusal means that no host would do. Nothing is sampled.
//! - **Deterministic.** Equal hosts, VMs, request, policy and seed give an equal answer, whatever the order of the events before.
//! - **Fast.** The time of a decision follows the number of different kinds of hosts, not the number of hosts; how is told in
//!   `docs/adr/0007-placement-index.md`.
//! - **Safe to share.** A decision counts for nothing until [`Inventory::commit`], which checks again against what is there
//!   then; a [`Conflict`] says what has changed. [`Shared`] does that from many threads, counts conflicts and retries.
//!
//! # Order of things
//!
//! A project's limit comes first, then the host that the request asks for or prefers, then the policy's best. If there is
//! none and the policy preempts, VMs of lower priority may have to go ([`Decision::victims`]). Last, the policy may keep
//! room for the failure of its fullest hosts ([`Policy::host_failures`]). [`Decider::decide_group`] does all this for several
//! VMs, or for none of them.
//!
//! Deliberately not here: time (ends of VMs are numbers that the caller compares), migration (planners live in
//! `drover-rebalance`, on [`Inventory`] snapshots and [`Decider::rank`]), and storing anything.
#![forbid(unsafe_code)]

mod commit;
mod constraints;
mod containers;
mod decide;
mod decision;
mod explain;
mod host;
mod inventory;
mod policy;
mod reason;
mod request;
mod shared;

pub use decide::{Decider, decide};
pub use decision::{Conflict, Decision, HostVersion, LimitReached, Refusal, Score};
pub use explain::{Contender, Explanation, NearestMiss, Outcome, ReasonCount, TermScore, explain};
pub use host::{
    HostCpu, HostMemory, HostSpec, HostState, Load, NUMA_NODES_MAX, NumaNode, PageBacking, Percent, Taint,
    TaintEffect, Topology,
};
pub use inventory::{HostView, HugepageUse, Inventory, InventoryError, NumaUse, VmView};
pub use policy::{
    HOST_FAILURES_MAX, NAMED, POLICY_NAME_MAX, Policies, Policy, PolicyError, TERM_SCALE, Term, Ties,
    WEIGHT_MAX, Weights,
};
pub use reason::{CentiVcpus, Reason, VmName};
pub use request::{
    Affinity, Demand, Direction, LabelMatch, LabelRule, NumaPolicy, PREFERENCE_MAX, Peers, Pinning, Profile,
    ProjectLimit, ProjectUsage, Request, Scope, Seconds, Spread, Strength, Toleration,
};
pub use shared::{Counts, PlaceError, Shared, TRIES_MAX};

#[cfg(test)]
mod tests;
