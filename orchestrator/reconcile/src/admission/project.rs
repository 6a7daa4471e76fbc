//! Projects, policies and the cluster's settings: data that steers placement.

use std::collections::BTreeSet;

use drover_cluster_state::{
    Capacity, ClusterEvent, ClusterState, Constraints, DEFAULT_PROJECT, Key, Name, PolicyRecord, Project,
    ProjectLimits, RebalanceMode, Record, Settings, Stored, Txn, VmSpec, WallTime, event_kind,
};

use drover_units::{Bytes, VcpuCount};

use super::{AdmissionError, CreateVm};

/// Most stored policies, and most projects: each is looked at when it is listed.
const STORED_MAX: usize = 1000;

/// Counts `count` VMs of this specification against their project, in the same transaction.
pub(super) fn admit_to_project(
    state: &ClusterState,
    txn: &mut Txn,
    spec: &VmSpec,
    count: u32,
) -> Result<(), AdmissionError> {
    let Some(project) = find_project(state, spec.project())? else { return Ok(()) };
    let usage = state.project_usage(spec.project());
    let asked = (0..count).fold(Capacity::default(), |sum, _| sum.plus(spec.demand()));
    let wanted = usage.taken.plus(asked);
    let limits = &project.limits;
    let over = |what: &str, used: String, asked: String, limit: String| {
        Err(AdmissionError::OverLimit {
            field: "spec.constraints.project",
            project: project.name.clone(),
            problem: format!("{asked} {what} more than the {used} in use exceed its limit of {limit}"),
        })
    };
    let vms = usage.vms.saturating_add(count);
    if let Some(limit) = limits.vms.filter(|limit| vms > *limit) {
        return over("VM(s)", usage.vms.to_string(), count.to_string(), limit.to_string());
    }
    if let Some(limit) = limits.vcpus.filter(|limit| wanted.vcpus > *limit) {
        return over("vCPU(s)", usage.taken.vcpus.to_string(), asked.vcpus.to_string(), limit.to_string());
    }
    if let Some(limit) = limits.memory.filter(|limit| wanted.memory > *limit) {
        return over(
            "of memory",
            usage.taken.memory.to_string(),
            asked.memory.to_string(),
            limit.to_string(),
        );
    }
    let admissions = project.admissions.wrapping_add(1);
    txn.update(project.revision, Record::Project(Project { admissions, ..project.value.clone() }));
    Ok(())
}

/// Whether a project may have one more VM like this.
pub fn check_project(state: &ClusterState, request: &CreateVm) -> Result<(), AdmissionError> {
    let mut spec = VmSpec {
        name: Name::new("question").expect("a constant that is a name"),
        vcpus: VcpuCount::new(request.vcpus),
        memory: Bytes::new(request.memory_bytes),
        image: Name::new("none").expect("a constant that is a name"),
        image_pool: Name::new("none").expect("a constant that is a name"),
        cmdline: String::new(),
        volumes: Vec::new(),
        anti_affinity_group: None,
        priority: 0,
        cloud_init: None,
        devices: Default::default(),
        constraints: Constraints::default(),
        stall: None,
    };
    spec.constraints.project.clone_from(&request.constraints.project);
    admit_to_project(state, &mut Txn::new(), &spec, 1)
}

/// A project by name. The default one may have no record: then it has no limits.
fn find_project<'a>(
    state: &'a ClusterState,
    text: &str,
) -> Result<Option<&'a Stored<Project>>, AdmissionError> {
    let found = state.projects.iter().find(|(name, _)| name.as_str() == text).map(|(_, project)| project);
    if found.is_some() || text == DEFAULT_PROJECT {
        return Ok(found);
    }
    let known = state.projects.keys().map(Name::as_str);
    Err(AdmissionError::not_found("spec.constraints.project", "project", text, known))
}

/// Stores a project, new or known.
pub fn set_project(
    state: &ClusterState,
    name: &Name,
    limits: ProjectLimits,
    policy: Option<&Name>,
    policies: &BTreeSet<Name>,
    now: WallTime,
) -> Result<Option<Txn>, AdmissionError> {
    if let Some(policy) = policy {
        require_policy("policy", policy, policies)?;
    }
    let known = state.projects.get(name);
    let project = Project {
        name: name.clone(),
        limits,
        policy: policy.cloned(),
        admissions: known.map_or(0, |known| known.admissions),
        created_at: known.map_or(now, |known| known.created_at),
    };
    if known.is_some_and(|known| known.value == project) {
        return Ok(None);
    }
    let mut txn = Txn::new();
    txn.event(changed(now, format!("project {name}"), "its limits or its policy"));
    match known {
        Some(known) => txn.update(known.revision, Record::Project(project)),
        None => {
            require_room("name", state.projects.len())?;
            txn.create(Record::Project(project));
        }
    }
    Ok(Some(txn))
}

/// Forgets a project that has no VMs.
pub fn delete_project(state: &ClusterState, name: &str, now: WallTime) -> Result<Txn, AdmissionError> {
    let found = state.projects.iter().find(|(project, _)| project.as_str() == name);
    let Some((_, project)) = found else {
        let known = state.projects.keys().map(Name::as_str);
        return Err(AdmissionError::not_found("name", "project", name, known));
    };
    let vms = state.project_usage(name).vms;
    if vms > 0 {
        let users = format!("{vms} VM(s)");
        return Err(AdmissionError::InUse { field: "name", kind: "project", name: name.to_owned(), users });
    }
    let mut txn = Txn::new();
    txn.event(changed(now, format!("project {name}"), "deleted"));
    txn.delete(Key::Project(project.name.clone()), project);
    Ok(txn)
}

/// Stores a policy. Whether its base and its weights exist has been checked.
pub fn set_policy(
    state: &ClusterState,
    policy: &PolicyRecord,
    now: WallTime,
) -> Result<Option<Txn>, AdmissionError> {
    let known = state.policies.get(&policy.name);
    if known.is_some_and(|known| known.value == *policy) {
        return Ok(None);
    }
    let mut txn = Txn::new();
    txn.event(changed(now, format!("policy {}", policy.name), "its weights"));
    match known {
        Some(known) => txn.update(known.revision, Record::Policy(policy.clone())),
        None => {
            require_room("policy.name", state.policies.len())?;
            txn.create(Record::Policy(policy.clone()));
        }
    }
    Ok(Some(txn))
}

/// Forgets a stored policy that nobody uses; or one that a built-in policy of the same name takes over from.
pub fn delete_policy(
    state: &ClusterState,
    name: &str,
    built_in: &BTreeSet<Name>,
    now: WallTime,
) -> Result<Txn, AdmissionError> {
    let Some(policy) = state.policies.iter().find(|(policy, _)| policy.as_str() == name).map(|(_, p)| p)
    else {
        if built_in.iter().any(|policy| policy.as_str() == name) {
            let problem = format!("policy '{name}' comes with Drover");
            return Err(AdmissionError::wrong_state("name", problem, "a policy that was stored"));
        }
        let known = state.policies.keys().map(Name::as_str);
        return Err(AdmissionError::not_found("name", "policy", name, known));
    };
    let users = policy_users(state, name);
    if !users.is_empty() && !built_in.contains(&policy.name) {
        let users = users.join(", ");
        return Err(AdmissionError::InUse { field: "name", kind: "policy", name: name.to_owned(), users });
    }
    let mut txn = Txn::new();
    txn.event(changed(now, format!("policy {name}"), "deleted"));
    txn.delete(Key::Policy(policy.name.clone()), policy);
    // Neither a project nor the cluster takes it up meanwhile.
    if let Some(settings) = &state.settings {
        txn.require(Key::Settings, settings);
    }
    Ok(txn)
}

/// Who goes by a policy.
pub fn policy_users(state: &ClusterState, name: &str) -> Vec<String> {
    let cluster = (state.settings().policy.as_str() == name).then(|| "the cluster".to_owned());
    let projects = state.projects.values().filter(|p| p.policy.as_ref().is_some_and(|p| p.as_str() == name));
    cluster.into_iter().chain(projects.map(|project| format!("project {}", project.name))).collect()
}

/// A change of the cluster's settings. `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpdateSettings {
    /// The policy of projects that have none.
    pub policy: Option<Name>,
    /// Who carries out moves that balance the cluster.
    pub rebalance: Option<RebalanceMode>,
    /// Hosts whose failure must be survivable.
    pub failures_to_survive: Option<u32>,
}

/// Stores the cluster's settings.
pub fn update_settings(
    state: &ClusterState,
    request: &UpdateSettings,
    policies: &BTreeSet<Name>,
    now: WallTime,
) -> Result<Option<Txn>, AdmissionError> {
    if let Some(policy) = &request.policy {
        require_policy("policy", policy, policies)?;
    }
    let before = state.settings();
    let settings = Settings {
        policy: request.policy.clone().unwrap_or_else(|| before.policy.clone()),
        rebalance: request.rebalance.unwrap_or(before.rebalance),
        failures_to_survive: request.failures_to_survive.unwrap_or(before.failures_to_survive),
    };
    if settings == before {
        return Ok(None);
    }
    let mut txn = Txn::new();
    let message = format!(
        "policy {}, rebalancing {:?}, {} failure(s) to survive",
        settings.policy, settings.rebalance, settings.failures_to_survive
    );
    txn.event(changed(now, "cluster".to_owned(), &message));
    match &state.settings {
        Some(known) => txn.update(known.revision, Record::Settings(settings)),
        None => txn.create(Record::Settings(settings)),
    }
    Ok(Some(txn))
}

fn require_policy(
    field: &'static str,
    policy: &Name,
    policies: &BTreeSet<Name>,
) -> Result<(), AdmissionError> {
    if policies.contains(policy) {
        return Ok(());
    }
    Err(AdmissionError::not_found(field, "policy", policy.as_str(), policies.iter().map(Name::as_str)))
}

fn require_room(field: &'static str, stored: usize) -> Result<(), AdmissionError> {
    if stored < STORED_MAX {
        return Ok(());
    }
    Err(AdmissionError::wrong_state(field, format!("there are {stored}"), "delete one first"))
}

fn changed(at: WallTime, subject: String, message: &str) -> ClusterEvent {
    ClusterEvent {
        at,
        kind: event_kind::PLACEMENT_CHANGED.into(),
        subject_id: subject.clone(),
        subject_name: subject,
        message: message.to_owned(),
    }
}
