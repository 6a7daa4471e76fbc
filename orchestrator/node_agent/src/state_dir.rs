//! What an agent keeps on disk.
//!
//! ```text
//! <state>/lock           held while an agent runs here; contains its pid
//! <state>/node-id        who this node is, chosen at the first start
//! <state>/vms/<vm id>/   a VM's run directory
//!     spec.json          the record: newest epoch, and whether the VM's end has been acknowledged
//!     vmmd.sock  console.log  vmmd.log
//!     seed.iso    what cloud-init in the guest is told, if anything; mode 0600
//!     vsock       the guest's sockets, if it has any: whoever connects says CONNECT and a port; the guest reaches vsock_<port>
//! <state>/suspended/     VMs that are suspended here (crate::suspended)
//! ```
//!
//! vmmd.log is more than a log: it is locked, and the lock travels with vmmd's standard error. Whoever obtains it
//! knows that no process of the VM is left, not even one that had been forked and not yet become vmmd.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use drover_ids::{NodeId, OwnerEpoch, VmId};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::suspended::Suspended;

/// Longest path a unix socket can have (`sun_path` of 108 bytes, with its final NUL).
const SOCKET_PATH_MAX: usize = 107;
/// vmmd.log is set aside at the next start when it has grown to this.
const VMMD_LOG_MAX: u64 = 1 << 20;
/// A record is a few hundred bytes; more is not a record.
const RECORD_MAX: u64 = 64 << 10;

/// The directory, held by this process.
#[derive(Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
    suspended: Suspended,
    _lock: File,
}

impl StateDir {
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(path.join("vms"))
            .with_context(|| format!("--state-dir: cannot create {}", path.display()))?;
        let root =
            path.canonicalize().with_context(|| format!("--state-dir: cannot resolve {}", path.display()))?;
        let longest = RunDir::of(&root, VmId::from_u128(0)).socket();
        let length = longest.as_os_str().len();
        ensure!(
            length <= SOCKET_PATH_MAX,
            "--state-dir: {} is {} bytes too long: the path of a VM's socket may have {SOCKET_PATH_MAX}",
            root.display(),
            length - SOCKET_PATH_MAX
        );
        let lock = lock_for_this_process(&root)?;
        let suspended =
            Suspended::open(&root).with_context(|| format!("cannot make a folder in {}", root.display()))?;
        Ok(Self { root, suspended, _lock: lock })
    }

    /// The node's identity, chosen now if this is its first start.
    pub(crate) fn node_id(&self) -> anyhow::Result<NodeId> {
        let path = self.root.join("node-id");
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().with_context(|| {
                format!("{} is damaged: restore it, or the node is another one", path.display())
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = NodeId::from_u128(Uuid::new_v4().as_u128());
                replace(&path, format!("{id}\n").as_bytes())
                    .with_context(|| format!("cannot write {}", path.display()))?;
                Ok(id)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The files of suspended VMs.
    pub(crate) fn suspended(&self) -> &Suspended {
        &self.suspended
    }

    pub(crate) fn run_dir(&self, vm: VmId) -> RunDir {
        RunDir::of(&self.root, vm)
    }

    /// Every VM directory, the one that changed longest ago first.
    pub(crate) fn run_dirs(&self) -> io::Result<Vec<RunDir>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.join("vms"))? {
            let entry = entry?;
            let Some(vm) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let changed = entry.metadata().and_then(|data| data.modified())?;
            found.push((changed, RunDir::of(&self.root, vm)));
        }
        found.sort_by_key(|(changed, dir)| (*changed, dir.vm()));
        Ok(found.into_iter().map(|(_, dir)| dir).collect())
    }
}

fn lock_for_this_process(root: &Path) -> anyhow::Result<File> {
    let path = root.join("lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("--state-dir: cannot open {}", path.display()))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            lock.set_len(0)?;
            writeln!(lock, "{}", std::process::id())?;
            Ok(lock)
        }
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            lock.read_to_string(&mut holder).ok();
            anyhow::bail!(
                "--state-dir: {} is in use by another agent (pid {}): two agents cannot share one",
                root.display(),
                holder.trim()
            )
        }
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// What is remembered of a VM, written before anything is done for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The VM's name, for whoever reads the file.
    pub(crate) name: String,
    /// The newest epoch a command had.
    pub(crate) epoch: u64,
    /// The VM's end has been acknowledged: nothing runs, and nothing needs to be reported.
    pub(crate) retired: bool,
}

impl Record {
    pub(crate) fn epoch(&self) -> OwnerEpoch {
        OwnerEpoch::new(self.epoch)
    }
}

/// Where one VM lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunDir {
    vm: VmId,
    path: PathBuf,
}

impl RunDir {
    fn of(root: &Path, vm: VmId) -> Self {
        Self { vm, path: root.join("vms").join(vm.to_string()) }
    }

    pub(crate) const fn vm(&self) -> VmId {
        self.vm
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("vmmd.sock")
    }

    pub(crate) fn console_log(&self) -> PathBuf {
        self.path.join("console.log")
    }

    /// The older part of the console log.
    pub(crate) fn console_log_rotated(&self) -> PathBuf {
        self.path.join("console.log.1")
    }

    /// Where processes of this host reach the guest's sockets.
    pub(crate) fn vsock(&self) -> PathBuf {
        self.path.join("vsock")
    }

    fn vmmd_log(&self) -> PathBuf {
        self.path.join("vmmd.log")
    }

    fn seed(&self) -> PathBuf {
        self.path.join("seed.iso")
    }

    /// Writes the disk that tells the guest who it is. It may hold secrets: nobody else may read it.
    pub(crate) fn write_seed(&self, image: &[u8]) -> io::Result<PathBuf> {
        let path = self.seed();
        // Not over the old one: a process of this VM that is on its way out may still read it.
        self.remove_seed()?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(image)?;
        Ok(path)
    }

    /// Removes it, if there is one.
    pub(crate) fn remove_seed(&self) -> io::Result<()> {
        match fs::remove_file(self.seed()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn read_record(&self) -> io::Result<Option<Record>> {
        let file = match File::open(self.path.join("spec.json")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        serde_json::from_reader(file.take(RECORD_MAX)).map(Some).map_err(io::Error::other)
    }

    /// Writes the record so that it survives a crash of the host.
    pub(crate) fn write_record(&self, record: &Record) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        let text = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
        replace(&self.path.join("spec.json"), &text)
    }

    /// Forgets the VM, its logs included.
    pub(crate) fn discard(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes the directory ready for a new process: no socket of an older one, and vmmd.log locked. The lock is the
    /// process's from the moment it inherits the file. `None`: a process of this VM is still there.
    pub(crate) fn lock_log(&self) -> io::Result<Option<OwnedFd>> {
        fs::create_dir_all(&self.path)?;
        let path = self.vmmd_log();
        let Some(log) = lock_log_file(&path)? else { return Ok(None) };
        for socket in [self.socket(), self.path.join(drover_handover::SOCKET)] {
            match fs::remove_file(socket) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if log.metadata()?.len() < VMMD_LOG_MAX {
            return Ok(Some(log.into()));
        }
        fs::rename(&path, self.path.join("vmmd.log.1"))?;
        Ok(lock_log_file(&path)?.map(OwnedFd::from))
    }

    /// Whether no process of this VM is left. The answer holds until the next launch.
    pub(crate) fn is_free(&self) -> io::Result<bool> {
        match self.path.try_exists()? {
            true => Ok(lock_log_file(&self.vmmd_log())?.is_some()),
            false => Ok(true),
        }
    }
}

fn lock_log_file(path: &Path) -> io::Result<Option<File>> {
    let log = OpenOptions::new().append(true).create(true).open(path)?;
    match flock(&log, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(log)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Replaces a file as a whole, durably.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    // Never into a file that somebody else may have put there.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::create_new(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_agents_cannot_share_a_directory() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateDir::open(folder.path()).unwrap();
        let error = format!("{:#}", StateDir::open(folder.path()).unwrap_err());
        assert!(
            error.contains("another agent") && error.contains(&std::process::id().to_string()),
            "{error}"
        );
        drop(first);
        StateDir::open(folder.path()).unwrap();
    }

    #[test]
    fn the_node_stays_the_same_node() {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(folder.path()).unwrap();
        assert_eq!(dir.node_id().unwrap(), dir.node_id().unwrap());
        fs::write(folder.path().join("node-id"), "x").unwrap();
        assert!(dir.node_id().is_err());
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let error = StateDir::open(&folder.path().join("x".repeat(90))).unwrap_err().to_string();
        assert!(error.contains("too long"), "{error}");
    }

    #[test]
    fn records_survive_and_damage_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(folder.path()).unwrap().run_dir(VmId::from_u128(1));
        assert_eq!(dir.read_record().unwrap(), None);
        let record = Record { name: "web".into(), epoch: 3, retired: false };
        dir.write_record(&record).unwrap();
        assert_eq!(dir.read_record().unwrap(), Some(record));
        fs::write(dir.path().join("spec.json"), "{").unwrap();
        assert!(dir.read_record().is_err());
    }

    #[test]
    fn the_log_is_free_when_its_last_holder_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(folder.path()).unwrap().run_dir(VmId::from_u128(1));
        assert!(dir.is_free().unwrap());
        let log = dir.lock_log().unwrap().unwrap();
        assert!(!dir.is_free().unwrap());
        assert!(dir.lock_log().unwrap().is_none());
        let inherited = log.try_clone().unwrap();
        drop(log);
        assert!(!dir.is_free().unwrap());
        drop(inherited);
        assert!(dir.is_free().unwrap());
    }

    #[test]
    fn a_long_vmmd_log_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(folder.path()).unwrap().run_dir(VmId::from_u128(1));
        fs::create_dir_all(dir.path()).unwrap();
        fs::write(dir.path().join("vmmd.log"), vec![b'x'; VMMD_LOG_MAX as usize]).unwrap();
        let log = dir.lock_log().unwrap().unwrap();
        assert_eq!(File::from(log).metadata().unwrap().len(), 0);
        assert!(dir.path().join("vmmd.log.1").exists());
    }
}
