//! How many decisions a second, and how long each takes.

use std::time::{Duration, Instant};

use drover_bench_report::{Better, ROUNDS, Report, Row, median};
use drover_placement::Policy;

use crate::world::{Kind, VMS_PER_HOST, World};

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) hosts: usize,
    /// Decisions in a round; as many VMs are taken away after it.
    pub(crate) decisions: usize,
}

/// What one kind of decision took, over all rounds.
#[derive(Debug, Default)]
struct Taken {
    per_second: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    p999_us: Vec<f64>,
}

/// Adds the rows of one data centre and of one ten times as large.
pub(crate) fn run(report: &mut Report, size: Size) -> anyhow::Result<()> {
    let mut near = World::running(size.hosts, size.hosts * VMS_PER_HOST)?;
    let mut far = World::running(size.hosts * 10, size.hosts * 10 * VMS_PER_HOST)?;
    let policies = ["pack", "least-fragmentation", "spread"];
    let cases: Vec<(Kind, &str)> = policies
        .iter()
        .flat_map(|policy| [(Kind::Plain, *policy), (Kind::Social, *policy)])
        .chain([(Kind::Labelled, "pack"), (Kind::Reaching, "pack")])
        .collect();
    let mut taken: Vec<(Taken, Taken)> = cases.iter().map(|_| Default::default()).collect();
    for _ in 0..ROUNDS {
        // Every case and both sizes in each round: a slow moment of the machine meets all of them.
        for ((kind, policy), (small, large)) in cases.iter().zip(&mut taken) {
            for (world, taken) in [(&mut near, small), (&mut far, large)] {
                world.policy = Policy::named(policy)?;
                round(world, *kind, size.decisions, taken)?;
            }
        }
    }
    for ((kind, policy), (small, large)) in cases.iter().zip(&taken) {
        let what = match kind {
            Kind::Plain => "plain",
            Kind::Labelled => "required label",
            Kind::Reaching => "pool and network",
            Kind::Social => "anti-affinity and zone spread",
        };
        let case = |hosts: usize| format!("{hosts} hosts, {} VMs: {what}, {policy}", hosts * VMS_PER_HOST);
        rows(report, &case(size.hosts), small);
        rows(report, &case(size.hosts * 10), large);
        let time = |taken: &Taken| 1.0 / median(&taken.per_second).unwrap_or(f64::NAN);
        let ratio = Row::new(
            format!("10 times the hosts: {what}, {policy}"),
            "time per decision",
            "ratio",
            Better::Lower,
        );
        report.push(ratio.value("drover", time(large) / time(small)));
    }
    Ok(())
}

fn rows(report: &mut Report, case: &str, taken: &Taken) {
    let mut push = |metric: &str, unit: &str, better, values: &[f64]| {
        let samples = vec![("drover".to_owned(), values.to_vec())];
        report.push(Row::new(case, metric, unit, better).medians(&samples));
    };
    push("decided and committed", "1/s", Better::Higher, &taken.per_second);
    push("latency p50", "us", Better::Lower, &taken.p50_us);
    push("latency p99", "us", Better::Lower, &taken.p99_us);
    push("latency p99.9", "us", Better::Lower, &taken.p999_us);
}

/// A batch for the rate, without a clock between its decisions, and another one for the latency of each.
fn round(world: &mut World, kind: Kind, decisions: usize, taken: &mut Taken) -> anyhow::Result<()> {
    let requests: Vec<_> = (0..decisions).map(|_| world.draw(kind)).collect();
    let start = Instant::now();
    for request in &requests {
        world.place(request)?;
    }
    taken.per_second.push(decisions as f64 / start.elapsed().as_secs_f64());
    world.release_some(decisions)?;

    let requests: Vec<_> = (0..decisions).map(|_| world.draw(kind)).collect();
    let mut times = Vec::with_capacity(decisions);
    for request in &requests {
        let start = Instant::now();
        world.place(request)?;
        times.push(start.elapsed());
    }
    world.release_some(decisions)?;
    times.sort_unstable();
    taken.p50_us.push(percentile(&times, 0.5));
    taken.p99_us.push(percentile(&times, 0.99));
    taken.p999_us.push(percentile(&times, 0.999));
    Ok(())
}

/// Of sorted times, the smallest that so many are not above; microseconds.
fn percentile(sorted: &[Duration], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}
