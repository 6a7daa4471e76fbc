//! `cargo xtask bench block`: the same image on the same cluster through a guest of ours, the same guest of QEMU's, and fio; with
//! `-- --storage file` the same file instead.
//!
//! The cluster is [`CephCluster`]'s: one monitor, one OSD, BlueStore in memory; the image is 1 GiB and was written once. librbd's
//! cache is off for everybody. The file is 512 MiB, was written once, and is reached by everybody through the page cache and
//! io_uring: what is measured is the VMM, not a disk. The guest is the probe with one vCPU. Each case runs in every round with
//! every contender before the next case does, and the first one changes: a slow moment of the machine meets all.
//!
//! CPU time is that of the whole process, the guest's included, between the two lines by which the probe says that counting
//! begins and ends; what the vCPU's thread used is also told apart, as that is the guest's and the kernel's work rather than
//! the VMM's. fio is a client without a guest: it shows what librbd reaches here.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a bench measures time")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod case;
mod cpu;
mod drover;
mod figures;
mod fio;
mod firecracker;
mod guest;
mod qemu;
mod target;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use clap::Parser;
use drover_bench_report::{ROUNDS, Report, exit_code};
use drover_bench_vmms::{ensure_uninterrupted, heed_interruptions};
use drover_probe_record::bench::Wait;
use drover_test_prerequisites::workspace_root;

use crate::{
    figures::{Figures, costs, rates},
    target::Target,
};

#[derive(Debug, Parser)]
#[command(name = "bench-block", version, about = "One disk through Drover, QEMU and fio, side by side")]
struct Arguments {
    /// One short round: it shows that everything runs, not how fast
    #[arg(long)]
    quick: bool,
    /// Rounds of the long form
    #[arg(long, default_value_t = ROUNDS)]
    rounds: usize,
    /// What the disk is: an RBD image, or a raw file
    #[arg(long, value_enum, default_value_t = Storage::Rbd)]
    storage: Storage,
    /// Only cases whose name holds this
    #[arg(long, default_value = "")]
    only: String,
    /// A vmmd to measure instead of this tree's release build; given again, another one beside it, named by its file
    #[arg(long, value_name = "PATH")]
    vmmd: Vec<PathBuf>,
    /// A Firecracker (1.12 or newer) to measure too, on a file
    #[arg(long, value_name = "PATH")]
    firecracker: Option<PathBuf>,
    /// A Cloud Hypervisor; it is left out and named: its disks are on PCI, where the guest finds those of our machine only
    #[arg(long, value_name = "PATH")]
    cloud_hypervisor: Option<PathBuf>,
    /// Leave this peer out
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// How guests wait for completions: by default they poll at depth 1 and sleep otherwise
    #[arg(long, value_enum)]
    wait: Option<GuestWait>,
}

/// Where the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Storage {
    Rbd,
    File,
}

/// [`Wait`] as an argument.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum GuestWait {
    Sleep,
    Poll,
}

impl From<GuestWait> for Wait {
    fn from(wait: GuestWait) -> Self {
        match wait {
            GuestWait::Sleep => Self::Sleep,
            GuestWait::Poll => Self::Poll,
        }
    }
}

/// Something that runs a case.
trait Contender {
    fn name(&self) -> &str;
    /// Whether it can do what the case asks for.
    fn can(&self, _case: &case::Case) -> bool {
        true
    }
    /// Runs `case` and returns what it reached.
    fn run(&self, case: &case::Case, length: Duration) -> anyhow::Result<Figures>;
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    heed_interruptions()?;
    let root = workspace_root();
    let (rounds, length) = if arguments.quick {
        (1, Duration::from_millis(400))
    } else {
        (arguments.rounds, Duration::from_secs(3))
    };
    let (name, target, all) = match arguments.storage {
        Storage::Rbd => ("block", Target::on_rbd().context("the cluster and its image")?, case::on_rbd()),
        Storage::File => {
            let target = Target::on_a_file(&root.join("target/bench")).context("the file")?;
            ("block-file", target, case::on_a_file())
        }
    };
    let mut report = Report::of_this_machine(name);
    let contenders = contenders(arguments, &target, &mut report)?;
    let cases: Vec<_> = all.iter().filter(|case| case.name.contains(&arguments.only)).collect();
    ensure!(!cases.is_empty(), "no case has '{}' in its name", arguments.only);
    let mut reached: Vec<Vec<Vec<Figures>>> = vec![vec![Vec::new(); contenders.len()]; cases.len()];
    for round in 0..rounds {
        for (case, reached) in cases.iter().zip(&mut reached) {
            eprintln!("block: round {} of {rounds}, {}", round + 1, case.name);
            for turn in 0..contenders.len() {
                let index = (round + turn) % contenders.len();
                let contender = &contenders[index];
                if !contender.can(case) {
                    continue;
                }
                let figures = contender.run(case, length);
                // fio is only waited for, and a VMM may have been interrupted with us: that is no failure of theirs.
                ensure_uninterrupted()?;
                let figures = figures.with_context(|| format!("{} with {}", case.name, contender.name()))?;
                reached[index].push(figures);
            }
        }
    }
    let names: Vec<_> = contenders.iter().map(|contender| contender.name()).collect();
    let each = || cases.iter().zip(&reached);
    let rates = each().flat_map(|(case, reached)| rates(case, &names, reached));
    let costs = each().flat_map(|(case, reached)| costs(case, &names, reached));
    rates.chain(costs).for_each(|row| report.push(row));
    let waiting = match arguments.wait {
        None => "polls at depth 1 and sleeps otherwise",
        Some(GuestWait::Poll) => "polls",
        Some(GuestWait::Sleep) => "sleeps",
    };
    report.note(format!(
        "Medians of {rounds} rounds of {} ms; while it waits the guest {waiting}. CPU: the whole process, the guest included; \
         'CPU without vCPU' leaves out the vCPU's thread.",
        length.as_millis()
    ));
    if cases.iter().any(|case| case.queues > 1) {
        report.note(
            "2Q: the disk has two queues; those of Firecracker have one, and fio is one thread.".to_owned(),
        );
    }
    print!("{}", report.table());
    let path = report.write(&root)?;
    eprintln!("block: {} written", path.display());
    if let Some(leaks) = target.finish(contenders)? {
        ensure!(leaks.is_empty(), "left in the cluster: {leaks}");
    }
    Ok(())
}

fn contenders<'a>(
    arguments: &Arguments,
    target: &'a Target,
    report: &mut Report,
) -> anyhow::Result<Vec<Box<dyn Contender + 'a>>> {
    let wait = arguments.wait.map(Wait::from);
    let mut contenders: Vec<Box<dyn Contender>> = Vec::new();
    let (first, others) = match arguments.vmmd.split_first() {
        Some((first, others)) => (first.clone(), others),
        None => (drover_bench_vmms::build()?, [].as_slice()),
    };
    contenders.push(Box::new(drover::Drover::new("drover".to_owned(), first, target, wait)?));
    for path in others {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        contenders.push(Box::new(drover::Drover::new(name, path.clone(), target, wait)?));
    }
    for (peer, absent) in [
        (qemu::Qemu::find(target, wait).map(|peer| Box::new(peer) as Box<dyn Contender>), "qemu"),
        (
            firecracker::Firecracker::find(arguments.firecracker.as_deref(), target, wait)
                .map(|peer| Box::new(peer) as Box<dyn Contender>),
            "firecracker",
        ),
        (fio::Fio::find(target).map(|peer| Box::new(peer) as Box<dyn Contender>), "fio"),
    ] {
        if arguments.without.iter().any(|name| name == absent) {
            report.leave_out(absent, "not asked for");
            continue;
        }
        match peer {
            Ok(peer) => contenders.push(peer),
            Err(why) => {
                eprintln!("block: {absent} is left out: {why}");
                report.leave_out(absent, &why.to_string());
            }
        }
    }
    let why = match arguments.cloud_hypervisor {
        Some(_) => "its disks are on PCI, where the probe finds those of our machine only",
        None => "its path is not given (--cloud-hypervisor PATH)",
    };
    report.leave_out("cloud-hypervisor", why);
    Ok(contenders)
}
