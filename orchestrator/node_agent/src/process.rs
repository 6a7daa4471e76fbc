//! The processes of VMs: held by pidfd, recognised by their command line, and proven gone.
//!
//! A pid alone names nothing: it may have been recycled. A pidfd names one process for ever, so the order is always
//! open the pidfd, check that the process is a VM's, and act on the pidfd.

use std::{fs, io, path::Path, sync::Arc, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fd::{AsFd as _, OwnedFd},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
    time::Timespec,
};
use tokio::{sync::watch, task::spawn_blocking};
use tracing::{error, warn};

use crate::{cgroup, death_watch::DeathWatch, state_dir::RunDir};

/// Between two looks at a process that should be gone.
const PROOF_PAUSE: Duration = Duration::from_millis(20);
/// Looks before the log says that something is wrong. They go on after that.
const PROOF_LOOKS: u32 = 250;

/// A VM's process that was there when this was made.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<String>>,
}

impl Process {
    /// Takes charge of a child that was just spawned.
    pub(crate) fn of_child(pid: Pid, dir: RunDir, deaths: &DeathWatch) -> io::Result<Self> {
        Self::watched(pid, pidfd_open(pid, PidfdFlags::empty())?, dir, deaths)
    }

    fn watched(pid: Pid, pidfd: OwnedFd, dir: RunDir, deaths: &DeathWatch) -> io::Result<Self> {
        let pidfd = Arc::new(pidfd);
        let end = deaths.end_of(pidfd.as_fd())?;
        let (ended, exit) = watch::channel(None);
        let waited = Arc::clone(&pidfd);
        tokio::spawn(async move {
            end.await;
            let text = describe_exit(&waited);
            prove_end(&dir).await;
            ended.send_replace(Some(text));
        });
        Ok(Self { pid, pidfd, exit })
    }

    pub(crate) fn pid(&self) -> u64 {
        u64::from(self.pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// SIGKILL. A process that is gone already is as good as killed.
    pub(crate) fn kill(&self) {
        match pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => error!(pid = self.pid(), %error, "cannot kill a VM's process"),
        }
    }

    /// Waits until the end of the process, and of everything else of its VM, is proven; tells how it ended.
    pub(crate) async fn ended(&self) -> String {
        let mut exit = self.exit.clone();
        let text = exit.wait_for(Option::is_some).await.ok().and_then(|text| text.clone());
        match text {
            Some(text) => text,
            // The watching task ends only with the runtime.
            None => std::future::pending().await,
        }
    }
}

fn describe_exit(pidfd: &OwnedFd) -> String {
    // Also reaps a child; for a process that was adopted the kernel answers ECHILD, and its status is lost.
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (_, Some(signal)) => format!("killed by signal {signal}"),
            _ => "ended".to_owned(),
        },
        _ => "ended, exit status unknown: an earlier agent started it".to_owned(),
    }
}

/// Returns when nothing of the VM is left: no process with its run directory on the command line, and nobody holds
/// its log. What is found is killed.
async fn prove_end(dir: &RunDir) {
    for look in 1_u32.. {
        let checked = dir.clone();
        let free = spawn_blocking(move || {
            for left in find(checked.path()).unwrap_or_default() {
                warn!(vm = %checked.vm(), pid = left.pid.as_raw_nonzero().get(), "kills a process that its VM left behind");
                left.kill();
            }
            checked.is_free()
        })
        .await;
        match free {
            Ok(Ok(true)) => {
                let vm = dir.vm();
                // Nobody waits for this.
                spawn_blocking(move || cgroup::remove(vm));
                return;
            }
            Ok(Ok(false)) if look != PROOF_LOOKS => {}
            Ok(Ok(false)) => error!(vm = %dir.vm(), "a process that cannot be found holds the VM's vmmd.log"),
            Ok(Err(error)) => error!(vm = %dir.vm(), %error, "cannot check the lock of vmmd.log"),
            Err(error) => error!(%error, "a check did not end"),
        }
        tokio::time::sleep(PROOF_PAUSE).await;
    }
}

/// A process that was found by its command line.
#[derive(Debug)]
pub(crate) struct Found {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Found {
    pub(crate) fn kill(&self) {
        // Gone already is as good.
        pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
    }

    /// Takes charge of it.
    pub(crate) fn adopt(self, dir: RunDir, deaths: &DeathWatch) -> io::Result<Process> {
        Process::watched(self.pid, self.pidfd, dir, deaths)
    }
}

/// Every living process that was started with `--run-dir <run_dir>`.
pub(crate) fn find(run_dir: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        if !runs_in(pid, run_dir) {
            continue;
        }
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // The pidfd may be of a newer process with the same pid: look again, now that it cannot change any more.
        if runs_in(pid, run_dir) && is_alive(&pidfd) {
            found.push(Found { pid, pidfd });
        }
    }
    Ok(found)
}

/// A process that has ended has no command line any more.
fn runs_in(pid: Pid, run_dir: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else { return false };
    let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let wanted = run_dir.as_os_str().as_encoded_bytes();
    arguments.windows(2).any(|pair| pair[0] == b"--run-dir" && pair[1] == wanted)
}

fn is_alive(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&at_once)), Ok(0))
}
