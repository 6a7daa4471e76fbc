//! What guests acknowledged, and whether their disks hold it.
//!
//! A vmmd keeps its guest's console log in its run directory, which survives the process and, for a while, the VM's stay on the
//! node: `<node>/vms/<vm id>/console.log`. Marks in it say under which owner epoch something was said. Put in the order of epochs,
//! the logs of all nodes are the guest's whole story, even a line that begins on one node and ends on the next.

use std::{fs, io, path::Path};

use anyhow::Context as _;
use drover_probe_record::{Claim, ConsoleLog, ImageReport, Workload, stamp::Slots, verify_image};
use drover_test_ceph_cluster::CephCluster;

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
    match cluster.ceph() {
        Ok(ceph) => judge_on_ceph(cluster, subject, ceph, ceph.pool()),
        Err(_) => judge_file(cluster, subject, &cluster.volume_path(&subject.volume_id)),
    }
}

/// [`judge`] for a VM whose volume is an image of `pool` on a Ceph cluster: a copy of it is judged.
///
/// # Errors
/// As for [`judge`].
pub fn judge_on_ceph(
    cluster: &TestCluster,
    subject: &Subject,
    ceph: &CephCluster,
    pool: &str,
) -> anyhow::Result<Verdict> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let copy = folder.path().join("image");
    let image = format!("{pool}/volume-{}", subject.volume_id);
    ceph.export(&image, &copy).with_context(|| format!("cannot copy {image}"))?;
    judge_file(cluster, subject, &copy)
}

fn judge_file(cluster: &TestCluster, subject: &Subject, image: &Path) -> anyhow::Result<Verdict> {
    let console = console(cluster, &subject.vm_id)?;
    let disk = subject.workload.disk.context("the probe was given no work on its disk")?;
    let claim = Claim {
        slots: Slots { seed: subject.workload.seed, count: disk.slots },
        acked_max: console.acked_max(),
    };
    let disk = verify_image(image, &claim).with_context(|| format!("cannot read {}", image.display()))?;
    Ok(Verdict { console, disk })
}

/// The whole story of a VM's console so far.
///
/// # Errors
/// If a log cannot be read.
pub fn console(cluster: &TestCluster, vm_id: &str) -> anyhow::Result<ConsoleLog> {
    let mut parts = Vec::new();
    for node in 0..cluster.nodes() {
        let folder = cluster.node_folder(node).join("vms").join(vm_id);
        let mut text = String::new();
        // The older half of a log that was rotated comes first.
        for name in ["console.log.1", "console.log"] {
            text.push_str(&read_if_present(&folder.join(name))?);
        }
        parts.extend(split_by_owner(&text));
    }
    // Stable: what one host said under one epoch keeps its order.
    parts.sort_by_key(|(epoch, _)| *epoch);
    Ok(ConsoleLog::parse(&parts.into_iter().map(|(_, text)| text).collect::<String>()))
}

fn read_if_present(log: &Path) -> anyhow::Result<String> {
    match fs::read(log) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", log.display())),
    }
}

/// Takes a host's log apart at the marks that vmmd leaves: what was said under which epoch.
fn split_by_owner(log: &str) -> Vec<(u64, String)> {
    const MARK: &str = "[drover: owner epoch ";
    let mut parts: Vec<(u64, String)> = Vec::new();
    for piece in log.split(MARK) {
        let marked = piece.split_once("]\n").and_then(|(epoch, text)| Some((epoch.parse().ok()?, text)));
        match marked {
            Some((epoch, text)) => {
                // The line break before a mark is the mark's own.
                if let Some((_, before)) = parts.last_mut()
                    && before.ends_with('\n')
                {
                    before.pop();
                }
                parts.push((epoch, text.to_owned()));
            }
            None if piece.is_empty() => {}
            None => parts.push((0, piece.to_owned())),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_by_a_move_is_whole_again() {
        let mut parts = split_by_owner("[drover: owner epoch 1]\none\ntw\n[drover: owner epoch 3]\nfour\n");
        parts.extend(split_by_owner("[drover: owner epoch 2]\no\nthree\n"));
        parts.sort_by_key(|(epoch, _)| *epoch);
        let story: String = parts.into_iter().map(|(_, text)| text).collect();
        assert_eq!(story, "one\ntwo\nthree\nfour\n");
    }
}
