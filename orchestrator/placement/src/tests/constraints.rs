use std::num::NonZeroU32;

use super::*;
use crate::{
    HostState, InventoryError, LabelMatch, LabelRule, NumaNode, NumaPolicy, PageBacking, Percent, Pinning,
    ProjectLimit, Refusal, Spread, Taint, TaintEffect, Toleration,
};

#[test]
fn capacity_counts_what_is_held_and_reserved() {
    let mut spec = host(1, 8, 32);
    spec.cpu.reserved = VcpuCount::new(2);
    spec.memory.reserved = Bytes::gib(4);
    let mut inventory = cluster([spec]);
    hold(&mut inventory, 1, 1, profile(2, 20));
    check(&inventory, &request(2, profile(4, 8)), Ok(1));
    check(
        &inventory,
        &request(2, profile(5, 9)),
        Err("h1: needs 5 vCPU(s), 4 of 6 free, needs 9 GiB memory, 8 GiB of 28 GiB free"),
    );
    inventory.remove_vm(vm(1)).unwrap();
    check(&inventory, &request(2, profile(6, 28)), Ok(1));
}

#[test]
fn overcommit_gives_things_out_several_times_and_fractions_count() {
    let mut spec = host(1, 3, 10);
    (spec.cpu.overcommit, spec.memory.overcommit) = (Percent::new(150), Percent::new(120));
    let inventory = cluster([spec]);
    check(&inventory, &request(1, profile(4, 12)), Ok(1));
    check(
        &inventory,
        &request(1, profile(5, 13)),
        Err("h1: needs 5 vCPU(s), 4.50 of 4.50 free, needs 13 GiB memory, 12 GiB of 12 GiB free"),
    );
}

#[test]
fn room_is_exact_to_the_byte_however_large_the_host() {
    let mut inventory = cluster([host(1, 256, 4096)]);
    let mut odd = profile(1, 0);
    odd.demand.memory = Bytes::new((3001 << 30) + 1);
    hold(&mut inventory, 1, 1, odd.clone());
    odd.demand.memory = Bytes::new((1095 << 30) - 1);
    check(&inventory, &request(2, odd.clone()), Ok(1));
    odd.demand.memory = Bytes::new(1095 << 30);
    assert!(decide(&inventory, &request(2, odd), &Policy::default()).is_err());
}

#[test]
fn a_demand_beyond_any_machine_is_refused_and_cannot_be_held() {
    let mut inventory = cluster([host(1, 8, 32)]);
    let huge = request(1, profile(u32::MAX, 1));
    assert!(decide(&inventory, &huge, &Policy::default()).is_err());
    assert_eq!(inventory.hold(node(1), &huge), Err(InventoryError::Demand { vm: vm(1) }));
    let mut spec = host(2, 8, 32);
    spec.memory.hugepages_2mib = Bytes::gib(33);
    let error = inventory.add_host(&spec).unwrap_err().to_string();
    assert!(error.ends_with("memory of hugepage pools is 33 GiB: it may be at most 32 GiB"), "{error}");
}

#[test]
fn hugepages_come_from_their_pool_in_whole_pages() {
    let mut spec = host(1, 8, 32);
    spec.memory.hugepages_1gib = Bytes::gib(4);
    let mut inventory = cluster([spec]);
    let mut huge = profile(1, 0);
    (huge.demand.memory, huge.demand.backing) = (Bytes::mib(1500), PageBacking::Huge1Gib);
    hold(&mut inventory, 1, 1, huge.clone());
    hold(&mut inventory, 1, 2, huge.clone());
    check(&inventory, &request(3, huge), Err("h1: needs 2 GiB 1 GiB hugepages, 0 B of 4 GiB free"));
    check(&inventory, &request(3, profile(1, 28)), Ok(1));
    check(&inventory, &request(3, profile(1, 29)), Err("h1: needs 29 GiB memory, 28 GiB of 28 GiB free"));
}

#[test]
fn a_pinned_vcpu_takes_its_thread_from_all_who_share() {
    let mut spec = host(1, 4, 32);
    spec.cpu.overcommit = Percent::new(200);
    let mut inventory = cluster([spec]);
    let mut pinned = profile(3, 1);
    pinned.demand.pinning = Pinning::Dedicated;
    hold(&mut inventory, 1, 1, pinned.clone());
    check(&inventory, &request(2, profile(2, 1)), Ok(1));
    check(&inventory, &request(2, profile(3, 1)), Err("h1: needs 3 vCPU(s), 2 of 8 free"));
    check(
        &inventory,
        &request(2, pinned),
        Err("h1: needs 6 vCPU(s), 2 of 8 free, needs 3 dedicated thread(s), 1 of 4 free"),
    );
}

#[test]
fn a_vm_that_must_be_on_one_numa_node_needs_one_with_room_for_all_of_it() {
    let mut spec = host(1, 8, 32);
    let half = NumaNode { threads: VcpuCount::new(4), memory: Bytes::gib(16) };
    spec.numa = vec![half, half];
    let mut inventory = cluster([spec]);
    let bound = |vcpus, gib| {
        let mut profile = profile(vcpus, gib);
        profile.demand.numa = NumaPolicy::Single;
        profile
    };
    hold(&mut inventory, 1, 1, bound(3, 4));
    hold(&mut inventory, 1, 2, bound(2, 4));
    let nodes = |vm_id| inventory.vm(vm(vm_id)).next().unwrap().numa_node();
    assert_eq!((nodes(1), nodes(2)), (Some(0), Some(1)));
    check(&inventory, &request(3, bound(2, 12)), Ok(1));
    check(
        &inventory,
        &request(3, bound(3, 4)),
        Err("h1: does not fit on one of 2 NUMA node(s): at most 2 vCPU(s) and 12 GiB free on one"),
    );
    check(&inventory, &request(3, profile(3, 4)), Ok(1));
}

fn label_rule(key: &str, matches: LabelMatch) -> Profile {
    let rule = LabelRule { key: key.to_owned(), matches, strength: Strength::Required };
    Profile { labels: vec![rule], ..profile(1, 1) }
}

#[test]
fn required_labels_read_labels_and_places() {
    let mut ssd = placed_host(1, "z1", "r1");
    ssd.labels.insert("disk".to_owned(), "ssd".to_owned());
    let inventory = cluster([ssd, placed_host(2, "z2", "r2")]);
    let one = |text: &str| LabelMatch::In([text.to_owned()].into());
    let none = |text: &str| LabelMatch::NotIn([text.to_owned()].into());
    check(&inventory, &request(1, label_rule("disk", one("ssd"))), Ok(1));
    check(&inventory, &request(1, label_rule("disk", none("ssd"))), Ok(2));
    check(&inventory, &request(1, label_rule("disk", LabelMatch::Exists)), Ok(1));
    check(&inventory, &request(1, label_rule("disk", LabelMatch::Absent)), Ok(2));
    check(&inventory, &request(1, label_rule("zone", one("z2"))), Ok(2));
    check(&inventory, &request(1, label_rule("rack", none("r1"))), Ok(2));
    check(&inventory, &request(1, label_rule("host", one("h2"))), Ok(2));
    check(
        &inventory,
        &request(1, label_rule("disk", one("nvme"))),
        Err("h1: needs disk=nvme, and it is 'ssd'; h2: needs disk=nvme"),
    );
}

#[test]
fn taints_keep_away_who_does_not_tolerate_them() {
    let mut tainted = host(1, 8, 32);
    tainted.taints.insert(Taint {
        key: "gpu".to_owned(),
        value: "a100".to_owned(),
        effect: TaintEffect::NoSchedule,
    });
    let inventory = cluster([tainted]);
    let tolerating = |value: Option<&str>| {
        let toleration = Toleration { key: "gpu".to_owned(), value: value.map(str::to_owned) };
        Profile { tolerations: [toleration].into(), ..profile(1, 1) }
    };
    check(&inventory, &request(1, profile(1, 1)), Err("h1: has taint gpu=a100"));
    check(&inventory, &request(1, tolerating(Some("h100"))), Err("h1: has taint gpu=a100"));
    check(&inventory, &request(1, tolerating(Some("a100"))), Ok(1));
    check(&inventory, &request(1, tolerating(None)), Ok(1));
}

#[test]
fn pools_networks_and_the_baseline_must_be_there() {
    let mut spec = host(1, 8, 32);
    spec.pools.insert("fast".to_owned());
    spec.networks.insert("lan".to_owned());
    spec.baselines.insert("x86-64-v3".to_owned());
    let inventory = cluster([spec, host(2, 8, 32)]);
    let wanted = |pool: &str, network: &str, baseline: &str| Profile {
        pools: [pool.to_owned()].into(),
        networks: [network.to_owned()].into(),
        baseline: baseline.to_owned(),
        ..profile(1, 1)
    };
    check(&inventory, &request(1, wanted("fast", "lan", "x86-64-v3")), Ok(1));
    check(
        &inventory,
        &request(1, wanted("slow", "wan", "x86-64-v4")),
        Err(
            "h1: does not reach pool 'slow', does not reach network 'wan', cannot present CPU baseline 'x86-64-v4'; \
             h2: does not reach pool 'slow', does not reach network 'wan', cannot present CPU baseline 'x86-64-v4'",
        ),
    );
}

#[test]
fn only_a_ready_host_takes_work() {
    let mut inventory = cluster([host(1, 8, 32), host(2, 8, 32)]);
    inventory.set_state(node(1), HostState::Cordoned).unwrap();
    check(&inventory, &request(1, profile(1, 1)), Ok(2));
    inventory.set_state(node(2), HostState::Suspect).unwrap();
    check(
        &inventory,
        &request(1, profile(1, 1)),
        Err("h1: the host is cordoned, not ready; h2: the host is suspect, not ready"),
    );
    inventory.set_state(node(1), HostState::Ready).unwrap();
    check(&inventory, &request(1, profile(1, 1)), Ok(1));
}

#[test]
fn hosts_can_be_asked_for_preferred_and_ruled_out() {
    let inventory = cluster([host(1, 4, 8), host(2, 8, 32)]);
    let plain = request(1, profile(1, 1));
    check(&inventory, &plain, Ok(1));
    check(&inventory, &Request { preferred: Some(node(2)), ..plain.clone() }, Ok(2));
    check(&inventory, &Request { excluded: vec![node(1)], ..plain.clone() }, Ok(2));
    let large = Request { only: Some(node(1)), ..request(1, profile(8, 1)) };
    check(&inventory, &large, Err("h1: needs 8 vCPU(s), 4 of 4 free; h2: another host was asked for"));
    let gone = Request { only: Some(node(9)), ..plain };
    assert_eq!(decide(&inventory, &gone, &Policy::default()), Err(Refusal::NoHost));
}

#[test]
fn a_group_is_kept_apart_and_the_vm_is_not_in_its_own_way() {
    let mut inventory = cluster([host(1, 8, 32)]);
    let db = apart(1, "db", Scope::Host);
    hold(&mut inventory, 1, 1, db.clone());
    check(&inventory, &request(1, db.clone()), Ok(1));
    (2..=5).for_each(|n| hold(&mut inventory, 1, n, db.clone()));
    check(
        &inventory,
        &request(9, db),
        Err("h1: holds 'v1', 'v2', 'v3' and 2 more of anti-affinity group 'db', \
             'v1', 'v2', 'v3' and 2 more must be apart from group 'db'"),
    );
}

#[test]
fn apart_binds_both_sides_in_each_scope() {
    for (scope, ruled_out) in [(Scope::Host, 1), (Scope::Rack, 2), (Scope::Zone, 3)] {
        let mut inventory = cluster([
            placed_host(1, "z1", "r1"),
            placed_host(2, "z1", "r1"),
            placed_host(3, "z1", "r2"),
            placed_host(4, "z2", "r3"),
        ]);
        let loner = Profile { groups: Default::default(), ..apart(1, "noisy", scope) };
        hold(&mut inventory, 1, 1, loner);
        let noisy = Profile { groups: ["noisy".to_owned()].into(), ..profile(1, 1) };
        check(&inventory, &request(2, noisy.clone()), Ok(ruled_out + 1));
        inventory.remove_vm(vm(1)).unwrap();
        check(&inventory, &request(2, noisy), Ok(1));
    }
}

#[test]
fn together_follows_the_group_and_the_first_member_may_go_anywhere() {
    for (scope, expect) in [(Scope::Host, 3), (Scope::Rack, 2), (Scope::Zone, 2)] {
        let mut inventory =
            cluster([placed_host(1, "z1", "r1"), placed_host(2, "z2", "r2"), placed_host(3, "z2", "r2")]);
        let rule = affinity(Direction::Together, "web", scope, Strength::Required);
        let follower = Profile { affinity: vec![rule], ..profile(1, 1) };
        let member = Profile { groups: ["web".to_owned()].into(), ..follower.clone() };
        check(
            &inventory,
            &request(2, follower.clone()),
            Err(&format!(
                "h1: no VM of group 'web' is on this {scope}; h2: no VM of group 'web' is on this {scope}; \
                 h3: no VM of group 'web' is on this {scope}"
            )),
        );
        check(&inventory, &request(2, member.clone()), Ok(1));
        hold(&mut inventory, 3, 1, member);
        // On the host itself, or on the first of its place by id.
        let spread = Policy::named("spread").unwrap();
        check_by(&spread, &inventory, &request(2, follower), Ok(expect));
    }
}

#[test]
fn one_vm_can_be_followed_and_avoided() {
    let rule = |direction| Affinity {
        peers: Peers::Vm(vm(1)),
        direction,
        scope: Scope::Host,
        strength: Strength::Required,
    };
    let wanting = |direction| Profile { affinity: vec![rule(direction)], ..profile(1, 1) };
    let mut inventory = cluster([host(1, 8, 32), host(2, 8, 32)]);
    hold(&mut inventory, 2, 1, profile(1, 1));
    check(&inventory, &request(2, wanting(Direction::Together)), Ok(2));
    hold(&mut inventory, 1, 2, wanting(Direction::Apart));
    check(&inventory, &request(3, wanting(Direction::Apart)), Ok(1));
    // It binds the one that is avoided, too.
    inventory.remove_vm(vm(1)).unwrap();
    let not_second = Request { excluded: vec![node(2)], ..request(1, profile(1, 1)) };
    check(
        &inventory,
        &not_second,
        Err(
            "h1: 'v2' must be apart from VM 00000000-0000-0000-0000-000000000001; h2: the request rules it out",
        ),
    );
}

#[test]
fn spread_keeps_the_skew_in_each_scope() {
    for scope in [Scope::Host, Scope::Rack, Scope::Zone] {
        let mut inventory =
            cluster([placed_host(1, "z1", "r1"), placed_host(2, "z2", "r2"), placed_host(3, "z3", "r3")]);
        let rule = Spread {
            group: "web".to_owned(),
            scope,
            max_skew: NonZeroU32::MIN,
            strength: Strength::Required,
        };
        let web = Profile { groups: ["web".to_owned()].into(), spread: vec![rule], ..profile(1, 1) };
        for n in 0..6 {
            let expect = n % 3 + 1;
            check(&inventory, &request(n, web.clone()), Ok(expect));
            hold(&mut inventory, expect, n, web.clone());
        }
        // Whoever cannot take any still counts as long as it is ready.
        hold(&mut inventory, 1, 90, profile(6, 1));
        let next = request(7, web.clone());
        check(&inventory, &next, Ok(2));
        hold(&mut inventory, 2, 7, web.clone());
        hold(&mut inventory, 3, 8, web.clone());
        let here = "would be number 4 of group 'web' on this";
        let rest = "another has 2, and the skew may be 1";
        check(
            &inventory,
            &request(9, web.clone()),
            Err(&format!(
                "h1: needs 1 vCPU(s), 0 of 8 free; h2: {here} {scope}, {rest}; h3: {here} {scope}, {rest}"
            )),
        );
        inventory.set_state(node(1), HostState::Draining).unwrap();
        check(&inventory, &request(9, web), Ok(2));
    }
}

#[test]
fn a_project_takes_no_more_than_it_may() {
    let mut inventory = cluster([host(1, 64, 256)]);
    let of_web = |vcpus, gib| Profile { project: "web".to_owned(), ..profile(vcpus, gib) };
    let limit = |vcpus, gib: Option<u64>, vms| ProjectLimit { vcpus, memory: gib.map(Bytes::gib), vms };
    hold(&mut inventory, 1, 1, of_web(4, 8));
    let check = |inventory: &Inventory, request: &Request, expect: Option<&str>| {
        let decision = decide(inventory, request, &Policy::default());
        assert_eq!(decision.err().map(|error| error.to_string()).as_deref(), expect);
    };
    inventory.set_project_limit("web", limit(Some(6), None, None));
    check(&inventory, &request(2, of_web(2, 8)), None);
    check(
        &inventory,
        &request(2, of_web(3, 8)),
        Some("project 'web' may take 6 vCPU(s), takes 4, and this needs 3"),
    );
    check(&inventory, &request(2, profile(3, 8)), None);
    inventory.set_project_limit("web", limit(None, Some(10), None));
    check(
        &inventory,
        &request(2, of_web(1, 3)),
        Some("project 'web' may take 10 GiB memory, takes 8 GiB, and this needs 3 GiB"),
    );
    inventory.set_project_limit("web", limit(None, None, Some(1)));
    check(&inventory, &request(2, of_web(1, 1)), Some("project 'web' may have 1 VM(s) and has 1"));
    // A move is not another VM.
    check(&inventory, &request(1, of_web(4, 8)), None);
}

#[test]
fn each_project_is_charged_once_for_a_vm_whichever_place_goes_first() {
    let of = |project: &str, vcpus| Profile { project: project.to_owned(), ..profile(vcpus, 1) };
    let mut inventory = cluster([host(1, 8, 32), host(2, 8, 32), host(3, 8, 32)]);
    let used = |inventory: &Inventory, project| {
        let usage = inventory.project_usage(project);
        (usage.vms, usage.vcpus)
    };
    hold(&mut inventory, 1, 7, of("a", 1));
    hold(&mut inventory, 2, 7, of("b", 2));
    hold(&mut inventory, 3, 7, of("a", 3));
    assert_eq!((used(&inventory, "a"), used(&inventory, "b")), ((1, 1), (1, 2)));
    inventory.release(vm(7), node(1)).unwrap();
    assert_eq!((used(&inventory, "a"), used(&inventory, "b")), ((1, 3), (1, 2)));
    inventory.release(vm(7), node(3)).unwrap();
    inventory.release(vm(7), node(2)).unwrap();
    assert_eq!((used(&inventory, "a"), used(&inventory, "b")), ((0, 0), (0, 0)));
}

#[test]
fn a_vm_on_both_ends_of_a_move_counts_on_both_and_once_for_its_project() {
    let mut inventory = cluster([host(1, 8, 32), host(2, 8, 32)]);
    let member = Profile { project: "p".to_owned(), ..apart(2, "db", Scope::Host) };
    hold(&mut inventory, 1, 1, member.clone());
    hold(&mut inventory, 2, 1, member.clone());
    inventory.verify().unwrap();
    assert_eq!(inventory.project_usage("p").vms, 1);
    assert!(decide(&inventory, &request(2, member.clone()), &Policy::default()).is_err());
    inventory.release(vm(1), node(1)).unwrap();
    assert_eq!(inventory.project_usage("p").vms, 1);
    check(&inventory, &request(2, member), Ok(1));
    inventory.release(vm(1), node(2)).unwrap();
    assert_eq!(inventory.project_usage("p").vms, 0);
}

#[test]
fn a_host_described_anew_keeps_its_vms_and_moves_their_groups() {
    let mut inventory = cluster([placed_host(1, "z1", "r1"), placed_host(2, "z2", "r2")]);
    let db = apart(2, "db", Scope::Zone);
    hold(&mut inventory, 1, 1, db.clone());
    check(&inventory, &request(2, db.clone()), Ok(2));
    inventory.update_host(&placed_host(1, "z2", "r9")).unwrap();
    assert!(decide(&inventory, &request(2, db), &Policy::default()).is_err());
    assert_eq!(inventory.remove_host(node(1)), Err(InventoryError::HostInUse { host: node(1), vms: 1 }));
    inventory.remove_vm(vm(1)).unwrap();
    inventory.remove_host(node(1)).unwrap();
    inventory.verify().unwrap();
    assert_eq!(inventory.host_count(), 1);
}
