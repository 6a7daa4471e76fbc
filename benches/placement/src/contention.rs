//! Many threads decide at once on one inventory.

use std::{sync::Barrier, thread, time::Instant};

use anyhow::{Context as _, anyhow};
use drover_bench_report::{Better, ROUNDS, Report, Row, median};
use drover_placement::{Decider, Policy, Shared, Ties};

use crate::world::{Kind, VMS_PER_HOST, World};

/// Adds the rows for each number of threads.
pub(crate) fn run(report: &mut Report, hosts: usize, decisions: usize) -> anyhow::Result<()> {
    let threads = [1, 2, 4];
    let mut taken: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); threads.len()];
    let mut world = World::running(hosts, hosts * VMS_PER_HOST)?;
    for _ in 0..ROUNDS {
        for (count, (rates, conflicts)) in threads.iter().zip(&mut taken) {
            let (rate, share) = round(&mut world, *count, decisions)?;
            rates.push(rate);
            conflicts.push(share * 1000.0);
        }
    }
    for (count, (rates, conflicts)) in threads.iter().zip(&taken) {
        let case = format!("{hosts} hosts, {} VMs, {count} thread(s): plain, pack", hosts * VMS_PER_HOST);
        let value = |values: &[f64]| median(values).unwrap_or(f64::NAN);
        let row = Row::new(case.clone(), "decided and committed", "1/s", Better::Higher);
        report.push(row.value("drover", value(rates)));
        let row = Row::new(case, "conflicts, all retried", "per 1000", Better::Lower);
        report.push(row.value("drover", value(conflicts)));
    }
    Ok(())
}

/// Decisions in a second of all threads together, and the conflicts among them.
fn round(world: &mut World, threads: usize, decisions: usize) -> anyhow::Result<(f64, f64)> {
    let lots: Vec<Vec<_>> =
        (0..threads).map(|_| (0..decisions / threads).map(|_| world.draw(Kind::Plain)).collect()).collect();
    let shared = Shared::new(world.inventory.clone());
    let start_line = Barrier::new(threads + 1);
    let (shared_by_all, start_together) = (&shared, &start_line);
    let elapsed = thread::scope(|scope| {
        let workers: Vec<_> = lots
            .iter()
            .map(|requests| {
                scope.spawn(move || -> anyhow::Result<()> {
                    let mut decider = Decider::new();
                    let policy = Policy { ties: Ties::Seeded(1), ..Policy::named("pack")? };
                    start_together.wait();
                    for request in requests {
                        shared_by_all.place(&mut decider, request, &policy)?;
                    }
                    Ok(())
                })
            })
            .collect();
        start_line.wait();
        let start = Instant::now();
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a thread panicked"))?.context("placing")?;
        }
        anyhow::Ok(start.elapsed())
    })?;
    let counts = shared.counts();
    let placed = counts.committed as f64;
    Ok((placed / elapsed.as_secs_f64(), counts.conflicts as f64 / placed))
}
