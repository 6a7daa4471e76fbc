//! Every record survives its stored form; nothing else comes out of a store.

use std::{borrow::Cow, time::Duration};

use drover_cluster_state::{
    Blocklist, Blocklisting, Candidate, Capacity, Claim, CloneSource, ClusterEvent, Constraints, Desired,
    DiskImage, DiskImageState, Evidence, HostFacts, Image, ImageFormat, ImageSource, Incarnation, Key,
    MigrationResult, Name, NameKind, NameRecord, Node, NodeFence, NodeFenceEvidence, NodeRejection,
    NodeSettings, Operation, OperationKind, OperationState, Ownership, Pool, PoolState, RbdCredentials,
    RbdPool, Record, Restarts, Right, Secret, Snapshot, SnapshotState, StopCause, StorageWork, Subject, Vm,
    VmSpec, Volume, VolumeAttachment, VolumeFence, VolumeOwner, VolumeParent, VolumeState, WallTime,
};
use drover_ids::{
    Generation, ImageDigest, MigrationId, NodeId, OperationId, OwnerEpoch, SnapshotId, VmId, VolumeId,
};
use drover_units::{Bytes, VcpuCount};
use drover_wire::store::v1 as stored;
use proptest::{collection::vec, option, prelude::*};
use prost::Message as _;

use crate::{RecordError, StoredKey, Value, decode, encode, encode_event, key_text};

fn name() -> impl Strategy<Value = Name> {
    "[a-z0-9][a-z0-9._-]{0,20}".prop_map(|text| Name::new(&text).expect("the pattern is a name's"))
}

fn vm_id() -> impl Strategy<Value = VmId> {
    any::<u128>().prop_map(VmId::from_u128)
}

fn node_id() -> impl Strategy<Value = NodeId> {
    any::<u128>().prop_map(NodeId::from_u128)
}

fn volume_id() -> impl Strategy<Value = VolumeId> {
    any::<u128>().prop_map(VolumeId::from_u128)
}

fn epoch() -> impl Strategy<Value = OwnerEpoch> {
    any::<u64>().prop_map(OwnerEpoch::new)
}

fn wall() -> impl Strategy<Value = WallTime> {
    any::<u64>().prop_map(WallTime::from_unix_millis)
}

fn millis() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_millis)
}

fn capacity() -> impl Strategy<Value = Capacity> {
    any::<(u32, u64)>()
        .prop_map(|(vcpus, memory)| Capacity { vcpus: VcpuCount::new(vcpus), memory: Bytes::new(memory) })
}

fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        vm_id().prop_map(Subject::Vm),
        volume_id().prop_map(Subject::Volume),
        name().prop_map(Subject::Image),
        node_id().prop_map(Subject::Node),
        name().prop_map(Subject::Pool),
        name().prop_map(Subject::DiskImage),
    ]
}

fn node() -> impl Strategy<Value = Node> {
    let fence = prop_oneof![
        Just(NodeFence::Clear),
        millis().prop_map(|silent| NodeFence::Fencing { silent }),
        (millis(), any::<(u32, u32)>()).prop_map(|(silent, (vms, volumes))| NodeFence::Fenced(
            NodeFenceEvidence { silent, vms, volumes }
        )),
    ];
    (node_id(), name(), ".{0,20}", capacity(), vec(name(), 0..3), ".{0,20}", fence, any::<u64>()).prop_map(
        |(id, name, address, capacity, pools, text, fence, assignments)| Node {
            id,
            name,
            address,
            capacity,
            pools: pools.into_iter().collect(),
            incarnation: Incarnation(text.clone()),
            librbd: text.clone(),
            version: text,
            fence,
            assignments,
            facts: HostFacts::default(),
            settings: NodeSettings::default(),
        },
    )
}

fn evidence() -> impl Strategy<Value = Evidence> {
    let owner = (vm_id(), node_id(), epoch()).prop_map(|(vm, node, epoch)| VolumeOwner { vm, node, epoch });
    let blocklist = (vec(".{1,20}", 0..3), any::<u64>())
        .prop_map(|(entries, map_epoch)| Blocklist { entries: entries.into_iter().collect(), map_epoch });
    let fence = (volume_id(), epoch(), option::of(owner), option::of(blocklist))
        .prop_map(|(volume, epoch, previous, blocklist)| VolumeFence { volume, epoch, previous, blocklist });
    let fence = fence.boxed();
    prop_oneof![
        (node_id(), epoch(), ".{0,20}").prop_map(|(node, epoch, exit)| Evidence::ProcessDeath {
            node,
            epoch,
            exit
        }),
        (node_id(), epoch()).prop_map(|(node, epoch)| Evidence::Stopped { node, epoch }),
        (node_id(), epoch(), millis(), vec(fence.clone(), 0..3)).prop_map(
            |(node, epoch, silent, volumes)| Evidence::SelfFenceLeaseExpired { node, epoch, silent, volumes }
        ),
        (node_id(), epoch(), vec(fence, 0..3)).prop_map(|(node, epoch, volumes)| Evidence::StorageFenced {
            node,
            epoch,
            volumes
        }),
    ]
}

fn ownership() -> impl Strategy<Value = Ownership> {
    let claim =
        prop_oneof![Just(Claim::Boot), Just(Claim::Taken), epoch().prop_map(|from| Claim::Resume { from }),];
    let right = prop_oneof![
        Just(Right::Unowned),
        (node_id(), epoch(), claim).prop_map(|(node, epoch, claim)| Right::Owned { node, epoch, claim }),
        (node_id(), epoch(), node_id(), epoch(), any::<u128>()).prop_map(
            |(source, epoch, target, target_epoch, migration)| Right::Migrating {
                source,
                epoch,
                target,
                target_epoch,
                migration: MigrationId::from_u128(migration),
            }
        ),
    ];
    (right, vec(evidence(), 0..3)).prop_map(|(right, evidence)| {
        Ownership::from_parts(right, OwnerEpoch::new(u64::MAX), evidence).expect("no epoch is higher")
    })
}

fn vm() -> impl Strategy<Value = Vm> {
    let attachment = (volume_id(), name(), any::<bool>())
        .prop_map(|(volume, pool, read_only)| VolumeAttachment { volume, pool, read_only });
    let spec = (
        name(),
        capacity(),
        name(),
        name(),
        ".{0,30}",
        vec(attachment, 0..3),
        option::of(name()),
        any::<u32>(),
    )
        .prop_map(|(name, size, image, image_pool, cmdline, volumes, anti_affinity_group, priority)| {
            VmSpec {
                name,
                vcpus: size.vcpus,
                memory: size.memory,
                image,
                image_pool,
                cmdline,
                volumes,
                anti_affinity_group,
                priority,
                constraints: Constraints::default(),
            }
        });
    let desired = prop_oneof![Just(Desired::Running), Just(Desired::Stopped), Just(Desired::Deleted)];
    let cause = prop_oneof![
        Just(StopCause::Requested),
        Just(StopCause::GuestShutdown),
        ".{0,20}".prop_map(StopCause::StartFailed)
    ];
    let restarts = (any::<(u32, u32)>(), ".{0,20}").prop_map(|((count, failures), last_reason)| Restarts {
        count,
        failures,
        last_reason,
    });
    let operation = option::of(any::<u128>().prop_map(OperationId::from_u128));
    (vm_id(), spec, any::<u64>(), desired, option::of(cause), ownership(), restarts, operation, wall())
        .prop_map(
            |(id, spec, generation, desired, stop_cause, ownership, restarts, operation, created_at)| Vm {
                id,
                spec,
                generation: Generation::new(generation),
                desired,
                stop_cause,
                ownership,
                restarts,
                operation,
                created_at,
            },
        )
}

fn volume() -> impl Strategy<Value = Volume> {
    let state =
        prop_oneof![Just(VolumeState::Creating), Just(VolumeState::Ready), Just(VolumeState::Deleting)];
    let parent = prop_oneof![
        digest().prop_map(VolumeParent::Image),
        (volume_id(), snapshot_id())
            .prop_map(|(volume, snapshot)| VolumeParent::Snapshot { volume, snapshot }),
    ];
    let grown = (option::of(parent), vec(snapshot(), 0..3), option::of(operation_id()));
    (volume_id(), name(), name(), any::<u64>(), state, option::of(vm_id()), wall(), grown).prop_map(
        |(id, name, pool, size, state, attached, created_at, (parent, snapshots, operation))| Volume {
            id,
            name,
            pool,
            size: Bytes::new(size),
            state,
            attached,
            parent,
            snapshots,
            operation,
            created_at,
        },
    )
}

fn digest() -> impl Strategy<Value = ImageDigest> {
    any::<[u8; 32]>().prop_map(ImageDigest::new)
}

fn snapshot_id() -> impl Strategy<Value = SnapshotId> {
    any::<u128>().prop_map(SnapshotId::from_u128)
}

fn operation_id() -> impl Strategy<Value = OperationId> {
    any::<u128>().prop_map(OperationId::from_u128)
}

fn snapshot() -> impl Strategy<Value = Snapshot> {
    let state =
        prop_oneof![Just(SnapshotState::Creating), Just(SnapshotState::Ready), Just(SnapshotState::Deleting)];
    (snapshot_id(), name(), any::<u64>(), any::<bool>(), state, wall()).prop_map(
        |(id, name, size, protected, state, created_at)| Snapshot {
            id,
            name,
            size: Bytes::new(size),
            protected,
            state,
            created_at,
        },
    )
}

fn pool() -> impl Strategy<Value = Pool> {
    let state = prop_oneof![Just(PoolState::Creating), Just(PoolState::Ready), Just(PoolState::Deleting)];
    let credentials = (".{0,20}", ".{0,20}")
        .prop_map(|(mon_hosts, key)| RbdCredentials { mon_hosts, key: Secret::new(key) });
    let rbd = (name(), ".{0,20}", ".{0,20}", ".{0,20}", option::of(credentials)).prop_map(
        |(cluster, ceph_pool, namespace, user, credentials)| RbdPool {
            cluster,
            ceph_pool,
            namespace,
            user,
            credentials,
        },
    );
    (name(), rbd, state, option::of(operation_id()), wall()).prop_map(
        |(name, rbd, state, operation, created_at)| Pool { name, rbd, state, operation, created_at },
    )
}

fn disk_image() -> impl Strategy<Value = DiskImage> {
    let state = prop_oneof![
        Just(DiskImageState::Importing),
        Just(DiskImageState::Ready),
        Just(DiskImageState::Deleting)
    ];
    let format = prop_oneof![Just(None), Just(Some(ImageFormat::Raw)), Just(Some(ImageFormat::Qcow2))];
    let source = prop_oneof![
        Just(ImageSource::Upload),
        ".{0,30}".prop_map(|url| ImageSource::Url(Secret::new(url))),
        name().prop_map(ImageSource::Copy)
    ];
    let sizes = any::<(u64, u64, u64)>();
    (name(), name(), digest(), sizes, format, source, state, option::of(operation_id()), wall()).prop_map(
        |(name, pool, digest, (file_size, size, received), format, source, state, operation, created_at)| {
            DiskImage {
                name,
                pool,
                digest,
                file_size: Bytes::new(file_size),
                size: Bytes::new(size),
                format,
                source,
                received: Bytes::new(received),
                state,
                operation,
                created_at,
            }
        },
    )
}

fn storage_work() -> impl Strategy<Value = StorageWork> {
    let clone = prop_oneof![
        (name(), digest()).prop_map(|(pool, digest)| CloneSource::Image { pool, digest }),
        (name(), volume_id(), snapshot_id()).prop_map(|(pool, volume, snapshot)| CloneSource::Snapshot {
            pool,
            volume,
            snapshot
        }),
    ];
    let of_snapshot = (snapshot_id(), 0..5).prop_map(|(snapshot, which)| match which {
        0 => StorageWork::SnapshotCreate { snapshot },
        1 => StorageWork::SnapshotRollback { snapshot },
        2 => StorageWork::SnapshotDelete { snapshot },
        which => StorageWork::SnapshotProtect { snapshot, protect: which == 3 },
    });
    prop_oneof![
        Just(StorageWork::PoolCreate),
        Just(StorageWork::PoolDelete),
        clone.prop_map(StorageWork::VolumeClone),
        any::<u64>().prop_map(|size| StorageWork::VolumeResize { size: Bytes::new(size) }),
        Just(StorageWork::VolumeFlatten),
        Just(StorageWork::VolumeDelete),
        of_snapshot,
        Just(StorageWork::ImageDelete),
        Just(StorageWork::DiskImageImport),
        Just(StorageWork::DiskImageCopy),
        Just(StorageWork::DiskImageDelete),
    ]
}

fn image() -> impl Strategy<Value = Image> {
    (name(), name(), any::<(u64, u64)>(), "[0-9a-f]{64}", wall()).prop_map(
        |(name, pool, (size, min_memory), sha256, created_at)| Image {
            name,
            pool,
            size: Bytes::new(size),
            sha256,
            min_memory: Bytes::new(min_memory),
            created_at,
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    let migrate = (option::of(node_id()), any::<Option<u32>>(), any::<Option<u128>>()).prop_map(
        |(target, downtime_target_ms, migration)| OperationKind::VmMigrate {
            target,
            downtime_target_ms,
            migration: migration.map(MigrationId::from_u128),
        },
    );
    let kind = prop_oneof![
        Just(OperationKind::VmCreate),
        Just(OperationKind::VmStart),
        Just(OperationKind::VmStop),
        Just(OperationKind::VmDelete),
        Just(OperationKind::VolumeImport),
        Just(OperationKind::ImageImport),
        storage_work().prop_map(OperationKind::Storage),
        migrate,
    ];
    let state = prop_oneof![
        Just(OperationState::Running),
        Just(OperationState::Done),
        Just(OperationState::Failed),
        Just(OperationState::Cancelled),
    ];
    let rejection = (node_id(), name(), vec(".{0,20}", 0..3))
        .prop_map(|(node, name, reasons)| NodeRejection { node, name, reasons });
    let migration = (any::<(u32, u64, u64, u64)>(), node_id(), node_id()).prop_map(
        |((rounds, bytes, total, downtime), source, target)| MigrationResult {
            rounds,
            bytes,
            total: Duration::from_micros(total),
            downtime: Duration::from_micros(downtime),
            source,
            target,
        },
    );
    let texts = (".{0,20}", ".{0,20}", 0..=100_u8, any::<bool>());
    let ends =
        (vec(rejection, 0..3), option::of(migration), wall(), option::of(wall()), any::<Option<u64>>());
    (any::<u128>(), kind, subject(), name(), state, texts, ends).prop_map(
        |(id, kind, subject, subject_name, state, (step, reason, percent, cancel_requested), ends)| {
            Operation {
                id: OperationId::from_u128(id),
                kind,
                subject,
                subject_name,
                state,
                step,
                percent,
                reason,
                rejections: ends.0,
                migration: ends.1,
                cancel_requested,
                created_at: ends.2,
                ended_at: ends.3,
                placement: ends.4.map(Duration::from_nanos),
                explanation: None,
                parent: None,
            }
        },
    )
}

fn blocklisting() -> impl Strategy<Value = Blocklisting> {
    let candidate = (node_id(), epoch()).prop_map(|(node, epoch)| Candidate { node, epoch });
    let entries = vec((name(), ".{1,20}"), 0..3);
    (vm_id(), epoch(), vec(candidate, 0..3), entries, millis()).prop_map(
        |(vm, floor, candidates, entries, at)| Blocklisting {
            vm,
            floor,
            candidates: candidates.into_iter().collect(),
            entries: entries.into_iter().collect(),
            created_at: WallTime::from_unix_millis(at.as_millis() as u64),
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    let kind = prop_oneof![Just(NameKind::Vm), Just(NameKind::Volume), Just(NameKind::Node)];
    prop_oneof![
        node().prop_map(Record::Node),
        vm().prop_map(Record::Vm),
        volume().prop_map(Record::Volume),
        image().prop_map(Record::Image),
        pool().prop_map(Record::Pool),
        disk_image().prop_map(Record::DiskImage),
        operation().prop_map(Record::Operation),
        blocklisting().prop_map(Record::Blocklisting),
        (kind, name(), subject()).prop_map(|(kind, name, holder)| Record::Name(NameRecord {
            kind,
            name,
            holder
        })),
    ]
}

proptest! {
    #[test]
    fn a_record_survives_its_stored_form(record in record()) {
        let key: StoredKey = key_text(&record.key()).parse().expect("a record's key can be read");
        prop_assert_eq!(&key, &StoredKey::Record(record.key()));
        prop_assert_eq!(decode(&key, &encode(&record)), Ok(Value::Record(record)));
    }

    #[test]
    fn an_event_survives_its_stored_form(at in wall(), texts in any::<[String; 4]>()) {
        let [kind, subject_id, subject_name, message] = texts;
        let event = ClusterEvent { at, kind: Cow::Owned(kind), subject_id, subject_name, message };
        let key = StoredKey::Event("01".to_owned());
        prop_assert_eq!(key.to_string().parse(), Ok(key.clone()));
        prop_assert_eq!(decode(&key, &encode_event(&event)), Ok(Value::Event(event)));
    }

    #[test]
    fn garbled_bytes_are_a_typed_error_or_another_valid_record(
        record in record(), flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>(),
    ) {
        let key = StoredKey::Record(record.key());
        let mut bytes = encode(&record);
        for (place, value) in flips {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        if let Ok(Value::Record(other)) = decode(&key, &bytes) {
            // A flipped bit in a text or a number is not noticed here: the store's own checksums are for that.
            prop_assert_eq!(other.key(), record.key());
        }
    }

    #[test]
    fn any_text_is_a_key_or_a_typed_error(text in "(node|vm|name|image|event|x)/.{0,40}") {
        if let Ok(key) = text.parse::<StoredKey>() {
            prop_assert_eq!(key.to_string(), text);
        }
    }
}

fn a_volume() -> Volume {
    let (name, pool) = (Name::new("data").unwrap(), Name::new("default").unwrap());
    let volume = Volume::new(VolumeId::from_u128(7), name, pool, Bytes::mib(1), WallTime::default());
    Volume { state: VolumeState::Ready, ..volume }
}

/// What `change` makes of a stored volume is refused with this text.
#[track_caller]
fn refused(change: impl FnOnce(&mut stored::Volume), expect: &str) {
    let record = Record::Volume(a_volume());
    let mut message = stored::StoredRecord::decode(&encode(&record)[..]).unwrap();
    let Some(stored::stored_record::Record::Volume(volume)) = &mut message.record else {
        panic!("{message:?}")
    };
    change(volume);
    let error = decode(&StoredKey::Record(record.key()), &message.encode_to_vec()).unwrap_err();
    assert_eq!(error.to_string(), expect);
}

#[test]
fn the_error_names_the_field() {
    refused(|volume| volume.state = 9, "volume.state is invalid: 9");
    refused(|volume| volume.id.truncate(3), "volume.id is invalid: 3 bytes, an id has 16");
    refused(
        |volume| volume.pool = "a/b".to_owned(),
        "volume.pool is invalid: 'a/b' is not a name: use 1 to 63 letters, digits, '.', '_' or '-', starting with a \
         letter or digit",
    );
    refused(
        |volume| volume.id = vec![1; 16],
        "under 'volume/00000000-0000-0000-0000-000000000007' there is volume/01010101-0101-0101-0101-010101010101",
    );
}

#[test]
fn a_record_of_a_newer_version_is_refused() {
    // Field 1000, length-delimited, empty: a kind of record that does not exist yet.
    let bytes = [0xc2, 0x3e, 0x00];
    let key = StoredKey::Record(Record::Volume(a_volume()).key());
    assert_eq!(decode(&key, &bytes), Err(RecordError::Missing { field: "record" }));
}

#[test]
fn an_ownership_that_contradicts_itself_is_refused() {
    let right = stored::ownership::Right::Owned(stored::Owned {
        node_id: vec![1; 16],
        epoch: 5,
        claim: Some(stored::owned::Claim::Taken(stored::Empty {})),
    });
    let message = stored::Ownership { highest_epoch: 4, right: Some(right), evidence: vec![] };
    let error = <Ownership as crate::StoredForm>::from_message(message).unwrap_err();
    assert!(error.to_string().contains("epoch 5, newer than the highest granted, 4"), "{error}");
}

#[test]
fn an_id_has_one_spelling_as_a_key() {
    let id = VmId::from_u128(0xabc);
    assert_eq!(format!("vm/{id}").parse(), Ok(StoredKey::Record(Key::Vm(id))));
    let shouted = format!("vm/{}", id.to_string().to_uppercase());
    assert_eq!(shouted.parse::<StoredKey>(), Err(RecordError::UnknownKey { key: shouted }));
}

/// One record of each kind, with every field in use.
pub(crate) fn samples() -> Vec<Record> {
    let name = |text: &str| Name::new(text).unwrap();
    let (a, b) = (NodeId::from_u128(0xa), NodeId::from_u128(0xb));
    let vm = VmId::from_u128(1);
    let epoch = OwnerEpoch::new;
    let silent = Duration::from_millis(4500);
    let previous = Some(VolumeOwner { vm, node: a, epoch: epoch(2) });
    let volumes =
        vec![VolumeFence { volume: VolumeId::from_u128(7), epoch: epoch(3), previous, blocklist: None }];
    let evidence = vec![
        Evidence::SelfFenceLeaseExpired { node: a, epoch: epoch(2), silent, volumes },
        Evidence::Stopped { node: b, epoch: epoch(1) },
        Evidence::ProcessDeath { node: b, epoch: epoch(1), exit: "killed by signal 9".to_owned() },
    ];
    let migration = MigrationId::from_u128(9);
    let right = Right::Migrating { source: a, epoch: epoch(3), target: b, target_epoch: epoch(4), migration };
    let at = WallTime::from_unix_millis(1_700_000_000_123);
    let spec = VmSpec {
        name: name("web"),
        vcpus: VcpuCount::new(2),
        memory: Bytes::mib(256),
        image: name("probe"),
        image_pool: name("default"),
        cmdline: "probe.heartbeat=10".to_owned(),
        volumes: vec![VolumeAttachment {
            volume: VolumeId::from_u128(7),
            pool: name("default"),
            read_only: true,
        }],
        anti_affinity_group: Some(name("pair")),
        priority: 5,
        constraints: Constraints::default(),
    };
    let operation = OperationId::from_u128(0x0e);
    let kind = OperationKind::VmMigrate {
        target: Some(b),
        downtime_target_ms: Some(30),
        migration: Some(migration),
    };
    let mut moving = Operation::new(operation, kind, Subject::Vm(vm), name("web"), at);
    moving.rejections = vec![NodeRejection { node: a, name: name("n1"), reasons: vec!["full".to_owned()] }];
    moving.migration = Some(MigrationResult {
        rounds: 3,
        bytes: 1 << 28,
        total: Duration::from_millis(900),
        downtime: Duration::from_millis(12),
        source: a,
        target: b,
    });
    moving.cancel_requested = true;
    moving.placement = Some(Duration::from_nanos(1234));
    vec![
        Record::Volume(Volume { attached: Some(vm), ..a_volume() }),
        Record::Image(Image {
            name: name("probe"),
            pool: name("default"),
            size: Bytes::new(12345),
            sha256: "ab".repeat(32),
            min_memory: Bytes::mib(3),
            created_at: at,
        }),
        Record::Node(Node {
            id: a,
            name: name("n1"),
            address: "127.0.0.1:7401".to_owned(),
            capacity: Capacity { vcpus: VcpuCount::new(4), memory: Bytes::gib(4) },
            pools: [name("default")].into(),
            incarnation: Incarnation("first".to_owned()),
            version: "0.1.0".to_owned(),
            fence: NodeFence::Fenced(NodeFenceEvidence { silent, vms: 2, volumes: 1 }),
            librbd: String::new(),
            assignments: 6,
            facts: HostFacts::default(),
            settings: NodeSettings::default(),
        }),
        Record::Vm(Vm {
            id: vm,
            spec,
            generation: Generation::new(2),
            desired: Desired::Running,
            stop_cause: Some(StopCause::StartFailed("no room".to_owned())),
            ownership: Ownership::from_parts(right, epoch(4), evidence).unwrap(),
            restarts: Restarts { count: 3, failures: 1, last_reason: "the process died".to_owned() },
            operation: Some(operation),
            created_at: at,
        }),
        Record::Operation(moving.ended(OperationState::Done, "moved", at)),
        Record::Name(NameRecord { kind: NameKind::Vm, name: name("web"), holder: Subject::Vm(vm) }),
    ]
    .into_iter()
    .chain(storage_samples())
    .collect()
}

/// The records of pools, snapshots and disk images, which came later.
fn storage_samples() -> [Record; 6] {
    let name = |text: &str| Name::new(text).unwrap();
    let at = WallTime::from_unix_millis(1_700_000_000_123);
    let (digest, snapshot) = (ImageDigest::new([0xab; 32]), SnapshotId::from_u128(3));
    let operation = OperationId::from_u128(0x0f);
    let credentials = RbdCredentials { mon_hosts: "10.0.0.1".to_owned(), key: Secret::new("AQB=") };
    let rbd = RbdPool {
        cluster: name("ceph"),
        ceph_pool: "vms".to_owned(),
        namespace: "a".to_owned(),
        user: "drover.fast.0f".to_owned(),
        credentials: Some(credentials),
    };
    let work = StorageWork::VolumeClone(CloneSource::Snapshot {
        pool: name("fast"),
        volume: VolumeId::from_u128(7),
        snapshot,
    });
    let subject = Subject::Volume(VolumeId::from_u128(8));
    let kept = Snapshot {
        id: snapshot,
        name: name("before"),
        size: Bytes::mib(1),
        protected: true,
        state: SnapshotState::Ready,
        created_at: at,
    };
    [
        Record::Pool(Pool {
            name: name("fast"),
            rbd,
            state: PoolState::Ready,
            operation: Some(operation),
            created_at: at,
        }),
        Record::DiskImage(DiskImage {
            name: name("debian"),
            pool: name("fast"),
            digest,
            file_size: Bytes::mib(300),
            size: Bytes::gib(2),
            format: Some(ImageFormat::Qcow2),
            source: ImageSource::Url(Secret::new("https://example.org/debian.qcow2")),
            received: Bytes::mib(64),
            state: DiskImageState::Importing,
            operation: Some(operation),
            created_at: at,
        }),
        Record::Operation(Operation::new(operation, OperationKind::Storage(work), subject, name("copy"), at)),
        Record::Volume(Volume {
            id: VolumeId::from_u128(8),
            parent: Some(VolumeParent::Image(digest)),
            snapshots: vec![kept],
            operation: Some(operation),
            ..a_volume()
        }),
        Record::Blocklisting(Blocklisting {
            vm: VmId::from_u128(1),
            floor: OwnerEpoch::new(4),
            candidates: [Candidate { node: NodeId::from_u128(0xa), epoch: OwnerEpoch::new(3) }].into(),
            entries: [(name("fast"), "127.0.0.1:0/3710147553".to_owned())].into(),
            created_at: at,
        }),
        Record::Node(Node {
            id: NodeId::from_u128(0xb),
            name: name("n2"),
            address: "127.0.0.1:7402".to_owned(),
            capacity: Capacity { vcpus: VcpuCount::new(8), memory: Bytes::gib(16) },
            pools: [name("default")].into(),
            incarnation: Incarnation("run-2".to_owned()),
            version: "0.2.0".to_owned(),
            librbd: "1.16.0".to_owned(),
            fence: NodeFence::Clear,
            facts: HostFacts::default(),
            settings: NodeSettings::default(),
            assignments: 1,
        }),
    ]
}

/// What is in a store today must be readable by every later version. Where a message has grown, the old lines stay
/// and must still decode; `UPDATE_EXPECT=1` writes the lines of today.
#[test]
fn records_of_format_1_are_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/golden-1.txt");
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let today: Vec<String> = samples()
        .iter()
        .map(|record| format!("{} {}", key_text(&record.key()), hex(encode(record))))
        .collect();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, today.join("\n") + "\n").unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(golden.lines().collect::<Vec<_>>(), today);
    for (line, record) in golden.lines().zip(samples()) {
        let (key, hex) = line.split_once(' ').unwrap();
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        assert_eq!(decode(&key.parse().unwrap(), &bytes), Ok(Value::Record(record)));
    }
}
