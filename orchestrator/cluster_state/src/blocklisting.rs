//! Clients that a storage cluster refuses because of a fence: kept there until their processes are gone for certain.

use std::collections::BTreeSet;

use drover_ids::{OwnerEpoch, VmId};

use crate::{Candidate, ClusterState, Liveness, Name, NodeFence, WallTime};

/// What one fence has had refused, as stored. An entry of a blocklist expires, and its client might write again then:
/// whoever reads this renews the entries for as long as it is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocklisting {
    /// Whose volumes were fenced.
    pub vm: VmId,
    /// Owners older than this were.
    pub floor: OwnerEpoch,
    /// The processes that the entries keep out: they may be there until their nodes say otherwise.
    pub candidates: BTreeSet<Candidate>,
    /// In the cluster of each pool, these addresses.
    pub entries: BTreeSet<(Name, String)>,
    /// When it was stored.
    pub created_at: WallTime,
}

impl Blocklisting {
    /// Whether every process that it keeps out is gone: its node has rejoined and reaped, or is forgotten, and does
    /// not report it any more.
    pub fn is_over(&self, state: &ClusterState) -> bool {
        self.candidates.iter().all(|candidate| {
            let Some(node) = state.nodes.get(&candidate.node) else { return true };
            let heard = state
                .sessions
                .get(&candidate.node)
                .is_some_and(|session| session.liveness == Liveness::Alive);
            let report = state.report(self.vm, candidate.node);
            let gone = report.is_none_or(|report| report.exit.is_some() || report.epoch >= self.floor);
            node.fence == NodeFence::Clear && heard && gone
        })
    }
}

#[cfg(test)]
mod tests {
    use drover_ids::NodeId;

    use super::*;
    use crate::{
        BootTimes, Capacity, Incarnation, Node, NodeSession, Revision, RunState, StopReason, Stored, VmReport,
    };

    const NODE: NodeId = NodeId::from_u128(1);
    const VM: VmId = VmId::from_u128(2);

    fn report(epoch: u64, exit: Option<&str>) -> VmReport {
        VmReport {
            epoch: OwnerEpoch::new(epoch),
            state: RunState::Running,
            stop_reason: StopReason::Unknown,
            detail: String::new(),
            revision: 1,
            pid: 1,
            boot: BootTimes::default(),
            migration: None,
            clients: Vec::new(),
            stalled: BTreeSet::new(),
            exit: exit.map(str::to_owned),
            has_file: false,
        }
    }

    #[track_caller]
    fn check(fence: NodeFence, liveness: Liveness, reported: Option<VmReport>, over: bool) {
        let node = Node {
            id: NODE,
            name: Name::new("n1").unwrap(),
            address: String::new(),
            capacity: Capacity::default(),
            pools: BTreeSet::new(),
            incarnation: Incarnation::default(),
            version: String::new(),
            librbd: String::new(),
            fence,
            assignments: 0,
            facts: crate::HostFacts::default(),
            settings: crate::NodeSettings::default(),
        };
        let mut state = ClusterState::new();
        state.nodes.insert(NODE, Stored { revision: Revision::ZERO, value: node });
        let vms = reported.into_iter().map(|report| (VM, report)).collect();
        state.sessions.insert(NODE, NodeSession { liveness, vms, ..NodeSession::default() });
        let blocklisting = Blocklisting {
            vm: VM,
            floor: OwnerEpoch::new(5),
            candidates: [Candidate { node: NODE, epoch: OwnerEpoch::new(4) }].into(),
            entries: BTreeSet::new(),
            created_at: WallTime::default(),
        };
        assert_eq!(blocklisting.is_over(&state), over);
    }

    #[test]
    fn it_is_over_when_the_node_is_back_and_the_process_is_not() {
        check(NodeFence::Clear, Liveness::Alive, None, true);
        check(NodeFence::Clear, Liveness::Alive, Some(report(4, Some("killed"))), true);
        check(NodeFence::Clear, Liveness::Alive, Some(report(5, None)), true);
        check(NodeFence::Clear, Liveness::Alive, Some(report(4, None)), false);
        check(NodeFence::Clear, Liveness::Suspect, None, false);
        check(NodeFence::Clear, Liveness::Unheard, None, false);
        check(NodeFence::Fencing { silent: std::time::Duration::ZERO }, Liveness::Alive, None, false);
    }
}
