//! The files of VMs that are suspended on this node: `<state>/suspended/<vm id>.vm`.
//!
//! They are not in the VMs' directories, in which a VM's own process may make files: what is resumed here was handed to the
//! process that wrote it, and nobody else has had it. A file is gone once its VM runs, from it or without it, and when the
//! control plane says that nobody will ask for it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use drover_ids::VmId;
use tracing::{info, warn};

const EXTENSION: &str = "vm";

/// The directory. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Suspended {
    dir: PathBuf,
}

impl Suspended {
    /// Where nobody but the agent's user looks: the files are guests' memory.
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let dir = state.join("suspended");
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self { dir }),
        }
    }

    /// Where a VM is, or would be.
    pub(crate) fn path(&self, vm: VmId) -> PathBuf {
        self.dir.join(format!("{vm}.{EXTENSION}"))
    }

    pub(crate) fn has(&self, vm: VmId) -> bool {
        self.path(vm).exists()
    }

    /// The file, made if it is not there. It is never emptied here: somebody may be writing it.
    pub(crate) fn file(&self, vm: VmId) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(self.path(vm))
    }

    /// Makes the names of the files outlive a crash of the host.
    pub(crate) fn settle(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// Forgets a VM's memory, if there is any.
    pub(crate) fn remove(&self, vm: VmId) {
        match fs::remove_file(self.path(vm)) {
            Ok(()) => info!(%vm, "the file of a suspended VM is removed"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(%vm, %error, "cannot remove the file of a suspended VM"),
        }
    }

    /// As [`remove`](Self::remove), unless it has been written to since.
    pub(crate) fn remove_older(&self, vm: VmId, than: SystemTime) {
        let written = fs::metadata(self.path(vm)).and_then(|file| file.modified());
        if written.is_ok_and(|written| written < than) {
            self.remove(vm);
        }
    }

    /// VMs that have a file here.
    pub(crate) fn list(&self) -> Vec<VmId> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let vm = |entry: io::Result<fs::DirEntry>| {
            let path = entry.ok()?.path();
            let name = path.file_stem()?.to_str()?.parse().ok()?;
            (path.extension()? == EXTENSION).then_some(name)
        };
        entries.filter_map(vm).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn files_are_found_by_their_vm_and_removed_unless_they_are_newer() {
        let state = tempfile::tempdir().unwrap();
        let suspended = Suspended::open(state.path()).unwrap();
        let vm = VmId::from_u128(7);
        assert!(suspended.list().is_empty() && !suspended.has(vm));
        suspended.file(vm).unwrap();
        suspended.settle().unwrap();
        fs::write(suspended.dir.join("x.txt"), "").unwrap();
        assert_eq!(Suspended::open(state.path()).unwrap().list(), [vm]);
        let written = fs::metadata(suspended.path(vm)).unwrap().modified().unwrap();
        suspended.remove_older(vm, written);
        assert!(suspended.has(vm));
        suspended.remove_older(vm, written + Duration::from_secs(1));
        assert!(!suspended.has(vm));
        suspended.remove(vm);
    }
}
