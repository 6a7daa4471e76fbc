use drover_cluster_state::{
    Change, Constraints, Desired, Evidence, Name, Record, Restarts, Revision, Vm, VmSpec, WallTime,
};
use drover_ids::{Generation, MigrationId, NodeId, OwnerEpoch};
use drover_units::{Bytes, VcpuCount};

use super::*;

const A: NodeId = NodeId::from_u128(0xa);
const B: NodeId = NodeId::from_u128(0xb);

fn state(ownership: &Ownership) -> ClusterState {
    let name = |text| Name::new(text).unwrap();
    let vm = Vm {
        id: VmId::from_u128(1),
        spec: VmSpec {
            name: name("vm"),
            vcpus: VcpuCount::new(1),
            memory: Bytes::gib(1),
            image: name("probe"),
            image_pool: name("default"),
            cmdline: String::new(),
            volumes: vec![],
            anti_affinity_group: None,
            priority: 0,
            cloud_init: None,
            devices: Default::default(),
            constraints: Constraints::default(),
            stall: None,
        },
        generation: Generation::new(1),
        desired: Desired::Running,
        stop_cause: None,
        suspended_on: None,
        ownership: ownership.clone(),
        restarts: Restarts::default(),
        operation: None,
        created_at: WallTime::default(),
    };
    let mut state = ClusterState::new();
    state.apply(Change::Put { revision: Revision::new(1), record: Record::Vm(vm) });
    state
}

fn check(states: &[Ownership], expect: &[&str]) {
    let mut history = History::new();
    let found: Vec<Violation> =
        states.iter().flat_map(|ownership| history.observe(&state(ownership))).collect();
    assert_eq!(found.iter().map(|v| v.rule).collect::<Vec<_>>(), expect, "{found:?}");
}
fn owned(node: NodeId, epoch: u64, highest: u64, evidence: Vec<Evidence>) -> Ownership {
    let right =
        Right::Owned { node, epoch: OwnerEpoch::new(epoch), claim: drover_cluster_state::Claim::Taken };
    Ownership::from_parts(right, OwnerEpoch::new(highest), evidence).unwrap()
}
fn stopped(node: NodeId, epoch: u64) -> Evidence {
    Evidence::Stopped { node, epoch: OwnerEpoch::new(epoch) }
}

#[test]
fn a_restart_with_evidence_passes() {
    check(&[owned(A, 1, 1, vec![]), owned(B, 2, 2, vec![stopped(A, 1)])], &[]);
}

#[test]
fn a_restart_without_evidence_is_seen() {
    check(&[owned(A, 1, 1, vec![]), owned(B, 2, 2, vec![])], &["evidence"]);
    check(&[owned(A, 1, 1, vec![]), owned(B, 2, 2, vec![stopped(B, 1)])], &["evidence"]);
}

#[test]
fn an_epoch_that_is_granted_twice_is_seen() {
    check(&[owned(A, 1, 3, vec![]), owned(B, 3, 3, vec![stopped(A, 1)])], &["epoch-new"]);
}

#[test]
fn an_epoch_that_goes_back_is_seen() {
    check(&[owned(A, 2, 2, vec![]), owned(A, 1, 1, vec![stopped(A, 2)])], &["epoch-monotone", "epoch-new"]);
}

#[test]
fn the_ways_out_of_a_migration_pass() {
    let source = owned(A, 1, 1, vec![]);
    let moving = source.begin_migration(B, MigrationId::from_u128(1)).unwrap();
    check(&[source.clone(), moving.clone(), moving.complete_migration().unwrap()], &[]);
    check(&[source.clone(), moving.clone(), moving.abort_migration().unwrap()], &[]);
    check(&[source, moving.clone(), moving.regrant(vec![stopped(B, 2)]).unwrap()], &[]);
}

#[test]
fn both_ends_of_a_migration_dropped_need_evidence_for_both() {
    let moving = owned(A, 1, 1, vec![]).begin_migration(B, MigrationId::from_u128(1)).unwrap();
    check(&[moving.clone(), owned(B, 3, 3, vec![stopped(A, 1)])], &["evidence"]);
    check(&[moving, owned(B, 3, 3, vec![stopped(A, 1), stopped(B, 2)])], &[]);
}

#[test]
fn a_vm_that_is_removed_while_it_is_owned_is_seen() {
    let mut history = History::new();
    assert!(history.observe(&state(&owned(A, 1, 1, vec![]))).is_empty());
    assert_eq!(history.observe(&ClusterState::new()).len(), 1);
}
