//! `cargo xtask bench placement`: how fast, how tight and how small placement is.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a bench measures time")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod contention;
mod decisions;
mod packing;
mod peers;
mod updates;
mod world;

use std::{path::Path, process::ExitCode};

use clap::{Parser, ValueEnum};
use drover_bench_report::{Report, exit_code};

#[derive(Debug, Parser)]
#[command(about = "How fast, how tight and how small placement is", version)]
struct Arguments {
    /// Fewer rounds and smaller sizes: finds that something broke
    #[arg(long)]
    quick: bool,
    /// Only these parts; may be given several times
    #[arg(long, value_enum)]
    only: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Decisions in a second, and their latency
    Decisions,
    /// The shapes of kube-scheduler's performance tests
    Peers,
    /// Memory, heartbeats, VMs that come and go
    Updates,
    /// Many threads at once
    Contention,
    /// Core utilisation at first rejection
    Packing,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let wanted = |part: Part| arguments.only.is_empty() || arguments.only.contains(&part);
    let mut report = Report::of_this_machine("placement");
    let hosts = if arguments.quick { 1_000 } else { 10_000 };
    if wanted(Part::Decisions) {
        decisions::run(&mut report, decisions::Size { hosts, decisions: hosts })?;
    }
    if wanted(Part::Peers) {
        peers::run(&mut report)?;
    }
    if wanted(Part::Updates) {
        updates::run(&mut report, hosts)?;
    }
    if wanted(Part::Contention) {
        contention::run(&mut report, hosts, hosts)?;
    }
    if wanted(Part::Packing) {
        let quick = packing::Size { seeds: 1, huawei_creations: 20_000, azure_vms: 20_000 };
        let whole = packing::Size { seeds: 5, huawei_creations: 125_430, azure_vms: 100_000 };
        packing::run(&mut report, if arguments.quick { quick } else { whole })?;
    }
    print!("{}", report.table());
    let path = report.write(Path::new("."))?;
    eprintln!("written: {}", path.display());
    Ok(())
}
