//! Any record there may be.

use std::{sync::Arc, time::Duration};

use drover_cloud_init::{Seed, Unchecked};
use drover_cluster_state::{
    BalloonSpec, Blocklist, Blocklisting, Candidate, Capacity, Cid, Claim, CloneSource, Constraints, Desired,
    DeviceBus, DiskImage, DiskImageState, Evidence, Extras, GuestDevices, Hardware, Hold, HostFacts, Image,
    ImageFormat, ImageSource, Incarnation, Limit, Limits, Mac, MigrationResult, Name, NameKind, NameRecord,
    Nic, Node, NodeFence, NodeFenceEvidence, NodeRejection, NodeSettings, OnReset, Operation, OperationKind,
    OperationState, Ownership, Pool, PoolState, Rate, RbdCredentials, RbdPool, Record, Restarts, Right,
    Secret, Snapshot, SnapshotState, StallAction, StallPolicy, StopCause, StorageWork, Subject, Vm,
    VmSnapshot, VmSpec, Volume, VolumeAttachment, VolumeFence, VolumeOwner, VolumeParent, VolumeState,
    WallTime,
};
use drover_ids::{
    Generation, ImageDigest, MigrationId, NodeId, OperationId, OwnerEpoch, SnapshotId, VmId, VolumeId,
};
use drover_units::{Bytes, VcpuCount};
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
};

pub(super) fn name() -> impl Strategy<Value = Name> {
    "[a-z0-9][a-z0-9._-]{0,20}".prop_map(|text| Name::new(&text).expect("the pattern is a name's"))
}

pub(super) fn vm_id() -> impl Strategy<Value = VmId> {
    any::<u128>().prop_map(VmId::from_u128)
}

pub(super) fn node_id() -> impl Strategy<Value = NodeId> {
    any::<u128>().prop_map(NodeId::from_u128)
}

pub(super) fn volume_id() -> impl Strategy<Value = VolumeId> {
    any::<u128>().prop_map(VolumeId::from_u128)
}

pub(super) fn epoch() -> impl Strategy<Value = OwnerEpoch> {
    any::<u64>().prop_map(OwnerEpoch::new)
}

pub(super) fn wall() -> impl Strategy<Value = WallTime> {
    any::<u64>().prop_map(WallTime::from_unix_millis)
}

pub(super) fn millis() -> impl Strategy<Value = Duration> {
    any::<u64>().prop_map(Duration::from_millis)
}

pub(super) fn capacity() -> impl Strategy<Value = Capacity> {
    any::<(u32, u64)>()
        .prop_map(|(vcpus, memory)| Capacity { vcpus: VcpuCount::new(vcpus), memory: Bytes::new(memory) })
}

pub(super) fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        vm_id().prop_map(Subject::Vm),
        volume_id().prop_map(Subject::Volume),
        name().prop_map(Subject::Image),
        node_id().prop_map(Subject::Node),
        name().prop_map(Subject::Pool),
        name().prop_map(Subject::DiskImage),
    ]
}

pub(super) fn node() -> impl Strategy<Value = Node> {
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

pub(super) fn evidence() -> impl Strategy<Value = Evidence> {
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

pub(super) fn ownership() -> impl Strategy<Value = Ownership> {
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

fn seed() -> impl Strategy<Value = Seed> {
    let key = "ssh-ed25519 [A-Za-z0-9+/]{1,40} [a-z]{0,8}";
    ("[a-z0-9]{0,12}", vec(key, 0..3), "(#cloud-config\n.{0,40})?", ".{0,20}").prop_map(
        |(hostname, ssh_keys, user_data, network_config)| {
            // `.` is any character but a newline, NUL among them.
            let [user_data, network_config] = [user_data, network_config].map(|text| text.replace('\0', " "));
            let raw = Unchecked { hostname, ssh_keys, user_data, network_config };
            Seed::try_from(raw).expect("the patterns are of valid seeds")
        },
    )
}

fn limits() -> impl Strategy<Value = Limits> {
    let rate = || option::of((1_u64..1 << 50, 1_u64..1 << 50));
    let rate =
        move || rate().prop_map(|rate| rate.map(|(n, burst)| Rate::new(n, Some(burst)).expect("in range")));
    (rate(), rate()).prop_map(|(requests, bytes)| Limits {
        total: Limit { requests, bytes: None },
        inbound: Limit::default(),
        outbound: Limit { requests: None, bytes },
    })
}

fn devices() -> impl Strategy<Value = GuestDevices> {
    let mac = option::of(
        any::<[u8; 5]>().prop_map(|[a, b, c, d, e]| Mac::new([2, a, b, c, d, e]).expect("of one")),
    );
    let nic = (mac, "[a-z]{0,9}", any::<u16>(), any::<u16>(), limits(), 0_u8..9).prop_map(
        |(fixed_mac, network, queue_pairs, mtu, limits, place)| Nic {
            fixed_mac,
            network,
            queue_pairs,
            mtu,
            limits,
            place,
        },
    );
    let bus = prop_oneof![Just(DeviceBus::AsNeeded), Just(DeviceBus::Mmio), Just(DeviceBus::Pci)];
    let on_reset = prop_oneof![Just(OnReset::Restart), Just(OnReset::End)];
    let balloon = option::of(any::<bool>().prop_map(|keep_on_oom| BalloonSpec { keep_on_oom }));
    let vsock = option::of((3..u64::from(u32::MAX)).prop_map(|cid| Cid::new(cid).expect("a guest's")));
    let extras = (any::<bool>(), any::<bool>(), balloon, vsock)
        .prop_map(|(rng, console, balloon, vsock)| Extras { rng, console, balloon, vsock });
    let hardware = (any::<u16>(), option::of(name()), bus, on_reset, extras).prop_map(
        |(disk_queues, initrd, bus, on_reset, extras)| Hardware {
            disk_queues,
            initrd,
            bus,
            on_reset,
            extras,
        },
    );
    let places = btree_map(volume_id(), 1_u8..17, 0..3);
    let parts = (vec(nic, 0..3), btree_map(volume_id(), limits(), 0..3), hardware, places, 0_u8..17);
    parts.prop_map(|(nics, disk_limits, hardware, disk_places, seed_place)| GuestDevices {
        nics,
        disk_limits,
        hardware,
        disk_places,
        seed_place,
    })
}

pub(super) fn vm() -> impl Strategy<Value = Vm> {
    let attachment = (volume_id(), name(), any::<bool>())
        .prop_map(|(volume, pool, read_only)| VolumeAttachment { volume, pool, read_only });
    let spec = (
        name(),
        capacity(),
        name(),
        name(),
        ".{0,30}",
        vec(attachment, 0..3),
        (option::of(name()), option::of(seed())),
        any::<u32>(),
    )
        .prop_map(
            |(name, size, image, image_pool, cmdline, volumes, (anti_affinity_group, seed), priority)| {
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
                    cloud_init: seed.map(Arc::new),
                    devices: Default::default(),
                    constraints: Constraints::default(),
                    stall: None,
                }
            },
        );
    let spec = (spec, option::of(stall()), devices()).prop_map(|(spec, stall, devices)| VmSpec {
        stall,
        devices,
        ..spec
    });
    let desired = prop_oneof![Just(Desired::Running), Just(Desired::Stopped), Just(Desired::Deleted)];
    let cause = prop_oneof![
        Just(StopCause::Requested),
        Just(StopCause::GuestShutdown),
        Just(StopCause::Suspended),
        ".{0,20}".prop_map(StopCause::StartFailed)
    ];
    let restarts = (any::<(u32, u32)>(), ".{0,20}").prop_map(|((count, failures), last_reason)| Restarts {
        count,
        failures,
        last_reason,
    });
    let operation = option::of(any::<u128>().prop_map(OperationId::from_u128));
    let end = (option::of(cause), option::of(node_id()));
    (vm_id(), spec, any::<u64>(), desired, end, ownership(), restarts, operation, wall()).prop_map(
        |(
            id,
            spec,
            generation,
            desired,
            (stop_cause, suspended_on),
            ownership,
            restarts,
            operation,
            created_at,
        )| Vm {
            id,
            spec,
            generation: Generation::new(generation),
            desired,
            stop_cause,
            suspended_on,
            ownership,
            restarts,
            operation,
            created_at,
        },
    )
}

pub(super) fn stall() -> impl Strategy<Value = StallPolicy> {
    let action = prop_oneof![Just(StallAction::Wait), Just(StallAction::Pause), Just(StallAction::Stop)];
    (option::of(1..10_000_000_u64), action)
        .prop_map(|(ms, action)| StallPolicy { deadline: ms.map(Duration::from_millis), action })
}

pub(super) fn volume() -> impl Strategy<Value = Volume> {
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

pub(super) fn digest() -> impl Strategy<Value = ImageDigest> {
    any::<[u8; 32]>().prop_map(ImageDigest::new)
}

pub(super) fn snapshot_id() -> impl Strategy<Value = SnapshotId> {
    any::<u128>().prop_map(SnapshotId::from_u128)
}

pub(super) fn operation_id() -> impl Strategy<Value = OperationId> {
    any::<u128>().prop_map(OperationId::from_u128)
}

pub(super) fn snapshot() -> impl Strategy<Value = Snapshot> {
    let state =
        prop_oneof![Just(SnapshotState::Creating), Just(SnapshotState::Ready), Just(SnapshotState::Deleting)];
    let part_of = (vm_id(), any::<u32>(), option::of(hold())).prop_map(|(vm, volumes, hold)| VmSnapshot {
        vm,
        volumes,
        hold,
    });
    (snapshot_id(), name(), any::<u64>(), any::<bool>(), state, wall(), option::of(part_of)).prop_map(
        |(id, name, size, protected, state, created_at, part_of)| Snapshot {
            id,
            name,
            size: Bytes::new(size),
            protected,
            state,
            created_at,
            part_of,
        },
    )
}

pub(super) fn hold() -> impl Strategy<Value = Hold> {
    (0..1_000_000_u64, 0..1_000_000_u64).prop_map(|(drained, lasted)| Hold {
        drained: Duration::from_micros(drained),
        lasted: Duration::from_micros(lasted),
    })
}

pub(super) fn pool() -> impl Strategy<Value = Pool> {
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
    (name(), rbd, state, option::of(operation_id()), wall(), option::of(stall())).prop_map(
        |(name, rbd, state, operation, created_at, stall)| Pool {
            name,
            rbd,
            state,
            operation,
            created_at,
            stall,
        },
    )
}

pub(super) fn disk_image() -> impl Strategy<Value = DiskImage> {
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

pub(super) fn storage_work() -> impl Strategy<Value = StorageWork> {
    let clone = prop_oneof![
        (name(), digest()).prop_map(|(pool, digest)| CloneSource::Image { pool, digest }),
        (name(), volume_id(), snapshot_id()).prop_map(|(pool, volume, snapshot)| CloneSource::Snapshot {
            pool,
            volume,
            snapshot
        }),
    ];
    let of_snapshot = (snapshot_id(), 0..8).prop_map(|(snapshot, which)| match which {
        0 => StorageWork::SnapshotCreate { snapshot },
        1 => StorageWork::SnapshotRollback { snapshot },
        2 => StorageWork::SnapshotDelete { snapshot },
        3 => StorageWork::VmSnapshotCreate { snapshot },
        4 => StorageWork::VmSnapshotRollback { snapshot },
        5 => StorageWork::VmSnapshotDelete { snapshot },
        which => StorageWork::SnapshotProtect { snapshot, protect: which == 6 },
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

pub(super) fn image() -> impl Strategy<Value = Image> {
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

pub(super) fn operation() -> impl Strategy<Value = Operation> {
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
        any::<u32>().prop_map(|graceful_ms| OperationKind::VmStop { graceful_ms }),
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
    let times = (wall(), option::of(wall()), any::<Option<u64>>(), option::of(hold()));
    let ends = (vec(rejection, 0..3), option::of(migration), times);
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
                created_at: ends.2.0,
                ended_at: ends.2.1,
                placement: ends.2.2.map(Duration::from_nanos),
                explanation: None,
                parent: None,
                hold: ends.2.3,
            }
        },
    )
}

pub(super) fn blocklisting() -> impl Strategy<Value = Blocklisting> {
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

pub(super) fn record() -> impl Strategy<Value = Record> {
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
