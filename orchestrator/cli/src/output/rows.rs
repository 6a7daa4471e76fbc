//! What the tables and the JSON form say of each kind of thing.

use std::time::SystemTime;

use drover_client::{
    api::{Event, Node, NodeRejection, Operation, Vm},
    vm_api::{StallAction, StallPolicy},
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

mod balloon;
mod storage;

pub(crate) use balloon::BalloonRow;
pub(crate) use storage::{ImageRow, PoolRow, SnapshotRow, VmSnapshotRow, VolumeRow};

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
    /// The guest gets a seed disk.
    cloud_init: bool,
    detail: String,
    boot_spawn_to_first_byte_us: Option<u64>,
    last_fence_evidence: String,
    pid: Option<u64>,
    created_at: String,
    stall: Option<StallRow>,
}

/// What becomes of a VM whose storage does not answer.
#[derive(Debug, Serialize)]
pub(crate) struct StallRow {
    action: &'static str,
    after_ms: Option<u32>,
}

impl From<StallPolicy> for StallRow {
    fn from(policy: StallPolicy) -> Self {
        let action = match policy.action() {
            StallAction::Unspecified => "wait",
            StallAction::Pause => "pause",
            StallAction::Stop => "stop",
        };
        Self { action, after_ms: Some(policy.deadline_ms).filter(|ms| *ms > 0) }
    }
}

impl StallRow {
    pub(crate) fn text(row: Option<&Self>) -> String {
        match row {
            None => String::new(),
            Some(Self { action, after_ms: None }) => (*action).to_owned(),
            Some(Self { action, after_ms: Some(ms) }) => {
                format!("{action} after {}", micros(u64::from(*ms) * 1000))
            }
        }
    }
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
            cloud_init: spec.cloud_init.is_some(),
            detail: vm.detail,
            boot_spawn_to_first_byte_us: vm
                .boot
                .map(|boot| boot.spawn_to_first_byte_us)
                .filter(|micros| *micros > 0),
            last_fence_evidence: vm.last_fence_evidence,
            pid: Some(vm.pid).filter(|pid| *pid > 0),
            created_at: time!(vm.created_at),
            stall: spec.stall.map(StallRow::from),
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
            ("cloud-init", if self.cloud_init { "a seed disk" } else { "" }.to_owned()),
            ("storage stalls", StallRow::text(self.stall.as_ref())),
            ("epoch", self.owner_epoch.to_string()),
            ("pid", self.pid.map(|pid| pid.to_string()).unwrap_or_default()),
            ("restarts", self.restarts.to_string()),
            ("fence evidence", self.last_fence_evidence.clone()),
            ("first output after", self.boot_spawn_to_first_byte_us.map(micros).unwrap_or_default()),
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
    hold: Option<HoldRow>,
}

/// How a VM stood for a moment.
#[derive(Debug, Serialize)]
struct HoldRow {
    drained_us: u64,
    lasted_us: u64,
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
            hold: operation
                .hold
                .map(|hold| HoldRow { drained_us: hold.drained_us, lasted_us: hold.lasted_us }),
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
            ("vm held for", self.hold.as_ref().map(|hold| micros(hold.lasted_us)).unwrap_or_default()),
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
    use drover_client::api::{Image, VmPhase, VmSpec, Volume};

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
