//! Emulated hosts with our programs.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use drover_test_emulated_host::{
    EmulatedHost, HostDisk, HostOptions, Link,
    debian::{Kernel, Series},
};
use drover_test_prerequisites::workspace_root;

/// No host lives longer, whatever becomes of the test.
const LIFETIME: Duration = Duration::from_secs(10_000);

/// What a host is given.
#[derive(Default)]
pub(crate) struct Given {
    pub(crate) disk: Option<HostDisk>,
    pub(crate) memory_mib: u32,
    pub(crate) link: Option<Link>,
    /// Libraries that vmmd opens while it runs.
    pub(crate) libraries: Vec<PathBuf>,
    /// Programs of this machine that it has besides ours.
    pub(crate) programs: Vec<(String, PathBuf)>,
}

impl Given {
    /// A disk with what a folder holds.
    pub(crate) fn folder(path: &Path, bytes: u64) -> Option<HostDisk> {
        Some(HostDisk::Folder { path: path.to_owned(), bytes })
    }
}

/// A program that this build has made.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    // Tests are in target/<profile>/deps, programs one above.
    let test = env::current_exe()?;
    let profile = test.ancestors().nth(2).expect("target/<profile>");
    let program = profile.join(name);
    anyhow::ensure!(program.exists(), "{} is missing: `cargo xtask test` builds it", program.display());
    Ok(program)
}

/// Starts a host that has our programs in `/programs`: those that this build has made.
pub(crate) fn start(given: Given) -> anyhow::Result<EmulatedHost> {
    let door = PathBuf::from(env!("CARGO_BIN_EXE_drover-emulated-host-door"));
    let vmmd = "drover-vmmd";
    let mut programs =
        vec![("drover-emulated-host-door".to_owned(), door), (vmmd.to_owned(), program(vmmd)?)];
    programs.extend(given.programs);
    EmulatedHost::start(&HostOptions {
        kernel: Kernel::newest(Series::Bookworm)?,
        programs,
        libraries: given.libraries,
        disk: given.disk.context("a host has a disk")?,
        cpus: 2,
        memory_mib: given.memory_mib,
        link: given.link,
        lifetime: LIFETIME,
    })
}

/// Keeps what programs of the running test have said, for whoever looks into its failure.
pub(crate) fn keep_words(of: &str, words: &str) {
    let folder = workspace_root().join("target/linux-consoles");
    let test = thread::current().name().unwrap_or("unnamed").replace("::", "-");
    let path = folder.join(format!("{test}.{of}.log"));
    match fs::create_dir_all(&folder).and_then(|()| fs::write(&path, words)) {
        Ok(()) => eprintln!("        what it has said is kept: {}", path.display()),
        Err(error) => eprintln!("        what it has said cannot be kept: {error}\n{words}"),
    }
}

/// Says how far a long test is, and when.
pub(crate) struct Progress(Instant);

impl Progress {
    pub(crate) fn begin() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn say(&self, what: &str) {
        eprintln!("{:6.1} s: {what}", self.0.elapsed().as_secs_f64());
    }
}
