//! `cargo xtask bench memory`: what a VMM's process takes beside its guest's RAM, in our vmmd and in other VMMs.
//!
//! The proportional set size (PSS) of the whole process, as the kernel sums it up in `smaps_rollup`, less that of the mappings
//! that are guest RAM (proc(5)). Every VMM runs the same probe, which boots, sends heartbeats and, with a disk, writes it, and is
//! looked at when it has done so for a moment. Nothing else runs the same program meanwhile: its code counts in full.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a bench waits")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod maps;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser;
use drover_bench_report::{Better, ROUNDS, Report, Row, Samples, exit_code};
use drover_bench_vmms::{Console, Guest, Launcher, Peer, Peers};
use drover_probe_record::{DiskState, DiskWork, Event, Workload};
use drover_test_prerequisites::workspace_root;
use tokio::runtime::Builder;

use crate::maps::Beside;

/// Firmware that is emulated takes seconds.
const LIMIT: Duration = Duration::from_secs(60);
/// From the guest's boot, or its disk's first use, to the look: by then every thread has done all that it does.
const SETTLE: Duration = Duration::from_millis(500);
const DISK_BYTES: u64 = 64 << 20;
const EPOCH: u64 = 1;
/// What this project wants to stay below, MiB.
const GOAL_MIB: f64 = 2.9;

#[derive(Debug, Parser)]
#[command(name = "bench-memory", version, about = "What a VMM takes beside its guest")]
struct Arguments {
    /// One look at each
    #[arg(long)]
    quick: bool,
    /// Rounds of the long form
    #[arg(long, default_value_t = ROUNDS)]
    rounds: usize,
    /// A vmmd to measure instead of this tree's release build
    #[arg(long, value_name = "PATH")]
    vmmd: Option<PathBuf>,
    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    memory: u64,
    #[command(flatten)]
    peers: Peers,
}

enum Contender {
    Ours(&'static str, Launcher),
    Peer(Peer),
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let rounds = if arguments.quick { 1 } else { arguments.rounds };
    let vmmd = match &arguments.vmmd {
        Some(path) => path.clone(),
        None => drover_bench_vmms::build()?,
    };
    let mut report = Report::of_this_machine("memory");
    let mut contenders = vec![
        Contender::Ours("drover-jailed", Launcher::new(vmmd.clone())?.jailed()),
        Contender::Ours("drover", Launcher::new(vmmd)?),
    ];
    contenders.retain(|contender| arguments.peers.wants(contender.name()));
    contenders.extend(arguments.peers.find(&mut report).into_iter().map(Contender::Peer));
    for with_disk in [false, true] {
        let case = if with_disk { "a disk" } else { "no disk" };
        let (taking_part, absent): (Vec<_>, Vec<_>) =
            contenders.iter().partition(|contender| !with_disk || contender.has_mmio_disks());
        for contender in absent {
            report.leave_out(contender.name(), "its disks are on PCI, and the probe's are on MMIO");
        }
        let mut seen: Vec<Vec<Beside>> = vec![Vec::new(); taking_part.len()];
        for round in 0..rounds {
            eprintln!("memory: {case}, round {} of {rounds}", round + 1);
            for (contender, seen) in taking_part.iter().zip(&mut seen) {
                let beside = contender.look(arguments.memory, with_disk);
                seen.push(beside.with_context(|| format!("{case} with {}", contender.name()))?);
            }
        }
        let names: Vec<_> = taking_part.iter().map(|contender| contender.name()).collect();
        rows(case, &names, &seen).into_iter().for_each(|row| report.push(row));
    }
    report.note(format!(
        "Medians of {rounds} rounds; 1 vCPU, {} MiB. PSS of the process less its guest's RAM; of that, private: nobody else's \
         pages, such as a library's.",
        arguments.memory
    ));
    print!("{}", report.table());
    let path = report.write(&workspace_root())?;
    eprintln!("memory: {} written", path.display());
    Ok(())
}

impl Contender {
    fn name(&self) -> &'static str {
        match self {
            Self::Ours(name, _) => name,
            Self::Peer(peer) => peer.name(),
        }
    }

    fn has_mmio_disks(&self) -> bool {
        match self {
            Self::Ours(..) => true,
            Self::Peer(peer) => peer.has_mmio_disks(),
        }
    }

    fn look(&self, memory_mib: u64, with_disk: bool) -> anyhow::Result<Beside> {
        let folder = tempfile::Builder::new().prefix("drover-bench-").tempdir()?;
        let guest = guest(memory_mib, with_disk.then_some(folder.path()))?;
        match self {
            Self::Ours(_, launcher) => look_at_ours(launcher, &guest),
            Self::Peer(peer) => {
                let mut running = peer.prepare(&guest)?.spawn()?;
                let (pid, child) = (running.child.pid(), &mut running.child);
                let beside = settled(&running.console, || child.is_alive(), &guest);
                beside.and_then(|()| Beside::of(pid, memory_mib << 20)).with_context(|| running.said())
            }
        }
    }
}

fn look_at_ours(launcher: &Launcher, guest: &Guest) -> anyhow::Result<Beside> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (mut vmmd, console) = runtime.block_on(launcher.boot(EPOCH, guest))?;
    settled(&console, || vmmd.is_alive(), guest)?;
    let beside = Beside::of(vmmd.pid(), guest.memory_mib << 20)?;
    runtime.block_on(vmmd.stop(EPOCH))?;
    Ok(beside)
}

/// A guest that does a little of everything, with a disk in `folder` or none.
fn guest(memory_mib: u64, folder: Option<&Path>) -> anyhow::Result<Guest> {
    let workload = Workload {
        vcpus: Some(1),
        heartbeat_ms: Some(10),
        disk: folder.map(|_| DiskWork { slots: 64, iops: 400, queue_depth: 4 }),
        ..Workload::default()
    };
    let disk = folder.map(|folder| folder.join("disk.raw"));
    if let Some(path) = &disk {
        File::create(path)?.set_len(DISK_BYTES)?;
    }
    Ok(Guest { vcpus: 1, memory_mib, cmdline: workload.to_string(), disk, limit: None })
}

/// Waits until the guest is at work, and a moment longer.
fn settled(console: &Console, alive: impl FnMut() -> bool, guest: &Guest) -> anyhow::Result<()> {
    let with_disk = guest.disk.is_some();
    console.wait(LIMIT, alive, |text| {
        text.lines().any(|line| match Event::parse(line) {
            Ok(Event::Disk { state: DiskState::Recovered, .. }) => with_disk,
            Ok(Event::Boot { .. }) => !with_disk,
            _ => false,
        })
    })?;
    thread::sleep(SETTLE);
    Ok(())
}

fn rows(case: &str, names: &[&str], seen: &[Vec<Beside>]) -> Vec<Row> {
    let row = |metric, of: &dyn Fn(&Beside) -> u64| {
        let mib = |beside: &Beside| of(beside) as f64 / f64::from(1 << 20);
        let each = |all: &Vec<Beside>| all.iter().map(mib).collect();
        let samples: Samples =
            names.iter().zip(seen).map(|(name, all)| ((*name).to_owned(), each(all))).collect();
        Row::new(case, metric, "MiB", Better::Lower).medians(&samples)
    };
    vec![
        row("beside guest RAM", &|beside| beside.pss).value("goal", GOAL_MIB),
        row("  of it private", &|beside| beside.private),
        row("  of it anonymous", &|beside| beside.anonymous),
    ]
}
