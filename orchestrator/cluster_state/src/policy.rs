//! What steers placement and is stored as data: policies, projects, and the cluster's own settings. A change is in
//! force for the next decision; nothing restarts.

use std::collections::BTreeMap;

use drover_units::{Bytes, VcpuCount};

use crate::{Capacity, Name, WallTime};

/// The name of the project of VMs that name none.
pub const DEFAULT_PROJECT: &str = "default";
/// The policy of a cluster in which nobody has chosen one.
pub const DEFAULT_POLICY: &str = "pack";

/// A policy that somebody has stored. The built-in ones need no record; one of the same name takes their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRecord {
    /// Unique among policies.
    pub name: Name,
    /// The built-in policy it starts from.
    pub base: Name,
    /// What it weighs differently, by the name of the term, 0 to 1000.
    pub weights: BTreeMap<Name, u32>,
    /// Breaks ties: equal input and seed give equal decisions.
    pub seed: u64,
}

/// What a project may have. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectLimits {
    /// VMs, running or not.
    pub vms: Option<u32>,
    /// Their virtual CPUs.
    pub vcpus: Option<VcpuCount>,
    /// Their memory.
    pub memory: Option<Bytes>,
}

/// Who VMs belong to, as stored. The project "default" needs no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// Unique among projects.
    pub name: Name,
    /// What it may have.
    pub limits: ProjectLimits,
    /// Its placement policy. `None`: the cluster's.
    pub policy: Option<Name>,
    /// Grows with every VM that is admitted to it: two requests that were checked against the same view of its limits
    /// cannot both be stored.
    pub admissions: u64,
    /// When it was first stored.
    pub created_at: WallTime,
}

/// What the VMs of a project take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProjectUsage {
    /// How many they are.
    pub vms: u32,
    /// The sum of their demands, running or not.
    pub taken: Capacity,
}

/// Who carries out what the rebalancing planner proposes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebalanceMode {
    /// Somebody asks for a plan and applies it.
    #[default]
    Manual,
    /// New VMs are placed by policy; moves are proposed in the event log and wait for somebody.
    Partial,
    /// Proposals are carried out.
    Automatic,
}

/// The cluster's settings, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The policy of projects that have none.
    pub policy: Name,
    /// Who carries out moves that balance the cluster.
    pub rebalance: RebalanceMode,
    /// Hosts whose failure must always be survivable: their VMs' room is kept free.
    pub failures_to_survive: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: Name::new(DEFAULT_POLICY).expect("a constant that a test reads"),
            rebalance: RebalanceMode::default(),
            failures_to_survive: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_policy_has_a_valid_name() {
        assert_eq!(Settings::default().policy.as_str(), DEFAULT_POLICY);
    }
}
