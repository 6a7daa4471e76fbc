//! What can go wrong with a test cluster.

use std::{io, path::PathBuf, time::Duration};

/// A cluster that does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CephError {
    /// An option that cannot work.
    #[error("{field} is {value}: {valid}")]
    Option {
        /// The field of [`CephOptions`](crate::CephOptions).
        field: &'static str,
        /// What it was.
        value: u64,
        /// What would be valid.
        valid: &'static str,
    },
    /// A file or folder of the cluster.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A program could not be run at all.
    #[error("cannot run {program} (packages: ceph-mon, ceph-osd, ceph-common)")]
    Run {
        /// Its name.
        program: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{command} failed: {output}")]
    Failed {
        /// The command line.
        command: String,
        /// What it said.
        output: String,
    },
    /// A program did not end, or a state was not reached.
    #[error("waited {deadline:?} for {what}: {seen}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long.
        deadline: Duration,
        /// What was there instead.
        seen: String,
    },
    /// A daemon that the cluster does not have, or that is not in the state the call needs.
    #[error("{daemon} {state}")]
    Daemon {
        /// Its name, such as `osd.0`.
        daemon: String,
        /// Why the call does not apply.
        state: &'static str,
    },
    /// A command answered something else than it is documented to.
    #[error("{command} answered what cannot be read: {answer}")]
    Answer {
        /// The command line.
        command: String,
        /// What it said.
        answer: String,
    },
}

impl CephError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}
