use drover_cluster_state::{
    Change, Constraints, Desired, HostFacts, Incarnation, NameRecord, Node, NodeFence, NodeSettings,
    Ownership, Record, Restarts, Revision, VmSpec, Volume, VolumeAttachment, WallTime,
};
use drover_ids::{Generation, MigrationId};
use drover_units::{Bytes, VcpuCount};

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}
fn node(n: u128) -> NodeId {
    NodeId::from_u128(n)
}

struct Cluster {
    state: ClusterState,
    revision: u64,
}

impl Cluster {
    /// Two nodes of 4 vCPUs and 4 GiB.
    fn new() -> Self {
        let mut cluster = Self { state: ClusterState::new(), revision: 0 };
        for n in 1..=2 {
            let record = Node {
                id: node(n),
                name: name(&format!("n{n}")),
                address: "127.0.0.1:1".to_owned(),
                capacity: Capacity { vcpus: VcpuCount::new(4), memory: Bytes::gib(4) },
                pools: BTreeSet::new(),
                incarnation: Incarnation::default(),
                version: String::new(),
                librbd: String::new(),
                fence: NodeFence::Clear,
                assignments: 0,
                facts: HostFacts::default(),
                settings: NodeSettings::default(),
            };
            cluster.hold_name(NameKind::Node, &record.name.clone(), Subject::Node(node(n)));
            cluster.put(Record::Node(record));
        }
        cluster
    }

    fn put(&mut self, record: Record) {
        self.revision += 1;
        self.state.apply(Change::Put { revision: Revision::new(self.revision), record });
    }

    fn hold_name(&mut self, kind: NameKind, name: &Name, holder: Subject) {
        self.put(Record::Name(NameRecord { kind, name: name.clone(), holder }));
    }

    fn vm(&mut self, n: u128, change: impl FnOnce(&mut Vm)) {
        let mut vm = Vm {
            id: VmId::from_u128(n),
            spec: VmSpec {
                name: name(&format!("vm{n}")),
                vcpus: VcpuCount::new(2),
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
            ownership: Ownership::new(),
            restarts: Restarts::default(),
            operation: None,
            created_at: WallTime::default(),
        };
        change(&mut vm);
        self.hold_name(NameKind::Vm, &vm.spec.name.clone(), Subject::Vm(vm.id));
        self.put(Record::Vm(vm));
    }

    fn volume(&mut self, n: u128, attached: Option<u128>) {
        let id = VolumeId::from_u128(n);
        let called = name(&format!("vol{n}"));
        self.hold_name(NameKind::Volume, &called, Subject::Volume(id));
        let volume = Volume::new(id, called, name("default"), Bytes::mib(1), WallTime::default());
        let attached = attached.map(VmId::from_u128);
        self.put(Record::Volume(Volume { state: VolumeState::Ready, attached, ..volume }));
    }

    fn check(&self, expect: &[&str]) {
        let found = check(&self.state);
        assert_eq!(found.iter().map(|v| v.rule).collect::<Vec<_>>(), expect, "{found:?}");
    }
}

fn on(n: u128) -> impl FnOnce(&mut Vm) {
    move |vm| vm.ownership = Ownership::new().grant(node(n)).unwrap()
}
fn uses(n: u128) -> VolumeAttachment {
    VolumeAttachment { volume: VolumeId::from_u128(n), pool: name("default"), read_only: false }
}

#[test]
fn a_sound_cluster_passes() {
    let mut cluster = Cluster::new();
    cluster.volume(1, Some(1));
    cluster.vm(1, |vm| {
        vm.spec.volumes = vec![uses(1)];
        on(1)(vm);
    });
    cluster.vm(2, on(1));
    cluster.check(&[]);
}

#[test]
fn overcommitted_cpu_is_seen() {
    let mut cluster = Cluster::new();
    (1..=3).for_each(|n| cluster.vm(n, on(1)));
    cluster.check(&["capacity"]);
}

#[test]
fn both_ends_of_a_migration_take_room() {
    let mut cluster = Cluster::new();
    (1..=2).for_each(|n| cluster.vm(n, on(2)));
    cluster.vm(3, |vm| {
        let owned = Ownership::new().grant(node(1)).and_then(|o| o.confirm()).unwrap();
        vm.ownership = owned.begin_migration(node(2), MigrationId::from_u128(1)).unwrap();
    });
    cluster.check(&["capacity"]);
}

#[test]
fn group_members_on_one_node_are_seen() {
    let mut cluster = Cluster::new();
    for n in 1..=2 {
        cluster.vm(n, |vm| {
            vm.spec.anti_affinity_group = Some(name("db"));
            on(1)(vm);
        });
    }
    cluster.check(&["anti-affinity"]);
}

#[test]
fn a_volume_of_two_vms_is_seen() {
    let mut cluster = Cluster::new();
    cluster.volume(1, Some(1));
    (1..=2).for_each(|n| cluster.vm(n, |vm| vm.spec.volumes = vec![uses(1)]));
    cluster.check(&["volume-attached", "volume-attached-once"]);
}

#[test]
fn a_volume_that_is_attached_to_nobody_who_uses_it_is_seen() {
    let mut cluster = Cluster::new();
    cluster.volume(1, Some(7));
    cluster.check(&["volume-attached"]);
}

#[test]
fn an_owner_that_is_not_there_is_seen() {
    let mut cluster = Cluster::new();
    cluster.vm(1, on(9));
    cluster.check(&["owner-exists"]);
}

#[test]
fn a_name_that_somebody_else_holds_is_seen() {
    let mut cluster = Cluster::new();
    cluster.vm(1, |_| {});
    cluster.vm(2, |vm| vm.spec.name = name("vm1"));
    cluster.check(&["name-held"]);
}
