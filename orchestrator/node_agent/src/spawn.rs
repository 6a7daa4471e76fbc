//! Starts a vmmd.
//!
//! In a session of its own, so that neither a terminal's hang-up nor its Ctrl-C reaches it, and with nothing of the
//! agent's but its log on standard error and what it is told first on standard input: every other descriptor is close-on-exec. posix_spawn does this without
//! unsafe code and without copying the agent's memory.

use std::{
    ffi::{CString, OsStr},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd},
        unix::ffi::OsStrExt as _,
    },
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
use tokio::task::spawn_blocking;

use crate::{
    cgroup, clock,
    death_watch::DeathWatch,
    jail::{self, Jail, Needs},
    process::Process,
    state_dir::RunDir,
};

/// What vmmd may know of the agent's environment.
const ENVIRONMENT: [&str; 3] = ["PATH", "RUST_LOG", "RUST_BACKTRACE"];

/// What is started, and in what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start<'a> {
    pub(crate) vmmd: &'a Path,
    pub(crate) jail: Jail,
    pub(crate) needs: Needs,
    /// Where it is told what to do first.
    pub(crate) ahead: Option<BorrowedFd<'a>>,
}

/// Starts vmmd in `dir`. `None`: a process of this VM is still there.
pub(crate) fn spawn(start: Start<'_>, dir: &RunDir, deaths: &DeathWatch) -> io::Result<Option<Process>> {
    let Start { vmmd, jail, needs, ahead } = start;
    let Some(log) = dir.lock_log()? else { return Ok(None) };
    let spawned_at = clock::now().as_ns().to_string();
    let socket = dir.socket();
    let mut arguments = [
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
    if ahead.is_some() {
        arguments.push(c_string("--calls-ahead")?);
    }
    for argument in jail.arguments(dir.vm(), needs) {
        arguments.push(c_string(argument)?);
    }
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

    let pid = jail::in_namespaces(jail.namespaces(needs.rbd), || {
        become_vmmd(vmmd, (&arguments, &environment), (ahead, log.as_fd()))
    })?;
    let pid = Pid::from_raw(pid).ok_or(Errno::ESRCH)?;
    if jail.is_on() {
        let (vm, pid) = (dir.vm(), u64::from(pid.as_raw_nonzero().get().unsigned_abs()));
        // A first move in a while waits for every processor: the VM does not wait for it.
        spawn_blocking(move || cgroup::join(vm, pid));
    }
    Process::of_child(pid, dir.clone(), deaths).map(Some)
}

/// Starts a child of this thread and returns its process id.
fn become_vmmd(
    vmmd: &Path,
    (arguments, environment): (&[CString], &[CString]),
    (input, log): (Option<BorrowedFd<'_>>, BorrowedFd<'_>),
) -> io::Result<i32> {
    let mut actions = PosixSpawnFileActions::init()?;
    match input {
        Some(input) => actions.add_dup2(input.as_raw_fd(), 0)?,
        None => actions.add_open(0, "/dev/null", OFlag::O_RDONLY, Mode::empty())?,
    }
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
    Ok(posix_spawn(vmmd, &actions, &attributes, arguments, environment)?.as_raw())
}

fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(text.as_ref().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a path contains a NUL byte"))
}
