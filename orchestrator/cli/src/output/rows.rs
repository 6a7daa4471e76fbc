//! What the tables and the JSON form say of each kind of thing.

use std::time::SystemTime;

use drover_client::api::{
    DiskImage, Event, Image, ImageFormat, Node, NodeRejection, Operation, Pool, Snapshot, Vm, Volume,
};
use drover_units::Bytes;
use serde::Serialize;

use super::{
    Row,
    placement::{labels, taint},
};

/// RFC 3339, or nothing for a time that is not set or lies outside what the clock can say.
macro_rules! time {
    ($timestamp:expr) => {
        $timestamp
            .and_then(|timestamp| SystemTime::try_from(timestamp).ok())
            .map(|time| humantime::format_rfc3339_millis(time).to_string())
            .unwrap_or_default()
    };
}

/// `RUNNING` of `VM_PHASE_RUNNING`, in lower case.
pub(super) fn state(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

pub(super) fn bytes(value: u64) -> String {
    Bytes::new(value).to_string()
}

/// A time span as people read it.
pub(super) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

/// A node.
#[derive(Debug, Serialize)]
pub(crate) struct NodeRow {
    pub(crate) name: String,
    id: String,
    state: String,
    address: String,
    vcpus: u32,
    vcpus_used: u32,
    memory_bytes: u64,
    memory_used_bytes: u64,
    vm_count: u32,
    last_heartbeat_ms: u64,
    fence_evidence: String,
    version: String,
    cordoned: bool,
    draining: bool,
    labels: String,
    taints: Vec<String>,
    vcpus_offered: u32,
    memory_offered_bytes: u64,
    cores: u32,
    threads: u32,
    numa_nodes: usize,
    cpu_baseline: String,
    networks: Vec<String>,
}

impl From<Node> for NodeRow {
    fn from(node: Node) -> Self {
        let facts = node.facts.clone().unwrap_or_default();
        Self {
            cordoned: node.cordoned,
            draining: node.draining,
            labels: labels(&node.labels),
            taints: node.taints.iter().map(taint).collect(),
            vcpus_offered: node.vcpus_offered,
            memory_offered_bytes: node.memory_offered_bytes,
            cores: facts.cores,
            threads: facts.threads,
            numa_nodes: facts.numa.len(),
            cpu_baseline: facts.cpu_baseline,
            networks: facts.networks,
            state: state(node.state().as_str_name(), "NODE_STATE_"),
            name: node.name,
            id: node.id,
            address: node.address,
            vcpus: node.vcpus,
            vcpus_used: node.vcpus_used,
            memory_bytes: node.memory_bytes,
            memory_used_bytes: node.memory_used_bytes,
            vm_count: node.vm_count,
            last_heartbeat_ms: node.last_heartbeat_ms,
            fence_evidence: node.fence_evidence,
            version: node.version,
        }
    }
}

/// "2 of 8 used (the host has 4)".
fn offered(used: String, offered: String, has: String) -> String {
    if offered == has {
        format!("{used} of {has} used")
    } else {
        format!("{used} of {offered} used (it has {has})")
    }
}

impl NodeRow {
    /// Its state, and whether it takes VMs.
    fn standing(&self) -> String {
        match (self.draining, self.cordoned) {
            (true, _) => format!("{}, draining", self.state),
            (false, true) => format!("{}, cordoned", self.state),
            (false, false) => self.state.clone(),
        }
    }

    fn processor(&self) -> String {
        if self.threads == 0 {
            return self.cpu_baseline.clone();
        }
        format!(
            "{} core(s), {} thread(s), {} NUMA node(s), {}",
            self.cores, self.threads, self.numa_nodes, self.cpu_baseline
        )
    }
}

impl Row for NodeRow {
    const TITLES: &'static [&'static str] =
        &["NAME", "STATE", "VMS", "VCPUS", "MEMORY", "HEARTBEAT", "ADDRESS"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.standing(),
            self.vm_count.to_string(),
            format!("{}/{}", self.vcpus_used, self.vcpus_offered),
            format!("{} / {}", bytes(self.memory_used_bytes), bytes(self.memory_offered_bytes)),
            format!("{} ms ago", self.last_heartbeat_ms),
            self.address.clone(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("state", self.standing()),
            ("fence evidence", self.fence_evidence.clone()),
            ("labels", self.labels.clone()),
            ("taints", self.taints.join(", ")),
            ("networks", self.networks.join(", ")),
            ("address", self.address.clone()),
            ("last heartbeat", format!("{} ms ago", self.last_heartbeat_ms)),
            ("vms", self.vm_count.to_string()),
            (
                "vcpus",
                offered(self.vcpus_used.to_string(), self.vcpus_offered.to_string(), self.vcpus.to_string()),
            ),
            (
                "memory",
                offered(
                    bytes(self.memory_used_bytes),
                    bytes(self.memory_offered_bytes),
                    bytes(self.memory_bytes),
                ),
            ),
            ("processor", self.processor()),
            ("version", self.version.clone()),
        ]
    }
}

/// A VM.
#[derive(Debug, Serialize)]
pub(crate) struct VmRow {
    pub(crate) name: String,
    id: String,
    phase: String,
    node: String,
    owner_epoch: u64,
    restarts: u32,
    vcpus: u32,
    memory_bytes: u64,
    image: String,
    cmdline: String,
    volumes: Vec<String>,
    anti_affinity_group: String,
    priority: u32,
    detail: String,
    boot_spawn_to_first_byte_us: Option<u64>,
    last_fence_evidence: String,
    pid: Option<u64>,
    created_at: String,
}

impl From<Vm> for VmRow {
    fn from(vm: Vm) -> Self {
        let phase = state(vm.phase().as_str_name(), "VM_PHASE_");
        let spec = vm.spec.unwrap_or_default();
        Self {
            name: spec.name,
            id: vm.id,
            phase,
            node: vm.node_name,
            owner_epoch: vm.owner_epoch,
            restarts: vm.restarts,
            vcpus: spec.vcpus,
            memory_bytes: spec.memory_bytes,
            image: spec.image,
            cmdline: spec.cmdline,
            volumes: spec.volumes,
            anti_affinity_group: spec.anti_affinity_group,
            priority: spec.priority,
            detail: vm.detail,
            boot_spawn_to_first_byte_us: vm
                .boot
                .map(|boot| boot.spawn_to_first_byte_us)
                .filter(|micros| *micros > 0),
            last_fence_evidence: vm.last_fence_evidence,
            pid: Some(vm.pid).filter(|pid| *pid > 0),
            created_at: time!(vm.created_at),
        }
    }
}

impl Row for VmRow {
    const TITLES: &'static [&'static str] =
        &["NAME", "PHASE", "NODE", "VCPUS", "MEMORY", "EPOCH", "RESTARTS", "DETAIL"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.phase.clone(),
            self.node.clone(),
            self.vcpus.to_string(),
            bytes(self.memory_bytes),
            self.owner_epoch.to_string(),
            self.restarts.to_string(),
            self.detail.clone(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("phase", self.phase.clone()),
            ("detail", self.detail.clone()),
            ("node", self.node.clone()),
            ("vcpus", self.vcpus.to_string()),
            ("memory", bytes(self.memory_bytes)),
            ("image", self.image.clone()),
            ("cmdline", self.cmdline.clone()),
            ("volumes", self.volumes.join(", ")),
            ("anti-affinity", self.anti_affinity_group.clone()),
            ("priority", self.priority.to_string()),
            ("epoch", self.owner_epoch.to_string()),
            ("pid", self.pid.map(|pid| pid.to_string()).unwrap_or_default()),
            ("restarts", self.restarts.to_string()),
            ("fence evidence", self.last_fence_evidence.clone()),
            ("first output after", self.boot_spawn_to_first_byte_us.map(micros).unwrap_or_default()),
            ("created", self.created_at.clone()),
        ]
    }
}

/// A volume.
#[derive(Debug, Serialize)]
pub(crate) struct VolumeRow {
    pub(crate) name: String,
    id: String,
    pool: String,
    size_bytes: u64,
    vm: String,
    created_at: String,
    state: String,
    used_bytes: Option<u64>,
    parent: String,
    snapshot_count: u32,
    operation: String,
}

impl From<Volume> for VolumeRow {
    fn from(volume: Volume) -> Self {
        Self {
            state: state(volume.state().as_str_name(), "VOLUME_STATE_"),
            used_bytes: volume.used_bytes,
            parent: volume.parent,
            snapshot_count: volume.snapshot_count,
            operation: volume.operation_id,
            name: volume.name,
            id: volume.id,
            pool: volume.pool,
            size_bytes: volume.size_bytes,
            vm: volume.vm_name,
            created_at: time!(volume.created_at),
        }
    }
}

impl Row for VolumeRow {
    const TITLES: &'static [&'static str] = &["NAME", "POOL", "SIZE", "VM", "ID"];

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), self.pool.clone(), bytes(self.size_bytes), self.vm.clone(), self.id.clone()]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("pool", self.pool.clone()),
            ("size", bytes(self.size_bytes)),
            ("used", self.used_bytes.map(bytes).unwrap_or_default()),
            ("state", self.state.clone()),
            ("clone of", self.parent.clone()),
            ("snapshots", self.snapshot_count.to_string()),
            ("vm", self.vm.clone()),
            ("operation", self.operation.clone()),
            ("created", self.created_at.clone()),
        ]
    }
}

/// An image, of a kernel or of a disk.
#[derive(Debug, Serialize)]
pub(crate) struct ImageRow {
    pub(crate) name: String,
    pool: String,
    size_bytes: u64,
    min_memory_bytes: u64,
    sha256: String,
    created_at: String,
    kind: &'static str,
    state: String,
    format: String,
    file_size_bytes: u64,
    received_bytes: u64,
    source: String,
    clones: Vec<String>,
    operation: String,
}

impl From<Image> for ImageRow {
    fn from(image: Image) -> Self {
        Self {
            name: image.name,
            pool: image.pool,
            size_bytes: image.size_bytes,
            min_memory_bytes: image.min_memory_bytes,
            sha256: image.sha256,
            created_at: time!(image.created_at),
            kind: "boot",
            state: "ready".to_owned(),
            format: "elf".to_owned(),
            file_size_bytes: image.size_bytes,
            received_bytes: image.size_bytes,
            source: "upload".to_owned(),
            clones: Vec::new(),
            operation: String::new(),
        }
    }
}

impl From<DiskImage> for ImageRow {
    fn from(image: DiskImage) -> Self {
        let format = match image.format() {
            ImageFormat::Unspecified => String::new(),
            format => state(format.as_str_name(), "IMAGE_FORMAT_"),
        };
        Self {
            state: state(image.state().as_str_name(), "DISK_IMAGE_STATE_"),
            name: image.name,
            pool: image.pool,
            size_bytes: image.size_bytes,
            min_memory_bytes: 0,
            sha256: image.sha256,
            created_at: time!(image.created_at),
            kind: "disk",
            format,
            file_size_bytes: image.file_size_bytes,
            received_bytes: image.received_bytes,
            source: image.source,
            clones: image.clones,
            operation: image.operation_id,
        }
    }
}

impl Row for ImageRow {
    const TITLES: &'static [&'static str] = &["NAME", "KIND", "POOL", "SIZE", "STATE", "SHA256"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.kind.to_owned(),
            self.pool.clone(),
            bytes(self.size_bytes),
            self.state.clone(),
            self.sha256.chars().take(12).collect(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let memory = if self.min_memory_bytes > 0 { bytes(self.min_memory_bytes) } else { String::new() };
        vec![
            ("name", self.name.clone()),
            ("kind", self.kind.to_owned()),
            ("pool", self.pool.clone()),
            ("size", bytes(self.size_bytes)),
            ("needs memory", memory),
            ("state", self.state.clone()),
            ("sha256", self.sha256.clone()),
            (
                "file",
                format!(
                    "{} {}, {} received",
                    bytes(self.file_size_bytes),
                    self.format,
                    bytes(self.received_bytes)
                ),
            ),
            ("source", self.source.clone()),
            ("clones", self.clones.join(", ")),
            ("operation", self.operation.clone()),
            ("created", self.created_at.clone()),
        ]
    }
}

/// A snapshot of a volume.
#[derive(Debug, Serialize)]
pub(crate) struct SnapshotRow {
    name: String,
    id: String,
    volume: String,
    volume_id: String,
    size_bytes: u64,
    protected: bool,
    state: String,
    clones: Vec<String>,
    created_at: String,
}

impl From<Snapshot> for SnapshotRow {
    fn from(snapshot: Snapshot) -> Self {
        Self {
            state: state(snapshot.state().as_str_name(), "SNAPSHOT_STATE_"),
            name: snapshot.name,
            id: snapshot.id,
            volume: snapshot.volume_name,
            volume_id: snapshot.volume_id,
            size_bytes: snapshot.size_bytes,
            protected: snapshot.is_protected,
            clones: snapshot.clones,
            created_at: time!(snapshot.created_at),
        }
    }
}

impl SnapshotRow {
    pub(crate) fn is(&self, name: &str) -> bool {
        self.name == name || self.id == name
    }
}

impl Row for SnapshotRow {
    const TITLES: &'static [&'static str] =
        &["VOLUME", "SNAPSHOT", "SIZE", "STATE", "PROTECTED", "CLONES", "CREATED"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.volume.clone(),
            self.name.clone(),
            bytes(self.size_bytes),
            self.state.clone(),
            if self.protected { "yes" } else { "no" }.to_owned(),
            self.clones.len().to_string(),
            self.created_at.clone(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![
            ("volume", self.volume.clone()),
            ("snapshot", self.name.clone()),
            ("id", self.id.clone()),
            ("size", bytes(self.size_bytes)),
            ("state", self.state.clone()),
            ("protected", if self.protected { "yes" } else { "no" }.to_owned()),
            ("clones", self.clones.join(", ")),
            ("created", self.created_at.clone()),
        ]
    }
}

/// A storage pool.
#[derive(Debug, Serialize)]
pub(crate) struct PoolRow {
    name: String,
    kind: String,
    state: String,
    configured: bool,
    cluster: String,
    ceph_pool: String,
    namespace: String,
    user: String,
    capacity_bytes: Option<u64>,
    available_bytes: Option<u64>,
    used_bytes: Option<u64>,
    provisioned_bytes: u64,
    volume_count: u32,
    disk_image_count: u32,
    instant_clone: Option<bool>,
    clones_need_source: Option<bool>,
    online_snapshot: Option<bool>,
    problem: String,
    created_at: String,
}

impl From<Pool> for PoolRow {
    fn from(pool: Pool) -> Self {
        Self {
            kind: state(pool.kind().as_str_name(), "POOL_KIND_"),
            state: state(pool.state().as_str_name(), "POOL_STATE_"),
            name: pool.name,
            configured: pool.configured,
            cluster: pool.cluster,
            ceph_pool: pool.ceph_pool,
            namespace: pool.namespace,
            user: pool.user,
            capacity_bytes: pool.capacity_bytes,
            available_bytes: pool.available_bytes,
            used_bytes: pool.used_bytes,
            provisioned_bytes: pool.provisioned_bytes,
            volume_count: pool.volume_count,
            disk_image_count: pool.disk_image_count,
            instant_clone: pool.capabilities.map(|can| can.instant_clone),
            clones_need_source: pool.capabilities.map(|can| can.clones_need_source),
            online_snapshot: pool.capabilities.map(|can| can.online_snapshot),
            problem: pool.problem,
            created_at: time!(pool.created_at),
        }
    }
}

impl Row for PoolRow {
    const TITLES: &'static [&'static str] =
        &["NAME", "KIND", "STATE", "VOLUMES", "IMAGES", "PROVISIONED", "USED", "AVAILABLE", "PROBLEM"];

    fn cells(&self) -> Vec<String> {
        let known = |value: Option<u64>| value.map_or_else(|| "?".to_owned(), bytes);
        vec![
            self.name.clone(),
            self.kind.clone(),
            self.state.clone(),
            self.volume_count.to_string(),
            self.disk_image_count.to_string(),
            bytes(self.provisioned_bytes),
            known(self.used_bytes),
            known(self.available_bytes),
            self.problem.clone(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let says =
            |can: Option<bool>| can.map(|can| if can { "yes" } else { "no" }.to_owned()).unwrap_or_default();
        vec![
            ("name", self.name.clone()),
            ("kind", self.kind.clone()),
            ("state", self.state.clone()),
            ("problem", self.problem.clone()),
            ("from", if self.configured { "the configuration" } else { "pool create" }.to_owned()),
            ("ceph cluster", self.cluster.clone()),
            ("ceph pool", self.ceph_pool.clone()),
            ("namespace", self.namespace.clone()),
            ("ceph user", self.user.clone()),
            ("capacity", self.capacity_bytes.map(bytes).unwrap_or_default()),
            ("available", self.available_bytes.map(bytes).unwrap_or_default()),
            ("used", self.used_bytes.map(bytes).unwrap_or_default()),
            ("provisioned", bytes(self.provisioned_bytes)),
            ("volumes", self.volume_count.to_string()),
            ("disk images", self.disk_image_count.to_string()),
            ("clones at once", says(self.instant_clone)),
            ("clones need source", says(self.clones_need_source)),
            ("snapshots while used", says(self.online_snapshot)),
            ("created", self.created_at.clone()),
        ]
    }
}

/// An operation.
#[derive(Debug, Serialize)]
pub(crate) struct OperationRow {
    pub(crate) id: String,
    kind: String,
    subject: String,
    subject_id: String,
    pub(crate) state: String,
    percent: u32,
    step: String,
    reason: String,
    placement_us: Option<u64>,
    migration: Option<MigrationRow>,
    rejections: Vec<RejectionRow>,
    created_at: String,
    ended_at: String,
}

/// What a migration cost.
#[derive(Debug, Serialize)]
struct MigrationRow {
    source_node: String,
    target_node: String,
    rounds: u32,
    bytes: u64,
    total_us: u64,
    downtime_us: u64,
}

/// Why a node refused.
#[derive(Debug, Serialize)]
struct RejectionRow {
    node: String,
    reasons: Vec<String>,
}

impl From<NodeRejection> for RejectionRow {
    fn from(rejection: NodeRejection) -> Self {
        Self { node: rejection.node_name, reasons: rejection.reasons }
    }
}

impl From<Operation> for OperationRow {
    fn from(operation: Operation) -> Self {
        Self {
            state: state(operation.state().as_str_name(), "OPERATION_STATE_"),
            id: operation.id,
            kind: operation.kind,
            subject: operation.subject_name,
            subject_id: operation.subject_id,
            percent: operation.percent,
            step: operation.step,
            reason: operation.reason,
            placement_us: Some(operation.placement_us).filter(|micros| *micros > 0),
            migration: operation.migration.map(|result| MigrationRow {
                source_node: result.source_node,
                target_node: result.target_node,
                rounds: result.rounds,
                bytes: result.bytes,
                total_us: result.total_us,
                downtime_us: result.downtime_us,
            }),
            rejections: operation.rejections.into_iter().map(RejectionRow::from).collect(),
            created_at: time!(operation.created_at),
            ended_at: time!(operation.ended_at),
        }
    }
}

impl Row for OperationRow {
    const TITLES: &'static [&'static str] =
        &["ID", "KIND", "SUBJECT", "STATE", "PROGRESS", "STARTED", "REASON"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.kind.clone(),
            self.subject.clone(),
            self.state.clone(),
            format!("{}% {}", self.percent, self.step).trim_end().to_owned(),
            self.created_at.clone(),
            self.reason.clone(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let refused: Vec<_> = self
            .rejections
            .iter()
            .map(|node| format!("{}: {}", node.node, node.reasons.join("; ")))
            .collect();
        let migration = self.migration.as_ref();
        vec![
            ("id", self.id.clone()),
            ("kind", self.kind.clone()),
            ("subject", self.subject.clone()),
            ("state", format!("{}, {}%", self.state, self.percent)),
            ("step", self.step.clone()),
            ("reason", self.reason.clone()),
            ("refused by", refused.join("\n")),
            (
                "moved",
                migration.map(|m| format!("{} -> {}", m.source_node, m.target_node)).unwrap_or_default(),
            ),
            ("downtime", migration.map(|m| micros(m.downtime_us)).unwrap_or_default()),
            (
                "sent",
                migration.map(|m| format!("{} in {} rounds", bytes(m.bytes), m.rounds)).unwrap_or_default(),
            ),
            ("took", migration.map(|m| micros(m.total_us)).unwrap_or_default()),
            ("placement took", self.placement_us.map(micros).unwrap_or_default()),
            ("created", self.created_at.clone()),
            ("ended", self.ended_at.clone()),
        ]
    }
}

/// An event.
#[derive(Debug, Serialize)]
pub(crate) struct EventRow {
    sequence: u64,
    at: String,
    kind: String,
    subject: String,
    subject_id: String,
    message: String,
}

impl From<Event> for EventRow {
    fn from(event: Event) -> Self {
        Self {
            sequence: event.sequence,
            at: time!(event.at),
            kind: event.kind,
            subject: event.subject_name,
            subject_id: event.subject_id,
            message: event.message,
        }
    }
}

impl EventRow {
    /// The event on one line, for a stream of them.
    pub(crate) fn line(&self) -> String {
        format!("{}  {:<20} {:<16} {}\n", self.at, self.kind, self.subject, self.message)
    }
}

impl Row for EventRow {
    const TITLES: &'static [&'static str] = &["SEQUENCE", "AT", "KIND", "SUBJECT", "MESSAGE"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.sequence.to_string(),
            self.at.clone(),
            self.kind.clone(),
            self.subject.clone(),
            self.message.clone(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        Self::TITLES.iter().copied().zip(self.cells()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use drover_client::api::{VmPhase, VmSpec};

    #[test]
    fn states_are_said_in_plain_words() {
        let vm = Vm {
            spec: Some(VmSpec { name: "web".to_owned(), memory_bytes: 256 << 20, ..VmSpec::default() }),
            phase: VmPhase::Running.into(),
            ..Vm::default()
        };
        let row = VmRow::from(vm);
        assert_eq!(row.cells()[..2], ["web", "running"]);
        assert_eq!(row.cells()[4], "256 MiB");
        assert_eq!(serde_json::to_value(&row).unwrap()["phase"], "running");
    }

    #[test]
    fn spans_are_short() {
        assert_eq!([999, 1_000, 12_345, 4_100_000].map(micros), ["999 us", "1.0 ms", "12.3 ms", "4.1 s"]);
    }

    #[test]
    fn rows_have_a_cell_for_each_title() {
        assert_eq!(NodeRow::from(Node::default()).cells().len(), NodeRow::TITLES.len());
        assert_eq!(VmRow::from(Vm::default()).cells().len(), VmRow::TITLES.len());
        assert_eq!(VolumeRow::from(Volume::default()).cells().len(), VolumeRow::TITLES.len());
        assert_eq!(ImageRow::from(Image::default()).cells().len(), ImageRow::TITLES.len());
        assert_eq!(OperationRow::from(Operation::default()).cells().len(), OperationRow::TITLES.len());
        assert_eq!(EventRow::from(Event::default()).cells().len(), EventRow::TITLES.len());
    }
}
