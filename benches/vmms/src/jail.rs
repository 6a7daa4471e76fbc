//! What the node agent does for a vmmd that is jailed: namespaces, a user, open files.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    process::{Child, Command},
    thread,
};

use drover_dir_volume::{DirPool, open_record};
use drover_wire::vm::v1::VmConfig;
use nix::sched::{CloneFlags, unshare};

/// A user that nobody is.
const UID: u32 = 0x7012_0be1;

/// Starts a child in new namespaces, told to confine itself.
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    command.args(["--jail", "--jail-own-mounts"]).arg(format!("--jail-uid={UID}"));
    let namespaces = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET;
    // Namespaces are of the thread whose child is born in them, and go with it.
    let birth = || {
        unshare(namespaces)?;
        command.spawn()
    };
    thread::scope(|scope| scope.spawn(birth).join())
        .map_err(|_| io::Error::other("the thread that makes namespaces has panicked"))?
}

/// Opens what a machine of this configuration is made of, for a process that may open nothing.
pub(crate) fn files(config: &VmConfig) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut files: Vec<(String, OwnedFd)> = Vec::new();
    files.push((config.kernel_path.clone(), File::open(&config.kernel_path)?.into()));
    for disk in config.disks.iter().filter(|disk| disk.rbd.is_none()) {
        let path = Path::new(&disk.path);
        files.push((disk.path.clone(), OpenOptions::new().read(true).write(true).open(path)?.into()));
        let record = drover_handover::record_name(&disk.path);
        files.push((record, open_record(&DirPool::sidecar_of(path))?.into()));
    }
    Ok(files)
}

/// Hands that over.
pub(crate) fn hand_over(run_dir: &Path, config: &VmConfig) -> io::Result<()> {
    let files = files(config)?;
    drover_handover::hand_over(run_dir, files.iter().map(|(name, file)| (name.as_str(), file.as_fd())))
}
