//! The state directory, and the lock that keeps a second control plane out of it.
//!
//! Two control planes on one store would both grant leases and decide. The store file has a lock of its own; this one
//! comes first because it can say who is there.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// Longest text that is read from a lock file: a process id and a newline.
const PID_BYTES_MAX: u64 = 32;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another control plane uses it.
    #[error(
        "the state directory {path} is in use by process {pid}; stop that one first, or choose another --state-dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The holder; "(unknown)" in the moment before it has written it down.
        pid: String,
    },
    /// The file system refused something.
    #[error("the state directory {path} cannot be used")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The state directory, ours until this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StateDir {
    /// Creates the directory if it is not there, and takes its lock.
    ///
    /// # Errors
    /// [`StateDirError`].
    pub(crate) fn open(path: &Path) -> Result<Self, StateDirError> {
        let io = |source| StateDirError::Io { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(io)?;
        let lock = path.join("lock");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(lock).map_err(io)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0).map_err(io)?;
                writeln!(lock, "{}", std::process::id()).map_err(io)?;
                Ok(Self { path: path.to_owned(), _lock: lock })
            }
            Err((file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                // Only for the message.
                let _unread = file.take(PID_BYTES_MAX).read_to_string(&mut pid);
                let pid = if pid.trim().is_empty() { "(unknown)" } else { pid.trim() };
                Err(StateDirError::InUse { path: path.to_owned(), pid: pid.to_owned() })
            }
            Err((_, errno)) => Err(io(errno.into())),
        }
    }

    /// The store's file.
    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("store.redb")
    }

    /// The directory itself: files without a name are made here.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_instance_is_refused_and_told_who_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let first = StateDir::open(&path).unwrap();
        let error = StateDir::open(&path).unwrap_err();
        let expect = format!("in use by process {}", std::process::id());
        assert!(error.to_string().contains(&expect), "{error}");
        drop(first);
        StateDir::open(&path).unwrap();
    }
}
