//! Where a VM may run, and why not elsewhere.
//!
//! [`decide`] is a pure function of an [`Inventory`] (what each node has, holds and reaches) and a [`Request`]. Hard
//! constraints come first: node state, CPU, memory, pools, anti-affinity, and what the caller asks for. Of the nodes
//! that pass, the caller's preferred one wins; otherwise the *tightest*: the one with the least memory, then the fewest
//! CPUs left afterwards, so that large gaps stay whole for large VMs. Ties go to the smaller node id: equal input gives
//! equal output.
//!
//! A refusal names every reason of every node ([`Rejections`]), so that nobody has to guess which one to cure first.
//!
//! Committing a decision is the caller's: it decides on a snapshot and stores the assignment with a guard on the node's
//! record, so that two decisions made on the same view of a node cannot both stand.
#![forbid(unsafe_code)]

mod decide;
mod inventory;
mod reason;

pub use decide::{Decision, Request, Score, decide};
pub use inventory::{Host, Inventory};
pub use reason::{Reason, Rejection, Rejections};
