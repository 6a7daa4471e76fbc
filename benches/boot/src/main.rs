//! `cargo xtask bench boot`: how soon a guest speaks, and how soon its disk is ready, in our vmmd and in other VMMs.
//!
//! The guest is the probe: a kernel of some ten KiB that writes its first byte as soon as its serial port is set up. Time runs
//! from the spawn of the VMM's process until the byte can be read outside of it, in the file that the serial port goes to; for
//! all alike. Each is told of its guest when it is started: ours on the socket that it is born with, as the node agent does it,
//! in a jail and without one; the others on their command lines. `drover-called` is ours started empty, connected to and called
//! (Create, Start). Disk ready: the guest has found its disk, read its first blocks through it, and said so.
//!
//! Where the host emulates a guest's kernel mode, firmware counts: QEMU's machines run some before the kernel.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a bench measures time")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod contender;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use drover_bench_report::{Better, ROUNDS, Report, Row, Samples, exit_code, median};
use drover_bench_vmms::{Guest, Launcher, Peers};
use drover_probe_record::{DiskWork, Workload};
use drover_test_prerequisites::workspace_root;

use crate::contender::{Booted, Contender};

/// Boots in a round: each is short, and a median of few is a matter of luck.
const BOOTS: usize = 5;
/// What takes longer is booted once in a round.
const SLOW: Duration = Duration::from_secs(1);
/// Of the disk.
const DISK_BYTES: u64 = 16 << 20;
/// Blocks that the guest looks at before it calls the disk ready.
const SLOTS: u64 = 16;
/// The guest is killed long before.
const HALT_AFTER: Duration = Duration::from_secs(120);

#[derive(Debug, Parser)]
#[command(name = "bench-boot", version, about = "How soon a guest speaks, in Drover and in other VMMs")]
struct Arguments {
    /// One boot of each: it shows that everything runs, not how fast
    #[arg(long)]
    quick: bool,
    /// Rounds of the long form, of several boots each
    #[arg(long, default_value_t = ROUNDS)]
    rounds: usize,
    /// A vmmd to measure instead of this tree's release build; given again, another one beside it, named by its file
    #[arg(long, value_name = "PATH")]
    vmmd: Vec<PathBuf>,
    /// Virtual processors of the guest
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 128)]
    memory: u64,
    #[command(flatten)]
    peers: Peers,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (rounds, boots) = if arguments.quick { (1, 1) } else { (arguments.rounds, BOOTS) };
    let mut report = Report::of_this_machine("boot");
    let mut contenders = ours(arguments)?;
    contenders.extend(arguments.peers.find(&mut report).into_iter().map(Contender::of_peer));
    for disk in [None, Some(DISK_BYTES)] {
        let case = if disk.is_some() { "a disk" } else { "no disk" };
        let (taking_part, absent): (Vec<_>, Vec<_>) =
            contenders.iter().partition(|contender| disk.is_none() || contender.has_mmio_disks());
        for contender in absent {
            report.leave_out(&contender.name, "its disks are on PCI, and the probe's are on MMIO");
        }
        let mut booted: Vec<Vec<Booted>> = vec![Vec::new(); taking_part.len()];
        for round in 0..rounds {
            eprintln!("boot: {case}, round {} of {rounds}", round + 1);
            for boot in 0..boots {
                for turn in 0..taking_part.len() {
                    let index = (round + boot + turn) % taking_part.len();
                    let contender = taking_part[index];
                    let is_slow =
                        |boots: &[Booted]| boots.first().is_some_and(|first| first.first_byte > SLOW);
                    if boot > 0 && is_slow(&booted[index]) {
                        continue;
                    }
                    let once = contender.boot(&guest(arguments), disk);
                    booted[index].push(once.with_context(|| format!("{case} with {}", contender.name))?);
                }
            }
        }
        let names: Vec<_> = taking_part.iter().map(|contender| contender.name.as_str()).collect();
        rows(case, &names, &booted).into_iter().for_each(|row| report.push(row));
    }
    report.note(format!(
        "Medians of {} boots, fewer of who takes longer than {SLOW:?}; {} vCPU, {} MiB. From the spawn of the process until the \
         guest's output can be read outside.",
        rounds * boots,
        arguments.vcpus,
        arguments.memory
    ));
    print!("{}", report.table());
    let path = report.write(&workspace_root())?;
    eprintln!("boot: {} written", path.display());
    Ok(())
}

/// Our vmmd, jailed as agents start it and bare, and any other build of it.
fn ours(arguments: &Arguments) -> anyhow::Result<Vec<Contender>> {
    let first = match arguments.vmmd.first() {
        Some(path) => path.clone(),
        None => drover_bench_vmms::build()?,
    };
    let mut ours = Vec::new();
    for (name, path) in [("drover", &first)].into_iter().chain(
        arguments
            .vmmd
            .iter()
            .skip(1)
            .map(|path| (path.file_name().map_or("", |n| n.to_str().unwrap_or("")), path)),
    ) {
        let jailed = format!("{name}-jailed");
        if arguments.peers.wants(&jailed) {
            ours.push(Contender::ours(jailed, Launcher::new(path.clone())?.jailed())?);
        }
        if arguments.peers.wants(name) {
            ours.push(Contender::ours(name.to_owned(), Launcher::new(path.clone())?)?);
        }
        let called = format!("{name}-called");
        if arguments.peers.wants(&called) {
            ours.push(Contender::called(called, Launcher::new(path.clone())?)?);
        }
    }
    Ok(ours)
}

fn guest(arguments: &Arguments) -> Guest {
    let workload = Workload {
        vcpus: Some(arguments.vcpus.into()),
        disk: Some(DiskWork { slots: SLOTS, iops: 1, queue_depth: 1 }),
        halt_after_ms: u64::try_from(HALT_AFTER.as_millis()).ok(),
        ..Workload::default()
    };
    Guest {
        vcpus: arguments.vcpus,
        memory_mib: arguments.memory,
        cmdline: workload.to_string(),
        disk: None,
        limit: None,
    }
}

fn rows(case: &str, names: &[&str], booted: &[Vec<Booted>]) -> Vec<Row> {
    let samples = |of: &dyn Fn(&Booted) -> Option<f64>| -> Samples {
        let values = |boots: &Vec<Booted>| boots.iter().filter_map(of).collect::<Vec<_>>();
        let each = names.iter().zip(booted).map(|(name, boots)| ((*name).to_owned(), values(boots)));
        each.filter(|(_, values)| !values.is_empty()).collect()
    };
    let row = |metric: &str| Row::new(case, metric, "ms", Better::Lower);
    let first = samples(&|boot| Some(boot.first_byte.as_secs_f64() * 1e3));
    let mut rows = vec![row("spawn to first byte").medians(&first)];
    let least = |row: Row, (name, values): &(String, Vec<f64>)| {
        row.value(name.clone(), values.iter().copied().fold(f64::INFINITY, f64::min))
    };
    rows.push(first.iter().fold(row("the same, least"), least));
    let ready = samples(&|boot| Some(boot.ready?.as_secs_f64() * 1e3));
    if !ready.is_empty() {
        rows.push(row("spawn to disk ready").medians(&ready));
    }
    let parts = booted.iter().flatten().find(|boot| !boot.parts.is_empty());
    for index in 0..parts.map_or(0, |boot| boot.parts.len()) {
        let name = parts.map_or("", |boot| boot.parts[index].0);
        let part = samples(&|boot| Some(boot.parts.get(index)?.1.as_secs_f64() * 1e3));
        rows.push(part.iter().fold(row(&format!("  of it: {name}")), |row, (who, values)| {
            row.value(who.clone(), median(values).unwrap_or(f64::NAN))
        }));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_disk_has_no_time_to_it_and_who_is_called_has_parts() {
        let boot = |ms, ready: Option<u64>, parts: &[(&'static str, Duration)]| Booted {
            first_byte: Duration::from_millis(ms),
            ready: ready.map(Duration::from_millis),
            parts: parts.to_vec(),
        };
        let ours = vec![boot(9, Some(11), &[("serving", Duration::from_millis(5))]), boot(7, Some(8), &[])];
        let rows = rows("a disk", &["drover", "other"], &[ours, vec![boot(20, None, &[])]]);
        let get = |index: usize, who| rows[index].get(who);
        assert_eq!((get(0, "drover"), get(0, "other")), (Some(8.0), Some(20.0)));
        assert_eq!((get(1, "drover"), get(2, "drover"), get(2, "other")), (Some(7.0), Some(9.5), None));
        assert_eq!((rows.len(), get(3, "drover"), get(3, "other")), (4, Some(5.0), None));
    }
}
