//! The one loop that drives a cluster: what happens goes into the planner, what the planner wants is carried out.
//!
//! ```text
//!   gRPC handlers ──► Cluster ──requests──►┐
//!   store's watch ─────────────changes────►│  loop: Planner::step ──► commits, calls, fences (one task each) ──┐
//!   clock ─────────────────────ticks──────►│◄───────────────────────────────answers────────────────────────────┘
//! ```
//!
//! The loop owns the state: readers send a closure ([`Cluster::read`]), writers a pure admission
//! ([`Cluster::submit`]) whose transaction is committed against exactly what it has seen, or admitted again. Nothing in
//! the loop waits: a slow agent, store or reader has a task of its own, and each task a deadline or a bound.
//!
//! Killed at any moment, a new driver loads the store and goes on: it keeps nothing else.
#![forbid(unsafe_code)]

mod cluster;
mod commit;
mod driver;
mod event_log;
mod follow;
mod load;

pub use cluster::{Cluster, DriverGone, SubmitError, View};
pub use driver::{Driver, DriverError, Ports};
pub use event_log::{EVENTS_MAX, EventLog, LoggedEvent, OutOfRange, Sequence};
pub use load::LoadError;
