//! What an operator sets for a node.

use std::collections::{BTreeMap, BTreeSet};

use drover_cluster_state::{
    Capacity, ClusterEvent, ClusterState, Name, Node, NodeSettings, Ratio, Record, Stored, Taint, Txn,
    WallTime, event_kind,
};
use drover_ids::NodeId;

use super::AdmissionError;

/// Most labels, and most taints, that an operator may set for one node.
const SETTINGS_MAX: usize = 64;

/// A change of a node's settings. What is empty or `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpdateNode {
    /// Name or id.
    pub node: String,
    /// Labels to add or replace.
    pub set_labels: BTreeMap<Name, Name>,
    /// Labels to take away, also those that the agent reports.
    pub remove_labels: BTreeSet<Name>,
    /// Taints to add.
    pub add_taints: BTreeSet<Taint>,
    /// Keys of taints to take away.
    pub remove_taints: BTreeSet<Name>,
    /// Whether it takes no new VM.
    pub cordoned: Option<bool>,
    /// Factor for virtual CPUs; `Some(None)`: as the agent reports it.
    pub vcpu_overcommit: Option<Option<Ratio>>,
    /// Factor for memory.
    pub memory_overcommit: Option<Option<Ratio>>,
    /// What is kept for the host.
    pub reserved: Option<Capacity>,
}

/// The node a client means, by id or name.
pub(super) fn find_node<'a>(
    state: &'a ClusterState,
    field: &'static str,
    text: &str,
) -> Result<&'a Stored<Node>, AdmissionError> {
    let by_id = text.parse::<NodeId>().ok().and_then(|id| state.nodes.get(&id));
    by_id.or_else(|| state.node_named(text)).ok_or_else(|| {
        AdmissionError::not_found(field, "node", text, state.nodes.values().map(|n| n.name.as_str()))
    })
}

/// Admits a change of a node's settings. `None`: it changes nothing.
pub fn update_node(
    state: &ClusterState,
    request: &UpdateNode,
    now: WallTime,
) -> Result<(NodeId, Option<Txn>), AdmissionError> {
    let node = find_node(state, "node", &request.node)?;
    let settings = changed(node, request)?;
    if settings == node.settings {
        return Ok((node.id, None));
    }
    let mut txn = Txn::new();
    txn.event(node_changed(node, now, describe(&node.settings, &settings)));
    txn.update(node.revision, Record::Node(Node { settings, ..node.value.clone() }));
    Ok((node.id, Some(txn)))
}

/// A line for the event log.
pub(super) fn node_changed(node: &Node, at: WallTime, message: String) -> ClusterEvent {
    ClusterEvent {
        at,
        kind: event_kind::NODE_CHANGED.into(),
        subject_id: node.id.to_string(),
        subject_name: node.name.to_string(),
        message,
    }
}

fn changed(node: &Node, request: &UpdateNode) -> Result<NodeSettings, AdmissionError> {
    let mut settings = node.settings.clone();
    for (key, value) in &request.set_labels {
        settings.labels.insert(key.clone(), Some(value.clone()));
    }
    for key in &request.remove_labels {
        if !node.labels().contains_key(key) && !request.set_labels.contains_key(key) {
            let known = node.labels();
            let known = known.keys().map(Name::as_str);
            return Err(AdmissionError::not_found("remove_labels", "label", key.as_str(), known));
        }
        if node.facts.labels.contains_key(key) {
            settings.labels.insert(key.clone(), None);
        } else {
            settings.labels.remove(key);
        }
    }
    for key in &request.remove_taints {
        let before = settings.taints.len();
        settings.taints.retain(|taint| taint.key != *key);
        if settings.taints.len() == before {
            let problem = format!("an operator has set no taint '{key}' for node '{}'", node.name);
            let valid = "a taint that `drover node show` lists and that was not given to the agent";
            return Err(AdmissionError::wrong_state("remove_taints", problem, valid));
        }
    }
    settings.taints.extend(request.add_taints.iter().cloned());
    if settings.labels.len() > SETTINGS_MAX || settings.taints.len() > SETTINGS_MAX {
        let problem = format!("there would be more than {SETTINGS_MAX}");
        return Err(AdmissionError::invalid("set_labels", problem, "fewer labels and taints"));
    }
    if request.cordoned == Some(false) && settings.drain.is_some() {
        let problem = format!("node '{}' is being drained", node.name);
        return Err(AdmissionError::wrong_state("cordoned", problem, "undrain it, which also uncordons it"));
    }
    settings.cordoned = request.cordoned.unwrap_or(settings.cordoned);
    settings.vcpu_overcommit = request.vcpu_overcommit.unwrap_or(settings.vcpu_overcommit);
    settings.memory_overcommit = request.memory_overcommit.unwrap_or(settings.memory_overcommit);
    settings.reserved = request.reserved.or(settings.reserved);
    Ok(settings)
}

/// What has changed, in words.
fn describe(before: &NodeSettings, after: &NodeSettings) -> String {
    let mut changes: Vec<String> = Vec::new();
    match (before.cordoned, after.cordoned) {
        (false, true) => changes.push("cordoned".to_owned()),
        (true, false) => changes.push("uncordoned".to_owned()),
        _ => {}
    }
    for (key, value) in &after.labels {
        if before.labels.get(key) != Some(value) {
            changes.push(match value {
                Some(value) => format!("label {key}={value}"),
                None => format!("label {key} removed"),
            });
        }
    }
    let gone = before.labels.keys().filter(|key| !after.labels.contains_key(key));
    changes.extend(gone.map(|key| format!("label {key} as the agent has it")));
    changes.extend(after.taints.difference(&before.taints).map(|taint| format!("taint {taint}")));
    changes.extend(before.taints.difference(&after.taints).map(|taint| format!("taint {taint} removed")));
    if before.vcpu_overcommit != after.vcpu_overcommit || before.memory_overcommit != after.memory_overcommit
    {
        changes.push("overcommit".to_owned());
    }
    if before.reserved != after.reserved {
        changes.push("reserve".to_owned());
    }
    changes.join(", ")
}
