//! What guests acknowledged, and whether their disks hold it.
//!
//! A vmmd keeps its guest's console log in its run directory, which survives the process and, for a while, the VM's stay on the
//! node: `<node>/vms/<vm id>/<epoch>/console.log`. Put in the order of epochs, the logs of all nodes are the guest's whole
//! story, a migration being a line that begins in one file and ends in the next.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use drover_probe_record::{Claim, ConsoleLog, ImageReport, Workload, stamp::Slots, verify_image};

use crate::cluster::TestCluster;

/// A VM that runs the probe: what it was told to do, and where its disk is.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The VM's id.
    pub vm_id: String,
    /// The id of its volume.
    pub volume_id: String,
    /// Its work.
    pub workload: Workload,
}

/// The verdict on one VM.
#[derive(Debug)]
pub struct Verdict {
    /// Its console, all lives.
    pub console: ConsoleLog,
    /// Its disk against what its console promised.
    pub disk: ImageReport,
}

impl Verdict {
    /// Writes that the guest was told are durable.
    pub fn acked(&self) -> u64 {
        self.console.acked_max()
    }

    /// Acknowledged writes that are not on the disk, or were not when the guest came back to it.
    pub fn lost(&self) -> u64 {
        let at_restarts: u64 =
            self.console.lost_at_restarts().iter().map(|lost| lost.acked_max + 1 - lost.next_seq).sum();
        self.disk.lost.count + self.disk.corrupt.count + at_restarts
    }

    /// Signs on the disk that two incarnations wrote at one time.
    pub fn double_writes(&self) -> u64 {
        self.disk.double_writes.count
    }

    /// Blocks and pages that the guest itself found to be wrong.
    pub fn bad_in_guest(&self) -> u64 {
        self.console.bad()
    }
}

/// Reads a VM's consoles on every node and judges its disk. The VM must not be writing.
///
/// # Errors
/// If a log or the volume cannot be read, or the VM has no disk work.
pub fn judge(cluster: &TestCluster, subject: &Subject) -> anyhow::Result<Verdict> {
    let console = console(cluster, &subject.vm_id)?;
    let disk = subject.workload.disk.context("the probe was given no work on its disk")?;
    let claim = Claim {
        slots: Slots { seed: subject.workload.seed, count: disk.slots },
        acked_max: console.acked_max(),
    };
    let image = cluster.volume_path(&subject.volume_id);
    let disk = verify_image(&image, &claim).with_context(|| format!("cannot read {}", image.display()))?;
    Ok(Verdict { console, disk })
}

/// The whole story of a VM's console so far.
///
/// # Errors
/// If a log cannot be read.
pub fn console(cluster: &TestCluster, vm_id: &str) -> anyhow::Result<ConsoleLog> {
    let mut text = String::new();
    for folder in run_folders(cluster, vm_id)? {
        // The older half of a log that was rotated comes first.
        for name in ["console.log.1", "console.log"] {
            let log = folder.join(name);
            match fs::read(&log) {
                Ok(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot read {}", log.display()));
                }
            }
        }
    }
    Ok(ConsoleLog::parse(&text))
}

/// Run directories of a VM on all nodes, oldest epoch first.
///
/// # Errors
/// If a directory cannot be read.
pub fn run_folders(cluster: &TestCluster, vm_id: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut folders: Vec<(u64, PathBuf)> = Vec::new();
    for node in 0..cluster.nodes() {
        folders.extend(epochs(&cluster.node_folder(node).join("vms").join(vm_id))?);
    }
    folders.sort();
    Ok(folders.into_iter().map(|(_, folder)| folder).collect())
}

fn epochs(folder: &Path) -> anyhow::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Some(epoch) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.push((epoch, entry.path()));
        }
    }
    Ok(found)
}
