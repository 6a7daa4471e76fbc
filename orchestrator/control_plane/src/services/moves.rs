//! Moves of many VMs: planned, shown, and followed as operations.

use drover_cluster_state::{ClusterState, Txn};
use drover_driver::View;
use drover_ids::OperationId;
use drover_ports::Store;
use drover_reconcile::admission::{self, AdmissionError, AdmittedMoves, DrainTarget};
use drover_wire::control::v1 as wire;
use tonic::Status;

use super::{Api, identity};
use crate::{
    convert,
    status::{invalid, submit_failed},
};

/// What a plan is to people, and the operation that carries it out.
type Planned = (Vec<wire::PlannedMove>, String, Option<OperationId>);

fn target(node: String, rack: String) -> Result<DrainTarget, Status> {
    match (node.is_empty(), rack.is_empty()) {
        (false, true) => Ok(DrainTarget::Node(node)),
        (true, false) => Ok(DrainTarget::Rack(rack)),
        _ => Err(invalid("node", "it names neither, or both", "a node, or a rack")),
    }
}

fn show(state: &ClusterState, admitted: AdmittedMoves) -> (Planned, Option<Txn>) {
    let mut moves = Vec::new();
    for (wave, one) in (1..).zip(&admitted.plan.waves) {
        moves.extend(one.moves.iter().map(|mv| wire::PlannedMove {
            vm_id: mv.vm.to_string(),
            vm_name: state.vms.get(&mv.vm).map(|vm| vm.spec.name.to_string()).unwrap_or_default(),
            from_node: state.node_name(mv.from),
            to_node: state.node_name(mv.to),
            reason: mv.why.to_string(),
            expected_us: u64::try_from(mv.cost.time.as_micros()).unwrap_or(u64::MAX),
            expected_bytes: mv.cost.sent.get(),
            wave,
        }));
    }
    let plan = &admitted.plan;
    let summary = match plan.len() {
        0 => "nothing to move".to_owned(),
        count => {
            format!("{count} move(s), about {:.1} s, {} to send", plan.time().as_secs_f64(), plan.sent())
        }
    };
    let (operation, txn) = admitted.admitted.map_or((None, None), |one| (Some(one.operation), one.txn));
    ((moves, summary, operation), txn)
}

impl<S: Store> Api<S> {
    async fn plan_and_follow(
        &self,
        plan: impl Fn(View<'_>) -> Result<AdmittedMoves, AdmissionError> + Clone + Send + 'static,
    ) -> Result<wire::MovesResponse, Status> {
        let planned = self.cluster.submit(move |view| plan(view).map(|admitted| show(view.state, admitted)));
        let (moves, summary, operation) = planned.await.map_err(submit_failed)?;
        let operation = match operation {
            Some(id) => Some(self.operation(id).await?),
            None => None,
        };
        Ok(wire::MovesResponse { moves, operation, summary })
    }

    pub(super) async fn drain_nodes(
        &self,
        request: wire::DrainRequest,
    ) -> Result<wire::MovesResponse, Status> {
        let wire::DrainRequest { request_id, node, rack, parallel, dry_run } = request;
        let (target, identity) = (target(node, rack)?, identity(request_id));
        self.plan_and_follow(move |view| {
            admission::drain(view.state, view.book, &target, parallel, dry_run, &identity, view.now.wall)
        })
        .await
    }

    pub(super) async fn undrain_nodes(
        &self,
        request: wire::UndrainRequest,
    ) -> Result<wire::UndrainResponse, Status> {
        let target = target(request.node, request.rack)?;
        let undrained =
            self.cluster.submit(move |view| admission::undrain(view.state, &target, view.now.wall));
        let mut nodes = Vec::new();
        for node in undrained.await.map_err(submit_failed)? {
            nodes.push(self.node(node).await?);
        }
        Ok(wire::UndrainResponse { nodes })
    }

    pub(super) async fn rebalance_cluster(
        &self,
        request: wire::RebalanceRequest,
    ) -> Result<wire::MovesResponse, Status> {
        let wire::RebalanceRequest { request_id, dry_run, parallel } = request;
        let identity = identity(request_id);
        self.plan_and_follow(move |view| {
            admission::rebalance(view.state, view.book, parallel, dry_run, &identity, view.now)
        })
        .await
    }

    pub(super) async fn make_room(
        &self,
        request: wire::DefragmentRequest,
    ) -> Result<wire::MovesResponse, Status> {
        let wire::DefragmentRequest { request_id, spec, dry_run, parallel } = request;
        let spec = spec.ok_or_else(|| invalid("spec", "it is missing", "what must have room"))?;
        let identity = identity(request_id);
        self.plan_and_follow(move |view| {
            let request = convert::create_vm(view.state, spec.clone())?;
            let question = admission::question_of(view.state, &request, view.now.wall);
            let (state, now) = (view.state, view.now.wall);
            admission::defragment(state, view.book, &question, parallel, dry_run, &identity, now)
        })
        .await
    }
}
