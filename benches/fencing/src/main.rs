//! `cargo xtask bench fencing`: how soon a disk in Ceph has a new owner, and what owning one costs.
//!
//! - From the decision to fence an owner that is stopped with writes under way to the first write that the cluster has
//!   completed for its successor, with a monitor set for tests and with Ceph's own settings.
//! - What handing the lock over adds to a migration's blackout.
//! - A clone of an image of 10 GiB and its first boot, beside a boot from a volume that exists.
//! - Threads and memory of a vmmd by the number of its volumes.
//!
//! There is nobody to compare with: the figures stand beside what the project wants to reach (`goal`). Processes are spoken
//! to as the node agent and the control plane do; what those two add (a transaction, a call) is not part of it.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a bench measures time and tells it"
)]

mod clone;
mod footprint;
mod guest;
mod hand_over;
mod log;
mod phases;
mod restart;
mod storage;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, ensure};
use clap::Parser;
use drover_bench_report::{ROUNDS, Report, exit_code};
use drover_bench_vmms::Launcher;
use drover_test_ceph_cluster::CephOptions;
use drover_test_prerequisites::workspace_root;

use crate::{phases::Phases, storage::Storage};

#[derive(Debug, Parser)]
#[command(
    name = "bench-fencing",
    version,
    about = "How soon a disk in Ceph has a new owner, and what owning it costs"
)]
struct Arguments {
    /// One round of each: it shows that everything runs, not how fast
    #[arg(long)]
    quick: bool,
    /// Rounds of the long form
    #[arg(long, default_value_t = ROUNDS)]
    rounds: usize,
    /// Only the parts whose name holds this: fence, hand-over, clone, footprint
    #[arg(long, default_value = "")]
    only: String,
    /// A vmmd to measure instead of this tree's release build
    #[arg(long, value_name = "PATH")]
    vmmd: Option<PathBuf>,
}

fn main() -> ExitCode {
    let phases = Phases::record();
    exit_code(run(&Arguments::parse(), &phases))
}

fn run(arguments: &Arguments, phases: &Phases) -> anyhow::Result<()> {
    ensure!(drover_test_prerequisites::kvm(), "this bench runs guests");
    ensure!(drover_test_prerequisites::ceph(), "this bench runs a Ceph cluster");
    let rounds = if arguments.quick { 1 } else { arguments.rounds };
    let wanted = |name: &str| name.contains(&arguments.only);
    let path = match &arguments.vmmd {
        Some(path) => path.clone(),
        None => drover_bench_vmms::build()?,
    };
    let launcher = Launcher::new(path)?;
    let mut report = Report::of_this_machine("fencing");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if wanted("fence") {
        for (options, case) in [
            (CephOptions::default(), &restart::FAST),
            (CephOptions::default().stock_paxos(), &restart::STOCK),
        ] {
            let storage = Storage::start(&options)?;
            let measured = runtime.block_on(restart::measure(&storage, &launcher, phases, rounds));
            restart::rows(case, &measured.context(case.name)?).into_iter().for_each(|row| report.push(row));
            eprintln!("fencing: {}; the cluster afterwards: {}", case.name, storage.finish()?);
        }
    }
    if ["hand-over", "clone", "footprint"].into_iter().any(wanted) {
        let storage = Storage::start(&CephOptions::default())?;
        if wanted("hand-over") {
            let measured = runtime.block_on(hand_over::measure(&storage, &launcher, hops(rounds)));
            hand_over::rows(&measured.context("hand-over")?).into_iter().for_each(|row| report.push(row));
        }
        if wanted("clone") {
            let measured = runtime.block_on(clone::measure(&storage, &launcher, rounds));
            clone::rows(&measured.context("clone")?).into_iter().for_each(|row| report.push(row));
        }
        if wanted("footprint") {
            let measured = runtime.block_on(footprint::measure(&storage, &launcher, rounds));
            footprint::rows(&measured.context("footprint")?).into_iter().for_each(|row| report.push(row));
        }
        eprintln!("fencing: the cluster afterwards: {}", storage.finish()?);
    }
    report.note(format!(
        "Medians of {rounds} rounds, of {} moves for the hand-over. The guest is the probe with one vCPU; 'new owner writes' \
         is the first write that its disk has completed, from the decision.",
        hops(rounds)
    ));
    print!("{}", report.table());
    let path = report.write(&workspace_root())?;
    eprintln!("fencing: {} written", path.display());
    Ok(())
}

/// A move is short: more of them say more of what is rare.
fn hops(rounds: usize) -> usize {
    2 * rounds
}
