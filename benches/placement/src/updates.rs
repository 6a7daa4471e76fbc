//! What keeping the inventory costs: memory, heartbeats, VMs that come and go.

use std::{alloc::System, hint::black_box, time::Instant};

use anyhow::Context as _;
use drover_bench_report::{Better, ROUNDS, Report, Row, median};
use drover_placement::Load;
use drover_placement_trace::generate::{Random, Seed};
use drover_units::Bytes;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use crate::world::{Kind, VMS_PER_HOST, World, node_id};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that are held more than when the region began.
fn held(region: &Region<'_, System>) -> f64 {
    let change = region.change();
    change.bytes_allocated as f64 - change.bytes_deallocated as f64
}

/// Adds the rows.
pub(crate) fn run(report: &mut Report, hosts: usize) -> anyhow::Result<()> {
    memory(report, hosts)?;
    rates(report, hosts)
}

fn memory(report: &mut Report, hosts: usize) -> anyhow::Result<()> {
    let region = Region::new(ALLOCATOR);
    let world = World::of_hosts(hosts)?;
    let of_hosts = held(&region);
    black_box(&world);
    drop(world);
    let region = Region::new(ALLOCATOR);
    let mut world = World::running(hosts, hosts * VMS_PER_HOST)?;
    // What the bench itself remembers does not count.
    world.forget_own_notes();
    let of_vms = held(&region) - of_hosts;
    black_box(&world);
    let case = format!("{hosts} hosts, {} VMs with names and mixed constraints", hosts * VMS_PER_HOST);
    let row = Row::new(case.clone(), "memory per host", "bytes", Better::Lower);
    report.push(row.value("drover", of_hosts / hosts as f64));
    let row = Row::new(case, "memory per VM", "bytes", Better::Lower);
    report.push(row.value("drover", of_vms / (hosts * VMS_PER_HOST) as f64));
    Ok(())
}

fn rates(report: &mut Report, hosts: usize) -> anyhow::Result<()> {
    let mut world = World::running(hosts, hosts * VMS_PER_HOST)?;
    let mut random = Random::new(Seed(2));
    let (mut heartbeats, mut replaced) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let count = hosts * 20;
        let from: Vec<_> = (0..count).map(|_| (node_id(random.below(hosts)), random.bits())).collect();
        let start = Instant::now();
        for (host, bits) in &from {
            let load = Load { cpu_centi: (bits % 6_400) as u32, memory: Bytes::new(bits >> 27) };
            world.inventory.heartbeat(*host, load)?;
        }
        heartbeats.push(count as f64 / start.elapsed().as_secs_f64());

        // A VM that is found where it was not expected, and one that has gone.
        let requests: Vec<_> = (0..hosts).map(|_| world.draw(Kind::Plain)).collect();
        let start = Instant::now();
        for (index, request) in requests.iter().enumerate() {
            world.inventory.hold(node_id(index), request)?;
        }
        for request in &requests {
            world.inventory.remove_vm(request.vm)?;
        }
        replaced.push(2.0 * hosts as f64 / start.elapsed().as_secs_f64());
    }
    let case = format!("{hosts} hosts, {} VMs", hosts * VMS_PER_HOST);
    let mut push = |metric: &str, values: &[f64]| -> anyhow::Result<()> {
        let value = median(values).context("rounds were run")?;
        report.push(Row::new(case.clone(), metric, "1/s", Better::Higher).value("drover", value));
        Ok(())
    };
    push("heartbeats", &heartbeats)?;
    push("VMs added or removed", &replaced)
}
