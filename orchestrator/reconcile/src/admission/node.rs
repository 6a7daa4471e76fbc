//! Agents that register.

use std::collections::BTreeSet;

use drover_cluster_state::{
    Capacity, ClusterEvent, ClusterState, HostFacts, Incarnation, Key, NameKind, NameRecord, Node, NodeFence,
    Record, Subject, Txn, WallTime, event_kind,
};
use drover_ids::NodeId;
use drover_units::{Bytes, VcpuCount};

use super::{AdmissionError, vm::parse_name};

/// Most pools one node may name.
const POOLS_MAX: usize = 64;

/// What an agent says when it starts (`drover.node.v1.RegisterRequest`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its identity.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// host:port where it serves.
    pub address: String,
    /// What it can hold.
    pub vcpus: u32,
    /// What it can hold.
    pub memory_bytes: u64,
    /// This start.
    pub incarnation: String,
    /// Pools it reaches.
    pub pools: Vec<String>,
    /// Its version.
    pub version: String,
    /// What it says of its host.
    pub facts: HostFacts,
    /// The version of its librbd; empty where it has none.
    pub librbd: String,
}

/// Admits a node, new or known. `None`: nothing has changed since it last registered.
pub fn register_node(
    state: &ClusterState,
    request: &Registration,
    now: WallTime,
) -> Result<Option<Txn>, AdmissionError> {
    let name = parse_name("name", &request.name)?;
    if !is_host_port(&request.address) {
        return Err(AdmissionError::invalid("address", format!("'{}'", request.address), "host:port"));
    }
    if request.vcpus == 0 || request.memory_bytes == 0 {
        return Err(AdmissionError::invalid("capacity", "it is empty", "at least one vCPU and some memory"));
    }
    if request.incarnation.is_empty() || request.incarnation.len() > 64 {
        return Err(AdmissionError::invalid("incarnation", "it is empty or too long", "a UUID"));
    }
    if request.pools.len() > POOLS_MAX {
        return Err(AdmissionError::invalid(
            "pools",
            format!("there are {}", request.pools.len()),
            format!("at most {POOLS_MAX}"),
        ));
    }
    let pools =
        request.pools.iter().map(|pool| parse_name("pools", pool)).collect::<Result<BTreeSet<_>, _>>()?;
    let known = state.nodes.get(&request.node);
    let node = Node {
        id: request.node,
        name: name.clone(),
        address: request.address.clone(),
        capacity: Capacity { vcpus: VcpuCount::new(request.vcpus), memory: Bytes::new(request.memory_bytes) },
        pools,
        incarnation: Incarnation(request.incarnation.clone()),
        version: request.version.clone(),
        librbd: request.librbd.clone(),
        fence: known.map_or(NodeFence::Clear, |known| known.fence.clone()),
        assignments: known.map_or(0, |known| known.assignments),
        facts: request.facts.clone(),
        settings: known.map(|known| known.settings.clone()).unwrap_or_default(),
    };
    if known.is_some_and(|known| known.value == node) {
        return Ok(None);
    }
    let mut txn = Txn::new();
    if known.is_none_or(|known| known.name != name) {
        take_name(state, &mut txn, &node)?;
    }
    match known {
        Some(known) => {
            if known.name != name
                && let Some(old) = state.names.get(&(NameKind::Node, known.name.clone()))
            {
                txn.delete(Key::Name(NameKind::Node, known.name.clone()), old);
            }
            txn.update(known.revision, Record::Node(node));
        }
        None => txn.create(Record::Node(node)),
    }
    txn.event(ClusterEvent {
        at: now,
        kind: event_kind::NODE_REGISTERED.into(),
        subject_id: request.node.to_string(),
        subject_name: name.to_string(),
        message: format!("agent {} at {}", request.version, request.address),
    });
    Ok(Some(txn))
}

/// A name moves from a node that is fenced and holds nothing to the one that has taken its place (a host that was
/// installed anew has a new identity); then the old one is forgotten.
fn take_name(state: &ClusterState, txn: &mut Txn, node: &Node) -> Result<(), AdmissionError> {
    let entry = NameRecord { kind: NameKind::Node, name: node.name.clone(), holder: Subject::Node(node.id) };
    let Some(taken) = state.names.get(&(NameKind::Node, node.name.clone())) else {
        txn.create(Record::Name(entry));
        return Ok(());
    };
    let predecessor = match &taken.holder {
        Subject::Node(id) => state.nodes.get(id),
        _ => None,
    };
    if let Some(old) = predecessor {
        let holds_nothing = !state.vms.values().any(|vm| vm.ownership.involves(old.id));
        if !matches!(old.fence, NodeFence::Fenced(_)) || !holds_nothing {
            return Err(AdmissionError::NameTaken {
                field: "name",
                kind: "node",
                name: node.name.to_string(),
                holder: old.id.to_string(),
            });
        }
        txn.delete(Key::Node(old.id), old);
    }
    txn.update(taken.revision, Record::Name(entry));
    Ok(())
}

fn is_host_port(address: &str) -> bool {
    let printable = address.len() <= 255 && address.chars().all(|c| c.is_ascii_graphic());
    let port = address
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
        .and_then(|(_, port)| port.parse::<u16>().ok());
    printable && port.is_some_and(|port| port != 0)
}
