//! The planner: what it knows, and how an event becomes effects.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use drover_cluster_state::{
    Change, ClusterEvent, ClusterState, Key, Liveness, Moment, NodeFence, NodeSession, Now, Progress,
    Subject, Txn, Vm,
};
use drover_ids::{NodeId, OwnerEpoch, VmId};

use crate::{
    AgentCall, AgentCommand, CallError, CommitId, CommitOutcome, Effect, Effects, Event, Stopwatch, Timers,
    book::Book,
    calls::{Calls, Slot, Verb},
    commits::Commits,
    fences::{Fences, Fencing},
    ident,
    moves::MovesMemory,
    operations::OperationWatch,
};

/// What is remembered of one VM between steps. Nothing is lost with it but time.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// No start before this.
    pub(crate) next_try: Option<Moment>,
    /// Since when it has been seen to run.
    pub(crate) running_since: Option<Moment>,
    /// What was given up at this epoch (a start, or a migration to it), and why.
    pub(crate) given_up: Option<(OwnerEpoch, String)>,
    /// Has to give way to another VM at this epoch, and why.
    pub(crate) gives_way: Option<(OwnerEpoch, String)>,
    /// Situations that are being borne, at which epoch and since when.
    waits: BTreeMap<Wait, (OwnerEpoch, Moment)>,
}

/// Situations that are borne for a while only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wait {
    /// The source's last word on a migration that is done.
    LastWord,
    /// The source has committed and the target does not run yet.
    Commit,
    /// The source is gone and the target may still have received everything.
    TargetAlone,
    /// VMs of higher priority lost their node as well.
    Priority,
    /// A node that is heard does not list a process that it should have.
    Vanished,
    /// A guest shuts itself down.
    Grace,
}

/// Where one VM's planning ended.
pub(crate) enum Next {
    /// Nothing to do until something changes.
    Settled,
    /// More to do, later.
    Wait(Progress),
}

impl Next {
    /// Waits, with a word on what for.
    pub(crate) fn wait(detail: impl Into<String>) -> Self {
        Self::Wait(Progress { detail: detail.into(), ..Progress::default() })
    }

    /// Waits for fence evidence.
    pub(crate) fn fencing(detail: impl Into<String>) -> Self {
        Self::Wait(Progress { detail: detail.into(), fencing: true, next_try: None })
    }
}

/// What can be asked of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It reports and can be called.
    Heard,
    /// It has not reported (yet, or lately).
    Silent,
    /// It has been given up.
    Lost,
}

/// The pure core of the control plane. See the crate's documentation for what it does and [`crate::Effect`] for what it
/// asks of its driver.
pub struct Planner {
    pub(crate) timers: Timers,
    pub(crate) state: ClusterState,
    pub(crate) started: Moment,
    pub(crate) now: Now,
    pub(crate) out: Effects,
    pub(crate) stopwatch: Box<dyn Stopwatch>,
    pub(crate) book: Book,
    pub(crate) moves: MovesMemory,
    pub(crate) commits: Commits,
    pub(crate) calls: Calls,
    pub(crate) fences: Fences,
    pub(crate) operations: OperationWatch,
    pub(crate) memory: BTreeMap<VmId, Memory>,
    /// Nodes that get no lease any more, while the transaction that says so is under way.
    pub(crate) condemned: BTreeMap<NodeId, Option<CommitId>>,
    /// Which nodes report a VM.
    pub(crate) sightings: BTreeMap<VmId, BTreeSet<NodeId>>,
    /// VMs that are not settled: planned at every tick.
    restless: BTreeSet<VmId>,
    /// VMs to be planned in this step.
    touched: BTreeSet<VmId>,
}

impl std::fmt::Debug for Planner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Planner").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Planner {
    /// A planner for a cluster whose stored half has been loaded. No node is given up before a full `t_fence` from
    /// `now`: a predecessor may have granted a lease just before it ended.
    pub fn new(timers: Timers, mut state: ClusterState, now: Now, stopwatch: Box<dyn Stopwatch>) -> Self {
        state.sessions.clear();
        state.progress.clear();
        let mut planner = Self {
            timers,
            started: now.moment,
            now,
            out: Effects::new(),
            stopwatch,
            book: Book::of(&state),
            moves: MovesMemory::default(),
            commits: Commits::default(),
            calls: Calls::default(),
            fences: Fences::default(),
            operations: OperationWatch::new(&state),
            memory: BTreeMap::new(),
            condemned: BTreeMap::new(),
            sightings: BTreeMap::new(),
            restless: state.vms.keys().copied().collect(),
            touched: BTreeSet::new(),
            state,
        };
        for node in planner.state.nodes.keys().copied().collect::<Vec<_>>() {
            planner.open_session(node);
        }
        planner
    }

    /// What placement goes by.
    pub fn book(&self) -> &Book {
        &self.book
    }

    /// Whether what placement goes by is what follows from the state. Looks at everything.
    ///
    /// # Errors
    /// What differs first, for people.
    pub fn verify_book(&self) -> Result<(), String> {
        self.book.verify(&self.state)
    }

    /// The cluster as it is known now. What has been submitted but not answered is not in it.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// The timers it goes by.
    pub fn timers(&self) -> &Timers {
        &self.timers
    }

    /// Takes in one event and returns what to do. `now` never goes back.
    pub fn step(&mut self, now: Now, event: Event) -> Effects {
        self.now = now;
        match event {
            Event::Tick => self.tick(),
            Event::Stored(changes) => {
                for change in changes {
                    self.apply(change);
                }
            }
            Event::Heartbeat(heartbeat) => self.heartbeat(heartbeat),
            Event::Answered { call, result } => {
                if let Some(slot) = self.calls.close(call, result, now.moment) {
                    self.touch(slot.vm);
                }
            }
            Event::VolumesFenced { request, results } => {
                if let Some(vm) = self.fences.answer(request, results, now.moment) {
                    self.touch(vm);
                }
            }
            Event::Committed { commit, outcome } => self.committed(commit, outcome),
        }
        self.plan_touched();
        std::mem::take(&mut self.out)
    }

    fn tick(&mut self) {
        for id in self.commits.overdue(self.now.moment) {
            self.committed(id, CommitOutcome::Unknown("no answer in time".to_owned()));
        }
        for id in self.calls.overdue(self.now.moment) {
            let late = Err(CallError::Unanswered("no answer in time".to_owned()));
            self.calls.close(id, late, self.now.moment);
        }
        self.calls.forget_old(self.now.moment);
        self.watch_nodes();
        self.watch_operations();
        self.pursue_moves();
        self.touched.extend(self.restless.iter().copied());
    }

    fn plan_touched(&mut self) {
        let priority = |vm: &VmId| Reverse(self.state.vms.get(vm).map_or(0, |vm| vm.spec.priority));
        let mut order: Vec<(Reverse<u32>, VmId)> =
            self.touched.iter().map(|vm| (priority(vm), *vm)).collect();
        order.sort_unstable();
        self.touched.clear();
        for (_, vm) in order {
            let next = self.plan_vm(vm);
            self.conclude(vm, next);
        }
    }

    fn conclude(&mut self, vm: VmId, next: Next) {
        let known = self.state.vms.contains_key(&vm);
        match next {
            Next::Settled => {
                self.restless.remove(&vm);
                self.state.progress.remove(&vm);
                if !known {
                    self.memory.remove(&vm);
                    self.fences.forget(vm);
                }
            }
            Next::Wait(progress) => {
                self.restless.insert(vm);
                if known {
                    self.state.progress.insert(vm, progress);
                }
            }
        }
    }

    /// Has a VM planned before this step ends, or at the next if it is being planned now.
    pub(crate) fn touch(&mut self, vm: VmId) {
        self.touched.insert(vm);
        self.restless.insert(vm);
    }

    /// Has every VM planned that a node holds, or that waits for something.
    pub(crate) fn touch_node(&mut self, node: NodeId) {
        let held = self.state.vms.values().filter(|vm| vm.ownership.involves(node)).map(|vm| vm.id);
        let held: Vec<VmId> = held.collect();
        self.touched.extend(held);
        self.touched.extend(self.restless.iter().copied());
        self.restless.extend(self.touched.iter().copied());
    }

    fn apply(&mut self, change: Change) {
        let key = change.key();
        let fence = |state: &ClusterState, node: &NodeId| state.nodes.get(node).map(|n| n.fence.clone());
        let before = if let Key::Node(node) = &key { fence(&self.state, node) } else { None };
        if !self.state.apply(change) {
            return;
        }
        self.follow_in_book(&key);
        match key {
            Key::Vm(vm) => self.touch(vm),
            Key::Operation(id) => {
                if let Some(Subject::Vm(vm)) = self.state.operations.get(&id).map(|o| o.subject.clone()) {
                    self.touch(vm);
                }
            }
            Key::Node(node) => {
                let after = fence(&self.state, &node);
                if after.is_some() && !self.state.sessions.contains_key(&node) {
                    self.open_session(node);
                }
                if before != after {
                    self.node_fence_changed(node, before.as_ref(), after.as_ref());
                }
            }
            Key::Volume(_)
            | Key::Image(_)
            | Key::Pool(_)
            | Key::DiskImage(_)
            | Key::Name(..)
            | Key::Blocklisting(..)
            | Key::Policy(_)
            | Key::Project(_)
            | Key::Settings => {}
        }
    }

    fn follow_in_book(&mut self, key: &Key) {
        match key {
            Key::Node(node) => self.book.sync_node(&self.state, *node),
            Key::Vm(vm) => self.book.sync_vm(&self.state, *vm),
            Key::Pool(_) => self.book.sync_nodes(&self.state),
            Key::Policy(_) | Key::Project(_) | Key::Settings => self.book.sync_policies(&self.state),
            _ => {}
        }
    }

    fn node_fence_changed(&mut self, node: NodeId, before: Option<&NodeFence>, after: Option<&NodeFence>) {
        if after != Some(&NodeFence::Clear) {
            self.condemned.remove(&node);
        } else if before.is_some()
            && let Some(session) = self.state.sessions.get_mut(&node)
        {
            // It is taken back: its silence counts from here.
            session.lease_from = self.now.moment;
        }
        self.touch_node(node);
    }

    fn open_session(&mut self, node: NodeId) {
        let moment = self.now.moment;
        let session = NodeSession { last_heartbeat: moment, lease_from: moment, ..NodeSession::default() };
        self.state.sessions.insert(node, session);
        self.book.sync_node_state(&self.state, node);
    }

    /// Submits a transaction, unless one with the same records is under way. Returns whether it did.
    pub(crate) fn submit(&mut self, txn: Txn) -> Option<CommitId> {
        if self.commits.blocks(&txn) {
            return None;
        }
        let id = self.commits.open(&txn, self.now.moment);
        self.out.push(Effect::Commit { id, txn });
        Some(id)
    }

    /// Submits a transaction that gives VMs a place. They count there from now on, for every decision after this one.
    pub(crate) fn submit_assignment(&mut self, vm: VmId, txn: Txn, holds: Vec<(VmId, NodeId)>) -> Next {
        match self.submit(txn) {
            Some(commit) => self.book.expect(&self.state, commit, holds),
            None => self.commits.wait(vm),
        }
        Next::Wait(self.state.progress.get(&vm).cloned().unwrap_or_default())
    }

    /// Submits a transaction about a VM; the VM is planned again when there is an answer to this or to what is in its way.
    pub(crate) fn submit_for(&mut self, vm: VmId, txn: Txn) -> Next {
        if self.submit(txn).is_none() {
            self.commits.wait(vm);
        }
        Next::Wait(self.state.progress.get(&vm).cloned().unwrap_or_default())
    }

    fn committed(&mut self, commit: CommitId, outcome: CommitOutcome) {
        let Some((keys, writes)) = self.commits.close(commit) else { return };
        for vm in self.commits.take_waiting() {
            self.touch(vm);
        }
        let lost = !matches!(outcome, CommitOutcome::Committed(_));
        let conflict = matches!(outcome, CommitOutcome::Conflict(_));
        match outcome {
            CommitOutcome::Committed(revision) => {
                for write in writes {
                    self.apply(write.at(revision));
                }
            }
            CommitOutcome::Conflict(fresh) => {
                for change in fresh {
                    self.apply(change);
                }
            }
            // Planned again at the next tick: what was stored, if it was, shows by then or as a conflict.
            CommitOutcome::Unknown(_) => {}
        }
        let was_assignment = self.book.settle(&self.state, commit);
        if was_assignment && conflict {
            self.book.statistics.conflicts += 1;
        }
        if lost {
            // While it is not known whether it was stored, a condemned node stays without a lease.
            for pending in self.condemned.values_mut().filter(|pending| **pending == Some(commit)) {
                *pending = None;
            }
        }
        for key in keys {
            if let Key::Vm(vm) = key {
                self.restless.insert(vm);
                // What was decided on an older view is decided again at once.
                if was_assignment && conflict {
                    self.touched.insert(vm);
                }
            }
        }
    }

    /// Calls an agent, unless such a call is under way or has to wait.
    pub(crate) fn call(&mut self, node: NodeId, vm: VmId, epoch: OwnerEpoch, command: AgentCommand) {
        let verb = Verb::of(&command);
        let slot = Slot { vm, node, epoch, verb };
        let Some(address) = self.state.nodes.get(&node).map(|node| node.address.clone()) else { return };
        let attempt = self.calls.book(slot).refused;
        let Some(id) = self.calls.open(slot, self.now.moment) else { return };
        let about = match verb {
            Verb::MigrateOut(migration) | Verb::Cancel(migration) => migration.as_u128(),
            _ => 0,
        };
        let operation = ident::command(vm, epoch, command.name(), about, attempt);
        let timeout = verb.timeout();
        let pools = match &command {
            AgentCommand::EnsureVm { spec, .. } | AgentCommand::PrepareIncoming { spec, .. } => {
                self.state.pool_access(spec)
            }
            _ => BTreeMap::new(),
        };
        let call = AgentCall { id, node, address, operation, vm, epoch, timeout, pools, command };
        self.out.push(Effect::Call(call));
    }

    /// Proof that nobody older than `floor` can write this VM's volumes, or what it waits for.
    pub(crate) fn fence_volumes(
        &mut self,
        vm: &Vm,
        floor: OwnerEpoch,
    ) -> Result<Vec<drover_cluster_state::VolumeFence>, String> {
        let clients = self.clients_of(vm, floor);
        match self.fences.pursue(vm, floor, clients, self.now.moment) {
            Fencing::Proven(proofs) => Ok(proofs),
            Fencing::Waiting(detail) => Err(detail),
            Fencing::Ask(request) => {
                self.out.push(Effect::Fence(request));
                Err("fencing its volumes".to_owned())
            }
        }
    }

    /// What can be asked of a node now.
    pub(crate) fn standing(&self, node: NodeId) -> Standing {
        match self.state.nodes.get(&node).map(|node| &node.fence) {
            Some(NodeFence::Clear) if self.condemned.contains_key(&node) => Standing::Silent,
            Some(NodeFence::Clear) => match self.state.sessions.get(&node).map(|session| session.liveness) {
                Some(Liveness::Alive) => Standing::Heard,
                _ => Standing::Silent,
            },
            Some(NodeFence::Fencing { .. } | NodeFence::Fenced(_)) => Standing::Lost,
            None => Standing::Silent,
        }
    }

    /// How long this VM has been in this situation, which began when this was first asked.
    pub(crate) fn waited(&mut self, vm: VmId, wait: Wait, epoch: OwnerEpoch) -> Duration {
        let moment = self.now.moment;
        let wait = self.memory.entry(vm).or_default().waits.entry(wait).or_insert((epoch, moment));
        if wait.0 != epoch {
            *wait = (epoch, moment);
        }
        moment.since(wait.1)
    }

    /// The situation is over.
    pub(crate) fn stop_waiting(&mut self, vm: VmId, wait: Wait) {
        if let Some(memory) = self.memory.get_mut(&vm) {
            memory.waits.remove(&wait);
        }
    }

    /// A line for the event log about a VM.
    pub(crate) fn vm_event(&self, kind: &'static str, vm: &Vm, message: String) -> ClusterEvent {
        ClusterEvent {
            at: self.now.wall,
            kind: kind.into(),
            subject_id: vm.id.to_string(),
            subject_name: vm.spec.name.to_string(),
            message,
        }
    }

    /// A line for the event log about a node.
    pub(crate) fn node_event(&self, kind: &'static str, node: NodeId, message: String) -> ClusterEvent {
        ClusterEvent {
            at: self.now.wall,
            kind: kind.into(),
            subject_id: node.to_string(),
            subject_name: self.state.node_name(node),
            message,
        }
    }
}
