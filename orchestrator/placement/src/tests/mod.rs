//! The engine from outside, one rule at a time.

mod commits;
mod constraints;
mod explanations;
mod groups;
mod policies;
mod preemption;
mod reserve;

use std::sync::Arc;

use drover_ids::{NodeId, VmId};
use drover_units::{Bytes, VcpuCount};

use crate::{
    Affinity, Demand, Direction, HostSpec, Inventory, Peers, Policy, Profile, Reason, Request, Scope,
    Strength, decide,
};

fn node(n: u128) -> NodeId {
    NodeId::from_u128(n)
}

fn vm(n: u128) -> VmId {
    VmId::from_u128(n)
}

/// `hN` with so many threads and GiB.
fn host(n: u128, threads: u32, gib: u64) -> HostSpec {
    HostSpec::new(node(n), format!("h{n}"), VcpuCount::new(threads), Bytes::gib(gib))
}

/// The same in a rack of a zone.
fn placed_host(n: u128, zone: &str, rack: &str) -> HostSpec {
    let mut spec = host(n, 8, 32);
    spec.topology.zone = zone.to_owned();
    spec.topology.rack = rack.to_owned();
    spec
}

fn cluster(hosts: impl IntoIterator<Item = HostSpec>) -> Inventory {
    let mut inventory = Inventory::new();
    for host in hosts {
        inventory.add_host(&host).unwrap();
    }
    inventory
}

fn profile(vcpus: u32, gib: u64) -> Profile {
    Profile::new(Demand::new(VcpuCount::new(vcpus), Bytes::gib(gib)))
}

/// VM `vN` of some profile.
fn request(n: u128, profile: Profile) -> Request {
    Request { name: format!("v{n}"), ..Request::new(vm(n), Arc::new(profile)) }
}

/// Puts VM `vN` on host `hN`.
fn hold(inventory: &mut Inventory, on: u128, n: u128, profile: Profile) {
    inventory.hold(node(on), &request(n, profile)).unwrap();
}

fn affinity(direction: Direction, group: &str, scope: Scope, strength: Strength) -> Affinity {
    Affinity { peers: Peers::Group(group.to_owned()), direction, scope, strength }
}

/// A member of a group that must be apart from the others.
fn apart(vcpus: u32, group: &str, scope: Scope) -> Profile {
    let rule = affinity(Direction::Apart, group, scope, Strength::Required);
    Profile { groups: [group.to_owned()].into(), affinity: vec![rule], ..profile(vcpus, 1) }
}

/// Where a request goes, or all that is against each host.
fn check(inventory: &Inventory, request: &Request, expect: Result<u128, &str>) {
    check_by(&Policy::default(), inventory, request, expect);
}

fn check_by(policy: &Policy, inventory: &Inventory, request: &Request, expect: Result<u128, &str>) {
    inventory.verify().unwrap();
    match (decide(inventory, request, policy), expect) {
        (Ok(decision), Ok(expect)) => assert_eq!(decision.host, node(expect)),
        (Err(_), Err(expect)) => assert_eq!(against(inventory, request), expect),
        (got, expect) => panic!("got {got:?}, expected {expect:?}: {}", against(inventory, request)),
    }
}

/// "h1: reason, reason; h2: reason"
fn against(inventory: &Inventory, request: &Request) -> String {
    let all = inventory.check_all(request);
    let hosts = all.iter().map(|(host, reasons)| {
        let texts: Vec<String> = reasons.iter().map(Reason::to_string).collect();
        format!("{}: {}", inventory.host(*host).unwrap().name(), texts.join(", "))
    });
    hosts.collect::<Vec<_>>().join("; ")
}
