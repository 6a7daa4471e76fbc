//! Carries out moves of many VMs, each as an ordinary migration with an operation of its own.
//!
//! Level-triggered: what is left to do follows from the stored operation, the nodes' drain flags and where VMs are now.
//! A control plane that is killed anywhere goes on where the old one was. Which moves have failed, and how often, is
//! told by the stored operations of the moves.

use std::{collections::BTreeSet, time::Duration};

use drover_cluster_state::{
    Claim, Desired, Key, Moment, Moves, MovesPurpose, Node, NodeSettings, Operation, OperationKind,
    OperationState, PlannedMove, RebalanceMode, Record, Right, RunState, Stored, Subject, Txn, Vm,
    event_kind,
};
use drover_ids::{NodeId, OperationId, VmId};
use drover_placement::Policy;
use drover_rebalance::{DrainRefused, StuckCause};

use crate::{
    Effect,
    admission::{PARALLEL_DEFAULT, parallelism, stored_plan},
    book::{immovable, request_of_move},
    ident,
    planner::Planner,
};

/// Failed migrations of one VM after which the whole operation fails and names it.
const ATTEMPTS_MAX: u32 = 3;
/// Pause before a VM whose migration failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// How long a drain waits without a move under way for the reason to go away that none can begin.
const STUCK_MAX: Duration = Duration::from_secs(120);
/// Between two looks at the balance of the cluster.
const REBALANCE_EVERY: Duration = Duration::from_secs(60);

/// What is remembered between ticks. Nothing is lost with it but time.
#[derive(Debug, Default)]
pub(crate) struct MovesMemory {
    /// Since when an operation has had nothing to do and is not done.
    stuck_since: std::collections::BTreeMap<OperationId, Moment>,
    last_look: Option<Moment>,
    /// The proposal that was logged last, not to log it again.
    proposed: Vec<VmId>,
}

/// How the moves of one VM for one operation have gone.
struct History {
    failures: u32,
    /// A new try has to wait.
    pausing: bool,
    last_reason: String,
}

impl Planner {
    /// Takes every operation that moves VMs one step further.
    pub(crate) fn pursue_moves(&mut self) {
        let running = self.state.operations.values().filter(|operation| operation.is_running());
        let moves: Vec<Stored<Operation>> =
            running.filter(|operation| matches!(operation.kind, OperationKind::Moves(_))).cloned().collect();
        self.moves.stuck_since.retain(|id, _| moves.iter().any(|operation| operation.id == *id));
        for operation in moves {
            if self.commits.holds(&Key::Operation(operation.id)) {
                continue;
            }
            let OperationKind::Moves(moves) = operation.kind.clone() else { continue };
            if operation.cancel_requested {
                self.end_moves(&operation, OperationState::Cancelled, "what has moved stays where it is");
            } else {
                match moves.purpose {
                    MovesPurpose::DrainNode | MovesPurpose::DrainRack => {
                        self.pursue_drain(&operation, &moves)
                    }
                    MovesPurpose::Rebalance | MovesPurpose::Defragment => {
                        self.pursue_plan(&operation, &moves)
                    }
                }
            }
        }
        self.look_at_balance();
    }

    fn drained_nodes(&self, operation: OperationId) -> BTreeSet<NodeId> {
        let drained =
            |node: &&Stored<Node>| node.settings.drain.is_some_and(|drain| drain.operation == operation);
        self.state.nodes.values().filter(drained).map(|node| node.id).collect()
    }

    fn pursue_drain(&mut self, operation: &Stored<Operation>, moves: &Moves) {
        let nodes = self.drained_nodes(operation.id);
        let left: Vec<VmId> = self
            .state
            .vms
            .values()
            .filter(|vm| nodes.iter().any(|node| vm.ownership.involves(*node)))
            .map(|vm| vm.id)
            .collect();
        if left.is_empty() {
            return self.end_moves(operation, OperationState::Done, "");
        }
        if let Some((vm, history)) = self.hopeless(operation.id, &left) {
            let reason =
                format!("VM '{vm}' could not be moved {} times: {}", history.failures, history.last_reason);
            return self.end_moves(operation, OperationState::Failed, &reason);
        }
        let under_way = self.moves_under_way(operation.id);
        let total = moves.total.max(u32::try_from(left.len()).unwrap_or(u32::MAX));
        self.show_progress(operation, total, left.len(), under_way.len());
        let room = (moves.parallel as usize).saturating_sub(under_way.len());
        if room == 0 {
            return;
        }
        // What cannot move now may be able to in a moment: it is left out, and waited for.
        let busy = immovable(&self.state);
        let nobody = BTreeSet::new();
        let plan = drover_rebalance::drain(&self.book.basis(&nobody), &nodes, &parallelism(moves.parallel));
        let mut begun = 0;
        let mut reason = "its VMs are busy".to_owned();
        match plan {
            Ok(plan) => {
                let first = plan.waves.first().map(|wave| wave.moves.clone()).unwrap_or_default();
                for mv in first.into_iter().filter(|mv| !busy.contains(&mv.vm)) {
                    if begun < room && self.begin_move(operation.id, mv.vm, mv.from, mv.to) {
                        begun += 1;
                    }
                }
            }
            // What moves already is not in anybody's way: the others go on by themselves.
            Err(DrainRefused::Stuck(stuck)) if stuck.iter().all(|one| one.cause == StuckCause::Moving) => {
                for vm in left.iter().filter(|vm| !busy.contains(vm)) {
                    if begun < room && self.begin_move_anywhere(operation.id, *vm) {
                        begun += 1;
                    }
                }
            }
            Err(refused) => reason = refused.to_string(),
        }
        self.mind_being_stuck(operation, begun + under_way.len() > 0, &reason);
    }

    fn pursue_plan(&mut self, operation: &Stored<Operation>, moves: &Moves) {
        let under_way = self.moves_under_way(operation.id);
        let mut room = (moves.parallel as usize).saturating_sub(under_way.len());
        let (mut left, mut begun, mut failed) = (0, 0, Vec::new());
        let busy = immovable(&self.state);
        for mv in &moves.planned {
            let Some(vm) = self.state.vms.get(&mv.vm) else { continue };
            if under_way.contains(&mv.vm) {
                left += 1;
                continue;
            }
            let history = self.history(operation.id, mv.vm);
            if history.failures > 0 {
                // Once is enough: the plan was made on what is no more.
                failed.push(format!("'{}': {}", vm.spec.name, history.last_reason));
                continue;
            }
            if vm.ownership.node() != Some(mv.from) || vm.desired != Desired::Running {
                continue;
            }
            left += 1;
            if room > 0
                && !busy.contains(&mv.vm)
                && self.has_room(mv)
                && self.begin_move(operation.id, mv.vm, mv.from, mv.to)
            {
                room -= 1;
                begun += 1;
            }
        }
        if left == 0 {
            let moved = moves.planned.len().saturating_sub(failed.len());
            return match failed.as_slice() {
                [] => self.end_moves(operation, OperationState::Done, ""),
                failed => {
                    let reason = format!("{moved} moved or gone; not moved: {}", failed.join("; "));
                    self.end_moves(operation, OperationState::Failed, &reason);
                }
            };
        }
        self.show_progress(operation, moves.total, left, under_way.len() + begun);
        self.mind_being_stuck(operation, begun + under_way.len() > 0, "its target has no room any more");
    }

    fn has_room(&mut self, mv: &PlannedMove) -> bool {
        let Some(vm) = self.state.vms.get(&mv.vm).cloned() else { return false };
        let policy = Policy { preemption: false, host_failures: 0, ..self.book.policy_for(&vm.spec) };
        self.book.decide(&request_of_move(&vm, mv.from, Some(mv.to)), &policy).is_ok()
    }

    /// VMs with a running migration that is a part of this operation.
    fn moves_under_way(&self, parent: OperationId) -> BTreeSet<VmId> {
        let running = self
            .state
            .operations
            .values()
            .filter(|operation| operation.is_running() && operation.parent == Some(parent));
        let vm = |operation: &Stored<Operation>| match operation.subject {
            Subject::Vm(vm) => Some(vm),
            _ => None,
        };
        running.filter_map(vm).collect()
    }

    fn history(&self, parent: OperationId, vm: VmId) -> History {
        let mut history = History { failures: 0, pausing: false, last_reason: String::new() };
        let mut last = None;
        for operation in self.state.operations.values() {
            let failed = operation.parent == Some(parent)
                && operation.subject == Subject::Vm(vm)
                && matches!(operation.state, OperationState::Failed | OperationState::Cancelled);
            if failed {
                history.failures += 1;
                if last <= operation.ended_at {
                    last = operation.ended_at;
                    history.last_reason.clone_from(&operation.reason);
                }
            }
        }
        let since = last.map(|at| self.now.wall.as_unix_millis().saturating_sub(at.as_unix_millis()));
        history.pausing = since.is_some_and(|ms| u128::from(ms) < RETRY_PAUSE.as_millis());
        history
    }

    fn hopeless(&self, parent: OperationId, vms: &[VmId]) -> Option<(String, History)> {
        vms.iter().find_map(|vm| {
            let history = self.history(parent, *vm);
            let name = self.state.vms.get(vm)?.spec.name.to_string();
            (history.failures >= ATTEMPTS_MAX).then_some((name, history))
        })
    }

    /// Begins the migration of a VM as a part of an operation. False: not now.
    fn begin_move(&mut self, parent: OperationId, vm: VmId, from: NodeId, to: NodeId) -> bool {
        let Some(vm) = self.state.vms.get(&vm).cloned() else { return false };
        let history = self.history(parent, vm.id);
        if history.pausing || !self.may_move(&vm, from) {
            return false;
        }
        let id = ident::operation_of_move(parent, vm.id, vm.ownership.highest(), history.failures);
        if self.state.operations.contains_key(&id) {
            return false;
        }
        let kind = OperationKind::VmMigrate { target: Some(to), downtime_target_ms: None, migration: None };
        let name = vm.spec.name.clone();
        let mut operation = Operation::new(id, kind, Subject::Vm(vm.id), name, self.now.wall);
        operation.parent = Some(parent);
        let mut txn = Txn::new();
        txn.create(Record::Operation(operation));
        txn.update(vm.revision, Record::Vm(Vm { operation: Some(id), ..vm.value.clone() }));
        self.submit(txn).is_some()
    }

    /// The same, to whichever node is best.
    fn begin_move_anywhere(&mut self, parent: OperationId, vm: VmId) -> bool {
        let Some(vm) = self.state.vms.get(&vm).cloned() else { return false };
        let Some(from) = vm.ownership.node() else { return false };
        let policy = Policy { preemption: false, host_failures: 0, ..self.book.policy_for(&vm.spec) };
        match self.book.decide(&request_of_move(&vm, from, None), &policy) {
            Ok(decision) => self.begin_move(parent, vm.id, from, decision.host),
            Err(_) => false,
        }
    }

    /// Whether a VM runs where it is thought to, and nothing else works on it.
    fn may_move(&self, vm: &Stored<Vm>, from: NodeId) -> bool {
        let runs = self.state.owner_report(vm).is_some_and(|r| r.is_live() && r.state == RunState::Running);
        let settled = matches!(
            vm.ownership.right(),
            Right::Owned { node, claim: Claim::Taken, .. } if node == from
        );
        runs && settled && vm.desired == Desired::Running && self.running_operation(vm).is_none()
    }

    fn show_progress(&mut self, operation: &Stored<Operation>, total: u32, left: usize, under_way: usize) {
        let total = u64::from(total.max(1));
        let done = total.saturating_sub(left as u64);
        let percent = u8::try_from(done * 100 / total).unwrap_or(99).min(99);
        let step = format!("{done} of {total} moved, {under_way} moving");
        if operation.step == step && operation.percent == percent {
            return;
        }
        let mut txn = Txn::new();
        let shown = Operation { step, percent: percent.max(operation.percent), ..operation.value.clone() };
        txn.update(operation.revision, Record::Operation(shown));
        self.submit(txn);
    }

    fn mind_being_stuck(&mut self, operation: &Stored<Operation>, moving: bool, reason: &str) {
        if moving {
            self.moves.stuck_since.remove(&operation.id);
            return;
        }
        let moment = self.now.moment;
        let since = *self.moves.stuck_since.entry(operation.id).or_insert(moment);
        if moment.since(since) >= STUCK_MAX {
            let reason = format!("nothing could be moved for {} s: {reason}", STUCK_MAX.as_secs());
            self.end_moves(operation, OperationState::Failed, &reason);
        }
    }

    /// Ends an operation that moves VMs. Its nodes stay cordoned; moves that are under way are taken back unless it is
    /// done.
    fn end_moves(&mut self, operation: &Stored<Operation>, state: OperationState, reason: &str) {
        let mut txn = Txn::new();
        txn.update(operation.revision, Record::Operation(operation.ended(state, reason, self.now.wall)));
        for node in self.drained_nodes(operation.id) {
            let Some(stored) = self.state.nodes.get(&node) else { continue };
            let settings = NodeSettings { drain: None, cordoned: true, ..stored.settings.clone() };
            if state == OperationState::Done {
                let message = "no VM is left on it; it takes none until it is undrained".to_owned();
                txn.event(self.node_event(event_kind::NODE_DRAINED, node, message));
            }
            txn.update(stored.revision, Record::Node(Node { settings, ..stored.value.clone() }));
        }
        if state == OperationState::Cancelled {
            let parts = self.state.operations.values().filter(|part| {
                part.is_running() && part.parent == Some(operation.id) && !part.cancel_requested
            });
            for part in parts {
                let cancelled = Operation { cancel_requested: true, ..part.value.clone() };
                txn.update(part.revision, Record::Operation(cancelled));
            }
        }
        self.submit(txn);
    }

    /// Proposes, or begins, moves that balance the cluster, if its settings say so.
    fn look_at_balance(&mut self) {
        let mode = self.state.settings().rebalance;
        let moment = self.now.moment;
        let due = self.moves.last_look.is_none_or(|last| moment.since(last) >= REBALANCE_EVERY);
        if mode == RebalanceMode::Manual || !due || self.may_still_be_heard() {
            return;
        }
        self.moves.last_look = Some(moment);
        let busy = self
            .state
            .operations
            .values()
            .any(|operation| operation.is_running() && matches!(operation.kind, OperationKind::Moves(_)));
        if busy {
            return;
        }
        let stays = immovable(&self.state);
        let plan = self.book.propose(moment, &stays);
        if plan.is_empty() {
            self.moves.proposed.clear();
            return;
        }
        let vms: Vec<VmId> = plan.moves().map(|mv| mv.vm).collect();
        if mode == RebalanceMode::Partial {
            if self.moves.proposed != vms {
                let event = self.proposal_event(&plan);
                self.out.push(Effect::Record(event));
                self.moves.proposed = vms;
            }
            return;
        }
        let id = ident::operation_of_balance(self.now.wall.as_unix_millis(), &vms);
        let mut txn = Txn::new();
        let operation = stored_plan(&plan, MovesPurpose::Rebalance, PARALLEL_DEFAULT, id, self.now.wall);
        txn.event(self.proposal_event(&plan));
        txn.create(Record::Operation(operation));
        self.submit(txn);
    }

    fn proposal_event(&self, plan: &drover_rebalance::Plan) -> drover_cluster_state::ClusterEvent {
        let name =
            |vm: VmId| self.state.vms.get(&vm).map_or_else(|| vm.to_string(), |vm| vm.spec.name.to_string());
        let shown =
            plan.moves().take(8).map(|mv| format!("{} to {}", name(mv.vm), self.state.node_name(mv.to)));
        let message = format!("{} move(s): {}", plan.len(), shown.collect::<Vec<_>>().join(", "));
        drover_cluster_state::ClusterEvent {
            at: self.now.wall,
            kind: event_kind::REBALANCE_PROPOSED.into(),
            subject_id: "cluster".to_owned(),
            subject_name: "cluster".to_owned(),
            message,
        }
    }
}
