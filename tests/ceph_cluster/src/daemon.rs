//! One daemon of a cluster as a child process.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::CephError;

/// A daemon by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Daemon {
    /// The one monitor, `mon.a`.
    Mon,
    /// An OSD, counted from 0.
    Osd(u16),
}

impl Daemon {
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Mon => "ceph-mon",
            Self::Osd(_) => "ceph-osd",
        }
    }

    pub(crate) fn id(self) -> String {
        match self {
            Self::Mon => "a".to_owned(),
            Self::Osd(number) => number.to_string(),
        }
    }

    /// Its admin socket below the cluster's directory.
    pub(crate) fn socket(self, directory: &Path) -> PathBuf {
        directory.join(format!("run/{self}.asok"))
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mon => formatter.write_str("mon.a"),
            Self::Osd(number) => write!(formatter, "osd.{number}"),
        }
    }
}

/// A daemon that was started and not yet waited for.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Starts `daemon` in the foreground, its output in the cluster's log folder.
    ///
    /// It gets a process group of its own: a Ctrl-C at the terminal is for the owner, which then ends it in order.
    pub(crate) fn start(daemon: Daemon, directory: &Path) -> Result<Self, CephError> {
        let log = directory.join(format!("log/{daemon}.out"));
        let file =
            File::options().append(true).create(true).open(&log).map_err(CephError::file("open", &log))?;
        let copy = file.try_clone().map_err(CephError::file("open", &log))?;
        let child = Command::new(daemon.program())
            .arg("-c")
            .arg(directory.join("ceph.conf"))
            .args(["-f", "-i", &daemon.id()])
            .env_remove("CEPH_ARGS")
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(copy)
            .process_group(0)
            .spawn()
            .map_err(|source| CephError::Run { program: daemon.program().to_owned(), source })?;
        Ok(Self { child })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub(crate) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // Until it is waited for, the pid is this child's. An error means that it has ended.
        kill_process(Pid::from_child(&self.child), signal).ok();
    }

    /// Waits for one that was killed.
    pub(crate) fn reap(&mut self) {
        self.child.wait().ok();
    }

    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.reap();
    }
}

/// The daemons that run. Dropping it kills them all, stopped ones too, and waits for them.
#[derive(Debug, Default)]
pub(crate) struct Daemons(Mutex<BTreeMap<Daemon, Running>>);

impl Daemons {
    pub(crate) fn lock(&self) -> MutexGuard<'_, BTreeMap<Daemon, Running>> {
        // A panic elsewhere must not keep the daemons alive.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the daemons up without ending them.
    pub(crate) fn abandon(self) {
        self.lock().clear();
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        let mut daemons = self.lock();
        daemons.values().for_each(|daemon| daemon.signal(Signal::KILL));
        daemons.values_mut().for_each(Running::reap);
    }
}
