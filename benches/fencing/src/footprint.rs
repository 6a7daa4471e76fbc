//! What librbd costs a vmmd: once, however many volumes there are.

use std::fs;

use anyhow::Context as _;
use drover_bench_report::{Better, Row, median};
use drover_bench_vmms::Launcher;
use drover_ids::VmId;
use drover_test_prerequisites::pss_beyond_guest_ram;
use drover_units::Bytes;

use crate::{guest::guest, storage::Storage};

/// By how many volumes a process is looked at.
const VOLUMES: [usize; 3] = [0, 1, 4];
/// What four volumes may have more than one: a queue's worker each.
const MORE_THREADS_MAX: f64 = 3.0;
/// By when librbd has done for every volume what it does at first.
const WRITES: u64 = 50;

/// A process with so many volumes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    threads: f64,
    /// Proportional set size, the guest's RAM not counted.
    pss_mib: f64,
}

/// For each round, the cost by the number of volumes.
pub(crate) async fn measure(
    storage: &Storage,
    launcher: &Launcher,
    rounds: usize,
) -> anyhow::Result<Vec<[Cost; 3]>> {
    let mut measured = Vec::new();
    let all = [(); 4].map(|()| storage.create(Bytes::mib(64)));
    let all = all.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    for round in 0..rounds {
        let mut costs = [Cost { threads: 0.0, pss_mib: 0.0 }; 3];
        for (index, (cost, count)) in costs.iter_mut().zip(VOLUMES).enumerate() {
            let disks = all[..count].iter().map(|volume| storage.disk(*volume)).collect();
            let epoch = (round * VOLUMES.len() + index + 1) as u64;
            let mut vmmd = launcher.spawn().await?;
            vmmd.create(epoch, guest(VmId::from_u128(0xf0), disks)).await?;
            vmmd.start(epoch).await?;
            if count > 0 {
                vmmd.writes(WRITES).await?;
            }
            *cost = Cost::of(vmmd.pid())?;
            vmmd.stop(epoch).await?;
        }
        measured.push(costs);
    }
    all.into_iter().try_for_each(|volume| storage.delete(volume))?;
    Ok(measured)
}

impl Cost {
    fn of(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
        let threads = threads.and_then(|count| count.trim().parse().ok());
        let pss = pss_beyond_guest_ram(pid).context("cannot see what a vmmd costs")?;
        Ok(Self {
            threads: threads.with_context(|| format!("{path} has no Threads:"))?,
            pss_mib: pss as f64 / f64::from(1 << 20),
        })
    }
}

pub(crate) fn rows(rounds: &[[Cost; 3]]) -> Vec<Row> {
    let of = |index: usize, part: fn(&Cost) -> f64| {
        let values: Vec<f64> = rounds.iter().map(|costs| part(&costs[index])).collect();
        median(&values).unwrap_or(f64::NAN)
    };
    let threads = |index| of(index, |cost| cost.threads);
    let mut rows = vec![
        Row::new("vmmd by volumes", "threads, 4 volumes beyond 1", "", Better::Lower)
            .value("drover", threads(2) - threads(1))
            .value("goal", MORE_THREADS_MAX),
    ];
    for (index, count) in VOLUMES.into_iter().enumerate() {
        let row = |metric: &str, unit| {
            Row::new("vmmd by volumes", format!("{metric}, {count} volumes"), unit, Better::Lower)
        };
        rows.push(row("threads", "").value("drover", threads(index)));
        rows.push(row("memory without guest RAM", "MiB").value("drover", of(index, |cost| cost.pss_mib)));
    }
    rows
}
