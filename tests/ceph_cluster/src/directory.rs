//! The cluster's private directory, and what makes sure that it is cleared whatever happens to its owner.
//!
//! The directory's name holds the owner's pid and start time, so that it is never without an owner, not even for an instant.
//! Three things clear it: the owner's drop; a watcher process that waits on a pipe which only the owner holds open; and, if
//! both were killed, the next start of any cluster.

use std::{
    collections::BTreeSet,
    env, fs,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    fs::statvfs,
    process::{Pid, Signal, kill_process},
};

use crate::{command::wait_until, error::CephError};

/// How every directory of this crate begins.
const PREFIX: &str = "drover-ceph-";
/// A cluster that shall outlive its owner has this file.
const LEFT_RUNNING: &str = "left-running";
/// A cluster that holds a few small images takes less.
const ROOM_BYTES_MIN: u64 = 2 << 30;
/// A killed daemon is gone at once, unless it waits for a disk; it has none but memory.
const GONE_DEADLINE: Duration = Duration::from_secs(20);

/// A line on standard input is the owner's word that nothing is left to do; the end of input is its death. The processes that
/// name the cluster's configuration as an argument are its daemons and its clients: the latter would wait for ever.
const WATCHER: &str = r#"
trap '' HUP INT TERM
read -r word && exit 0
[ -e "$CLUSTER/left-running" ] && exit 0
for round in 1 2 3 4 5 6 7 8 9 10; do
  found=$(printf %s "$CLUSTER/ceph.conf" | grep -lzsxF -f - /proc/[0-9]*/cmdline)
  [ -n "$found" ] || break
  for file in $found; do process=${file#/proc/}; kill -KILL "${process%/cmdline}" 2>/dev/null; done
  sleep 0.05
done
rm -rf -- "$CLUSTER"
"#;

/// A directory and its watcher. Dropping it removes the directory: its daemons must have ended.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    watcher: Option<Child>,
}

impl Directory {
    /// Clears the directories of dead owners and makes a new one, watched.
    pub(crate) fn create() -> Result<Self, CephError> {
        bases().iter().for_each(|base| clear_stale(base));
        let base = base_with_room();
        let own = std::process::id();
        let started = start_time(own).unwrap_or_default();
        let path = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{own}-{started}-"))
            .tempdir_in(&base)
            .map_err(CephError::file("make a folder in", &base))?
            .keep();
        let mut directory = Self { path, watcher: None };
        directory.watcher = Some(spawn_watcher(&directory.path)?);
        Ok(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the directory and the daemons in it outlive this process.
    pub(crate) fn leave(mut self) -> Result<PathBuf, CephError> {
        let mark = self.path.join(LEFT_RUNNING);
        fs::write(&mark, "").map_err(CephError::file("write", &mark))?;
        self.dismiss_watcher();
        Ok(std::mem::take(&mut self.path))
    }

    fn dismiss_watcher(&mut self) {
        let Some(mut watcher) = self.watcher.take() else { return };
        if let Some(mut word) = watcher.stdin.take() {
            // A watcher that was killed reads nothing, and has nothing to do.
            word.write_all(b"done\n").ok();
        }
        watcher.wait().ok();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        fs::remove_dir_all(&self.path).ok();
        self.dismiss_watcher();
    }
}

fn spawn_watcher(path: &Path) -> Result<Child, CephError> {
    let watcher = Command::new("sh")
        .args(["-c", WATCHER])
        .env("CLUSTER", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        // Whoever ends the owner's group must not end its watcher.
        .process_group(0)
        .spawn()
        .map_err(|source| CephError::Run { program: "sh".to_owned(), source })?;
    let file = path.join("watcher.pid");
    fs::write(&file, watcher.id().to_string()).map_err(CephError::file("write", &file))?;
    Ok(watcher)
}

/// Where clusters may lie, the best first. BlueStore on a disk would measure the disk.
fn bases() -> [PathBuf; 2] {
    [PathBuf::from("/dev/shm"), env::temp_dir()]
}

/// The first place with room: containers often have a `/dev/shm` of 64 MiB.
fn base_with_room() -> PathBuf {
    let has_room = |base: &PathBuf| {
        statvfs(base).is_ok_and(|space| space.f_bavail.saturating_mul(space.f_frsize) >= ROOM_BYTES_MIN)
    };
    bases().into_iter().find(has_room).unwrap_or_else(env::temp_dir)
}

/// Takes down every cluster whose owner has died without leaving it on purpose.
fn clear_stale(base: &Path) {
    for (path, owner_lives) in directories(base) {
        if !owner_lives && !path.join(LEFT_RUNNING).exists() {
            // Another start may be clearing the same one.
            clear(&path).ok();
        }
    }
}

/// Directories that were left running on purpose.
pub(crate) fn left_running() -> Vec<PathBuf> {
    let all = bases().into_iter().flat_map(|base| directories(&base)).map(|(path, _)| path);
    let left = all.filter(|path| path.join(LEFT_RUNNING).exists());
    // Both places may be one.
    left.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Kills every process of the cluster in `path` and removes it.
pub(crate) fn clear(path: &Path) -> Result<(), CephError> {
    wait_until(&format!("the processes of {} to end", path.display()), GONE_DEADLINE, || {
        let pids = processes(path);
        for pid in &pids {
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        Ok(pids.is_empty().then_some(()))
    })?;
    fs::remove_dir_all(path).map_err(CephError::file("remove", path))
}

/// Processes, this one apart, that name the configuration in `path` as an argument.
pub(crate) fn processes(path: &Path) -> Vec<u32> {
    let conf = path.join("ceph.conf");
    let wanted = conf.as_os_str().as_encoded_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|argument| argument == wanted)
        })
        .collect()
}

/// Every directory of this crate below `base`, and whether its owner lives.
fn directories(base: &Path) -> Vec<(PathBuf, bool)> {
    let Ok(entries) = fs::read_dir(base) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let mut parts = name.to_str()?.strip_prefix(PREFIX)?.split('-');
            let pid = parts.next()?.parse().ok()?;
            let started: u64 = parts.next()?.parse().ok()?;
            Some((entry.path(), start_time(pid) == Some(started)))
        })
        .collect()
}

/// When a process began, in clock ticks after boot: with the pid it names a process for good. (proc(5), stat, field 22.)
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, which may itself hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    // A zombie has ended: it only waits for its parent.
    (fields.next()? != "Z").then_some(())?;
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_start_time_and_no_process_has_the_pid_zero() {
        assert!(start_time(std::process::id()).is_some());
        assert_eq!(start_time(0), None);
    }

    #[test]
    fn only_directories_of_dead_owners_are_stale() {
        let base = tempfile::tempdir().unwrap();
        let own = std::process::id();
        let started = start_time(own).unwrap();
        for name in
            [format!("{PREFIX}{own}-{started}-a"), format!("{PREFIX}{own}-1-b"), "other-1-1-c".to_owned()]
        {
            fs::create_dir(base.path().join(name)).unwrap();
        }
        let kept = base.path().join(format!("{PREFIX}{own}-2-d"));
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join(LEFT_RUNNING), "").unwrap();
        clear_stale(base.path());
        let left = fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().file_name());
        // The names begin with numbers of this run: only their ends have an order.
        let mut ends: Vec<_> = left.map(|name| name.to_str().unwrap().chars().last().unwrap()).collect();
        ends.sort_unstable();
        assert_eq!(ends, ['a', 'c', 'd']);
    }
}
