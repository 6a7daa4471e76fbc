//! What is to be built.

use std::{path::PathBuf, sync::atomic::AtomicBool};

/// A Debian release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Suite {
    /// Debian 12.
    #[default]
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl Suite {
    /// As in `deb … <suite> main`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

/// What the guest is made of.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The release.
    pub suite: Suite,
    /// Where packages come from.
    pub mirror: String,
    /// Where security updates come from.
    pub security_mirror: String,
    /// Packages besides the recipe's own.
    pub packages: Vec<String>,
    /// Size of the root disk, bytes. It takes up less: what is not written is a hole.
    pub disk_bytes: u64,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            suite: Suite::default(),
            mirror: "http://deb.debian.org/debian".to_owned(),
            security_mirror: "http://deb.debian.org/debian-security".to_owned(),
            packages: Vec::new(),
            disk_bytes: 2 << 30,
        }
    }
}

/// A recipe, a place, and how the one who ordered is kept informed.
pub struct Order<'a> {
    /// What to build.
    pub recipe: Recipe,
    /// Folder for `root.raw`, `vmlinuz` and `initrd`; made if it is not there. None of the three may exist.
    pub output: PathBuf,
    /// Called with a line for people at each step.
    pub progress: &'a dyn Fn(&str),
    /// Set by somebody else: stop, and leave nothing behind.
    pub cancelled: &'a AtomicBool,
}

impl std::fmt::Debug for Order<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Order")
            .field("recipe", &self.recipe)
            .field("output", &self.output)
            .finish_non_exhaustive()
    }
}
