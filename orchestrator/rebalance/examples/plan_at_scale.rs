//! How long planning takes on a large cluster: `cargo run --release -p drover-rebalance --example plan_at_scale [hosts]`.
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a measurement for people")]

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use drover_cluster_state::Moment;
use drover_ids::{NodeId, VmId};
use drover_placement::{
    Affinity, Demand, Direction, HostSpec, Inventory, Load, Peers, Policies, Profile, Request, Scope,
    Strength, Topology,
};
use drover_rebalance::{
    Basis, ConsolidateLimits, CostModel, Parallelism, Plan, Rebalancer, RoomLimits, Settings, Usage, VmUsage,
    consolidate, defragment, drain,
};
use drover_units::{Bytes, VcpuCount};

const VMS_PER_HOST: u128 = 10;
const HOSTS_PER_RACK: u128 = 40;

/// A repeatable number below `below`.
fn dice(seed: u128, below: u64) -> u64 {
    let mut bits = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) % below
}

fn request(number: u128) -> Request {
    let size = [1, 1, 2, 2, 4, 8][dice(number, 6) as usize];
    let mut profile = Profile::new(Demand::new(VcpuCount::new(size), Bytes::gib(u64::from(size) * 4)));
    // A tenth are replicas that must be apart, a few of each kind.
    if number.is_multiple_of(10) {
        let group = format!("replicas-{}", number / 50);
        profile.groups.insert(group.clone());
        profile.affinity.push(Affinity {
            peers: Peers::Group(group),
            direction: Direction::Apart,
            scope: Scope::Host,
            strength: Strength::Required,
        });
    }
    Request::new(VmId::from_u128(number), Arc::new(profile))
}

fn cluster(hosts: u128) -> (Inventory, Usage) {
    let (mut inventory, mut usage) = (Inventory::new(), Usage::new());
    for number in 1..=hosts {
        let rack = number / HOSTS_PER_RACK;
        let spec = HostSpec {
            topology: Topology { zone: format!("z{}", rack % 3), rack: format!("r{rack}") },
            ..HostSpec::new(
                NodeId::from_u128(number),
                format!("h{number}"),
                VcpuCount::new(64),
                Bytes::gib(256),
            )
        };
        inventory.add_host(&spec).expect("it is new");
        // One host in a hundred is hot.
        let hot = number.is_multiple_of(100);
        let mut total = 0;
        for index in 0..VMS_PER_HOST {
            let request = request(number * VMS_PER_HOST + index);
            let vcpus = request.profile.demand.vcpus.get();
            let cpu_centi =
                if hot { vcpus * 200 } else { vcpus * (20 + dice(request.vm.as_u128(), 30) as u32) };
            total += cpu_centi;
            usage.measure(request.vm, VmUsage { cpu_centi: Some(cpu_centi), ..VmUsage::default() });
            inventory.hold(spec.id, &request).expect("it is new");
        }
        inventory
            .heartbeat(spec.id, Load { cpu_centi: total, memory: Bytes::gib(100) })
            .expect("it is there");
    }
    (inventory, usage)
}

fn report(name: &str, took: Duration, plan: &Plan) {
    let (moves, waves) = (plan.len(), plan.waves.len());
    println!("{name:<32} {:>9.2} ms  {moves:>5} moves  {waves:>4} waves", took.as_secs_f64() * 1e3);
}

fn timed<T>(work: impl Fn() -> T) -> (Duration, T) {
    let mut times = Vec::new();
    for _ in 0..4 {
        let start = Instant::now();
        drop(work());
        times.push(start.elapsed());
    }
    times.sort();
    let start = Instant::now();
    let result = work();
    (times[1].min(start.elapsed().max(times[0])), result)
}

fn main() {
    let hosts = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(10_000);
    let (inventory, usage) = cluster(hosts);
    println!("{} hosts, {} VMs", inventory.host_count(), inventory.held_count());
    let (policies, costs, immovable) = (Policies::default(), CostModel::new(), BTreeSet::new());
    let basis = Basis {
        inventory: &inventory,
        policies: &policies,
        costs: &costs,
        usage: &usage,
        immovable: &immovable,
    };
    let parallelism = Parallelism::default();
    let one: BTreeSet<NodeId> = [NodeId::from_u128(hosts / 2)].into();
    let (took, plan) = timed(|| drain(&basis, &one, &parallelism));
    report("drain one host", took, &plan.expect("there is room"));
    let rack = basis.hosts_of_rack("r1");
    let (took, plan) = timed(|| drain(&basis, &rack, &parallelism));
    report("drain a rack", took, &plan.expect("there is room"));
    let (took, proposal) =
        timed(|| Rebalancer::new(Settings::default()).propose(Moment::from_millis(0), &basis));
    report("rebalance", took, &proposal.plan);
    println!(
        "{:<32} {} -> {}",
        "  highest above the mean", proposal.before.highest_above_mean, proposal.after.highest_above_mean
    );
    let whole = Demand::new(VcpuCount::new(60), Bytes::gib(200));
    let request = Request::new(VmId::from_u128(u128::MAX), Arc::new(Profile::new(whole)));
    let (took, made) = timed(|| defragment(&basis, std::slice::from_ref(&request), &RoomLimits::default()));
    match made {
        Ok(made) => report("make room for 60 vCPUs", took, &made.plan),
        Err(no_room) => println!("make room: {no_room}, {took:?}"),
    }
    let limits = ConsolidateLimits { moves: 200, parallelism };
    let (took, plan) = timed(|| consolidate(&basis, &limits));
    report("consolidate, 200 moves", took, &plan);
}
