//! `cargo xtask bench throttle`: how exactly a disk is held to its limit, by the guest's own count, in our vmmd and in other VMMs.
//!
//! The probe keeps 32 requests in flight on a file that is in the page cache, and counts for ten seconds what has ended: what a
//! limit lets through is what it gets, as long as that is less than it could have. So it is first measured without a limit, and
//! limits that it cannot reach here are left out for who cannot, and said so. The counting begins half a second after the load
//! does: what was saved up before is spent by then.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a bench waits")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod run;

use std::{fs::File, io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use drover_bench_report::{Better, Report, Row, exit_code};
use drover_bench_vmms::{DiskLimit, Launcher, Peers, heed_interruptions};
use drover_test_prerequisites::workspace_root;

use crate::run::{Contender, Load, Reached};

/// How long is counted.
const LENGTH: Duration = Duration::from_secs(10);
const QUICK_LENGTH: Duration = Duration::from_secs(1);
/// How far off a limit may be, percent.
const GOAL_PERCENT: f64 = 3.0;
/// What could be had must be more than the limit by this factor, or the limit limits nothing.
const HEADROOM: f64 = 1.1;
const DISK_MIB: usize = 64;

const REQUESTS: [u64; 8] = [100, 300, 1_000, 3_000, 10_000, 20_000, 35_000, 50_000];
const MIB_PER_S: [u64; 4] = [1, 16, 100, 400];

#[derive(Debug, Parser)]
#[command(name = "bench-throttle", version, about = "How exactly limits of disks are kept")]
struct Arguments {
    /// Three limits, for a second each
    #[arg(long)]
    quick: bool,
    /// A vmmd to measure instead of this tree's release build
    #[arg(long, value_name = "PATH")]
    vmmd: Option<PathBuf>,
    #[command(flatten)]
    peers: Peers,
}

fn main() -> ExitCode {
    exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    heed_interruptions()?;
    let vmmd = match &arguments.vmmd {
        Some(path) => path.clone(),
        None => drover_bench_vmms::build()?,
    };
    let mut report = Report::of_this_machine("throttle");
    let mut contenders = vec![Contender::Ours(Launcher::new(vmmd)?)];
    for peer in arguments.peers.find(&mut report) {
        match peer.has_mmio_disks() {
            true => contenders.push(Contender::Peer(peer)),
            false => report.leave_out(peer.name(), "its disks are on PCI, and the probe's are on MMIO"),
        }
    }
    let folder = tempfile::Builder::new().prefix("drover-bench-").tempdir()?;
    let disk = folder.path().join("disk.raw");
    write_disk(&disk)?;
    let (requests, mib_per_s, length) = match arguments.quick {
        true => (&REQUESTS[2..4], &MIB_PER_S[1..2], QUICK_LENGTH),
        false => (&REQUESTS[..], &MIB_PER_S[..], LENGTH),
    };
    let small = Load { request_bytes: 4 << 10, length };
    let large = Load { request_bytes: 64 << 10, length };
    let limits: Vec<_> = requests
        .iter()
        .map(|rate| (small, DiskLimit::Requests(*rate)))
        .chain(mib_per_s.iter().map(|mib| (large, DiskLimit::Bytes(mib << 20))))
        .collect();
    let mut free = Vec::new();
    for contender in &contenders {
        let free_of = |load| {
            contender.run(&disk, load, None).with_context(|| format!("no limit, {}", contender.name()))
        };
        free.push((free_of(small)?, free_of(large)?));
    }
    for (what, of) in [("4 KiB", 0), ("64 KiB", 1)] {
        let reached = |(small, large): &(Reached, Reached)| if of == 0 { *small } else { *large };
        let row = Row::new(format!("no limit, {what}"), "requests", "1/s", Better::Higher);
        let each = contenders.iter().zip(&free);
        report.push(
            each.fold(row, |row, (contender, free)| {
                row.value(contender.name(), reached(free).requests_per_s)
            }),
        );
    }
    for (load, limit) in limits {
        let name = name(limit);
        eprintln!("throttle: {name}");
        let mut all = Vec::new();
        for (contender, (small, large)) in contenders.iter().zip(&free) {
            let could = if load == small_of(limit, load) { small } else { large };
            if could.of(limit) < HEADROOM * wanted(limit) {
                report.leave_out(
                    contender.name(),
                    &format!("{name}: without a limit it reaches {:.0} a second", could.of(limit)),
                );
                continue;
            }
            let reached = contender.run(&disk, load, Some(limit));
            all.push((contender.name(), reached.with_context(|| format!("{name}, {}", contender.name()))?));
        }
        rows(&name, limit, &all).into_iter().for_each(|row| report.push(row));
    }
    report.note(format!(
        "Counted by the guest for {length:?}; 32 requests in flight. Off by: how far what it got is from the limit, either way."
    ));
    print!("{}", report.table());
    let path = report.write(&workspace_root())?;
    eprintln!("throttle: {} written", path.display());
    Ok(())
}

/// The load that goes with a limit on requests is the small one.
fn small_of(limit: DiskLimit, load: Load) -> Load {
    match limit {
        DiskLimit::Requests(_) => load,
        DiskLimit::Bytes(_) => Load { request_bytes: 4 << 10, ..load },
    }
}

/// A disk without holes, so that a read finds data in the page cache.
fn write_disk(path: &PathBuf) -> anyhow::Result<()> {
    let mut file = File::create(path)?;
    let piece = vec![0xa5; 1 << 20];
    for _ in 0..DISK_MIB {
        file.write_all(&piece)?;
    }
    Ok(file.sync_all()?)
}

fn name(limit: DiskLimit) -> String {
    match limit {
        DiskLimit::Requests(rate) => format!("{rate} requests/s"),
        DiskLimit::Bytes(rate) => format!("{} MiB/s", rate >> 20),
    }
}

fn wanted(limit: DiskLimit) -> f64 {
    match limit {
        DiskLimit::Requests(rate) | DiskLimit::Bytes(rate) => rate as f64,
    }
}

fn rows(case: &str, limit: DiskLimit, all: &[(&str, Reached)]) -> Vec<Row> {
    let off = Row::new(case, "off by", "%", Better::Lower);
    let off = all.iter().fold(off, |row, (name, reached)| {
        row.value(*name, (reached.of(limit) / wanted(limit) - 1.0).abs() * 100.0)
    });
    let mut rows = vec![off.value("goal", GOAL_PERCENT)];
    for (name, reached) in all {
        if let Some(held) = reached.held_back {
            rows.push(Row::new(case, "held back, by our counters", "1/s", Better::Lower).value(*name, held));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_and_what_is_too_little_are_both_off() {
        let reached = |requests_per_s| Reached { requests_per_s, bytes_per_s: 0.0, held_back: None };
        let all = [("a", reached(1020.0)), ("b", reached(990.0))];
        let rows = rows("case", DiskLimit::Requests(1000), &all);
        let near = |value: Option<f64>, expect: f64| value.is_some_and(|value| (value - expect).abs() < 1e-9);
        assert!(near(rows[0].get("a"), 2.0) && near(rows[0].get("b"), 1.0));
        assert_eq!(rows[0].get("goal"), Some(GOAL_PERCENT));
    }
}
