//! Checkers over cluster state: what must hold whatever the planner does.
//!
//! Written from the invariants (DESIGN section 3), not from the code that should keep them, and free of that code: the
//! simulator and the tests run them after every step, a production control plane can run them as alarms.
//!
//! - [`check`] looks at one state: capacity, anti-affinity, volumes, names, operations, the shape of each right to run.
//! - [`History`] looks at successive states: epochs only grow, no grant is dropped without evidence (B7), what has ended
//!   stays ended.
//! - [`check_runners`] looks at what really runs: one process per VM executes the guest (B6).
//! - [`PlainCluster`] looks at placement: every hard constraint and every capacity, and whether VMs fit at all.
#![forbid(unsafe_code)]

mod history;
mod placement;
mod runners;
mod snapshot;

use std::fmt;

pub use history::History;
pub use placement::{
    PlainAffinity, PlainCluster, PlainHost, PlainLabelRule, PlainLimit, PlainNuma, PlainPages, PlainPeers,
    PlainScope, PlainSpread, PlainVm, Standing,
};
pub use runners::{Runner, check_runners};
pub use snapshot::check;

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule: a stable, short name.
    pub rule: &'static str,
    /// What breaks it, for people.
    pub what: String,
}

impl Violation {
    fn new(rule: &'static str, what: impl Into<String>) -> Self {
        Self { rule, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}
