//! What clients see.

use super::devices;
use drover_cluster_state::{
    ClusterState, Constraints, DiskImage, DiskImageState, Hold, Image, ImageFormat, Name, Node, NodeFence,
    NodeState, Operation, OperationState, Right, Snapshot, SnapshotState, Stored, Usage, Vm, VmPhase, Volume,
    VolumeParent, VolumeState, WallTime,
};
use drover_driver::{LoggedEvent, View};
use drover_ids::OperationId;
use drover_placement_messages::{
    constraints_message, explanation_message, facts_message, settings_message, taint_message,
};
use drover_reconcile::admission::VmSnapshotPart;
use drover_wire::{control::v1 as wire, placement::v1::Label};
use prost_types::Timestamp;

use super::report::{boot_times, micros, migration_status};

/// A point in time.
pub(crate) fn timestamp(at: WallTime) -> Option<Timestamp> {
    let ms = at.as_unix_millis();
    let nanos = i32::try_from(ms % 1000 * 1_000_000).expect("below 10^9");
    Some(Timestamp { seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX), nanos })
}

/// A VM.
pub(crate) fn vm(state: &ClusterState, vm: &Vm) -> wire::Vm {
    let phase = match state.vm_phase(vm) {
        VmPhase::Pending => wire::VmPhase::Pending,
        VmPhase::Starting => wire::VmPhase::Starting,
        VmPhase::Running => wire::VmPhase::Running,
        VmPhase::Migrating => wire::VmPhase::Migrating,
        VmPhase::Stopping => wire::VmPhase::Stopping,
        VmPhase::Stopped => wire::VmPhase::Stopped,
        VmPhase::Fencing => wire::VmPhase::Fencing,
        VmPhase::Backoff => wire::VmPhase::Backoff,
        VmPhase::Deleting => wire::VmPhase::Deleting,
    };
    let node = vm.ownership.node();
    let report = state.owner_report(vm);
    let epoch = match vm.ownership.right() {
        Right::Unowned => vm.ownership.highest(),
        Right::Owned { epoch, .. } | Right::Migrating { epoch, .. } => epoch,
    };
    let evidence: Vec<String> = vm.ownership.evidence().iter().map(ToString::to_string).collect();
    wire::Vm {
        id: vm.id.to_string(),
        spec: Some(vm_spec(state, vm)),
        phase: phase.into(),
        node_id: node.map(|node| node.to_string()).unwrap_or_default(),
        node_name: node.map(|node| state.node_name(node)).unwrap_or_default(),
        owner_epoch: epoch.get(),
        restarts: vm.restarts.count,
        detail: detail(state, vm),
        boot: report.map(|report| boot_times(&report.boot)),
        migration: report.and_then(|report| report.migration.as_ref()).map(migration_status),
        created_at: timestamp(vm.created_at),
        last_fence_evidence: if vm.restarts.count > 0 { evidence.join("; ") } else { String::new() },
        pid: report.filter(|report| report.is_live()).map_or(0, |report| report.pid),
    }
}

/// What there is to say: what is being done, or why it does not run.
fn detail(state: &ClusterState, vm: &Vm) -> String {
    let progress =
        state.progress.get(&vm.id).map(|progress| progress.detail.as_str()).filter(|text| !text.is_empty());
    match (progress, &vm.stop_cause) {
        (Some(text), _) => text.to_owned(),
        (None, Some(cause)) => cause.to_string(),
        (None, None) => vm.restarts.last_reason.clone(),
    }
}

fn vm_spec(state: &ClusterState, vm: &Vm) -> wire::VmSpec {
    let spec = &vm.spec;
    let volume_name =
        |volume| state.volumes.get(volume).map_or_else(|| volume.to_string(), |v| v.name.to_string());
    wire::VmSpec {
        name: spec.name.to_string(),
        vcpus: spec.vcpus.get(),
        memory_bytes: spec.memory.get(),
        image: spec.image.to_string(),
        cmdline: spec.cmdline.clone(),
        volumes: spec.volumes.iter().map(|attachment| volume_name(&attachment.volume)).collect(),
        nics: spec.devices.nics.iter().enumerate().map(|nic| devices::shown(vm.id, nic)).collect(),
        volume_limits: spec
            .devices
            .disk_limits
            .iter()
            .map(|(volume, limits)| wire::VolumeLimits {
                volume: volume_name(volume),
                limits: devices::limits_message(*limits),
            })
            .collect(),
        anti_affinity_group: spec.anti_affinity_group.as_ref().map(ToString::to_string).unwrap_or_default(),
        priority: spec.priority,
        // What may be secret is not told.
        cloud_init: spec.cloud_init.as_deref().map(|seed| wire::CloudInit {
            hostname: seed.fields().hostname.clone(),
            ssh_keys: seed.fields().ssh_keys.clone(),
            ..wire::CloudInit::default()
        }),
        stall: spec.stall.map(super::stall),
        disk_queues: spec.devices.hardware.disk_queues.into(),
        initrd: spec.devices.hardware.initrd.as_ref().map(ToString::to_string).unwrap_or_default(),
        bus: devices::bus(&spec.devices.hardware).into(),
        on_reset: devices::on_reset(&spec.devices.hardware).into(),
        devices: devices::extras_message(&spec.devices.hardware),
        constraints: (spec.constraints != Constraints::default()).then(|| {
            constraints_message(&spec.constraints, |vm| {
                state.vms.get(&vm).map_or_else(|| vm.to_string(), |vm| vm.spec.name.to_string())
            })
        }),
    }
}

/// A node; `usage` is what its VMs take.
pub(crate) fn node(view: View<'_>, node: &Node, usage: Usage) -> wire::Node {
    let node_state = match view.state.node_state(node.id) {
        None => wire::NodeState::Unspecified,
        Some(NodeState::Ready) => wire::NodeState::Ready,
        Some(NodeState::Suspect) => wire::NodeState::Suspect,
        Some(NodeState::Fencing) => wire::NodeState::Fencing,
        Some(NodeState::Fenced) => wire::NodeState::Fenced,
        Some(NodeState::Unknown) => wire::NodeState::Unknown,
    };
    let silent =
        view.state.sessions.get(&node.id).map(|session| view.now.moment.since(session.last_heartbeat));
    let offered = node.offered();
    wire::Node {
        cordoned: node.is_cordoned(),
        draining: node.settings.drain.is_some(),
        labels: labels(node),
        taints: node.taints().iter().map(taint_message).collect(),
        vcpus_offered: offered.vcpus.get(),
        memory_offered_bytes: offered.memory.get(),
        facts: Some(facts_message(&node.facts)),
        settings: Some(settings_message(&node.settings)),
        id: node.id.to_string(),
        name: node.name.to_string(),
        address: node.address.clone(),
        state: node_state.into(),
        vcpus: node.capacity.vcpus.get(),
        memory_bytes: node.capacity.memory.get(),
        vcpus_used: usage.taken.vcpus.get(),
        memory_used_bytes: usage.taken.memory.get(),
        vm_count: usage.vms,
        last_heartbeat_ms: silent.map_or(0, |silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
        fence_evidence: match &node.fence {
            NodeFence::Clear | NodeFence::Fencing { .. } => String::new(),
            NodeFence::Fenced(evidence) => evidence.to_string(),
        },
        version: node.version.clone(),
    }
}

fn labels(node: &Node) -> Vec<Label> {
    let label = |(key, value): (Name, Name)| Label { key: key.to_string(), value: value.to_string() };
    node.labels().into_iter().map(label).collect()
}

/// A volume.
pub(crate) fn volume(state: &ClusterState, volume: &Volume) -> wire::Volume {
    let holder = volume.attached;
    let vm_name = holder.and_then(|vm| state.vms.get(&vm)).map(|vm| vm.spec.name.to_string());
    wire::Volume {
        id: volume.id.to_string(),
        name: volume.name.to_string(),
        pool: volume.pool.to_string(),
        size_bytes: volume.size.get(),
        vm_id: holder.map(|vm| vm.to_string()).unwrap_or_default(),
        vm_name: vm_name.unwrap_or_default(),
        created_at: timestamp(volume.created_at),
        state: match volume.state {
            VolumeState::Creating => wire::VolumeState::Creating,
            VolumeState::Ready => wire::VolumeState::Ready,
            VolumeState::Deleting => wire::VolumeState::Deleting,
        }
        .into(),
        used_bytes: None,
        parent: volume.parent.map(|parent| parent_name(state, volume, parent)).unwrap_or_default(),
        snapshot_count: u32::try_from(volume.snapshots.len()).unwrap_or(u32::MAX),
        operation_id: running(state, volume.operation),
    }
}

/// An operation that works on something; nothing, if it has ended.
fn running(state: &ClusterState, operation: Option<OperationId>) -> String {
    let running =
        operation.and_then(|id| state.operations.get(&id)).filter(|operation| operation.is_running());
    running.map(|operation| operation.id.to_string()).unwrap_or_default()
}

/// What a clone needs, in words.
fn parent_name(state: &ClusterState, volume: &Volume, parent: VolumeParent) -> String {
    match parent {
        VolumeParent::Image(digest) => {
            let same = |image: &&Stored<DiskImage>| image.pool == volume.pool && image.digest == digest;
            let name = state.disk_images.values().find(same).map(|image| image.name.to_string());
            format!("image {}", name.unwrap_or_else(|| digest.to_string()))
        }
        VolumeParent::Snapshot { volume, snapshot } => {
            let of = state.volumes.get(&volume);
            let name = of.and_then(|of| of.snapshot(snapshot)).map(|snapshot| snapshot.name.to_string());
            let of = of.map_or_else(|| volume.to_string(), |of| of.name.to_string());
            format!("snapshot {of}@{}", name.unwrap_or_else(|| snapshot.to_string()))
        }
    }
}

/// A snapshot of a volume.
pub(crate) fn snapshot(state: &ClusterState, volume: &Volume, snapshot: &Snapshot) -> wire::Snapshot {
    let parent = VolumeParent::Snapshot { volume: volume.id, snapshot: snapshot.id };
    wire::Snapshot {
        id: snapshot.id.to_string(),
        name: snapshot.name.to_string(),
        volume_id: volume.id.to_string(),
        volume_name: volume.name.to_string(),
        size_bytes: snapshot.size.get(),
        is_protected: snapshot.protected,
        state: match snapshot.state {
            SnapshotState::Creating => wire::SnapshotState::Creating,
            SnapshotState::Ready => wire::SnapshotState::Ready,
            SnapshotState::Deleting => wire::SnapshotState::Deleting,
        }
        .into(),
        clones: clones(state, &volume.pool, parent),
        created_at: timestamp(snapshot.created_at),
        part_of_vm_id: snapshot.part_of.as_ref().map(|whole| whole.vm.to_string()).unwrap_or_default(),
    }
}

/// A snapshot of a VM, of at least one part.
pub(crate) fn vm_snapshot(state: &ClusterState, parts: &[VmSnapshotPart<'_>]) -> wire::VmSnapshot {
    let VmSnapshotPart { snapshot: first, whole, .. } = parts[0];
    let parts: Vec<_> = parts.iter().map(|part| snapshot(state, part.volume, part.snapshot)).collect();
    let least = |of: wire::SnapshotState| parts.iter().any(|part| part.state() == of).then_some(of);
    let unready = least(wire::SnapshotState::Deleting).or_else(|| least(wire::SnapshotState::Creating));
    wire::VmSnapshot {
        id: first.id.to_string(),
        name: first.name.to_string(),
        vm_id: whole.vm.to_string(),
        vm_name: state.vms.get(&whole.vm).map(|vm| vm.spec.name.to_string()).unwrap_or_default(),
        state: unready.unwrap_or(wire::SnapshotState::Ready).into(),
        parts,
        part_count: whole.volumes,
        hold: whole.hold.map(hold),
        created_at: timestamp(first.created_at),
    }
}

fn hold(hold: Hold) -> wire::Hold {
    wire::Hold { drained_us: micros(hold.drained), lasted_us: micros(hold.lasted) }
}

/// A disk image.
pub(crate) fn disk_image(state: &ClusterState, image: &DiskImage) -> wire::DiskImage {
    wire::DiskImage {
        name: image.name.to_string(),
        pool: image.pool.to_string(),
        sha256: image.digest.to_string(),
        file_size_bytes: image.file_size.get(),
        size_bytes: image.size.get(),
        format: match image.format {
            None => wire::ImageFormat::Unspecified,
            Some(ImageFormat::Raw) => wire::ImageFormat::Raw,
            Some(ImageFormat::Qcow2) => wire::ImageFormat::Qcow2,
        }
        .into(),
        source: image.source.to_string(),
        received_bytes: image.received.get(),
        state: match image.state {
            DiskImageState::Importing => wire::DiskImageState::Importing,
            DiskImageState::Ready => wire::DiskImageState::Ready,
            DiskImageState::Deleting => wire::DiskImageState::Deleting,
        }
        .into(),
        clones: clones(state, &image.pool, VolumeParent::Image(image.digest)),
        operation_id: running(state, image.operation),
        created_at: timestamp(image.created_at),
    }
}

/// Volumes that need `parent`, by name.
fn clones(state: &ClusterState, pool: &Name, parent: VolumeParent) -> Vec<String> {
    let needs = |volume: &&Stored<Volume>| volume.pool == *pool && volume.parent == Some(parent);
    state.volumes.values().filter(needs).map(|volume| volume.name.to_string()).collect()
}

/// A boot image.
pub(crate) fn image(image: &Image) -> wire::Image {
    wire::Image {
        name: image.name.to_string(),
        pool: image.pool.to_string(),
        size_bytes: image.size.get(),
        sha256: image.sha256.clone(),
        min_memory_bytes: image.min_memory.get(),
        created_at: timestamp(image.created_at),
    }
}

/// An operation.
pub(crate) fn operation(state: &ClusterState, operation: &Operation) -> wire::Operation {
    let operation_state = match operation.state {
        OperationState::Running => wire::OperationState::Running,
        OperationState::Done => wire::OperationState::Done,
        OperationState::Failed => wire::OperationState::Failed,
        OperationState::Cancelled => wire::OperationState::Cancelled,
    };
    let rejection = |rejection: &drover_cluster_state::NodeRejection| wire::NodeRejection {
        node_id: rejection.node.to_string(),
        node_name: rejection.name.to_string(),
        reasons: rejection.reasons.clone(),
    };
    let migration = |result: &drover_cluster_state::MigrationResult| wire::MigrationResult {
        rounds: result.rounds,
        bytes: result.bytes,
        total_us: micros(result.total),
        downtime_us: micros(result.downtime),
        source_node: state.node_name(result.source),
        target_node: state.node_name(result.target),
    };
    wire::Operation {
        id: operation.id.to_string(),
        kind: operation.kind.to_string(),
        subject_id: operation.subject.to_string(),
        subject_name: operation.subject_name.to_string(),
        state: operation_state.into(),
        step: operation.step.clone(),
        percent: operation.percent.into(),
        reason: operation.reason.clone(),
        rejections: operation.rejections.iter().map(rejection).collect(),
        migration: operation.migration.as_ref().map(migration),
        created_at: timestamp(operation.created_at),
        ended_at: operation.ended_at.and_then(timestamp),
        // Zero means that none was made.
        placement_us: operation.placement.map_or(0, |time| micros(time).max(1)),
        explanation: operation.explanation.as_deref().map(explanation_message),
        parent_id: operation.parent.map(|id| id.to_string()).unwrap_or_default(),
        hold: operation.hold.map(hold),
    }
}

/// An event.
pub(crate) fn event(logged: &LoggedEvent) -> wire::Event {
    wire::Event {
        sequence: logged.sequence.get(),
        at: timestamp(logged.event.at),
        kind: logged.event.kind.to_string(),
        subject_id: logged.event.subject_id.clone(),
        subject_name: logged.event.subject_name.clone(),
        message: logged.event.message.clone(),
    }
}
