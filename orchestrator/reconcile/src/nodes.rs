//! Failure detection: which nodes are heard, and when one is given up.
//!
//! ```text
//!   Ready <----heartbeat---- Suspect            silent for `suspect`
//!     |                        |
//!     +--- no lease granted for `t_fence` ---> Fencing (stored: no lease any more)
//!                                                |  no VM's right to run involves it
//!                                                v
//!   Ready <--- heard, and runs nothing --- Fenced{evidence} (stored)
//! ```
//!
//! The lease is what makes silence mean something: it is granted only in an answer to a heartbeat, and never after the
//! decision to give the node up. `lease_from` is when the last one was granted as *this* side measures it, which is not
//! before the agent began to count.

use drover_cluster_state::{
    ClusterState, Evidence, Key, Liveness, Node, NodeFence, NodeFenceEvidence, Record, Txn, event_kind,
};
use drover_ids::{NodeId, VmId};

use crate::{Effect, Heartbeat, HeartbeatAnswer, planner::Planner};

impl Planner {
    /// Takes in a heartbeat and answers it.
    pub(crate) fn heartbeat(&mut self, heartbeat: Heartbeat) {
        let Heartbeat { node, incarnation, sequence, vms } = heartbeat;
        let stored = self.state.nodes.get(&node).filter(|stored| stored.incarnation == incarnation);
        let Some(clear) = stored.map(|stored| stored.fence == NodeFence::Clear) else {
            self.out.push(Effect::Answer(HeartbeatAnswer::Unknown { node, sequence }));
            return;
        };
        let granted = clear && !self.condemned.contains_key(&node);
        let moment = self.now.moment;
        let session = self.state.sessions.entry(node).or_default();
        session.last_heartbeat = moment;
        if granted {
            session.lease_from = moment;
        }
        let before = std::mem::replace(&mut session.liveness, Liveness::Alive);
        // One that was overtaken on its way still renews the lease, but its news is old.
        if session.incarnation != incarnation || sequence > session.sequence {
            session.incarnation = incarnation;
            session.sequence = sequence;
            let old = std::mem::replace(&mut session.vms, vms);
            self.note_reports(node, &old);
        }
        if before != Liveness::Alive {
            self.book.sync_node_state(&self.state, node);
            if granted {
                let event = self.node_event(event_kind::NODE_READY, node, "it is heard".to_owned());
                self.out.push(Effect::Record(event));
            }
            self.touch_node(node);
        }
        let reap = self.reap_list(node, clear);
        self.out.push(Effect::Answer(HeartbeatAnswer::Known {
            node,
            sequence,
            lease_granted: granted,
            reap,
        }));
        if !clear {
            self.readmit(node);
        }
    }

    /// Has every VM planned whose report has changed.
    fn note_reports(
        &mut self,
        node: NodeId,
        old: &std::collections::BTreeMap<VmId, drover_cluster_state::VmReport>,
    ) {
        let Some(new) = self.state.sessions.get(&node).map(|session| &session.vms) else { return };
        let changed = |vm: &&VmId| old.get(vm) != new.get(vm);
        let touched: std::collections::BTreeSet<VmId> =
            old.keys().chain(new.keys()).filter(changed).copied().collect();
        for vm in touched {
            let reported = self.state.report(vm, node).is_some();
            let nodes = self.sightings.entry(vm).or_default();
            if reported {
                nodes.insert(node);
            } else {
                nodes.remove(&node);
            }
            if nodes.is_empty() {
                self.sightings.remove(&vm);
            }
            self.note_stalls(vm, node, old.get(&vm));
            self.touch(vm);
        }
    }

    /// Logs that a VM's storage has stopped answering, or answers again.
    fn note_stalls(&mut self, id: VmId, node: NodeId, old: Option<&drover_cluster_state::VmReport>) {
        let Some(vm) = self.state.vms.get(&id) else { return };
        let before = old.map(|report| &report.stalled);
        let Some(now) = self.state.report(id, node).map(|report| &report.stalled) else { return };
        let stalled = |set: Option<&std::collections::BTreeSet<_>>| set.is_some_and(|set| !set.is_empty());
        let (kind, message) = match (stalled(before), stalled(Some(now))) {
            (false, true) => {
                let volumes: Vec<String> = now.iter().map(ToString::to_string).collect();
                let where_ = self.state.node_name(node);
                let message = format!("volume {} does not answer node {where_}", volumes.join(", "));
                (event_kind::VM_STORAGE_STALLED, message)
            }
            (true, false) => (event_kind::VM_STORAGE_ANSWERS, String::new()),
            _ => return,
        };
        let event = self.vm_event(kind, vm, message);
        self.out.push(Effect::Record(event));
    }

    /// Looks for silence, and moves nodes that have been given up along.
    pub(crate) fn watch_nodes(&mut self) {
        for node in self.state.nodes.keys().copied().collect::<Vec<_>>() {
            match self.state.nodes[&node].fence {
                NodeFence::Clear => self.watch_silence(node),
                NodeFence::Fencing { .. } => self.conclude_fence(node),
                NodeFence::Fenced(_) => self.readmit(node),
            }
        }
    }

    fn watch_silence(&mut self, node: NodeId) {
        let moment = self.now.moment;
        let timers = *self.timers.get();
        let Some(session) = self.state.sessions.get_mut(&node) else { return };
        let unleased = moment.since(session.lease_from);
        let silent = moment.since(session.last_heartbeat);
        if session.liveness == Liveness::Alive && silent >= timers.suspect {
            session.liveness = Liveness::Suspect;
            self.book.sync_node_state(&self.state, node);
            let message = format!("not heard for {} ms", silent.as_millis());
            let event = self.node_event(event_kind::NODE_SUSPECT, node, message);
            self.out.push(Effect::Record(event));
            self.touch_node(node);
        }
        if unleased >= timers.t_fence {
            self.condemn(node, unleased);
        }
    }

    /// Gives a node up. From here on it gets no lease, whether or not the transaction succeeds at once.
    fn condemn(&mut self, node: NodeId, silent: std::time::Duration) {
        if self.condemned.get(&node).is_some_and(Option::is_some) {
            return;
        }
        let Some(stored) = self.state.nodes.get(&node) else { return };
        let mut txn = Txn::new();
        let fence = NodeFence::Fencing { silent };
        txn.update(stored.revision, Record::Node(Node { fence, ..stored.value.clone() }));
        let message = format!("no lease granted for {} ms: it is given up", silent.as_millis());
        txn.event(self.node_event(event_kind::NODE_FENCING, node, message));
        let commit = self.submit(txn);
        self.condemned.insert(node, commit);
    }

    /// Fenced, once nobody's right to run involves it.
    fn conclude_fence(&mut self, node: NodeId) {
        if self.commits.holds(&Key::Node(node))
            || self.state.vms.values().any(|vm| vm.ownership.involves(node))
        {
            return;
        }
        let Some(stored) = self.state.nodes.get(&node) else { return };
        let NodeFence::Fencing { silent } = stored.fence else { return };
        let evidence = evidence_of(&self.state, node, silent);
        let mut txn = Txn::new();
        txn.event(self.node_event(event_kind::NODE_FENCED, node, evidence.to_string()));
        let fence = NodeFence::Fenced(evidence);
        txn.update(stored.revision, Record::Node(Node { fence, ..stored.value.clone() }));
        self.submit(txn);
    }
}

/// What was taken from the node since it was given up, as the VMs' own evidence says.
fn evidence_of(state: &ClusterState, node: NodeId, silent: std::time::Duration) -> NodeFenceEvidence {
    let mut summary = NodeFenceEvidence { silent, vms: 0, volumes: 0 };
    for evidence in state.vms.values().flat_map(|vm| vm.ownership.evidence()) {
        if let Evidence::SelfFenceLeaseExpired { node: of, volumes, .. } = evidence
            && *of == node
        {
            summary.vms += 1;
            summary.volumes += u32::try_from(volumes.len()).unwrap_or(u32::MAX);
        }
    }
    summary
}
