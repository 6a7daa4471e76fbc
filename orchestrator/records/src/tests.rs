//! Every record survives its stored form; nothing else comes out of a store.

use std::{borrow::Cow, time::Duration};

use drover_cluster_state::{
    Blocklisting, Candidate, Capacity, CloneSource, ClusterEvent, Constraints, Desired, DiskImage,
    DiskImageState, Evidence, HostFacts, Image, ImageFormat, ImageSource, Incarnation, Key, MigrationResult,
    Name, NameKind, NameRecord, Node, NodeFence, NodeFenceEvidence, NodeRejection, NodeSettings, Operation,
    OperationKind, OperationState, Ownership, Pool, PoolState, RbdCredentials, RbdPool, Record, Restarts,
    Right, Secret, Snapshot, SnapshotState, StopCause, StorageWork, Subject, Vm, VmSpec, Volume,
    VolumeAttachment, VolumeFence, VolumeOwner, VolumeParent, VolumeState, WallTime,
};
use drover_ids::{
    Generation, ImageDigest, MigrationId, NodeId, OperationId, OwnerEpoch, SnapshotId, VmId, VolumeId,
};
use drover_units::{Bytes, VcpuCount};
use drover_wire::store::v1 as stored;
use proptest::{collection::vec, prelude::*};
use prost::Message as _;

use crate::{RecordError, StoredKey, Value, decode, encode, encode_event, key_text};

mod strategies;

use strategies::*;

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
        cloud_init: None,
        devices: Default::default(),
        constraints: Constraints::default(),
        stall: None,
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
            suspended_on: None,
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
        part_of: None,
    };
    [
        Record::Pool(Pool {
            name: name("fast"),
            rbd,
            state: PoolState::Ready,
            operation: Some(operation),
            created_at: at,
            stall: None,
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
