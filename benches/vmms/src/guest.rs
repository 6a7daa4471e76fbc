//! The guest that every VMM is given.

use std::path::PathBuf;

use drover_ids::{NodeId, VmId};
use drover_test_prerequisites::probe_image;
use drover_wire::vm::v1 as wire;

const VM: VmId = VmId::from_u128(0xbe);
const NODE: NodeId = NodeId::from_u128(0x0d);
const VOLUME: &str = "0b10c000-0000-4000-8000-000000000001";

/// What a disk is held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskLimit {
    /// Requests in a second.
    Requests(u64),
    /// Bytes in a second.
    Bytes(u64),
}

/// The probe, and the machine that it is given.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Virtual processors.
    pub vcpus: u32,
    /// RAM, MiB.
    pub memory_mib: u64,
    /// What it is told.
    pub cmdline: String,
    /// A raw file that is its disk.
    pub disk: Option<PathBuf>,
    /// What the disk may do.
    pub limit: Option<DiskLimit>,
}

impl Guest {
    /// As vmmd is told of it.
    #[must_use]
    pub fn config(&self) -> wire::VmConfig {
        let disk = |path: &PathBuf| wire::Disk {
            volume_id: VOLUME.to_owned(),
            path: path.to_string_lossy().into_owned(),
            limits: self.limit.map(limits),
            ..wire::Disk::default()
        };
        wire::VmConfig {
            vm_id: VM.to_string(),
            name: "bench".to_owned(),
            vcpus: self.vcpus,
            memory_bytes: self.memory_mib << 20,
            kernel_path: probe_image().to_string_lossy().into_owned(),
            cmdline: self.cmdline.clone(),
            disks: self.disk.iter().map(disk).collect(),
            node_id: NODE.to_string(),
            ..wire::VmConfig::default()
        }
    }
}

fn limits(limit: DiskLimit) -> wire::Limits {
    let rate = |per_second| Some(wire::Rate { per_second, burst: 0 });
    let total = match limit {
        DiskLimit::Requests(per_second) => wire::Limit { requests: rate(per_second), bytes: None },
        DiskLimit::Bytes(per_second) => wire::Limit { requests: None, bytes: rate(per_second) },
    };
    wire::Limits { total: Some(total), ..wire::Limits::default() }
}
