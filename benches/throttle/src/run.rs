//! One guest under one limit.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, bail, ensure};
use drover_bench_vmms::{Console, DiskLimit, Guest, Launcher, Peer};
use drover_probe_record::{
    BenchFigures, BenchWork, Event, Workload,
    bench::{Pattern, Wait},
};
use tokio::runtime::Builder;

/// From the spawn to the measurement's end, beside the measurement itself.
const SLACK: Duration = Duration::from_secs(60);
const QUEUE_DEPTH: u64 = 32;
const EPOCH: u64 = 1;

/// What the guest asks of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) request_bytes: u64,
    pub(crate) length: Duration,
}

/// What it got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached {
    pub(crate) requests_per_s: f64,
    pub(crate) bytes_per_s: f64,
    /// Requests that had to wait, in a second, where the VMM tells.
    pub(crate) held_back: Option<f64>,
}

pub(crate) enum Contender {
    Ours(Launcher),
    Peer(Peer),
}

impl Reached {
    /// What a limit of this kind counts.
    pub(crate) fn of(&self, limit: DiskLimit) -> f64 {
        match limit {
            DiskLimit::Requests(_) => self.requests_per_s,
            DiskLimit::Bytes(_) => self.bytes_per_s,
        }
    }
}

impl Contender {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "drover",
            Self::Peer(peer) => peer.name(),
        }
    }

    pub(crate) fn run(&self, disk: &Path, load: Load, limit: Option<DiskLimit>) -> anyhow::Result<Reached> {
        let work = BenchWork {
            pattern: Pattern::RandomRead,
            request_bytes: load.request_bytes,
            queue_depth: QUEUE_DEPTH,
            ms: u64::try_from(load.length.as_millis())?,
            span_bytes: 0,
            wait: Wait::Sleep,
            queues: 1,
        };
        let workload = Workload { vcpus: Some(1), bench: Some(work), ..Workload::default() };
        let guest = Guest {
            vcpus: 1,
            memory_mib: 64,
            cmdline: workload.to_string(),
            disk: Some(disk.to_owned()),
            limit,
        };
        match self {
            Self::Ours(launcher) => run_ours(launcher, &guest, load),
            Self::Peer(peer) => {
                let mut running = peer.prepare(&guest)?.spawn()?;
                let child = &mut running.child;
                let counted = follow(&running.console, || child.is_alive(), load);
                Ok(reached(&counted.with_context(|| running.said())?))
            }
        }
    }
}

fn run_ours(launcher: &Launcher, guest: &Guest, load: Load) -> anyhow::Result<Reached> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (mut vmmd, console) = runtime.block_on(launcher.boot(EPOCH, guest))?;
    let counted = follow(&console, || vmmd.is_alive(), load)?;
    let page = runtime.block_on(vmmd.metrics())?;
    runtime.block_on(vmmd.stop(EPOCH))?;
    let figures = reached(&counted);
    let held = held_back(&page).filter(|_| guest.limit.is_some());
    // Since the guest's start: the warm-up is in it.
    let since = load.length.as_secs_f64() + drover_probe_record::bench::WARM_UP_MS as f64 / 1e3;
    Ok(Reached { held_back: held.map(|count| count / since), ..figures })
}

fn follow(console: &Console, alive: impl FnMut() -> bool, load: Load) -> anyhow::Result<BenchFigures> {
    let ended = |text: &str| {
        text.lines().any(|line| matches!(Event::parse(line), Ok(Event::Bench(_) | Event::Error { .. })))
    };
    console.wait(load.length + SLACK, alive, ended)?;
    for line in console.text().lines() {
        match Event::parse(line) {
            Ok(Event::Error { what }) => bail!("the guest says: {what}"),
            Ok(Event::Bench(counted)) => {
                ensure!(counted.failed == 0 && counted.us > 0, "{} requests failed", counted.failed);
                return Ok(counted);
            }
            _ => {}
        }
    }
    bail!("the measurement did not end")
}

fn reached(counted: &BenchFigures) -> Reached {
    let per_s = |count: u64| count as f64 * 1e6 / counted.us as f64;
    Reached { requests_per_s: per_s(counted.ops), bytes_per_s: per_s(counted.bytes), held_back: None }
}

/// Requests of the disk that had to wait, from a page of metrics.
fn held_back(page: &str) -> Option<f64> {
    let line = page.lines().find(|line| line.starts_with(HELD_BACK))?;
    line.rsplit(' ').next()?.parse().ok()
}

const HELD_BACK: &str = "drover_vm_disk_throttled_requests_total{";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found_on_the_page() {
        let page = "# HELP drover_vm_disk_throttled_requests_total x\ndrover_vm_disk_throttled_requests_total{vm=\"a\"} 12\n";
        assert_eq!(held_back(page), Some(12.0));
        assert_eq!(held_back("drover_vm_disk_reads_total{} 3\n"), None);
    }
}
