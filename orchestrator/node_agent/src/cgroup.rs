//! One cgroup for each VM: what its process uses is accounted to it, and it cannot have more than so many threads.
//!
//! Version 2, or version 1's controllers where the host has those; below the agent's own group, so that what limits the agent
//! limits its VMs. A host that has neither, or does not let the agent make groups, runs VMs without.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use drover_ids::VmId;
use tracing::{info, warn};

/// Where hosts mount them.
const MOUNT: &str = "/sys/fs/cgroup";
/// Version 1's controllers that account or limit something here. `unified` is version 2's tree without any.
const CONTROLLERS: [&str; 5] = ["pids", "memory", "cpu", "cpuacct", "unified"];
/// In front of a VM's id.
const PREFIX: &str = "drover-";
/// Threads of one VM (B9): as many vCPUs as a machine has, several for each device, twenty for librbd.
const TASKS_MAX: u32 = 2048;
/// A group whose last process has just ended is busy for a moment.
const REMOVALS: u32 = 50;
const REMOVAL_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

static CGROUPS: OnceLock<Cgroups> = OnceLock::new();

/// The agent's groups, one for each hierarchy.
#[derive(Debug, Default)]
struct Cgroups {
    parents: Vec<PathBuf>,
}

/// Finds out what this host has, for the life of the process, and removes what VMs have left behind.
pub(crate) fn find() {
    let found =
        Cgroups::found(Path::new(MOUNT), &fs::read_to_string("/proc/self/cgroup").unwrap_or_default());
    if found.parents.is_empty() {
        warn!("this host lets the agent make no cgroup: what VMs use is accounted to the agent");
    } else {
        info!(parents = ?found.parents, "each VM has a cgroup");
    }
    found.remove_empty();
    let _ = CGROUPS.set(found);
}

/// Puts a process, and whatever threads it has, into its VM's group. Blocks for milliseconds.
pub(crate) fn join(vm: VmId, pid: u64) {
    let Some(cgroups) = CGROUPS.get() else { return };
    for parent in &cgroups.parents {
        if let Err(error) = join_below(parent, &name(vm), pid) {
            warn!(%vm, parent = %parent.display(), %error, "a VM's process has no cgroup");
        }
    }
}

/// Removes the group of a VM that has ended. Blocks.
pub(crate) fn remove(vm: VmId) {
    let Some(cgroups) = CGROUPS.get() else { return };
    for parent in &cgroups.parents {
        let group = parent.join(name(vm));
        for _ in 0..REMOVALS {
            match fs::remove_dir(&group) {
                // Another process of the VM may be there by now, or another agent's, in a migration on one host.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    std::thread::sleep(REMOVAL_PAUSE)
                }
                _ => break,
            }
        }
    }
}

fn name(vm: VmId) -> String {
    format!("{PREFIX}{vm}")
}

fn join_below(parent: &Path, name: &str, pid: u64) -> io::Result<()> {
    let group = parent.join(name);
    let mut result = Ok(());
    // Whoever removes empty groups may be quicker, once.
    for _ in 0..2 {
        match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let limit = group.join("pids.max");
        if limit.exists() {
            fs::write(&limit, TASKS_MAX.to_string())?;
        }
        result = fs::write(group.join("cgroup.procs"), pid.to_string());
        match &result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => break,
        }
    }
    match result {
        // It has ended already.
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        result => result,
    }
}

impl Cgroups {
    /// `own`: this process's /proc/self/cgroup.
    fn found(mount: &Path, own: &str) -> Self {
        let mut parents = Vec::new();
        for line in own.lines() {
            // hierarchy:controllers:path; version 2 is "0::path".
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let root = if controllers.is_empty() {
                let unified = mount.join("unified");
                if unified.is_dir() { unified } else { mount.to_owned() }
            } else if controllers.split(',').any(|controller| CONTROLLERS.contains(&controller)) {
                mount.join(controllers)
            } else {
                continue;
            };
            let parent = root.join(path.trim_start_matches('/'));
            if parent.join("cgroup.procs").exists() && may_make_groups(&parent) {
                parents.push(parent);
            }
        }
        Self { parents }
    }

    fn remove_empty(&self) {
        for parent in &self.parents {
            for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                    // Fails where somebody lives there.
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }
}

fn may_make_groups(parent: &Path) -> bool {
    let trial = parent.join(format!("{PREFIX}trial-{}", std::process::id()));
    fs::create_dir(&trial).and_then(|()| fs::remove_dir(&trial)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(groups: &[&str]) -> tempfile::TempDir {
        let mount = tempfile::tempdir().expect("a folder");
        for group in groups {
            fs::create_dir_all(mount.path().join(group)).expect("a group");
            fs::write(mount.path().join(group).join("cgroup.procs"), "").expect("a file");
        }
        mount
    }

    fn check(groups: &[&str], own: &str, expect: &[&str]) {
        let mount = host(groups);
        let found = Cgroups::found(mount.path(), own);
        let expect: Vec<_> = expect.iter().map(|group| mount.path().join(group)).collect();
        assert_eq!(found.parents, expect, "{own}");
    }

    #[test]
    fn groups_are_made_below_the_agents_own() {
        check(&["system.slice/agent"], "0::/system.slice/agent\n", &["system.slice/agent"]);
        check(
            &["pids/a", "memory", "unified/b", "freezer"],
            "9:pids:/a\n8:memory:/\n7:freezer:/\n3:name=systemd:/\n0::/b\n",
            &["pids/a", "memory", "unified/b"],
        );
        check(&["pids"], "9:pids:/elsewhere\n", &[]);
        check(&[], "", &[]);
    }

    #[test]
    fn empty_groups_go_and_others_stay() {
        let mount = host(&["drover-1/child", "other"]);
        fs::create_dir(mount.path().join("drover-2")).expect("a group");
        Cgroups { parents: vec![mount.path().to_owned()] }.remove_empty();
        assert!(!mount.path().join("drover-2").exists());
        assert!(mount.path().join("drover-1").exists() && mount.path().join("other").exists());
    }
}
