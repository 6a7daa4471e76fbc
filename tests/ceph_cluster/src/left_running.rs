//! Clusters that outlive the command that started them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{directory, error::CephError};

/// A cluster that was left running on purpose.
#[derive(Debug)]
pub struct LeftRunning {
    directory: PathBuf,
}

impl LeftRunning {
    /// All of them on this machine.
    #[must_use]
    pub fn all() -> Vec<Self> {
        directory::left_running().into_iter().map(|directory| Self { directory }).collect()
    }

    /// The folder that holds everything of the cluster.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The configuration for clients.
    pub fn conf_path(&self) -> PathBuf {
        self.directory.join("ceph.conf")
    }

    /// Its daemons and clients that run: pid and program.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let named = |pid: u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (pid, name.trim().to_owned())
        };
        directory::processes(&self.directory).into_iter().map(named).collect()
    }

    /// Kills what runs and removes the folder.
    ///
    /// # Errors
    /// If a process does not end or the folder cannot be removed.
    pub fn take_down(self) -> Result<(), CephError> {
        directory::clear(&self.directory)
    }
}
