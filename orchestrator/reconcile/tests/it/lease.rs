//! The lease, event by event: what the world's few milliseconds hide.

use std::{collections::BTreeMap, time::Duration};

use drover_cluster_state::{
    Change, ClusterState, Incarnation, Moment, NodeState, Now, Record, Revision, Txn, WallTime,
};
use drover_ids::NodeId;
use drover_reconcile::{
    CommitId, CommitOutcome, Effect, Event, Heartbeat, HeartbeatAnswer, NoStopwatch, Planner, Timers,
    admission::{Registration, register_node},
};

const NODE: NodeId = NodeId::from_u128(1);

fn at(ms: u64) -> Now {
    Now { moment: Moment::from_millis(ms), wall: WallTime::from_unix_millis(ms) }
}

/// A planner that started at 0 and knows one node.
fn planner() -> Planner {
    let registration = Registration {
        node: NODE,
        name: "n1".to_owned(),
        address: "n1:1".to_owned(),
        vcpus: 1,
        memory_bytes: 1 << 30,
        incarnation: "first".to_owned(),
        pools: vec![],
        version: "1".to_owned(),
        facts: Default::default(),
        librbd: String::new(),
    };
    let mut state = ClusterState::new();
    let txn = register_node(&state, &registration, WallTime::default()).unwrap().unwrap();
    for write in txn.writes {
        state.apply(write.at(Revision::new(1)));
    }
    Planner::new(Timers::default(), state, at(0), Box::new(NoStopwatch))
}

fn heartbeat(planner: &mut Planner, ms: u64, incarnation: &str) -> HeartbeatAnswer {
    let heartbeat = Heartbeat {
        node: NODE,
        incarnation: Incarnation(incarnation.to_owned()),
        sequence: ms,
        vms: BTreeMap::new(),
    };
    let effects = planner.step(at(ms), Event::Heartbeat(heartbeat));
    effects
        .into_iter()
        .find_map(|effect| if let Effect::Answer(answer) = effect { Some(answer) } else { None })
        .expect("every heartbeat is answered")
}

fn granted(planner: &mut Planner, ms: u64) -> bool {
    matches!(heartbeat(planner, ms, "first"), HeartbeatAnswer::Known { lease_granted: true, .. })
}

fn tick(planner: &mut Planner, ms: u64) -> Option<(CommitId, Txn)> {
    let effects = planner.step(at(ms), Event::Tick);
    effects
        .into_iter()
        .find_map(|effect| if let Effect::Commit { id, txn } = effect { Some((id, txn)) } else { None })
}

fn answer(planner: &mut Planner, ms: u64, commit: CommitId, outcome: CommitOutcome) {
    planner.step(at(ms), Event::Committed { commit, outcome });
}

#[test]
fn an_agent_that_is_not_registered_is_told_so() {
    let mut planner = planner();
    assert!(matches!(heartbeat(&mut planner, 10, "second"), HeartbeatAnswer::Unknown { .. }));
    assert!(granted(&mut planner, 20));
}

#[test]
fn a_node_is_given_up_only_after_a_full_t_fence_without_a_lease() {
    let mut planner = planner();
    assert!(granted(&mut planner, 1_000));
    assert!(tick(&mut planner, 5_499).is_none());
    assert!(tick(&mut planner, 5_500).is_some());
}

#[test]
fn from_the_decision_on_there_is_no_lease_whatever_the_store_answers() {
    let mut planner = planner();
    assert!(granted(&mut planner, 1_000));
    let (first, txn) = tick(&mut planner, 5_500).expect("it is given up");
    assert!(!granted(&mut planner, 5_510), "while the answer is awaited");
    answer(&mut planner, 5_600, first, CommitOutcome::Unknown("silent".to_owned()));
    assert!(!granted(&mut planner, 5_610), "while nobody knows");
    let (second, again) = tick(&mut planner, 5_700).expect("it is tried again");
    assert_eq!(txn.guards, again.guards);
    answer(&mut planner, 5_710, second, CommitOutcome::Committed(Revision::new(2)));
    assert!(!granted(&mut planner, 5_720), "once it is stored");
    assert_eq!(planner.state().node_state(NODE), Some(NodeState::Fencing));
}

#[test]
fn a_node_that_was_given_up_is_leased_again_only_after_it_has_been_taken_back() {
    let mut planner = planner();
    let (fencing, _) = tick(&mut planner, 5_000).unwrap();
    answer(&mut planner, 5_010, fencing, CommitOutcome::Committed(Revision::new(2)));
    let (fenced, _) = tick(&mut planner, 5_100).expect("it holds nothing");
    answer(&mut planner, 5_110, fenced, CommitOutcome::Committed(Revision::new(3)));
    assert!(!granted(&mut planner, 5_200));
    let readmit = tick(&mut planner, 5_300);
    assert!(readmit.is_none(), "the heartbeat has already asked for it");
    assert_eq!(planner.state().node_state(NODE), Some(NodeState::Fenced));
}

#[test]
fn a_lost_race_is_decided_anew_from_what_is_stored() {
    let mut planner = planner();
    let (commit, txn) = tick(&mut planner, 5_000).unwrap();
    // The agent registered again, with another address, just before.
    let Some(Record::Node(node)) = txn.writes.iter().find_map(|write| match write {
        drover_cluster_state::Write::Put(record) => Some(record.clone()),
        drover_cluster_state::Write::Delete(_) => None,
    }) else {
        panic!("{txn:?}")
    };
    let moved = drover_cluster_state::Node { address: "n1:2".to_owned(), fence: Default::default(), ..node };
    let fresh = Change::Put { revision: Revision::new(9), record: Record::Node(moved) };
    answer(&mut planner, 5_010, commit, CommitOutcome::Conflict(vec![fresh]));
    let (_, again) = tick(&mut planner, 5_100).expect("it is still silent");
    let expect = drover_cluster_state::Expect::Revision(Revision::new(9));
    assert!(again.guards.iter().all(|guard| guard.expect == expect));
    assert_eq!(Duration::from_millis(4_500), Timers::default().get().t_fence);
}
