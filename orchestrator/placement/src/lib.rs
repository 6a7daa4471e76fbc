//! Where a VM may run, and why not elsewhere.
//!
//! ```text
//! let mut inventory = Inventory::new();                      // Clone is a cheap snapshot (copy on write)
//! inventory.add_host(&HostSpec)?;                            // also update_host, set_state(NodeId, HostState), remove_host(NodeId)
//! inventory.heartbeat(NodeId, Load)?;                        // measured load; no index work
//! inventory.set_project_limit("web", ProjectLimit { .. });
//! inventory.hold(NodeId, &Request)?;                         // a fact: counts the VM there whether or not it fits; a VM may be
//!                                                            // held on two hosts (both ends of a migration)
//! inventory.release(VmId, NodeId)?;                          // remove_vm(VmId) releases it everywhere
//!
//! let mut decider = Decider::new();                          // scratch and score tables; same answers as a new one
//! decider.decide(&inventory, &Request, &Policy)              // Result<Decision, Refusal>
//! decider.decide_group(&inventory, &[Request], &Policy)      // Result<Vec<Decision>, Refusal>, all or nothing
//! inventory.commit(&Request, &Decision)                      // Result<(), Conflict>: checked again, then held
//! inventory.commit_move(&Request, &Decision)                 // the same for a VM that is held elsewhere already
//! inventory.commit_group(&[Request], &[Decision])            // all or nothing
//! inventory.check(&Request, NodeId)                          // Vec<Reason>: everything against one host
//! explain(&inventory, &Request, &Policy)                     // Explanation: counts per reason, nearest miss, why the winner won
//! Shared::new(inventory).place(&Request, &Policy)            // decide and commit from many threads, conflicts counted, retried
//!
//! inventory.hosts(), inventory.host(NodeId), inventory.vms(), inventory.vm(VmId)   // views: capacity, used, free, place, labels,
//!                                                            // VMs of a host; of a VM: hosts, profile, name, end
//! ```
#![forbid(unsafe_code)]

pub mod cluster;
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
