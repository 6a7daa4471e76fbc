//! Finding the libraries on this machine.

use std::{fmt, sync::OnceLock};

use crate::ffi::{self, functions::Functions};

/// Oldest release whose functions, locks and blocklist are the ones this crate was written against (Debian 12).
const RELEASE_MIN: u32 = 16;

/// Why Ceph cannot be used on this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A library cannot be loaded.
    #[error("cannot load {file}: install the packages librbd1 and librados2 ({reason})")]
    NotInstalled {
        /// The library's file name.
        file: &'static str,
        /// What the loader said.
        reason: String,
    },
    /// A library lacks a function that every supported release has.
    #[error(
        "{library} has no function {function}: release {RELEASE_MIN} or later of librbd1 and librados2 is needed"
    )]
    MissingFunction {
        /// Which library.
        library: &'static str,
        /// What it lacks.
        function: &'static str,
    },
    /// The release is older than what is supported.
    #[error("librados2 is of Ceph {found}: {RELEASE_MIN} or later is needed")]
    TooOld {
        /// What is installed.
        found: u32,
    },
}

/// A library's own number, as it reports it: 3.0.0 for librados, 1.16.0 for librbd of Ceph 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Changes with the ABI.
    pub major: i32,
    /// For librbd: the Ceph release.
    pub minor: i32,
    /// Corrections.
    pub extra: i32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.extra)
    }
}

/// Both libraries, loaded and complete, for the rest of the process.
pub struct Library {
    pub(crate) functions: Functions,
    librbd: Version,
    librados: Version,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library")
            .field("librbd", &self.librbd)
            .field("librados", &self.librados)
            .finish_non_exhaustive()
    }
}

impl Library {
    /// Loads librados and librbd, once per process, and looks up every function. Takes about 15 ms and 18 MiB the
    /// first time.
    ///
    /// # Errors
    /// [`LoadError`] says what to install. The answer is the same for the rest of the process.
    pub fn load() -> Result<&'static Self, LoadError> {
        static LOADED: OnceLock<Result<Library, LoadError>> = OnceLock::new();
        LOADED.get_or_init(Self::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Self, LoadError> {
        let functions = ffi::load()?;
        let (librbd, librados) = ffi::versions(&functions);
        let found = u32::try_from(librbd.minor).unwrap_or(0);
        if found < RELEASE_MIN {
            return Err(LoadError::TooOld { found });
        }
        Ok(Self { functions, librbd, librados })
    }

    /// librbd's version; its minor number is the Ceph release.
    pub fn librbd_version(&self) -> Version {
        self.librbd
    }

    /// librados's version.
    pub fn librados_version(&self) -> Version {
        self.librados
    }
}
