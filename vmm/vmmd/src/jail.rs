//! This process's jail: what the command line says about it, carried out.
//!
//! Everything that a process without rights needs is made here, while it has them: the sockets, the console's log, KVM.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown, fchown},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::Context as _;
use drover_guest_memory::FaultSource;
use drover_handover::SOCKET;
use drover_jail::{Confinement, Enforced, Grant, Plan, Seccomp, confine, rbd_grants};
use drover_machine::{Hypervisor, HypervisorError};
use tracing::{info, warn};

use crate::{cli::Arguments, console::LogFile, refused::chain};

/// Rights of a run directory in which a stranger keeps files: it may add files, and remove its own.
const RUN_DIR_MODE: u32 = 0o1770;
/// An empty directory in the run directory, on which the empty root is built.
const ROOT: &str = "root";

static CONFINEMENT: OnceLock<Confinement> = OnceLock::new();
static PID: OnceLock<u32> = OnceLock::new();
/// What librbd needs has been left outside.
static WITHOUT_RBD: OnceLock<()> = OnceLock::new();

/// This process's id as its host knows it, which a process namespace hides.
pub(crate) fn host_pid() -> u32 {
    PID.get().copied().unwrap_or_else(std::process::id)
}

/// Whether the ids of other processes mean anything here.
pub(crate) fn sees_processes() -> bool {
    host_pid() == std::process::id()
}

/// Whether the process may still open files by their names.
pub(crate) fn sees_files() -> bool {
    CONFINEMENT.get().is_none()
}

/// Whether the process may load librbd and reach clusters: in a jail that is decided when it starts.
pub(crate) fn reaches_clusters() -> bool {
    WITHOUT_RBD.get().is_none()
}

/// Which layers of the jail are in force, by their names.
pub(crate) fn layers() -> [(&'static str, bool); 4] {
    let confinement = CONFINEMENT.get();
    let is = |layer: fn(&Confinement) -> bool| confinement.is_some_and(layer);
    [
        ("root", is(|confinement| confinement.root)),
        ("identity", is(|confinement| confinement.identity)),
        ("landlock", is(|confinement| confinement.landlock != Enforced::Not)),
        ("seccomp", is(|confinement| confinement.seccomp == Seccomp::Kill)),
    ]
}

/// What has to be there before the doors close.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) log: LogFile,
    /// KVM, or why it cannot be had.
    pub(crate) kvm: Result<Hypervisor, HypervisorError>,
    /// What tells of missing pages, or why it cannot be had; `None` where nobody will ask for it.
    pub(crate) faults: Option<Result<FaultSource, String>>,
}

/// Confines this process as its command line says. `socket` is open already, and that for files beside it.
pub(crate) fn enter(arguments: &Arguments, socket: &Path, run_dir: &Path) -> anyhow::Result<Prepared> {
    // Read where the host's processes can still be seen: the link names us as the host does.
    let pid = fs::read_link("/proc/self").ok().and_then(|link| link.to_str()?.parse().ok());
    let _ = PID.set(pid.unwrap_or_else(std::process::id));
    let run_dir = run_dir.canonicalize().context("--run-dir")?;
    let log = LogFile::open(&run_dir)
        .with_context(|| format!("--run-dir {}: cannot keep console.log there", run_dir.display()))?;
    if let Some(uid) = arguments.jail_uid {
        give_away(&run_dir, &[socket, &run_dir.join(SOCKET)], &log, uid)
            .with_context(|| format!("--jail-uid {uid}: cannot give it the run directory"))?;
    }
    drover_guest_memory::prepare().context("cannot read which of this process's pages are allocated")?;
    let kvm = Hypervisor::open();
    let faults = arguments.jail_resume.then(|| FaultSource::open().map_err(|error| chain(&error)));
    let mut grants = vec![(run_dir.clone(), Grant::Keep)];
    if arguments.jail_rbd {
        grants.extend(rbd_grants());
    }
    let root = arguments.jail_own_mounts.then(|| make_root_folder(&run_dir)).transpose()?;
    let plan = Plan {
        root,
        uid: arguments.jail_uid,
        grants,
        rbd: arguments.jail_rbd,
        vsock: arguments.jail_vsock,
        landlock: true,
        seccomp: arguments.seccomp.into(),
    };
    let confinement = confine(&plan).context("the jail")?;
    if !arguments.jail_rbd {
        let _ = WITHOUT_RBD.set(());
    }
    if confinement.landlock == Enforced::Not {
        warn!("this kernel has no landlock: which files are opened is limited by the other layers only");
    }
    info!(?confinement, "confined");
    let _ = CONFINEMENT.set(confinement);
    Ok(Prepared { log, kvm, faults })
}

fn make_root_folder(run_dir: &Path) -> anyhow::Result<PathBuf> {
    let folder = run_dir.join(ROOT);
    match fs::create_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make {}", folder.display()))
        }
        _ => Ok(folder),
    }
}

/// Lets `uid` keep its own files in the run directory, whose other files stay out of its reach.
fn give_away(run_dir: &Path, sockets: &[&Path], log: &LogFile, uid: u32) -> io::Result<()> {
    chown(run_dir, None, Some(uid))?;
    fs::set_permissions(run_dir, fs::Permissions::from_mode(RUN_DIR_MODE))?;
    for socket in sockets {
        chown(socket, Some(uid), Some(uid))?;
    }
    fchown(log.file(), Some(uid), Some(uid))?;
    match chown(log.older(), Some(uid), Some(uid)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
