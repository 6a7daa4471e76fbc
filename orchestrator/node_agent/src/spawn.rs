//! Starts a vmmd.
//!
//! In a session of its own, so that neither a terminal's hang-up nor its Ctrl-C reaches it, and with nothing of the
//! agent's but its log on standard error: every other descriptor is close-on-exec. posix_spawn does this without
//! unsafe code and without copying the agent's memory.

use std::{
    ffi::{CString, OsStr},
    io,
    os::{fd::AsRawFd as _, unix::ffi::OsStrExt as _},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    libc,
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn},
    sys::{signal::SigSet, stat::Mode},
};
use rustix::process::Pid;

use crate::{clock, death_watch::DeathWatch, process::Process, state_dir::RunDir};

/// What vmmd may know of the agent's environment.
const ENVIRONMENT: [&str; 3] = ["PATH", "RUST_LOG", "RUST_BACKTRACE"];

/// Starts `vmmd` in `dir`. `None`: a process of this VM is still there.
pub(crate) fn spawn(vmmd: &Path, dir: &RunDir, deaths: &DeathWatch) -> io::Result<Option<Process>> {
    let Some(log) = dir.lock_log()? else { return Ok(None) };
    let spawned_at = clock::now().as_ns().to_string();
    let socket = dir.socket();
    let arguments = [
        vmmd.as_os_str(),
        OsStr::new("--socket"),
        socket.as_os_str(),
        OsStr::new("--run-dir"),
        dir.path().as_os_str(),
        OsStr::new("--spawned-at-boottime-ns"),
        OsStr::new(&spawned_at),
    ]
    .map(c_string)
    .into_iter()
    .collect::<io::Result<Vec<_>>>()?;
    let environment = ENVIRONMENT
        .iter()
        .filter_map(|name| {
            let value = std::env::var_os(name)?;
            let mut pair = std::ffi::OsString::from(name);
            pair.push("=");
            pair.push(value);
            Some(c_string(&pair))
        })
        .collect::<io::Result<Vec<_>>>()?;

    let mut actions = PosixSpawnFileActions::init()?;
    actions.add_open(0, "/dev/null", OFlag::O_RDONLY, Mode::empty())?;
    actions.add_open(1, "/dev/null", OFlag::O_WRONLY, Mode::empty())?;
    actions.add_dup2(log.as_raw_fd(), 2)?;
    let mut attributes = PosixSpawnAttr::init()?;
    // nix does not name SETSID; glibc (2.26) and musl have it.
    let set_session = PosixSpawnFlags::from_bits_retain(i32::from(libc::POSIX_SPAWN_SETSID));
    attributes.set_flags(
        set_session | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
    )?;
    attributes.set_sigmask(&SigSet::empty())?;
    let mut defaults = SigSet::empty();
    defaults.add(nix::sys::signal::Signal::SIGPIPE);
    defaults.add(nix::sys::signal::Signal::SIGCHLD);
    attributes.set_sigdefault(&defaults)?;

    let pid = posix_spawn(vmmd, &actions, &attributes, &arguments, &environment)?;
    let pid = Pid::from_raw(pid.as_raw()).ok_or(Errno::ESRCH)?;
    Process::of_child(pid, dir.clone(), deaths).map(Some)
}

fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(text.as_ref().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a path contains a NUL byte"))
}
