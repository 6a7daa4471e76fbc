//! From the decision to fence to the new owner's first write.

use std::time::{Duration, Instant};

use anyhow::ensure;
use drover_bench_report::{Better, Row, median};
use drover_bench_vmms::{Launcher, Vmmd};
use drover_ids::{OwnerEpoch, VmId};
use drover_units::Bytes;
use drover_wire::vm::v1 as wire;
use nix::sys::signal::Signal;

use crate::{
    guest::{addresses, guest},
    log::took_in_all,
    phases::Phases,
    storage::Storage,
};

const VM: VmId = VmId::from_u128(0xbe);
/// Writes of an owner before it is stopped.
const AT_WORK: u64 = 50;

/// Which monitor settings, and what is wanted with them.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    goal: Duration,
}

pub(crate) const FAST: Case = Case { name: "fence, fast monitor", goal: Duration::from_millis(150) };
pub(crate) const STOCK: Case = Case { name: "fence, stock monitor", goal: Duration::from_millis(2500) };

/// One fence: its parts in order, and all of it.
pub(crate) struct Restart {
    parts: Vec<(&'static str, Duration)>,
    all: Duration,
}

/// Stops an owner at work, fences it, and starts the VM elsewhere; again with that one, and so on.
pub(crate) async fn measure(
    storage: &Storage,
    launcher: &Launcher,
    phases: &Phases,
    rounds: usize,
) -> anyhow::Result<Vec<Restart>> {
    let volume = storage.create(Bytes::mib(64))?;
    let config = guest(VM, vec![storage.disk(volume)]);
    let mut owner = launcher.spawn().await?;
    owner.create(1, config.clone()).await?;
    owner.start(1).await?;
    let (mut restarts, mut fenced) = (Vec::new(), Vec::new());
    for round in 0..rounds as u64 {
        let epoch = round + 2;
        owner.writes(AT_WORK).await?;
        let registered = addresses(&mut owner).await?;
        ensure!(!registered.is_empty(), "vmmd does not say under which address it writes");
        owner.signal(Signal::SIGSTOP)?;

        phases.take();
        let decided = Instant::now();
        let proof = storage.fence((VM, volume), OwnerEpoch::new(epoch), &registered)?;
        let mut watch = Stopwatch { last: decided, parts: phases.take() };
        watch.skip();
        let mut next = launcher.spawn().await?;
        watch.part("vmmd spawned and serving");
        next.create(epoch, config.clone()).await?;
        watch.part("VM created");
        next.start(epoch).await?;
        next.writes(1).await?;
        watch.part("guest boots and writes");
        restarts.push(Restart { all: decided.elapsed(), parts: watch.finish(&next) });

        ensure!(registered.iter().all(|address| proof.entries.contains(address)), "{proof:?}");
        fenced.extend(proof.entries);
        let mut old = std::mem::replace(&mut owner, next);
        old.signal(Signal::SIGCONT)?;
        let end = old.reaches(wire::VmState::Stopped).await?;
        ensure!(
            end.stop_reason() == wire::StopReason::Fenced,
            "the old owner ended by itself: {}",
            end.detail
        );
        old.exits().await?;
    }
    owner.stop(rounds as u64 + 1).await?;
    storage.unfence(&fenced)?;
    storage.delete(volume)?;
    Ok(restarts)
}

struct Stopwatch {
    last: Instant,
    parts: Vec<(&'static str, Duration)>,
}

impl Stopwatch {
    fn skip(&mut self) -> Duration {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.last, now))
    }

    fn part(&mut self, name: &'static str) {
        let took = self.skip();
        self.parts.push((name, took));
    }

    /// With what the new process says of its own part.
    fn finish(mut self, vmmd: &Vmmd) -> Vec<(&'static str, Duration)> {
        let log = vmmd.log();
        for (part, sentence) in [
            ("  of it: connected to the cluster", "connected to a Ceph cluster"),
            ("  of it: image opened, connection included", "volumes opened"),
            ("  of it: lock acquired", "volumes acquired"),
            ("  of it: devices and vCPUs", "devices attached"),
        ] {
            self.parts.push((part, took_in_all(&log, sentence)));
        }
        self.parts
    }
}

pub(crate) fn rows(case: &Case, restarts: &[Restart]) -> Vec<Row> {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let all: Vec<f64> = restarts.iter().map(|restart| ms(restart.all)).collect();
    let row = |metric: &str| Row::new(case.name, metric, "ms", Better::Lower);
    let mut rows = vec![
        row("new owner writes")
            .value("drover", median(&all).unwrap_or(f64::NAN))
            .value("goal", ms(case.goal)),
    ];
    let names = restarts.first().map(|first| first.parts.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (index, name) in names.unwrap_or_default().into_iter().enumerate() {
        let each: Vec<f64> =
            restarts.iter().filter_map(|restart| Some(ms(restart.parts.get(index)?.1))).collect();
        rows.push(row(name).value("drover", median(&each).unwrap_or(f64::NAN)));
    }
    rows
}
