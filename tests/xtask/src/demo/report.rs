//! What the demo tells: a timeline for people, one JSON line for scripts.

use std::time::Instant;

use serde::Serialize;

/// Prints what happens, with the time since the demo began.
#[derive(Debug)]
pub(super) struct Timeline {
    start: Instant,
    shown: bool,
}

impl Timeline {
    pub(super) fn start(shown: bool) -> Self {
        Self { start: Instant::now(), shown }
    }

    pub(super) fn say(&self, what: &str) {
        if self.shown {
            println!("[{:7.3} s] {what}", self.start.elapsed().as_secs_f64());
        }
    }
}

/// The closing line. Fields are only ever added.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) ok: bool,
    pub(super) vms: usize,
    /// Time of the first VM's placement decision.
    pub(super) placement_us: u64,
    /// From the spawn of the first VM's process to the guest's first serial byte.
    pub(super) boot_ms: f64,
    /// The first VM's process: PSS less guest RAM.
    pub(super) vmmd_overhead_mib: f64,
    pub(super) migration: MigrationSummary,
    pub(super) ha: HaSummary,
    /// Writes that guests were told are durable, of all VMs.
    pub(super) acked_writes: u64,
    /// Those of them that their disks do not hold.
    pub(super) lost_writes: u64,
    /// Moments at which a VM ran twice: seen from outside, or by two incarnations' writes on one disk.
    pub(super) double_owner_observations: u64,
    /// Where the volumes were: "dir" or "rbd".
    pub(super) storage: String,
}

#[derive(Debug, Serialize)]
pub(super) struct MigrationSummary {
    pub(super) rounds: u32,
    pub(super) bytes: u64,
    pub(super) total_ms: f64,
    /// The largest gap between two of the guest's heartbeats during the migration: what the guest itself lived through.
    pub(super) downtime_ms: f64,
    /// The same as the VMM measured it, from the pause of the vCPUs to the target's word that it runs.
    pub(super) vmm_downtime_ms: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct HaSummary {
    /// From SIGKILL to the control plane's decision to fence the node.
    pub(super) detect_ms: f64,
    pub(super) fence_evidence: String,
    /// From SIGKILL to the guest's first line on its new node.
    pub(super) restart_ms: f64,
}

/// Two decimals: enough for milliseconds, and a line that can be read.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
