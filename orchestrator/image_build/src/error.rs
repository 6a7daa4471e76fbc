//! What can keep a guest from being built.

use std::{io, path::PathBuf};

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Programs that do the work are not there.
    #[error("{programs} not installed: on Debian, `apt-get install {packages}`")]
    Missing {
        /// The programs.
        programs: String,
        /// The packages that have them.
        packages: String,
    },
    /// Ordinary users need sub-uids.
    #[error(
        "{user} has no sub-uids, in which a system can be built without root: add them with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}`, or run this as root"
    )]
    NoSubUids {
        /// The user.
        user: String,
    },
    /// Nothing is overwritten.
    #[error("{} is there already: choose another folder, or remove it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A part of the recipe that could not be meant.
    #[error("{field} '{value}': expected {valid}")]
    Invalid {
        /// Which part.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        valid: &'static str,
    },
    /// A program failed.
    #[error("{program} failed ({status}); its last words:\n{words}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// The end of its output.
        words: String,
    },
    /// Somebody asked for it.
    #[error("cancelled: nothing was left behind")]
    Cancelled,
    /// A file could not be handled.
    #[error("{attempt}")]
    Io {
        /// What was tried.
        attempt: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Says what was tried.
pub(crate) fn io_error(attempt: impl Into<String>) -> impl FnOnce(io::Error) -> BuildError {
    let attempt = attempt.into();
    move |source| BuildError::Io { attempt, source }
}
