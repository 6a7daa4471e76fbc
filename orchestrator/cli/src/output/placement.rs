//! What the tables and the JSON form say of policies, projects, moves and explanations.

use drover_client::{
    api::{PlacementStatus, PlannedMove, Project, StoredPolicy},
    placement_api::{Explanation, Label, Settings, Taint},
};
use drover_units::Bytes;
use serde::Serialize;

use super::{
    Row,
    rows::{bytes, micros, state},
};

/// "rack=r1, zone=a".
pub(super) fn labels(labels: &[Label]) -> String {
    labels.iter().map(|label| format!("{}={}", label.key, label.value)).collect::<Vec<_>>().join(", ")
}

/// "gpu=a100:refuse".
pub(super) fn taint(taint: &Taint) -> String {
    let value = if taint.value.is_empty() { String::new() } else { format!("={}", taint.value) };
    format!("{}{value}:{}", taint.key, state(taint.effect().as_str_name(), "TAINT_EFFECT_"))
}

/// A policy.
#[derive(Debug, Serialize)]
pub(crate) struct PolicyRow {
    pub(crate) name: String,
    base: String,
    built_in: bool,
    weights: Vec<WeightRow>,
    seed: u64,
    description: String,
    used_by: Vec<String>,
}

#[derive(Debug, Serialize)]
struct WeightRow {
    term: String,
    weight: u32,
}

impl From<StoredPolicy> for PolicyRow {
    fn from(stored: StoredPolicy) -> Self {
        let policy = stored.policy.unwrap_or_default();
        let weight =
            |one: drover_client::placement_api::Weight| WeightRow { term: one.term, weight: one.weight };
        Self {
            name: policy.name,
            base: policy.base,
            built_in: stored.built_in,
            weights: policy.weights.into_iter().map(weight).collect(),
            seed: policy.seed,
            description: stored.description,
            used_by: stored.used_by,
        }
    }
}

impl PolicyRow {
    fn weights(&self) -> String {
        self.weights.iter().map(|one| format!("{}={}", one.term, one.weight)).collect::<Vec<_>>().join(" ")
    }
}

impl Row for PolicyRow {
    const TITLES: &'static [&'static str] = &["NAME", "BASE", "WEIGHTS", "USED BY", "WHAT IT DOES"];

    fn cells(&self) -> Vec<String> {
        let base = if self.built_in { "(built in)".to_owned() } else { self.base.clone() };
        vec![self.name.clone(), base, self.weights(), self.used_by.join(", "), self.description.clone()]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("base", if self.built_in { "built in".to_owned() } else { self.base.clone() }),
            ("weights", self.weights()),
            ("seed", if self.seed == 0 { String::new() } else { self.seed.to_string() }),
            ("what it does", self.description.clone()),
            ("used by", self.used_by.join(", ")),
        ]
    }
}

/// A project.
#[derive(Debug, Serialize)]
pub(crate) struct ProjectRow {
    name: String,
    policy: String,
    vms: Option<u32>,
    vms_used: u32,
    vcpus: Option<u32>,
    vcpus_used: u32,
    memory_bytes: Option<u64>,
    memory_used_bytes: u64,
}

impl From<Project> for ProjectRow {
    fn from(project: Project) -> Self {
        let limits = project.limits.unwrap_or_default();
        Self {
            name: project.name,
            policy: project.policy,
            vms: limits.vms,
            vms_used: project.vms_used,
            vcpus: limits.vcpus,
            vcpus_used: project.vcpus_used,
            memory_bytes: limits.memory_bytes,
            memory_used_bytes: project.memory_used_bytes,
        }
    }
}

impl Row for ProjectRow {
    const TITLES: &'static [&'static str] = &["NAME", "VMS", "VCPUS", "MEMORY", "POLICY"];

    fn cells(&self) -> Vec<String> {
        let of = |used: String, limit: Option<String>| match limit {
            Some(limit) => format!("{used} / {limit}"),
            None => used,
        };
        vec![
            self.name.clone(),
            of(self.vms_used.to_string(), self.vms.map(|limit| limit.to_string())),
            of(self.vcpus_used.to_string(), self.vcpus.map(|limit| limit.to_string())),
            of(bytes(self.memory_used_bytes), self.memory_bytes.map(bytes)),
            if self.policy.is_empty() { "(the cluster's)".to_owned() } else { self.policy.clone() },
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Self::TITLES.iter().copied().zip(self.cells()).collect()
    }
}

/// One move of a plan.
#[derive(Debug, Serialize)]
pub(crate) struct MoveRow {
    wave: u32,
    vm: String,
    vm_id: String,
    from_node: String,
    to_node: String,
    reason: String,
    expected_us: u64,
    expected_bytes: u64,
}

impl From<PlannedMove> for MoveRow {
    fn from(mv: PlannedMove) -> Self {
        Self {
            wave: mv.wave,
            vm: mv.vm_name,
            vm_id: mv.vm_id,
            from_node: mv.from_node,
            to_node: mv.to_node,
            reason: mv.reason,
            expected_us: mv.expected_us,
            expected_bytes: mv.expected_bytes,
        }
    }
}

impl Row for MoveRow {
    const TITLES: &'static [&'static str] = &["WAVE", "VM", "FROM", "TO", "EXPECTED", "WHY"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.wave.to_string(),
            self.vm.clone(),
            self.from_node.clone(),
            self.to_node.clone(),
            format!("{}, {}", micros(self.expected_us), Bytes::new(self.expected_bytes)),
            self.reason.clone(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Self::TITLES.iter().copied().zip(self.cells()).collect()
    }
}

/// What placement has done, and its settings.
#[derive(Debug, Serialize)]
pub(crate) struct StatusRow {
    policy: String,
    rebalance: String,
    failures_to_survive: u32,
    hosts: u32,
    vms: u32,
    decisions: u64,
    refusals: u64,
    conflicts: u64,
    preemptions: u64,
    last_decision_us: u64,
}

impl StatusRow {
    pub(crate) fn new(status: PlacementStatus, settings: Settings) -> Self {
        Self {
            rebalance: state(settings.rebalance().as_str_name(), "REBALANCE_MODE_"),
            policy: settings.policy,
            failures_to_survive: settings.failures_to_survive,
            hosts: status.hosts,
            vms: status.vms,
            decisions: status.decisions,
            refusals: status.refusals,
            conflicts: status.conflicts,
            preemptions: status.preemptions,
            last_decision_us: status.last_decision_us,
        }
    }
}

impl Row for StatusRow {
    const TITLES: &'static [&'static str] =
        &["POLICY", "REBALANCING", "HOSTS", "VMS", "DECISIONS", "CONFLICTS"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.policy.clone(),
            self.rebalance.clone(),
            self.hosts.to_string(),
            self.vms.to_string(),
            self.decisions.to_string(),
            self.conflicts.to_string(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("policy", self.policy.clone()),
            ("rebalancing", self.rebalance.clone()),
            ("failures to survive", self.failures_to_survive.to_string()),
            ("hosts", self.hosts.to_string()),
            ("vms placed", self.vms.to_string()),
            ("decisions", format!("{}, {} of them refusals", self.decisions, self.refusals)),
            ("conflicts", format!("{}, each decided again", self.conflicts)),
            ("preemptions", self.preemptions.to_string()),
            ("last decision", if self.decisions > 0 { micros(self.last_decision_us) } else { String::new() }),
        ]
    }
}

/// Why a VM runs where it does, or nowhere.
#[derive(Debug, Serialize)]
pub(crate) struct ExplanationRow {
    policy: String,
    considered: u32,
    feasible: u32,
    refusals: Vec<RefusalRow>,
    nearest: Vec<NearestRow>,
    chosen: Option<ChoiceRow>,
    notes: Vec<String>,
    when_placed: Option<Box<ExplanationRow>>,
}

#[derive(Debug, Serialize)]
struct RefusalRow {
    reason: String,
    nodes: u32,
    examples: Vec<String>,
}

#[derive(Debug, Serialize)]
struct NearestRow {
    node: String,
    reasons: Vec<String>,
    remedy: String,
}

#[derive(Debug, Serialize)]
struct ChoiceRow {
    node: String,
    score: i64,
    reason: String,
    terms: Vec<TermRow>,
}

#[derive(Debug, Serialize)]
struct TermRow {
    name: String,
    value: i64,
}

impl ExplanationRow {
    pub(crate) fn new(now: Explanation, when_placed: Option<Explanation>) -> Self {
        Self {
            policy: now.policy,
            considered: now.considered,
            feasible: now.feasible,
            refusals: now
                .refusals
                .into_iter()
                .map(|one| RefusalRow { reason: one.reason, nodes: one.nodes, examples: one.examples })
                .collect(),
            nearest: now
                .nearest
                .into_iter()
                .map(|one| NearestRow { node: one.node_name, reasons: one.reasons, remedy: one.remedy })
                .collect(),
            chosen: now.chosen.map(|one| ChoiceRow {
                node: one.node_name,
                score: one.score,
                reason: one.reason,
                terms: one.terms.into_iter().map(|t| TermRow { name: t.name, value: t.value }).collect(),
            }),
            notes: now.notes,
            when_placed: when_placed.map(|placed| Box::new(Self::new(placed, None))),
        }
    }
}

impl Row for ExplanationRow {
    const TITLES: &'static [&'static str] = &["NODE", "FEASIBLE", "WHY"];

    fn cells(&self) -> Vec<String> {
        let chosen = self.chosen.as_ref();
        vec![
            chosen.map(|chosen| chosen.node.clone()).unwrap_or_default(),
            format!("{} of {}", self.feasible, self.considered),
            chosen.map(|chosen| chosen.reason.clone()).unwrap_or_default(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let refused = self
            .refusals
            .iter()
            .map(|one| format!("{} node(s) {} ({})", one.nodes, one.reason, one.examples.join(", ")));
        let nearest = self.nearest.iter().map(|one| {
            let remedy = if one.remedy.is_empty() { String::new() } else { format!("\n{}", one.remedy) };
            format!("{}: {}{remedy}", one.node, one.reasons.join("; "))
        });
        let chosen = self.chosen.as_ref();
        let terms = chosen.map(|chosen| {
            chosen
                .terms
                .iter()
                .map(|term| format!("{}: {}", term.name, term.value))
                .collect::<Vec<_>>()
                .join("\n")
        });
        let placed = self.when_placed.as_ref().and_then(|placed| placed.chosen.as_ref());
        vec![
            ("policy", self.policy.clone()),
            ("nodes that would do", format!("{} of {}", self.feasible, self.considered)),
            ("chosen", chosen.map_or_else(|| "none".to_owned(), |chosen| chosen.node.clone())),
            ("because", chosen.map(|chosen| chosen.reason.clone()).unwrap_or_default()),
            ("score", terms.unwrap_or_default()),
            ("refused", refused.collect::<Vec<_>>().join("\n")),
            ("nearest miss", nearest.collect::<Vec<_>>().join("\n")),
            ("note", self.notes.join("\n")),
            ("when placed", placed.map(|one| format!("{}: {}", one.node, one.reason)).unwrap_or_default()),
        ]
    }
}
