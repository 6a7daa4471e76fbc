//! Finding a node for a VM, and reserving it.

use std::time::Duration;

use drover_cluster_state::{
    Claim, Desired, Explanation, Liveness, Node, NodeFence, Operation, OperationKind, OperationState,
    Progress, Record, Right, StopCause, Stored, Txn, Vm, event_kind,
};
use drover_ids::NodeId;
use drover_placement::{Decision, Policy, Refusal, Request};

use crate::{
    book::{explain, rejections, request_of},
    planner::{Next, Planner, Standing, Wait},
    restart::{START_ATTEMPTS, backoff, preferred_node},
};

/// How long a restart lets others of higher priority go first.
const PRIORITY_WAIT: Duration = Duration::from_secs(1);
/// Hosts up to which each choice is explained as it is made.
const EXPLAINED_HOSTS_MAX: usize = 256;
/// A VM that fits nowhere is tried again after this.
const PENDING_RETRY: Duration = Duration::from_secs(1);

impl Planner {
    /// Grants the right to run to the node that placement chooses.
    pub(crate) fn place(&mut self, vm: &Stored<Vm>) -> Next {
        if let Some(next) = self.take_back_start(vm) {
            return next;
        }
        let moment = self.now.moment;
        let failures = vm.restarts.failures;
        let memory = self.memory.entry(vm.id).or_default();
        // After a restart of the control plane the pause begins anew: it is the same for the VM's next failure.
        let due = *memory.next_try.get_or_insert(moment.after(backoff(failures)));
        if moment < due {
            let detail = match vm.restarts.last_reason.as_str() {
                "" => "waiting for a node".to_owned(),
                reason => format!("restarting after: {reason}"),
            };
            let next_try = (failures > 0).then_some(due);
            return Next::Wait(Progress { detail, fencing: false, next_try });
        }
        if self.more_important_first(vm) {
            return Next::wait("restarting after VMs of higher priority");
        }
        if let Some(next) = self.place_set(vm) {
            return next;
        }
        // Its memory is worth the moments until that node is heard, or given up.
        let memory = vm.suspended_on.filter(|_| failures < START_ATTEMPTS);
        if let Some(node) = memory.filter(|node| self.state.nodes.contains_key(node))
            && self.standing(node) == Standing::Silent
        {
            return Next::wait(format!("node {} has its memory, and is silent", self.state.node_name(node)));
        }
        let last = || preferred_node(failures, vm.ownership.evidence());
        let request = Request { preferred: memory.or_else(last), ..request_of(vm) };
        let policy = self.policy_for_start(vm);
        let (decision, took) = self.decide(&request, &policy);
        match decision {
            Ok(decision) if !decision.victims.is_empty() => self.preempt(vm, &decision),
            Ok(decision) => {
                let explanation = self.explain_choice(&request, &policy);
                self.reserve(vm, &decision, explanation, took)
            }
            Err(refusal) => self.nowhere(vm, &request, &policy, &refusal, took),
        }
    }

    /// The policy for a VM that is to start. The room that is kept for failures is there to be used once one has
    /// happened.
    pub(crate) fn policy_for_start(&self, vm: &Vm) -> Policy {
        let mut policy = self.book.policy_for(&vm.spec);
        if !vm.restarts.last_reason.is_empty() {
            policy.host_failures = 0;
        }
        policy
    }

    /// Whether a VM that lost its node should let others go first: those of higher priority that lost theirs as well,
    /// and whose evidence is merely a moment later. Not for long: one that cannot be fenced must not hold up the rest.
    fn more_important_first(&mut self, vm: &Stored<Vm>) -> bool {
        let restarts =
            |other: &Vm| other.desired == Desired::Running && other.spec.priority > vm.spec.priority;
        let moment = self.now.moment;
        let waits = |other: &Vm| match other.ownership.right() {
            Right::Unowned => {
                let next_try = self.memory.get(&other.id).and_then(|memory| memory.next_try);
                next_try.is_none_or(|next_try| next_try <= moment)
            }
            _ => other.ownership.candidates().any(|c| self.standing(c.node) == Standing::Lost),
        };
        let others = self.state.vms.values().any(|other| restarts(other) && waits(other));
        others
            && !vm.restarts.last_reason.is_empty()
            && self.waited(vm.id, Wait::Priority, vm.ownership.highest()) < PRIORITY_WAIT
    }

    /// A placement decision, and how long it took.
    pub(crate) fn decide(
        &mut self,
        request: &Request,
        policy: &Policy,
    ) -> (Result<Decision, Refusal>, Duration) {
        let start = self.stopwatch.elapsed();
        let decision = self.book.decide(request, policy);
        (decision, self.note_decision(start))
    }

    /// Why a host was chosen, for the operation's record. Looks at every host, so that it is left out where there are
    /// many; `drover vm explain` looks when somebody asks.
    fn explain_choice(&self, request: &Request, policy: &Policy) -> Option<Box<Explanation>> {
        let few = self.book.inventory().host_count() <= EXPLAINED_HOSTS_MAX;
        few.then(|| Box::new(explain(self.book.inventory(), request, policy)))
    }

    /// How long a decision took that began at `start`.
    pub(crate) fn note_decision(&mut self, start: Duration) -> Duration {
        let took = self.stopwatch.elapsed().saturating_sub(start);
        self.book.statistics.last_decision_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        took
    }

    /// Stores a grant together with the node's record, so that no other decision made on the same view of the node can
    /// be stored as well; nor this one, if the node has been given up meanwhile.
    fn reserve(
        &mut self,
        vm: &Stored<Vm>,
        decision: &Decision,
        explanation: Option<Box<Explanation>>,
        took: Duration,
    ) -> Next {
        let mut txn = Txn::new();
        if !self.grant(&mut txn, vm, decision.host) {
            return Next::wait("its right to run is not free");
        }
        self.guard_assignment(&mut txn, decision.host);
        if let Some(operation) = self.running_operation(vm) {
            let step = format!("starting on node {}", self.state.node_name(decision.host));
            let placement = Some(took);
            let placed = Operation { step, percent: 40, placement, explanation, ..operation.value.clone() };
            txn.update(operation.revision, Record::Operation(placed));
        }
        self.submit_assignment(vm.id, txn, vec![(vm.id, decision.host)])
    }

    /// Writes the grant of a VM to a node, with the event that says so. False: its right to run is not free.
    pub(crate) fn grant(&self, txn: &mut Txn, vm: &Stored<Vm>, node: NodeId) -> bool {
        let Ok(ownership) = vm.ownership.grant(node) else { return false };
        let mut changed = vm.value.clone();
        let name = self.state.node_name(node);
        let epoch = ownership.highest();
        if changed.restarts.last_reason.is_empty() {
            let message = format!("on node {name}, epoch {epoch}");
            txn.event(self.vm_event(event_kind::VM_PLACED, vm, message));
        } else {
            changed.restarts.count = changed.restarts.count.saturating_add(1);
            let proofs: Vec<String> = ownership.evidence().iter().map(ToString::to_string).collect();
            let message = format!("on node {name}, epoch {epoch}, allowed by {}", proofs.join("; "));
            txn.event(self.vm_event(event_kind::VM_RESTARTED, vm, message));
        }
        changed.ownership = ownership;
        txn.update(vm.revision, Record::Vm(changed));
        true
    }

    /// Has a transaction count an assignment on a node.
    pub(crate) fn guard_assignment(&self, txn: &mut Txn, node: NodeId) {
        if let Some(stored) = self.state.nodes.get(&node) {
            let assignments = stored.assignments.wrapping_add(1);
            txn.update(stored.revision, Record::Node(Node { assignments, ..stored.value.clone() }));
        }
    }

    /// No node will do. An operation that wants it to run fails, and leaves it stopped; a VM that ran before waits.
    fn nowhere(
        &mut self,
        vm: &Stored<Vm>,
        request: &Request,
        policy: &Policy,
        refusal: &Refusal,
        took: Duration,
    ) -> Next {
        let explanation = explain(self.book.inventory(), request, policy);
        let reason = match refusal {
            Refusal::NoHost => format!("no node can take it: {explanation}"),
            refusal => format!("no node may take it: {refusal}"),
        };
        let operation = self.running_operation(vm).filter(|_| !self.may_still_be_heard());
        let Some(operation) = operation else {
            let memory = self.memory.entry(vm.id).or_default();
            memory.next_try = Some(self.now.moment.after(PENDING_RETRY));
            return Next::wait(reason);
        };
        let mut failed = operation.ended(
            OperationState::Failed,
            format!("{reason}. It is kept, stopped: start it when there is room, or delete it"),
            self.now.wall,
        );
        failed.rejections = rejections(self.book.inventory(), request);
        failed.explanation = Some(Box::new(explanation));
        failed.placement = Some(took);
        let mut txn = Txn::new();
        txn.update(operation.revision, Record::Operation(failed));
        let mut changed = vm.value.clone();
        changed.desired = Desired::Stopped;
        changed.stop_cause = Some(StopCause::StartFailed(reason));
        txn.update(vm.revision, Record::Vm(changed));
        self.submit_for(vm.id, txn)
    }

    /// Whether a node that this control plane has not heard yet may still report: soon after its start.
    pub(crate) fn may_still_be_heard(&self) -> bool {
        let unheard = self.state.nodes.values().any(|node| {
            let liveness = self.state.sessions.get(&node.id).map(|session| session.liveness);
            node.fence == NodeFence::Clear && liveness.is_none_or(|liveness| liveness == Liveness::Unheard)
        });
        unheard && self.now.moment.since(self.started) < self.timers.get().t_fence
    }

    /// Takes back a start that somebody has cancelled before the VM ran.
    pub(crate) fn take_back_start(&mut self, vm: &Stored<Vm>) -> Option<Next> {
        let operation = self.running_operation(vm).filter(|operation| operation.cancel_requested)?;
        let runs = matches!(vm.ownership.right(), Right::Owned { claim: Claim::Taken, .. });
        if runs || !matches!(operation.kind, OperationKind::VmCreate | OperationKind::VmStart) {
            return None;
        }
        let reason = "cancelled before it ran; the VM is kept, stopped";
        let mut txn = Txn::new();
        let ended = operation.ended(OperationState::Cancelled, reason, self.now.wall);
        txn.update(operation.revision, Record::Operation(ended));
        let mut changed = vm.value.clone();
        changed.desired = Desired::Stopped;
        changed.stop_cause = Some(StopCause::Requested);
        txn.update(vm.revision, Record::Vm(changed));
        Some(self.submit_for(vm.id, txn))
    }
}
