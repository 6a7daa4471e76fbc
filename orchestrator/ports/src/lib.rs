//! What the control plane needs from the world, as traits: where its state is kept ([`Store`]), who runs the VMs
//! ([`NodeAgents`]), who proves that nobody writes a disk any more ([`Fence`]), and what time it is ([`Clock`]).
//!
//! The traits speak in domain types, those of the planner's effects included, so that a driver hands an effect on as
//! it is. Every implementation of [`Store`], fake or real, passes the suite in
//! [`conformance`]; the in-memory [`fakes`] are for the tests of those who call the ports.
#![forbid(unsafe_code)]

mod agents;
mod clock;
pub mod conformance;
pub mod fakes;
mod fence;
pub mod store;

pub use agents::NodeAgents;
pub use clock::Clock;
pub use fence::Fence;
pub use store::{
    Change, Entry, Guard, Key, Listing, Revision, Store, StoreError, Txn, Watch, WatchBatch, Write,
};
