//! The unix socket: one process at a time, opened by nobody else, gone when the process is.
//!
//! A process that was killed leaves its socket file behind, and a connection attempt cannot tell a dead server from a
//! slow one. So the right to the path is a lock on a file beside it, which the kernel drops with the process.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::{
        fs::{FileTypeExt as _, OpenOptionsExt as _},
        net::UnixListener,
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    sys::stat::{Mode, umask},
};

/// Longest path of a unix socket: `sun_path` is 108 bytes with its NUL (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error(
        "--socket {path}: {length} bytes are too long, unix sockets have paths of at most {SOCKET_PATH_BYTES_MAX}"
    )]
    PathTooLong { path: PathBuf, length: usize },
    #[error("--socket {path}: another drover-vmmd serves it")]
    InUse { path: PathBuf },
    #[error("--socket {path}: something that is not a socket is there, and is left alone")]
    NotASocket { path: PathBuf },
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

/// The socket's path, ours as long as this lives. Dropping it removes the socket file.
#[derive(Debug)]
pub(crate) struct SocketClaim {
    path: PathBuf,
    /// Never removed: whoever holds a lock on a removed file excludes nobody.
    _lock: File,
}

/// Claims `path` and listens on it.
#[cfg(test)]
fn listen(path: &Path) -> Result<(UnixListener, SocketClaim), SocketError> {
    let claim = SocketClaim::take(path)?;
    let listener = claim.listen()?;
    Ok((listener, claim))
}

impl SocketClaim {
    /// Claims `path`.
    pub(crate) fn take(path: &Path) -> Result<Self, SocketError> {
        let path = path.to_owned();
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_BYTES_MAX {
            return Err(SocketError::PathTooLong { path, length });
        }
        let lock_path = path.with_added_extension("lock");
        let failed = |action| {
            let path = lock_path.clone();
            move |source| SocketError::Io { action, path, source }
        };
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&lock_path)
            .map_err(failed("open"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(SocketError::InUse { path }),
            Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
        }
    }

    /// Listens, in place of whatever socket a dead process has left there.
    ///
    /// Must be called while the process has one thread: the mode of a socket file comes from the process's umask.
    pub(crate) fn listen(&self) -> Result<UnixListener, SocketError> {
        let listener = listen_privately(&self.path)?;
        let failed =
            |source| SocketError::Io { action: "make non-blocking", path: self.path.clone(), source };
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(listener)
    }
}

/// Listens on `path`, in place of whatever socket a dead process has left there. The path is claimed already, and the
/// process has one thread: see [`SocketClaim::listen`].
pub(crate) fn listen_privately(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| SocketError::Io { action, path, source }
    };
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            fs::remove_file(path).map_err(failed("remove the stale socket", path))?;
        }
        Ok(_) => return Err(SocketError::NotASocket { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(failed("look at", path)(source)),
    }
    // Private from its first moment; a chmod after bind would leave a gap.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(path);
    umask(before);
    bound.map_err(failed("listen on", path))
}

impl Drop for SocketClaim {
    fn drop(&mut self) {
        // What is no socket was never ours, whoever refused to listen there.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.file_type().is_socket()) {
            // Nothing to be done about a failure: the next owner of the path replaces what it finds.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_socket_is_private_and_goes_with_its_claim() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("vm.sock");
        let (_listener, claim) = listen(&path).expect("free");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        drop(claim);
        assert!(!path.exists());
    }

    #[test]
    fn a_claimed_socket_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("vm.sock");
        let claimed = listen(&path).expect("free");
        assert!(matches!(listen(&path), Err(SocketError::InUse { .. })));
        // What kill -9 does: the lock goes, the file stays.
        let (listener, claim) = claimed;
        drop(listener);
        drop(claim);
        drop(UnixListener::bind(&path).expect("free"));
        assert!(path.exists());
        listen(&path).expect("a stale socket is replaced");
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("vm.sock");
        fs::write(&path, "precious").expect("written");
        assert!(matches!(listen(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).expect("there"), "precious");
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_named() {
        let error = listen(Path::new(&"x".repeat(108))).expect_err("too long");
        assert!(error.to_string().contains("108 bytes"), "{error}");
    }
}
