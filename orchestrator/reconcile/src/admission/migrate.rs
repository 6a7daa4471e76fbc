//! Move a running VM.

use drover_cluster_state::{
    Claim, ClusterState, Desired, Node, NodeState, Operation, OperationKind, Record, Right, RunState, Stored,
    Subject, Txn, Vm, WallTime,
};
use drover_ids::NodeId;
use drover_placement::{Decider, Policy};

use crate::book::{Book, explain, rejections, request_of_move};

use super::{AdmissionError, Admitted, RequestIdentity, find_vm, is_about, repeated, require_idle};

/// Longest pause anybody may ask for, milliseconds. More than this is a stop, not a live migration.
const DOWNTIME_TARGET_MS_MAX: u32 = 60_000;

/// A request to move a VM, as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrateVm {
    /// Name or id.
    pub vm: String,
    /// Name or id. Empty: placement chooses.
    pub target_node: String,
    /// 0: the default.
    pub downtime_target_ms: u32,
}

/// Admits a migration. Whether the target can take the VM is checked now, so that a hopeless request is refused at once,
/// and again when the target is reserved.
pub fn migrate_vm(
    state: &ClusterState,
    book: &Book,
    request: &MigrateVm,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let vm = find_vm(state, "vm", &request.vm)?;
    let kind =
        |target, downtime_target_ms| OperationKind::VmMigrate { target, downtime_target_ms, migration: None };
    if let Some(earlier) = repeated(state, identity, |o| is_about(o, &kind(None, None), vm.id))? {
        return Ok(earlier);
    }
    require_idle(state, vm)?;
    let source = require_running(state, vm)?;
    if request.downtime_target_ms > DOWNTIME_TARGET_MS_MAX {
        return Err(AdmissionError::invalid(
            "downtime_target_ms",
            format!("it is {}", request.downtime_target_ms),
            format!("0 for the default, or 1 to {DOWNTIME_TARGET_MS_MAX}"),
        ));
    }
    let target = match request.target_node.as_str() {
        "" => None,
        text => Some(find_target(state, vm, source, text)?),
    };
    let wanted = request_of_move(vm, source, target);
    let policy = Policy { preemption: false, host_failures: 0, ..book.policy_for(&vm.spec) };
    if Decider::new().decide(book.inventory(), &wanted, &policy).is_err() {
        let explanation = explain(book.inventory(), &wanted, &policy);
        return Err(AdmissionError::NoRoom {
            field: "target_node",
            vm: vm.spec.name.clone(),
            summary: explanation.to_string(),
            rejections: rejections(book.inventory(), &wanted),
        });
    }
    let operation = identity.operation();
    let kind = kind(target, (request.downtime_target_ms != 0).then_some(request.downtime_target_ms));
    let name = vm.spec.name.clone();
    let mut txn = Txn::new();
    txn.create(Record::Operation(Operation::new(operation, kind, Subject::Vm(vm.id), name, now)));
    txn.update(vm.revision, Record::Vm(Vm { operation: Some(operation), ..vm.value.clone() }));
    Ok(Admitted { operation, txn: Some(txn) })
}

/// The node it runs on.
fn require_running(state: &ClusterState, vm: &Stored<Vm>) -> Result<NodeId, AdmissionError> {
    let running = state.owner_report(vm).is_some_and(|r| r.is_live() && r.state == RunState::Running);
    match vm.ownership.right() {
        Right::Owned { node, claim: Claim::Taken, .. }
            if vm.desired == Desired::Running
                && running
                && state.node_state(node) == Some(NodeState::Ready) =>
        {
            Ok(node)
        }
        _ => {
            let problem = format!("VM '{}' does not run ({:?})", vm.spec.name, state.vm_phase(vm));
            Err(AdmissionError::wrong_state("vm", problem, "a VM that runs on a ready node"))
        }
    }
}

fn find_target(state: &ClusterState, vm: &Vm, source: NodeId, text: &str) -> Result<NodeId, AdmissionError> {
    const FIELD: &str = "target_node";
    let by_id = text.parse::<NodeId>().ok().and_then(|id| state.nodes.get(&id));
    let node = by_id.or_else(|| state.node_named(text)).ok_or_else(|| {
        AdmissionError::not_found(FIELD, "node", text, state.nodes.values().map(|n| n.name.as_str()))
    })?;
    if node.id == source {
        let problem = format!("VM '{}' already runs on node '{}'", vm.spec.name, node.name);
        return Err(AdmissionError::invalid(FIELD, problem, others(state, source)));
    }
    match state.node_state(node.id) {
        Some(NodeState::Ready) => Ok(node.id),
        other => {
            let now = other.unwrap_or(NodeState::Unknown);
            let problem = format!("node '{}' is {now}, not ready", node.name);
            Err(AdmissionError::wrong_state(FIELD, problem, others(state, source)))
        }
    }
}

/// "one of: n2, n3", the ready nodes that are not the source.
fn others(state: &ClusterState, source: NodeId) -> String {
    let ready =
        |node: &&Stored<Node>| node.id != source && state.node_state(node.id) == Some(NodeState::Ready);
    let names: Vec<&str> =
        state.nodes.values().filter(ready).map(|node| node.name.as_str()).take(16).collect();
    if names.is_empty() {
        "another ready node, and there is none".to_owned()
    } else {
        format!("one of: {}", names.join(", "))
    }
}
