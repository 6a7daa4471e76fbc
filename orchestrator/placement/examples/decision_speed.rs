//! How long decisions take: a look while working on the engine. `cargo xtask bench placement` is what is quoted.
//!
//! `cargo run --release -p drover-placement --example decision_speed -- [hosts] [VMs]`
#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "it measures time and prints it")]

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use drover_ids::{NodeId, VmId};
use drover_placement::{
    Affinity, Decider, Demand, Direction, HostSpec, Inventory, LabelMatch, LabelRule, Load, NAMED, Peers,
    Policy, Profile, Request, Scope, Spread, Strength, Taint, TaintEffect,
};
use drover_units::{Bytes, VcpuCount};

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn hosts(count: u64) -> Inventory {
    let mut inventory = Inventory::new();
    for n in 0..count {
        let (threads, gib) = [(64, 256), (96, 384), (128, 512)][n as usize % 3];
        let id = NodeId::from_u128(u128::from(n));
        let mut spec = HostSpec::new(id, format!("host-{n}"), VcpuCount::new(threads), Bytes::gib(gib));
        spec.topology.zone = format!("zone-{}", n % 4);
        spec.topology.rack = format!("rack-{}", n / 40);
        spec.labels.insert("disk".to_owned(), if n % 5 == 0 { "ssd" } else { "hdd" }.to_owned());
        spec.pools = ["fast".to_owned(), "slow".to_owned()].into();
        if n % 50 == 0 {
            let effect = TaintEffect::NoSchedule;
            spec.taints.insert(Taint { key: "gpu".to_owned(), value: String::new(), effect });
        }
        inventory.add_host(&spec).expect("hosts have different ids");
    }
    inventory
}

fn plain(random: &mut Random) -> Profile {
    let flavours = [(1, 1), (1, 2), (2, 4), (2, 8), (4, 8), (4, 16), (8, 16), (8, 32), (16, 64)];
    let (vcpus, gib) = flavours[random.below(flavours.len() as u64) as usize];
    let mut profile = Profile::new(Demand::new(VcpuCount::new(vcpus), Bytes::gib(gib)));
    if random.below(2) == 0 {
        profile.pools.insert("fast".to_owned());
    }
    if random.below(5) == 0 {
        profile.labels.push(LabelRule {
            key: "disk".to_owned(),
            matches: LabelMatch::In(["ssd".to_owned()].into()),
            strength: Strength::Required,
        });
    }
    if random.below(5) == 0 {
        profile.labels.push(LabelRule {
            key: "zone".to_owned(),
            matches: LabelMatch::In([format!("zone-{}", random.below(4))].into()),
            strength: Strength::Required,
        });
    }
    profile
}

fn social(random: &mut Random) -> Profile {
    let group = format!("group-{}", random.below(2000));
    let apart = Affinity {
        peers: Peers::Group(group.clone()),
        direction: Direction::Apart,
        scope: Scope::Host,
        strength: Strength::Required,
    };
    let even = Spread {
        group: group.clone(),
        scope: if random.below(2) == 0 { Scope::Zone } else { Scope::Rack },
        max_skew: NonZeroU32::MIN,
        strength: Strength::Required,
    };
    Profile { groups: [group].into(), affinity: vec![apart], spread: vec![even], ..plain(random) }
}

fn report(what: &str, mut times: Vec<Duration>, refused: usize) {
    times.sort_unstable();
    let total: Duration = times.iter().sum();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_nanos();
    println!(
        "{what:40} {:>9.0}/s  p50 {:>6} ns  p99 {:>6} ns  max {:>8} ns  refused {refused}",
        times.len() as f64 / total.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

fn measure(what: &str, inventory: &Inventory, policy: &Policy, requests: &[Request]) {
    let mut decider = Decider::new();
    for request in requests.iter().take(2000) {
        let _ = decider.decide(inventory, request, policy);
    }
    let (mut times, mut refused) = (Vec::new(), 0);
    for request in requests {
        let start = Instant::now();
        let decision = decider.decide(inventory, request, policy);
        times.push(start.elapsed());
        refused += usize::from(decision.is_err());
    }
    report(what, times, refused);
}

fn main() {
    let argument = |n: usize| std::env::args().nth(n).and_then(|text| text.parse().ok());
    let host_count = argument(1).unwrap_or(10_000);
    let vm_count: u64 = argument(2).unwrap_or(host_count * 10);
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut inventory = hosts(host_count);
    let mut decider = Decider::new();
    let pack = Policy::default();
    let spread = Policy::named("spread").expect("a named policy");
    let (mut times, mut refused) = (Vec::new(), 0);
    for n in 0..vm_count {
        let profile = if n % 10 == 0 { social(&mut random) } else { plain(&mut random) };
        let request = Request::new(VmId::from_u128(u128::from(n)), Arc::new(profile));
        let start = Instant::now();
        match decider.decide(&inventory, &request, if n % 3 == 0 { &spread } else { &pack }) {
            Ok(decision) => inventory.commit(&request, &decision).expect("nobody else commits"),
            Err(_) => refused += 1,
        }
        times.push(start.elapsed());
    }
    report("fill: decide and commit", times, refused);
    inventory.verify().expect("the index is what it should be");
    let requests = |random: &mut Random, make: fn(&mut Random) -> Profile| -> Vec<Request> {
        let id = |n: u64| VmId::from_u128(u128::from(vm_count + n));
        (0..20_000).map(|n| Request::new(id(n), Arc::new(make(random)))).collect()
    };
    let (plain, social) = (requests(&mut random, plain), requests(&mut random, social));
    for name in NAMED {
        let policy = Policy::named(name).expect("a named policy");
        measure(&format!("{name}: plain"), &inventory, &policy, &plain);
        measure(&format!("{name}: apart and spread"), &inventory, &policy, &social);
    }
    let start = Instant::now();
    let beats = 1_000_000u64;
    for n in 0..beats {
        let load = Load { cpu_centi: n as u32, memory: Bytes::gib(1) };
        inventory.heartbeat(NodeId::from_u128(u128::from(n % host_count)), load).expect("it is there");
    }
    println!("heartbeats: {:.1} million/s", beats as f64 / start.elapsed().as_secs_f64() / 1e6);
    let start = Instant::now();
    let snapshot = inventory.clone();
    println!("snapshot: {} us, {} VMs", start.elapsed().as_micros(), snapshot.held_count());
}
