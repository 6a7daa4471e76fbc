//! The way back of a node that was given up, and the end of processes that nobody has a right to.

use drover_cluster_state::{
    Key, Liveness, Node, NodeFence, OperationKind, Record, Right, Txn, Vm, event_kind,
};
use drover_ids::{NodeId, OwnerEpoch, VmId};

use crate::{
    AgentCommand,
    planner::{Planner, Standing},
};

impl Planner {
    /// What a node must end before it may take work. A node that was given up ends everything: its leases had run out
    /// before that, so there is nothing left that it could still have a right to. One that is in good standing gets
    /// StopVm calls for what is stale (see [`Self::end_strays`]) and no list.
    pub(crate) fn reap_list(&self, node: NodeId, clear: bool) -> Vec<(VmId, OwnerEpoch)> {
        if clear {
            return Vec::new();
        }
        let Some(session) = self.state.sessions.get(&node) else { return Vec::new() };
        session
            .vms
            .iter()
            .filter(|(_, report)| report.exit.is_none())
            .map(|(vm, report)| (*vm, report.epoch))
            .collect()
    }

    /// Takes a fenced node back once it is heard and no process is left on it.
    pub(crate) fn readmit(&mut self, node: NodeId) {
        let Some(stored) = self.state.nodes.get(&node) else { return };
        let Some(session) = self.state.sessions.get(&node) else { return };
        let moment = self.now.moment;
        // Heard lately: `liveness` of a node that was given up is not kept up to date by the search for silence.
        let heard = session.liveness == Liveness::Alive
            && moment.since(session.last_heartbeat) < self.timers.get().suspect;
        let reaped = session.vms.values().all(|report| report.exit.is_some());
        let fenced = matches!(stored.fence, NodeFence::Fenced(_));
        if !fenced || !heard || !reaped || self.commits.holds(&Key::Node(node)) {
            return;
        }
        let mut txn = Txn::new();
        txn.update(stored.revision, Record::Node(Node { fence: NodeFence::Clear, ..stored.value.clone() }));
        let message = "it is back, and nothing stale is left on it".to_owned();
        txn.event(self.node_event(event_kind::NODE_READY, node, message));
        self.submit(txn);
    }

    /// Ends every process of a VM that has no right to run it, and acknowledges those that have ended. Returns whether
    /// there are any.
    pub(crate) fn end_strays(&mut self, id: VmId) -> bool {
        let vm = self.state.vms.get(&id).map(|vm| vm.value.clone());
        let nodes: Vec<NodeId> = self.sightings.get(&id).into_iter().flatten().copied().collect();
        let mut any = false;
        for node in nodes {
            let Some(report) = self.state.report(id, node) else { continue };
            let (epoch, migration) = (report.epoch, report.migration.as_ref().map(|m| m.migration));
            if vm.as_ref().is_some_and(|vm| spared(vm, node, epoch)) {
                continue;
            }
            any = true;
            let last_word = vm.as_ref().and_then(|vm| self.running_operation(vm)).is_some_and(|operation| {
                matches!(operation.kind, OperationKind::VmMigrate { migration: Some(of), .. } if migration == Some(of))
            });
            // A source whose migration is done is kept for its last word on what it cost.
            if !last_word && self.standing(node) == Standing::Heard {
                self.call(node, id, epoch, AgentCommand::StopVm);
            }
        }
        any
    }
}

/// Whether a process is to be left alone: it has the right to run, or its node has a newer right to the same VM and
/// deals with what is left of the older one itself.
fn spared(vm: &Vm, node: NodeId, epoch: OwnerEpoch) -> bool {
    match vm.ownership.right() {
        Right::Owned { node: owner, epoch: owned, .. } => owner == node && epoch <= owned,
        Right::Migrating { .. } => vm.ownership.candidates().any(|c| c.node == node && epoch <= c.epoch),
        Right::Unowned => false,
    }
}
