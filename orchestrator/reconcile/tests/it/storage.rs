//! VMs with volumes in Ceph: who is fenced, by which addresses, and what is kept of it.

use std::collections::{BTreeMap, BTreeSet};

use drover_cluster_state::{
    Blocklist, BootTimes, Capacity, Change, Claim, ClusterState, Desired, Evidence, Incarnation, Moment,
    Name, Node, NodeFence, Now, Ownership, Pool, PoolState, RbdCredentials, RbdPool, Record, Restarts,
    Revision, Right, RunState, Secret, StopReason, StorageClient, Txn, Vm, VmReport, VmSpec,
    VolumeAttachment, VolumeFence, VolumeOwner, WallTime,
};
use drover_ids::{Generation, NodeId, OwnerEpoch, VmId, VolumeId};
use drover_reconcile::{
    CommitOutcome, Effect, Effects, Event, FenceRequest, Heartbeat, NoStopwatch, Planner, Timers,
};
use drover_units::{Bytes, VcpuCount};

const NODE: NodeId = NodeId::from_u128(1);
const VM: VmId = VmId::from_u128(2);
const VOLUME: VolumeId = VolumeId::from_u128(3);
const CLIENT: &str = "10.0.0.7:0/42";

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// One node with librbd, one pool in Ceph, one VM that runs at epoch 4.
struct Scene {
    planner: Planner,
    ms: u64,
    revision: u64,
}

impl Scene {
    fn new() -> Self {
        let node = Node {
            id: NODE,
            name: name("n1"),
            address: "n1:1".to_owned(),
            capacity: Capacity { vcpus: VcpuCount::new(4), memory: Bytes::gib(4) },
            pools: [name("default")].into(),
            incarnation: Incarnation("first".to_owned()),
            version: "1".to_owned(),
            librbd: "1.16.0".to_owned(),
            fence: NodeFence::Clear,
            assignments: 1,
            facts: Default::default(),
            settings: Default::default(),
        };
        let pool = Pool {
            name: name("fast"),
            rbd: RbdPool {
                cluster: name("prod"),
                ceph_pool: "vms".to_owned(),
                namespace: String::new(),
                user: "drover-fast".to_owned(),
                credentials: Some(RbdCredentials {
                    mon_hosts: "10.0.0.1".to_owned(),
                    key: Secret::new("AQB7"),
                }),
            },
            state: PoolState::Ready,
            operation: None,
            created_at: WallTime::default(),
            stall: None,
        };
        let right = Right::Owned { node: NODE, epoch: OwnerEpoch::new(4), claim: Claim::Taken };
        let vm = Vm {
            id: VM,
            spec: spec(),
            generation: Generation::default(),
            desired: Desired::Running,
            stop_cause: None,
            suspended_on: None,
            ownership: Ownership::from_parts(right, OwnerEpoch::new(4), Vec::new()).unwrap(),
            restarts: Restarts::default(),
            operation: None,
            created_at: WallTime::default(),
        };
        let mut state = ClusterState::new();
        for record in [Record::Node(node), Record::Pool(pool), Record::Vm(vm)] {
            state.apply(Change::Put { revision: Revision::new(1), record });
        }
        let now = Now { moment: Moment::default(), wall: WallTime::default() };
        let planner = Planner::new(Timers::default(), state, now, Box::new(NoStopwatch));
        Self { planner, ms: 0, revision: 1 }
    }

    fn step(&mut self, event: Event) -> Effects {
        self.ms += 100;
        let now =
            Now { moment: Moment::from_millis(self.ms), wall: WallTime::from_unix_millis(1_000 + self.ms) };
        self.planner.step(now, event)
    }

    /// Ticks until the effects hold what is looked for.
    fn until<T>(&mut self, mut effects: Effects, find: impl Fn(&Effect) -> Option<T>) -> T {
        for _ in 0..200 {
            if let Some(found) = effects.iter().find_map(&find) {
                return found;
            }
            effects = self.answer_commits(&effects);
            effects.extend(self.step(Event::Tick));
        }
        panic!("it never comes");
    }

    fn answer_commits(&mut self, effects: &Effects) -> Effects {
        let mut after = Vec::new();
        for effect in effects {
            if let Effect::Commit { id, .. } = effect {
                self.revision += 1;
                let outcome = CommitOutcome::Committed(Revision::new(self.revision));
                after.extend(self.step(Event::Committed { commit: *id, outcome }));
            }
        }
        after
    }

    fn heartbeat(&mut self, report: VmReport) -> Effects {
        let sequence = self.ms + 1;
        let vms = BTreeMap::from([(VM, report)]);
        let incarnation = Incarnation("first".to_owned());
        self.step(Event::Heartbeat(Heartbeat { node: NODE, incarnation, sequence, vms }))
    }

    fn fenced(&mut self, request: &FenceRequest) -> Effects {
        let proof = VolumeFence {
            volume: VOLUME,
            epoch: request.min_epoch,
            previous: Some(VolumeOwner { vm: VM, node: NODE, epoch: OwnerEpoch::new(4) }),
            blocklist: Some(Blocklist { entries: request.clients.clone(), map_epoch: 17 }),
        };
        self.step(Event::VolumesFenced { request: request.id, results: vec![(VOLUME, Ok(proof))] })
    }
}

fn spec() -> VmSpec {
    VmSpec {
        name: name("web"),
        vcpus: VcpuCount::new(1),
        memory: Bytes::gib(1),
        image: name("probe"),
        image_pool: name("default"),
        cmdline: String::new(),
        volumes: vec![VolumeAttachment { volume: VOLUME, pool: name("fast"), read_only: false }],
        anti_affinity_group: None,
        priority: 0,
        cloud_init: None,
        devices: Default::default(),
        constraints: Default::default(),
        stall: None,
    }
}

fn report(exit: Option<&str>) -> VmReport {
    VmReport {
        epoch: OwnerEpoch::new(4),
        state: if exit.is_some() { RunState::Stopped } else { RunState::Running },
        stop_reason: StopReason::Unknown,
        detail: String::new(),
        revision: 1,
        pid: 7,
        boot: BootTimes::default(),
        migration: None,
        clients: vec![StorageClient { cluster: "fsid".to_owned(), addresses: [CLIENT.to_owned()].into() }],
        stalled: BTreeSet::new(),
        exit: exit.map(str::to_owned),
        has_file: false,
    }
}

fn a_fence(effect: &Effect) -> Option<FenceRequest> {
    if let Effect::Fence(request) = effect { Some(request.clone()) } else { None }
}

fn a_release(effect: &Effect) -> Option<Txn> {
    let Effect::Commit { txn, .. } = effect else { return None };
    let releases = txn.writes.iter().any(|write| {
        matches!(write, drover_cluster_state::Write::Put(Record::Vm(vm)) if vm.ownership.right() == Right::Unowned)
    });
    releases.then(|| txn.clone())
}

fn kept(txn: &Txn) -> Vec<(Name, String)> {
    let entries = txn.writes.iter().filter_map(|write| match write {
        drover_cluster_state::Write::Put(Record::Blocklisting(entry)) => Some(entry.entries.clone()),
        _ => None,
    });
    entries.flatten().collect()
}

#[test]
fn a_dead_nodes_processes_are_refused_by_the_addresses_they_had_told() {
    let mut scene = Scene::new();
    let effects = scene.heartbeat(report(None));
    let request = scene.until(effects, a_fence);
    assert_eq!(request.clients, [CLIENT.to_owned()].into());
    assert!(request.spared.is_empty());
    assert_eq!(request.min_epoch, OwnerEpoch::new(5));
    let effects = scene.fenced(&request);
    let txn = scene.until(effects, a_release);
    assert_eq!(kept(&txn), [(name("fast"), CLIENT.to_owned())], "kept up for as long as the node is away");
    let shown = format!("{:?}", txn.events);
    assert!(shown.contains("blocklisted 10.0.0.7:0/42 in osdmap 17"), "{shown}");
}

#[test]
fn a_process_that_died_on_a_living_node_is_fenced_before_its_vm_is_started_again() {
    let mut scene = Scene::new();
    scene.heartbeat(report(None));
    let effects = scene.heartbeat(report(Some("killed by signal 9")));
    assert!(effects.iter().find_map(a_release).is_none(), "not without its lock's fence");
    let request = scene.until(effects, a_fence);
    assert_eq!(request.clients, [CLIENT.to_owned()].into());
    let effects = scene.fenced(&request);
    let txn = scene.until(effects, a_release);
    let evidence = txn.writes.iter().find_map(|write| match write {
        drover_cluster_state::Write::Put(Record::Vm(vm)) => Some(vm.ownership.evidence().to_vec()),
        _ => None,
    });
    let kinds: Vec<_> = evidence.unwrap().iter().map(Evidence::kind).collect();
    assert_eq!(kinds, ["process-death", "storage-fenced"]);
}

#[test]
fn a_stall_is_told_once_and_so_is_its_end() {
    let mut scene = Scene::new();
    scene.heartbeat(report(None));
    let stalled = VmReport { stalled: [VOLUME].into(), ..report(None) };
    let recorded = |effects: &Effects| -> Vec<String> {
        let event = |effect: &Effect| {
            if let Effect::Record(event) = effect { Some(event.kind.to_string()) } else { None }
        };
        effects.iter().filter_map(event).collect()
    };
    assert_eq!(recorded(&scene.heartbeat(stalled.clone())), ["vm.storage-stalled"]);
    assert!(recorded(&scene.heartbeat(stalled)).is_empty());
    assert_eq!(recorded(&scene.heartbeat(report(None))), ["vm.storage-answers"]);
}
