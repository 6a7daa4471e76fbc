//! Where the four programs are.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};

/// Names the folder that holds Drover's programs, for tests that run against a build elsewhere.
const FOLDER_VARIABLE: &str = "DROVER_BIN_DIR";

/// Drover's programs, all from one build.
#[derive(Clone, Debug)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// The programs of one folder, such as `target/release`.
    ///
    /// # Errors
    /// If one is missing.
    pub fn in_folder(folder: &Path) -> anyhow::Result<Self> {
        let binaries = Self { folder: folder.to_owned() };
        for program in [binaries.cli(), binaries.control_plane(), binaries.node_agent(), binaries.vmmd()] {
            ensure!(
                program.exists(),
                "{} is missing: build it with `cargo build --workspace`, or run `cargo xtask test`, which does",
                program.display()
            );
        }
        Ok(binaries)
    }

    /// The programs built beside the running test.
    ///
    /// # Errors
    /// If one is missing.
    pub fn of_this_build() -> anyhow::Result<Self> {
        if let Some(folder) = env::var_os(FOLDER_VARIABLE) {
            return Self::in_folder(Path::new(&folder));
        }
        let test = env::current_exe().context("cannot find the running program")?;
        // Tests are in target/<profile>/deps, programs one above.
        let beside = test.parent().context("a program lies in a folder")?;
        let folder = if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside };
        Self::in_folder(folder)
    }

    /// `drover`
    pub fn cli(&self) -> PathBuf {
        self.folder.join("drover")
    }
    /// `drover-control-plane`
    pub fn control_plane(&self) -> PathBuf {
        self.folder.join("drover-control-plane")
    }
    /// `drover-node-agent`
    pub fn node_agent(&self) -> PathBuf {
        self.folder.join("drover-node-agent")
    }
    /// `drover-vmmd`
    pub fn vmmd(&self) -> PathBuf {
        self.folder.join("drover-vmmd")
    }
}
