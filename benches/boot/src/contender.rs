//! One boot.

use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use drover_bench_vmms::{Console, Guest, Launcher, Peer};
use drover_probe_record::{DiskState, Event};
use tokio::runtime::{Builder, Runtime};

/// Firmware that is emulated takes seconds.
const LIMIT: Duration = Duration::from_secs(60);
const EPOCH: u64 = 1;

/// A VMM that boots guests.
pub(crate) struct Contender {
    pub(crate) name: String,
    vmm: Vmm,
}

enum Vmm {
    /// Told of its guest when it is born, as the others are.
    Ours(Launcher, Runtime),
    /// Born empty, and called.
    Called(Launcher, Runtime),
    Peer(Peer),
}

/// How long it took.
#[derive(Clone, Debug)]
pub(crate) struct Booted {
    pub(crate) first_byte: Duration,
    /// Where there is a disk.
    pub(crate) ready: Option<Duration>,
    /// Where there are steps that can be told apart: each from the one before.
    pub(crate) parts: Vec<(&'static str, Duration)>,
}

impl Contender {
    pub(crate) fn ours(name: String, launcher: Launcher) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { name, vmm: Vmm::Ours(launcher, runtime) })
    }

    pub(crate) fn called(name: String, launcher: Launcher) -> anyhow::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { name, vmm: Vmm::Called(launcher, runtime) })
    }

    pub(crate) fn of_peer(peer: Peer) -> Self {
        Self { name: peer.name().to_owned(), vmm: Vmm::Peer(peer) }
    }

    /// Whether the probe finds a disk of its.
    pub(crate) fn has_mmio_disks(&self) -> bool {
        match &self.vmm {
            Vmm::Ours(..) | Vmm::Called(..) => true,
            Vmm::Peer(peer) => peer.has_mmio_disks(),
        }
    }

    /// Boots `guest`, with an empty disk of so many bytes or none.
    pub(crate) fn boot(&self, guest: &Guest, disk: Option<u64>) -> anyhow::Result<Booted> {
        let folder = tempfile::Builder::new().prefix("drover-bench-").tempdir()?;
        let mut guest = guest.clone();
        if let Some(bytes) = disk {
            let path = folder.path().join("disk.raw");
            File::create(&path)?.set_len(bytes)?;
            guest.disk = Some(path);
        }
        match &self.vmm {
            Vmm::Ours(launcher, runtime) => boot_ours(launcher, runtime, &guest),
            Vmm::Called(launcher, runtime) => boot_called(launcher, runtime, &guest),
            Vmm::Peer(peer) => boot_peer(peer, &guest),
        }
    }
}

fn boot_ours(launcher: &Launcher, runtime: &Runtime, guest: &Guest) -> anyhow::Result<Booted> {
    let run_dir = launcher.run_dir()?;
    let console = Console::watch(&run_dir.join("console.log"))?;
    let config = guest.config();
    let began = Instant::now();
    let mut born = launcher.boot_ahead(&run_dir, EPOCH, config)?;
    let log = born.log();
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let seen = watch(&console, || born.is_alive(), (began, guest.disk.as_deref())).with_context(said)?;
    runtime.block_on(async { born.serves().await?.stop(EPOCH).await }).with_context(said)?;
    std::fs::remove_dir_all(&run_dir).ok();
    Ok(seen)
}

fn boot_called(launcher: &Launcher, runtime: &Runtime, guest: &Guest) -> anyhow::Result<Booted> {
    let run_dir = launcher.run_dir()?;
    let console = Console::watch(&run_dir.join("console.log"))?;
    let config = guest.config();
    let began = Instant::now();
    let (mut vmmd, serving, created) = runtime.block_on(async {
        let mut vmmd = launcher.spawn_in(&run_dir).await?;
        let serving = began.elapsed();
        vmmd.create(EPOCH, config).await?;
        let created = began.elapsed();
        vmmd.start(EPOCH).await?;
        anyhow::Ok((vmmd, serving, created))
    })?;
    let log = vmmd.log();
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    let seen = watch(&console, || vmmd.is_alive(), (began, guest.disk.as_deref())).with_context(said)?;
    runtime.block_on(vmmd.stop(EPOCH)).with_context(said)?;
    std::fs::remove_dir_all(&run_dir).ok();
    let parts = vec![
        ("process serves", serving),
        ("VM made", created.saturating_sub(serving)),
        ("VM started, first byte", seen.first_byte.saturating_sub(created)),
    ];
    Ok(Booted { parts, ..seen })
}

fn boot_peer(peer: &Peer, guest: &Guest) -> anyhow::Result<Booted> {
    let prepared = peer.prepare(guest)?;
    let began = Instant::now();
    let mut running = prepared.spawn()?;
    let child = &mut running.child;
    watch(&running.console, || child.is_alive(), (began, guest.disk.as_deref()))
        .with_context(|| running.said())
}

/// Follows a guest until it has said what is waited for.
fn watch(
    console: &Console,
    mut alive: impl FnMut() -> bool,
    (began, disk): (Instant, Option<&Path>),
) -> anyhow::Result<Booted> {
    // What the guest says begins with a brace, and nothing else in these files does.
    let first_byte = console.wait(LIMIT, &mut alive, |text| text.contains('{'))?.duration_since(began);
    let ready = match disk {
        Some(_) => Some(console.wait(LIMIT, &mut alive, disk_is_ready)?.duration_since(began)),
        None => None,
    };
    Ok(Booted { first_byte, ready, parts: Vec::new() })
}

fn disk_is_ready(text: &str) -> bool {
    text.lines().any(|line| matches!(Event::parse(line), Ok(Event::Disk { state: DiskState::Recovered, .. })))
}
