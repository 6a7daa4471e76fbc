//! What can go wrong once the libraries are loaded.

use nix::errno::Errno;

/// An answer of Ceph that is not success.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The cluster or the library refused.
    #[error("cannot {operation} {subject}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// On what: the name of an image, a pool, an address.
        subject: String,
        /// The answer.
        #[source]
        errno: Errno,
    },
    /// The monitors refused a command, with a reason in words.
    #[error("the monitors refused '{command}': {reason}")]
    Command {
        /// The command's prefix.
        command: String,
        /// What they said.
        reason: String,
        /// The answer.
        #[source]
        errno: Errno,
    },
    /// A text with a NUL byte, which no C function takes.
    #[error("{what} contains a NUL byte")]
    NulByte {
        /// Which text.
        what: &'static str,
    },
    /// An answer that is not what it should be.
    #[error("cannot understand the answer to '{operation}': {reason}")]
    Answer {
        /// What was asked.
        operation: &'static str,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The host lacks something that is needed (descriptors).
    #[error("cannot {attempt}")]
    Host {
        /// What was tried.
        attempt: &'static str,
        /// Why not.
        #[source]
        errno: Errno,
    },
}

impl Error {
    pub(crate) fn refused(
        operation: &'static str,
        subject: impl Into<String>,
        answer: impl Into<i64>,
    ) -> Self {
        Self::Refused { operation, subject: subject.into(), errno: errno(answer.into()) }
    }

    /// The error number, where Ceph or the host gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } | Self::Command { errno, .. } | Self::Host { errno, .. } => {
                Some(*errno)
            }
            Self::NulByte { .. } | Self::Answer { .. } => None,
        }
    }

    /// Whether this client has lost its right to write: it has been blocklisted (`ESHUTDOWN`), or somebody else holds
    /// the exclusive lock (`EROFS`).
    pub fn is_fenced(&self) -> bool {
        self.errno().is_some_and(is_fenced)
    }
    /// No such image, snapshot, pool, lock or attribute.
    pub fn is_not_found(&self) -> bool {
        matches!(self.errno(), Some(Errno::ENOENT | Errno::ENODATA))
    }
    /// The name is taken.
    pub fn is_already_there(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }
    /// Somebody uses what was to be removed or changed.
    pub fn is_busy(&self) -> bool {
        self.errno() == Some(Errno::EBUSY)
    }
    /// The user may not do this.
    pub fn is_denied(&self) -> bool {
        matches!(self.errno(), Some(Errno::EACCES | Errno::EPERM))
    }
    /// A time limit of [`Timeouts`](crate::Timeouts) has passed. What was tried may or may not have happened.
    pub fn is_timed_out(&self) -> bool {
        self.errno() == Some(Errno::ETIMEDOUT)
    }
    /// The caller's progress function stopped it.
    pub fn is_cancelled(&self) -> bool {
        self.errno() == Some(Errno::ECANCELED)
    }
    /// This release or build of the library cannot do it.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno(), Some(Errno::EOPNOTSUPP | Errno::ENOSYS))
    }
}

/// See [`Error::is_fenced`].
pub(crate) fn is_fenced(errno: Errno) -> bool {
    matches!(errno, Errno::ESHUTDOWN | Errno::EROFS)
}

/// The error number in a negative return value.
pub(crate) fn errno(answer: i64) -> Errno {
    i32::try_from(answer.unsigned_abs()).map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: i32, holds: fn(&Error) -> bool) {
        let error = Error::refused("write", "volume-1", answer);
        assert!(holds(&error), "{error:?}");
    }

    #[test]
    fn answers_are_told_apart_by_their_number() {
        check(-108, Error::is_fenced);
        check(-30, Error::is_fenced);
        check(-2, Error::is_not_found);
        check(-61, Error::is_not_found);
        check(-17, Error::is_already_there);
        check(-16, Error::is_busy);
        check(-110, Error::is_timed_out);
        check(-110, |error| !error.is_fenced());
        assert_eq!(errno(i64::MIN), Errno::EIO);
    }
}
