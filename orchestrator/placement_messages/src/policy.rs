//! Policies, limits and the cluster's settings.

use drover_cluster_state::{DEFAULT_POLICY, PolicyRecord, ProjectLimits, RebalanceMode, Settings};
use drover_units::{Bytes, VcpuCount};
use drover_wire::placement::v1 as wire;

use crate::fields::{MessageError, each, error, name};

/// Most that a term can weigh, as placement has it.
const WEIGHT_MAX: u32 = 1_000;
/// Most hosts whose failure can be provided for, as placement has it.
const FAILURES_MAX: u32 = 8;

/// A policy, to be shown or stored.
pub fn policy_message(policy: &PolicyRecord) -> wire::Policy {
    let weights = policy.weights.iter();
    wire::Policy {
        name: policy.name.to_string(),
        base: policy.base.to_string(),
        weights: weights
            .map(|(term, weight)| wire::Weight { term: term.to_string(), weight: *weight })
            .collect(),
        seed: policy.seed,
    }
}

/// The policy that a message says. Whether its base and its terms exist is for placement to say.
///
/// # Errors
/// A field that breaks a rule.
pub fn policy_from(message: wire::Policy) -> Result<PolicyRecord, MessageError> {
    let weights = each("weights", message.weights, |place, weight| {
        if weight.weight > WEIGHT_MAX {
            let problem = format!("it is {}", weight.weight);
            return Err(error(format!("{place}.weight"), problem, format!("0 to {WEIGHT_MAX}")));
        }
        Ok((name(&format!("{place}.term"), &weight.term)?, weight.weight))
    })?;
    Ok(PolicyRecord {
        name: name("name", &message.name)?,
        base: name("base", &message.base)?,
        weights: weights.into_iter().collect(),
        seed: message.seed,
    })
}

/// A project's limits, to be shown or stored.
pub fn limits_message(limits: ProjectLimits) -> wire::ProjectLimits {
    wire::ProjectLimits {
        vms: limits.vms,
        vcpus: limits.vcpus.map(VcpuCount::get),
        memory_bytes: limits.memory.map(Bytes::get),
    }
}

/// The limits that a message says.
pub fn limits_from(message: wire::ProjectLimits) -> ProjectLimits {
    ProjectLimits {
        vms: message.vms,
        vcpus: message.vcpus.map(VcpuCount::new),
        memory: message.memory_bytes.map(Bytes::new),
    }
}

/// The cluster's settings, to be shown or stored.
pub fn cluster_settings_message(settings: &Settings) -> wire::Settings {
    let rebalance = match settings.rebalance {
        RebalanceMode::Manual => wire::RebalanceMode::Manual,
        RebalanceMode::Partial => wire::RebalanceMode::Partial,
        RebalanceMode::Automatic => wire::RebalanceMode::Automatic,
    };
    wire::Settings {
        policy: settings.policy.to_string(),
        rebalance: rebalance.into(),
        failures_to_survive: settings.failures_to_survive,
    }
}

/// The settings that a message says.
///
/// # Errors
/// A field that breaks a rule.
pub fn cluster_settings_from(message: wire::Settings) -> Result<Settings, MessageError> {
    let rebalance = match wire::RebalanceMode::try_from(message.rebalance) {
        Ok(wire::RebalanceMode::Unspecified | wire::RebalanceMode::Manual) => RebalanceMode::Manual,
        Ok(wire::RebalanceMode::Partial) => RebalanceMode::Partial,
        Ok(wire::RebalanceMode::Automatic) => RebalanceMode::Automatic,
        Err(unknown) => return Err(error("rebalance", unknown.to_string(), "manual, partial or automatic")),
    };
    if message.failures_to_survive > FAILURES_MAX {
        let problem = format!("it is {}", message.failures_to_survive);
        return Err(error("failures_to_survive", problem, format!("0 to {FAILURES_MAX}")));
    }
    let policy = if message.policy.is_empty() { DEFAULT_POLICY } else { &message.policy };
    Ok(Settings {
        policy: name("policy", policy)?,
        rebalance,
        failures_to_survive: message.failures_to_survive,
    })
}
