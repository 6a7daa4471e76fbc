//! Processes that are started, watched and killed for real.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{PidfdFlags, pidfd_open, pidfd_send_signal},
    time::Timespec,
};

use crate::wait::eventually;

/// A child process with its standard error in a log file. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    detached: bool,
}

impl Process {
    /// Starts `command`; its output is appended to `log`.
    ///
    /// The child gets a process group of its own, so that a Ctrl-C at the terminal reaches only the test or demo, which then
    /// ends its children in order.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Self> {
        let file = File::options()
            .append(true)
            .create(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}: {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), detached: false })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill_9(&mut self) -> anyhow::Result<()> {
        // An error here means that it has ended already.
        self.child.kill().ok();
        self.child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// If it has not ended by the deadline.
    pub fn terminate(&mut self, deadline: Duration) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).context("a pid fits 31 bits")?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).ok();
        eventually(&format!("{} to end", self.name), deadline, || Ok(self.child.try_wait()?))?;
        Ok(())
    }

    /// Leaves it running when this value is dropped.
    pub fn detach(&mut self) {
        self.detached = true;
    }

    /// Fails with the end of its log if it has ended.
    ///
    /// # Errors
    /// If it has ended.
    pub fn check_alive(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}):\n{}", self.name, tail(&self.log));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.detached {
            self.kill_9().ok();
        }
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// A running vmmd, found by the run directory on its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmmdProcess {
    /// Its process id when it was found.
    pub pid: u32,
    /// The directory given with `--run-dir`.
    pub run_dir: PathBuf,
}

impl VmmdProcess {
    /// Every vmmd whose run directory lies below `folder`.
    pub fn below(folder: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter_map(|pid| {
                let run_dir = run_dir_of(pid)?;
                run_dir.starts_with(folder).then_some(Self { pid, run_dir })
            })
            .collect()
    }

    /// Stops it with SIGSTOP: it does nothing more, and holds what it holds.
    ///
    /// # Errors
    /// If it is gone.
    pub fn stop(&self) -> anyhow::Result<()> {
        self.signal(rustix::process::Signal::STOP)
    }

    /// Lets it go on after [`Self::stop`].
    ///
    /// # Errors
    /// If it is gone.
    pub fn cont(&self) -> anyhow::Result<()> {
        self.signal(rustix::process::Signal::CONT)
    }

    fn signal(&self, signal: rustix::process::Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        let handle = pidfd_open(pid.context("a pid is a positive number")?, PidfdFlags::empty())
            .with_context(|| format!("vmmd {} is gone", self.pid))?;
        if run_dir_of(self.pid).as_ref() != Some(&self.run_dir) {
            bail!("vmmd {} is gone", self.pid);
        }
        Ok(pidfd_send_signal(&handle, signal)?)
    }

    /// Kills it with SIGKILL and waits until it is gone. A pid that has meanwhile been given to another process is left alone.
    ///
    /// # Errors
    /// If it does not die.
    pub fn kill_9(&self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.context("a pid is a positive number")?;
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        // The handle is of whoever has the pid now: look who that is before the signal.
        if run_dir_of(self.pid).as_ref() != Some(&self.run_dir) {
            return Ok(());
        }
        pidfd_send_signal(&handle, rustix::process::Signal::KILL).ok();
        let mut ended = [PollFd::new(&handle, PollFlags::IN)];
        let deadline = Timespec { tv_sec: 10, tv_nsec: 0 };
        if poll(&mut ended, Some(&deadline))? == 0 {
            bail!("vmmd {} did not die within 10 s of SIGKILL", self.pid);
        }
        Ok(())
    }
}

fn run_dir_of(pid: u32) -> Option<PathBuf> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    if !arguments.next()?.ends_with("drover-vmmd") {
        return None;
    }
    arguments.find(|argument| argument == "--run-dir")?;
    Some(PathBuf::from(arguments.next()?.into_owned()))
}
