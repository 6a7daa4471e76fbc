//! Emulated hosts with our programs.

use std::{
    env,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use drover_test_emulated_host::{
    EmulatedHost, HostOptions, Link,
    debian::{Kernel, Series},
};

/// No host lives longer, whatever becomes of the test.
const LIFETIME: Duration = Duration::from_secs(1500);

/// What a host is given.
pub(crate) struct Given<'a> {
    pub(crate) disk: &'a Path,
    pub(crate) disk_bytes: u64,
    pub(crate) memory_mib: u32,
    pub(crate) link: Option<Link>,
    /// Libraries that vmmd opens while it runs.
    pub(crate) libraries: Vec<PathBuf>,
}

/// Starts a host that has our programs in `/programs`: those that this build has made.
pub(crate) fn start(given: Given<'_>) -> anyhow::Result<EmulatedHost> {
    let door = PathBuf::from(env!("CARGO_BIN_EXE_drover-emulated-host-door"));
    // Tests are in target/<profile>/deps, programs one above.
    let test = env::current_exe()?;
    let profile = test.ancestors().nth(2).expect("target/<profile>");
    let vmmd = profile.join("drover-vmmd");
    anyhow::ensure!(vmmd.exists(), "{} is missing: `cargo xtask test` builds it", vmmd.display());
    let programs = vec![("drover-emulated-host-door".to_owned(), door), ("drover-vmmd".to_owned(), vmmd)];
    EmulatedHost::start(&HostOptions {
        kernel: Kernel::newest(Series::Bookworm)?,
        programs,
        libraries: given.libraries,
        disk: given.disk.to_owned(),
        disk_bytes: given.disk_bytes,
        cpus: 2,
        memory_mib: given.memory_mib,
        link: given.link,
        lifetime: LIFETIME,
    })
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
