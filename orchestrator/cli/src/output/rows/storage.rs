//! Volumes, images, snapshots, pools.

use std::time::SystemTime;

use drover_client::api::{DiskImage, Image, ImageFormat, Pool, Snapshot, VmSnapshot, Volume};
use serde::Serialize;

use super::{StallRow, bytes, micros, state};
use crate::output::Row;

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

/// A snapshot of a VM.
#[derive(Debug, Serialize)]
pub(crate) struct VmSnapshotRow {
    name: String,
    id: String,
    vm: String,
    vm_id: String,
    state: String,
    part_count: u32,
    parts: Vec<VmSnapshotPartRow>,
    drained_us: Option<u64>,
    held_us: Option<u64>,
    created_at: String,
}

/// The snapshot of one of its volumes.
#[derive(Debug, Serialize)]
struct VmSnapshotPartRow {
    volume: String,
    volume_id: String,
    size_bytes: u64,
    protected: bool,
    clones: Vec<String>,
}

impl From<VmSnapshot> for VmSnapshotRow {
    fn from(snapshot: VmSnapshot) -> Self {
        let part = |part: Snapshot| VmSnapshotPartRow {
            volume: part.volume_name,
            volume_id: part.volume_id,
            size_bytes: part.size_bytes,
            protected: part.is_protected,
            clones: part.clones,
        };
        Self {
            state: state(snapshot.state().as_str_name(), "SNAPSHOT_STATE_"),
            drained_us: snapshot.hold.map(|hold| hold.drained_us),
            held_us: snapshot.hold.map(|hold| hold.lasted_us),
            created_at: time!(snapshot.created_at),
            name: snapshot.name,
            id: snapshot.id,
            vm: snapshot.vm_name,
            vm_id: snapshot.vm_id,
            part_count: snapshot.part_count,
            parts: snapshot.parts.into_iter().map(part).collect(),
        }
    }
}

impl VmSnapshotRow {
    pub(crate) fn is(&self, name: &str) -> bool {
        self.name == name || self.id == name
    }

    fn volumes(&self) -> String {
        match self.parts.len() {
            has if has == self.part_count as usize => has.to_string(),
            has => format!("{has} of {}", self.part_count),
        }
    }
}

impl Row for VmSnapshotRow {
    const TITLES: &'static [&'static str] = &["VM", "SNAPSHOT", "VOLUMES", "STATE", "HELD", "CREATED"];

    fn cells(&self) -> Vec<String> {
        vec![
            if self.vm.is_empty() { self.vm_id.clone() } else { self.vm.clone() },
            self.name.clone(),
            self.volumes(),
            self.state.clone(),
            self.held_us.map(micros).unwrap_or_default(),
            self.created_at.clone(),
        ]
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let parts: Vec<String> =
            self.parts.iter().map(|part| format!("{} ({})", part.volume, bytes(part.size_bytes))).collect();
        vec![
            ("vm", self.vm.clone()),
            ("vm id", self.vm_id.clone()),
            ("snapshot", self.name.clone()),
            ("id", self.id.clone()),
            ("state", self.state.clone()),
            ("parts", self.volumes()),
            ("volumes", parts.join("\n")),
            ("vm held for", self.held_us.map(micros).unwrap_or_default()),
            ("drained in", self.drained_us.map(micros).unwrap_or_default()),
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
    stall: Option<StallRow>,
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
            stall: pool.stall.map(StallRow::from),
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
            ("storage stalls", StallRow::text(self.stall.as_ref())),
            ("snapshots while used", says(self.online_snapshot)),
            ("created", self.created_at.clone()),
        ]
    }
}
