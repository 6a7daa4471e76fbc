use std::num::NonZeroU32;

use super::*;
use crate::{LabelMatch, LabelRule, Load, Seconds, Spread, Taint, TaintEffect, Ties, Weights};

fn named(name: &str) -> Policy {
    Policy::named(name).unwrap()
}

/// Three hosts of 16 threads and 64 GiB with so much free; `None`: empty.
fn with_free(free: [Option<(u32, u64)>; 3]) -> Inventory {
    let mut inventory = cluster((1..=3).map(|n| host(n, 16, 64)));
    for (n, free) in (1..).zip(free) {
        if let Some((vcpus, gib)) = free {
            hold(&mut inventory, n, n + 100, profile(16 - vcpus, 64 - gib));
        }
    }
    inventory
}

#[test]
fn pack_takes_the_tightest_and_spread_the_emptiest() {
    let inventory = with_free([Some((8, 32)), Some((4, 16)), Some((12, 48))]);
    check_by(&named("pack"), &inventory, &request(1, profile(2, 8)), Ok(2));
    check_by(&named("spread"), &inventory, &request(1, profile(2, 8)), Ok(3));
    check_by(&named("pack"), &inventory, &request(1, profile(6, 8)), Ok(1));
}

#[test]
fn balance_uses_up_what_is_left_over() {
    // One has much memory left, one much CPU.
    let inventory = with_free([Some((4, 48)), Some((12, 16)), Some((2, 2))]);
    check_by(&named("balance"), &inventory, &request(1, profile(1, 32)), Ok(1));
    check_by(&named("balance"), &inventory, &request(1, profile(8, 4)), Ok(2));
}

#[test]
fn least_fragmentation_keeps_the_place_of_a_large_vm() {
    // Two have exactly half free; the third has a little more than a quarter: nothing larger would fit there anyway.
    let inventory = with_free([Some((8, 32)), Some((8, 32)), Some((6, 24))]);
    let small = request(1, profile(1, 4));
    check_by(&named("least-fragmentation"), &inventory, &small, Ok(3));
    let only_fragmentation = Weights { fragmentation: 1, ..Weights::default() };
    check_by(&Policy::custom("f", only_fragmentation).unwrap(), &inventory, &small, Ok(3));
}

#[test]
fn lifetime_aware_puts_together_what_ends_together() {
    let mut inventory = cluster((1..=3).map(|n| host(n, 16, 64)));
    for (n, ends) in [(1, 1_000), (2, 1_000_000), (3, 20_000)] {
        let mut long = request(n + 100, profile(4, 16));
        long.ends = Some(Seconds(ends));
        inventory.hold(node(n), &long).unwrap();
    }
    let ending = |ends| Request { ends: Some(Seconds(ends)), ..request(1, profile(1, 4)) };
    check_by(&named("lifetime-aware"), &inventory, &ending(900_000), Ok(2));
    check_by(&named("lifetime-aware"), &inventory, &ending(500), Ok(1));
    check_by(&named("lifetime-aware"), &inventory, &ending(15_000), Ok(2));
    inventory.remove_vm(vm(102)).unwrap();
    check_by(&named("lifetime-aware"), &inventory, &ending(15_000), Ok(3));
}

#[test]
fn energy_wakes_no_empty_host_while_another_has_room() {
    let inventory = with_free([None, Some((15, 62)), None]);
    check_by(&named("energy"), &inventory, &request(1, profile(8, 8)), Ok(2));
    check_by(&named("energy"), &inventory, &request(1, profile(16, 8)), Ok(1));
}

#[test]
fn load_goes_where_little_is_measured() {
    let mut inventory = with_free([None, None, None]);
    for (n, cpu_centi, gib) in [(1, 800, 1), (2, 300, 1), (3, 100, 60)] {
        inventory.heartbeat(node(n), Load { cpu_centi, memory: Bytes::gib(gib) }).unwrap();
    }
    let load = Policy::custom("idle", Weights { load: 1, ..Weights::default() }).unwrap();
    check_by(&load, &inventory, &request(1, profile(1, 1)), Ok(2));
}

#[test]
fn preferences_decide_between_hosts_and_never_rule_one_out() {
    let mut hosts = [placed_host(1, "z1", "r1"), placed_host(2, "z1", "r2"), placed_host(3, "z2", "r3")];
    hosts[2].labels.insert("disk".to_owned(), "ssd".to_owned());
    hosts[0].taints.insert(Taint {
        key: "old".to_owned(),
        value: String::new(),
        effect: TaintEffect::PreferNoSchedule,
    });
    let mut inventory = cluster(hosts);
    let spread = Policy {
        weights: Weights { preferences: 1000, spread: 1, ..Weights::default() },
        ..Policy::default()
    };
    let wanted = |profile: Profile, expect| {
        check_by(&spread, &inventory, &request(1, profile.clone()), Ok(expect));
        let only = Request { only: Some(node(1)), ..request(1, profile) };
        check_by(&spread, &inventory, &only, Ok(1));
    };
    let soft = Strength::Preferred(100);
    wanted(profile(1, 1), 2);
    let rule = LabelRule {
        key: "disk".to_owned(),
        matches: LabelMatch::In(["ssd".to_owned()].into()),
        strength: soft,
    };
    wanted(Profile { labels: vec![rule], ..profile(1, 1) }, 3);
    hold(&mut inventory, 2, 50, Profile { groups: ["g".to_owned()].into(), ..profile(1, 1) });
    hold(&mut inventory, 3, 51, Profile { groups: ["h".to_owned()].into(), ..profile(1, 1) });
    let wanted = |profile: Profile, expect| {
        check_by(&spread, &inventory, &request(1, profile), Ok(expect));
    };
    for scope in [Scope::Host, Scope::Rack, Scope::Zone] {
        let rule = |direction, group| Profile {
            affinity: vec![affinity(direction, group, scope, soft)],
            ..profile(1, 1)
        };
        wanted(rule(Direction::Together, "h"), 3);
        wanted(rule(Direction::Apart, "h"), 2);
        let even = Spread { group: "g".to_owned(), scope, max_skew: NonZeroU32::MIN, strength: soft };
        wanted(Profile { spread: vec![even], ..profile(1, 1) }, 3);
    }
}

#[test]
fn a_preferred_companion_is_found_among_thousands_of_better_hosts() {
    let mut inventory = cluster((1..=3000).map(|n| host(n, 16, 64)));
    hold(&mut inventory, 2777, 1, Profile { groups: ["g".to_owned()].into(), ..profile(1, 1) });
    (1..=200).for_each(|n| hold(&mut inventory, n, n + 10, profile(14, 60)));
    let rule = affinity(Direction::Together, "g", Scope::Host, Strength::Preferred(100));
    let wanted = request(2, Profile { affinity: vec![rule], ..profile(1, 1) });
    check(&inventory, &wanted, Ok(2777));
}

#[test]
fn ties_go_to_the_smallest_id_or_follow_the_seed() {
    let inventory = cluster((1..=50).map(|n| host(n, 16, 64)));
    check(&inventory, &request(1, profile(1, 1)), Ok(1));
    let chosen = |seed: u64| -> Vec<NodeId> {
        let policy = Policy { ties: Ties::Seeded(seed), ..Policy::default() };
        (0..20).map(|n| decide(&inventory, &request(n, profile(1, 1)), &policy).unwrap().host).collect()
    };
    assert_eq!(chosen(1), chosen(1));
    assert_ne!(chosen(1), chosen(2));
    let different: std::collections::BTreeSet<NodeId> = chosen(1).into_iter().collect();
    assert!(different.len() > 10, "{different:?}");
}

#[test]
fn the_order_of_events_does_not_matter() {
    let hosts: Vec<HostSpec> = (1..=40).map(|n| host(n, 16, 64)).collect();
    let (mut one, mut other) = (cluster(hosts.clone()), cluster(hosts.into_iter().rev()));
    for n in 1..=40 {
        hold(&mut one, n, n, profile(1 + n as u32 % 7, 4));
        hold(&mut other, 41 - n, 41 - n, profile(1 + (41 - n) as u32 % 7, 4));
    }
    for name in crate::NAMED {
        let wanted = request(100, profile(2, 8));
        let decide = |inventory| {
            decide(inventory, &wanted, &named(name)).map(|decision| (decision.host, decision.score))
        };
        assert_eq!(decide(&one), decide(&other), "{name}");
    }
}
