//! Moves of many VMs: emptying nodes and racks, balancing, making room.
//!
//! Each is planned before it is admitted: what cannot be carried out is refused before the first VM moves. A drain is
//! stored as what is wanted of its nodes and is planned anew as it goes; the other plans are short and are stored.

use std::collections::BTreeSet;

use drover_cluster_state::{
    ClusterState, Drain, Moves, MovesPurpose, Name, Node, NodeSettings, Operation, OperationKind,
    PlannedMove, RACK_LABEL, Record, Stored, Subject, Txn, WallTime,
};
use drover_ids::{NodeId, VmId};
use drover_placement::Request;
use drover_rebalance::{Parallelism, Plan, RoomLimits};

use super::{
    AdmissionError, Admitted, CreateVm, RequestIdentity,
    node_settings::{find_node, node_changed},
    repeated,
    vm::find_volume,
};
use crate::book::{Book, immovable};

/// Moves at once unless somebody says otherwise: one sender fills a link, a second hides its pauses.
pub const PARALLEL_DEFAULT: u32 = 2;
/// Most moves at once that anybody may ask for.
const PARALLEL_MAX: u32 = 64;
/// Most moves of a stored plan: they are written into the operation.
const PLANNED_MAX: usize = 256;

/// Which nodes are to be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DrainTarget {
    /// One, by name or id.
    Node(String),
    /// Those with this rack label.
    Rack(String),
}

/// A plan, and what to commit for it.
#[derive(Clone, Debug)]
pub struct AdmittedMoves {
    /// What would be moved, as things are now.
    pub plan: Plan,
    /// The operation to follow. `None`: nothing is to be done, or it was a dry run.
    pub admitted: Option<Admitted>,
}

/// How many migrations may run at the same time.
pub(crate) fn parallelism(parallel: u32) -> Parallelism {
    let parallel = parallel.max(1);
    Parallelism { per_source: parallel, per_target: parallel, cluster: parallel }
}

fn check_parallel(parallel: u32) -> Result<u32, AdmissionError> {
    match parallel {
        0 => Ok(PARALLEL_DEFAULT),
        1..=PARALLEL_MAX => Ok(parallel),
        _ => Err(AdmissionError::invalid(
            "parallel",
            format!("it is {parallel}"),
            format!("1 to {PARALLEL_MAX}"),
        )),
    }
}

fn drain_nodes<'a>(
    state: &'a ClusterState,
    target: &DrainTarget,
) -> Result<(Vec<&'a Stored<Node>>, Subject, Name), AdmissionError> {
    match target {
        DrainTarget::Node(text) => {
            let node = find_node(state, "node", text)?;
            Ok((vec![node], Subject::Node(node.id), node.name.clone()))
        }
        DrainTarget::Rack(text) => {
            let rack = |node: &Node| node.label(RACK_LABEL).map(ToString::to_string);
            let nodes: Vec<_> = state.nodes.values().filter(|n| rack(n).as_ref() == Some(text)).collect();
            let Some(name) = Name::new(text).ok().filter(|_| !nodes.is_empty()) else {
                let known: BTreeSet<String> = state.nodes.values().filter_map(|node| rack(node)).collect();
                return Err(AdmissionError::not_found(
                    "rack",
                    "rack",
                    text,
                    known.iter().map(String::as_str),
                ));
            };
            Ok((nodes, Subject::Rack(name.clone()), name))
        }
    }
}

/// Admits the emptying of a node or a rack.
pub fn drain(
    state: &ClusterState,
    book: &Book,
    target: &DrainTarget,
    parallel: u32,
    dry_run: bool,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<AdmittedMoves, AdmissionError> {
    let (nodes, subject, name) = drain_nodes(state, target)?;
    let same = |operation: &Operation| {
        matches!(&operation.kind, OperationKind::Moves(_)) && operation.subject_name == name
    };
    if let Some(earlier) = repeated(state, identity, same)? {
        return Ok(AdmittedMoves { plan: Plan::default(), admitted: Some(earlier) });
    }
    let parallel = check_parallel(parallel)?;
    if let Some(node) = nodes.iter().find(|node| node.settings.drain.is_some() && !dry_run) {
        let problem = format!("node '{}' is being drained already", node.name);
        return Err(AdmissionError::wrong_state(
            "node",
            problem,
            "a node that is not, or `undrain` it first",
        ));
    }
    let ids: BTreeSet<NodeId> = nodes.iter().map(|node| node.id).collect();
    let nobody = BTreeSet::new();
    let plan =
        drover_rebalance::drain(&book.basis(&nobody), &ids, &parallelism(parallel)).map_err(|refused| {
            AdmissionError::Infeasible {
                field: "node",
                what: format!("draining '{name}'"),
                problem: refused.to_string(),
            }
        })?;
    if dry_run {
        return Ok(AdmittedMoves { plan, admitted: None });
    }
    let operation = identity.operation();
    let purpose = match target {
        DrainTarget::Node(_) => MovesPurpose::DrainNode,
        DrainTarget::Rack(_) => MovesPurpose::DrainRack,
    };
    let total = u32::try_from(plan.len()).unwrap_or(u32::MAX);
    let kind = OperationKind::Moves(Moves { purpose, parallel, total, planned: Vec::new() });
    let mut txn = Txn::new();
    for node in nodes {
        let settings =
            NodeSettings { cordoned: true, drain: Some(Drain { operation }), ..node.settings.clone() };
        txn.event(node_changed(node, now, format!("is drained: {total} VM(s) are to move")));
        txn.update(node.revision, Record::Node(Node { settings, ..node.value.clone() }));
    }
    txn.create(Record::Operation(Operation::new(operation, kind, subject, name, now)));
    Ok(AdmittedMoves { plan, admitted: Some(Admitted { operation, txn: Some(txn) }) })
}

/// Admits the end of a drain: its nodes take VMs again, and what has not moved stays.
pub fn undrain(
    state: &ClusterState,
    target: &DrainTarget,
    now: WallTime,
) -> Result<(Vec<NodeId>, Option<Txn>), AdmissionError> {
    let (nodes, _, _) = drain_nodes(state, target)?;
    let ids = nodes.iter().map(|node| node.id).collect();
    let mut txn = Txn::new();
    let mut operations = BTreeSet::new();
    for node in nodes.into_iter().filter(|node| node.is_cordoned()) {
        operations.extend(node.settings.drain.map(|drain| drain.operation));
        let settings = NodeSettings { cordoned: false, drain: None, ..node.settings.clone() };
        txn.event(node_changed(node, now, "takes VMs again".to_owned()));
        txn.update(node.revision, Record::Node(Node { settings, ..node.value.clone() }));
    }
    for operation in operations.iter().filter_map(|id| state.operations.get(id)) {
        if operation.is_running() && !operation.cancel_requested {
            let cancelled = Operation { cancel_requested: true, ..operation.value.clone() };
            txn.update(operation.revision, Record::Operation(cancelled));
        }
    }
    Ok((ids, (!txn.writes.is_empty()).then_some(txn)))
}

/// Admits moves that balance the cluster, if there are any that are worth it.
pub fn rebalance(
    state: &ClusterState,
    book: &Book,
    parallel: u32,
    dry_run: bool,
    identity: &RequestIdentity,
    now: drover_cluster_state::Now,
) -> Result<AdmittedMoves, AdmissionError> {
    let parallel = check_parallel(parallel)?;
    if let Some(earlier) = repeated(state, identity, |o| is_for(o, MovesPurpose::Rebalance))? {
        return Ok(AdmittedMoves { plan: Plan::default(), admitted: Some(earlier) });
    }
    let stays = immovable(state);
    let plan = book.rebalancer().clone().propose(now.moment, &book.basis(&stays)).plan;
    store(plan, MovesPurpose::Rebalance, parallel, dry_run, identity, now.wall)
}

/// Admits moves after which a VM that fits nowhere has room.
pub fn defragment(
    state: &ClusterState,
    book: &Book,
    request: &Request,
    parallel: u32,
    dry_run: bool,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<AdmittedMoves, AdmissionError> {
    let parallel = check_parallel(parallel)?;
    if let Some(earlier) = repeated(state, identity, |o| is_for(o, MovesPurpose::Defragment))? {
        return Ok(AdmittedMoves { plan: Plan::default(), admitted: Some(earlier) });
    }
    let stays = immovable(state);
    let limits = RoomLimits { parallelism: parallelism(parallel), ..RoomLimits::default() };
    let made = drover_rebalance::defragment(&book.basis(&stays), std::slice::from_ref(request), &limits);
    let made = made.map_err(|no_room| AdmissionError::Infeasible {
        field: "spec",
        what: format!("making room for '{}'", request.name),
        problem: no_room.explanation.to_string(),
    })?;
    store(made.plan, MovesPurpose::Defragment, parallel, dry_run, identity, now)
}

fn is_for(operation: &Operation, purpose: MovesPurpose) -> bool {
    matches!(&operation.kind, OperationKind::Moves(moves) if moves.purpose == purpose)
}

fn store(
    plan: Plan,
    purpose: MovesPurpose,
    parallel: u32,
    dry_run: bool,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<AdmittedMoves, AdmissionError> {
    if dry_run || plan.is_empty() {
        return Ok(AdmittedMoves { plan, admitted: None });
    }
    let operation = identity.operation();
    let mut txn = Txn::new();
    txn.create(Record::Operation(stored_plan(&plan, purpose, parallel, operation, now)));
    Ok(AdmittedMoves { plan, admitted: Some(Admitted { operation, txn: Some(txn) }) })
}

/// The operation that carries out a plan.
pub(crate) fn stored_plan(
    plan: &Plan,
    purpose: MovesPurpose,
    parallel: u32,
    operation: drover_ids::OperationId,
    now: WallTime,
) -> Operation {
    let planned: Vec<PlannedMove> = plan
        .moves()
        .take(PLANNED_MAX)
        .map(|mv| PlannedMove { vm: mv.vm, from: mv.from, to: mv.to })
        .collect();
    let total = u32::try_from(planned.len()).unwrap_or(u32::MAX);
    let kind = OperationKind::Moves(Moves { purpose, parallel, total, planned });
    let name = Name::new("cluster").expect("a constant that is a name");
    Operation::new(operation, kind, Subject::Cluster, name, now)
}

/// What a VM that does not exist would ask for. Its image and its volumes need not exist either; those that do bring
/// their pools with them.
pub fn question_of(state: &ClusterState, request: &CreateVm, now: WallTime) -> Request {
    let unnamed = Name::new("none").expect("a constant that is a name");
    let image = Name::new(&request.image).ok().and_then(|name| state.images.get(&name));
    let volumes = request.volumes.iter().filter_map(|text| find_volume(state, "spec.volumes", text).ok());
    let mut pools: BTreeSet<String> = volumes.map(|volume| volume.pool.to_string()).collect();
    pools.extend(image.map(|image| image.pool.to_string()));
    let spec = drover_cluster_state::VmSpec {
        name: Name::new(&request.name).unwrap_or_else(|_| unnamed.clone()),
        vcpus: drover_units::VcpuCount::new(request.vcpus),
        memory: drover_units::Bytes::new(request.memory_bytes),
        image: unnamed.clone(),
        image_pool: unnamed,
        cmdline: String::new(),
        volumes: Vec::new(),
        anti_affinity_group: Name::new(&request.anti_affinity_group).ok(),
        priority: request.priority,
        cloud_init: None,
        devices: Default::default(),
        constraints: request.constraints.clone(),
        stall: None,
    };
    // No VM has this id.
    let mut question = crate::book::request_of_spec(VmId::from_u128(0), &spec, now);
    std::sync::Arc::make_mut(&mut question.profile).pools = pools;
    question
}
