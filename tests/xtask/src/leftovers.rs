//! What a run of tests leaves behind: nothing, or it has failed.
//!
//! Every process that a test starts, and every one that those start, inherits a mark in its environment; every temporary
//! file goes to a folder of the run's own; clusters in memory bear their owner's pid in their name. So other runs on the
//! same machine are told apart from this one.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

/// Marks the processes of a run.
const MARK: &str = "DROVER_TEST_RUN";
/// How the directories of clusters in memory begin: owner's pid and start time follow.
const CLUSTER_PREFIX: &str = "drover-ceph-";
const IN_MEMORY: &str = "/dev/shm";
/// How long what has been told to end may take: a watcher that clears a killed owner's cluster, a fenced process.
const SETTLES: Duration = Duration::from_secs(20);

/// A run of tests.
#[derive(Debug)]
pub(crate) struct Watch {
    mark: String,
    temporary: PathBuf,
    clusters_before: BTreeSet<PathBuf>,
}

impl Watch {
    /// Begins a run whose temporary files go to a new folder in `folder`.
    pub(crate) fn begin(folder: &Path) -> anyhow::Result<Self> {
        // Short: the paths of sockets, which lie below it, have 107 bytes at most.
        let temporary = folder.join("t");
        fs::create_dir(&temporary).context("cannot make a temporary folder")?;
        let mark = folder.display().to_string();
        Ok(Self { mark, temporary, clusters_before: clusters(Path::new(IN_MEMORY)) })
    }

    /// What every process of the run has in its environment.
    pub(crate) fn environment(&self) -> [(OsString, OsString); 2] {
        [
            (OsString::from(MARK), OsString::from(&self.mark)),
            (OsString::from("TMPDIR"), self.temporary.clone().into_os_string()),
        ]
    }

    /// What is left when the run is over, one line each.
    pub(crate) fn end(&self) -> Vec<String> {
        let deadline = Instant::now() + SETTLES;
        loop {
            let left = self.left();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn left(&self) -> Vec<String> {
        let processes = marked(&format!("{MARK}={}", self.mark))
            .into_iter()
            .map(|(pid, name)| format!("process {pid} ({name})"));
        let files = fs::read_dir(&self.temporary).into_iter().flatten().flatten();
        let files = files.map(|entry| format!("temporary {}", entry.path().display()));
        let clusters = clusters(Path::new(IN_MEMORY));
        let clusters = clusters.difference(&self.clusters_before).filter(|path| is_orphan(path));
        processes.chain(files).chain(clusters.map(|path| format!("cluster {}", path.display()))).collect()
    }
}

/// Processes with this line in their environment.
fn marked(line: &str) -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == line.as_bytes())
    })
    .map(|pid| (pid, fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()))
    .collect()
}

fn clusters(base: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(CLUSTER_PREFIX));
    // What a developer has left running on purpose is not a test's.
    ours.map(|entry| entry.path()).filter(|path| !path.join("left-running").exists()).collect()
}

/// Whether no process with the pid in the directory's name lives: one that does may be of another run.
fn is_orphan(cluster: &Path) -> bool {
    let name = cluster.file_name().unwrap_or_default().to_string_lossy();
    let pid = name.strip_prefix(CLUSTER_PREFIX).and_then(|rest| rest.split('-').next());
    !pid.is_some_and(|pid| Path::new("/proc").join(pid).exists())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn processes_files_and_clusters_are_found_and_those_of_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let watch = Watch::begin(folder.path()).unwrap();
        assert_eq!(watch.left(), Vec::<String>::new());
        let mut child = Command::new("sleep").arg("60").envs(watch.environment()).spawn().unwrap();
        fs::write(watch.temporary.join("file"), "").unwrap();
        // A child that is about to become another program has no environment for a moment.
        let process = format!("process {}", child.id());
        let deadline = Instant::now() + Duration::from_secs(30);
        let left = loop {
            let left = watch.left().join("\n");
            if left.contains(&process) || Instant::now() > deadline {
                break left;
            }
            thread::sleep(Duration::from_millis(10));
        };
        assert!(left.contains(&process), "{left}");
        assert!(left.contains("t/file"), "{left}");
        child.kill().unwrap();
        child.wait().unwrap();
        fs::remove_file(watch.temporary.join("file")).unwrap();
        assert_eq!(watch.end(), Vec::<String>::new());
    }

    #[test]
    fn a_cluster_without_an_owner_is_an_orphan() {
        let base = tempfile::tempdir().unwrap();
        let living = base.path().join(format!("{CLUSTER_PREFIX}{}-1-a", std::process::id()));
        let dead = base.path().join(format!("{CLUSTER_PREFIX}4294967295-1-b"));
        for path in [&living, &dead, &base.path().join("other")] {
            fs::create_dir(path).unwrap();
        }
        let found = clusters(base.path());
        assert_eq!(found.iter().filter(|path| is_orphan(path)).collect::<Vec<_>>(), [&dead]);
        assert!(found.contains(&living));
        fs::write(dead.join("left-running"), "").unwrap();
        assert!(!clusters(base.path()).contains(&dead));
    }
}
