//! Small clusters in which it is plain what a planner should do.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use drover_cluster_state::Moment;
use drover_ids::{NodeId, VmId};
use drover_placement::{
    Affinity, Demand, Direction, HostSpec, HostState, Inventory, Load, Peers, Policies, Policy, Profile,
    Request, Scope, Strength, Topology,
};
use drover_rebalance::{
    Basis, ConsolidateLimits, CostModel, DrainRefused, MigrationSample, Mode, Parallelism, Plan, Proposal,
    Rebalancer, RoomLimits, Settings, StuckCause, Usage, VmUsage, Why, consolidate, defragment, drain,
};
use drover_units::{Bytes, BytesPerSec, VcpuCount};

use crate::model::{node, vm_id};

/// A cluster of equal hosts of 8 threads and 32 GiB.
struct Cluster {
    inventory: Inventory,
    policies: Policies,
    costs: CostModel,
    usage: Usage,
    immovable: BTreeSet<VmId>,
}

fn request(number: u128, vcpus: u32, gib: u64) -> Request {
    let demand = Demand::new(VcpuCount::new(vcpus), Bytes::gib(gib));
    Request { name: format!("vm-{number}"), ..Request::new(vm_id(number), Arc::new(Profile::new(demand))) }
}

fn with_rule(request: Request, direction: Direction, group: &str) -> Request {
    let rule = Affinity {
        peers: Peers::Group(group.to_owned()),
        direction,
        scope: Scope::Host,
        strength: Strength::Required,
    };
    let mut profile = Profile::clone(&request.profile);
    profile.groups.insert(group.to_owned());
    profile.affinity.push(rule);
    Request { profile: Arc::new(profile), ..request }
}

impl Cluster {
    fn of_hosts(count: u128) -> Self {
        let mut inventory = Inventory::new();
        for number in 1..=count {
            let rack = format!("r{}", number.div_ceil(2));
            let spec = HostSpec {
                topology: Topology { zone: "z".to_owned(), rack },
                ..HostSpec::new(node(number), format!("host-{number}"), VcpuCount::new(8), Bytes::gib(32))
            };
            inventory.add_host(&spec).expect("it is new");
        }
        Self {
            inventory,
            policies: Policies::default(),
            costs: CostModel::new(),
            usage: Usage::new(),
            immovable: BTreeSet::new(),
        }
    }

    fn hold(&mut self, host: u128, request: &Request) {
        self.inventory.hold(node(host), request).expect("it is new there");
    }

    fn basis(&self) -> Basis<'_> {
        Basis {
            inventory: &self.inventory,
            policies: &self.policies,
            costs: &self.costs,
            usage: &self.usage,
            immovable: &self.immovable,
        }
    }

    fn drain(&self, hosts: &[u128], limits: Parallelism) -> Result<Plan, DrainRefused> {
        drain(&self.basis(), &hosts.iter().copied().map(node).collect(), &limits)
    }

    /// Carries a plan out.
    fn apply(&mut self, plan: &Plan) {
        for mv in plan.moves() {
            let request = self.inventory.vm(mv.vm).next().expect("it is held").request();
            self.inventory.hold(mv.to, &request).expect("it is not there yet");
            self.inventory.release(mv.vm, mv.from).expect("it was there");
        }
    }

    fn uses(&mut self, number: u128, cpu_centi: u32) {
        self.usage.measure(vm_id(number), VmUsage { cpu_centi: Some(cpu_centi), ..VmUsage::default() });
    }
}

fn shape(plan: &Plan) -> Vec<Vec<(VmId, NodeId, NodeId)>> {
    plan.waves.iter().map(|wave| wave.moves.iter().map(|mv| (mv.vm, mv.from, mv.to)).collect()).collect()
}

#[test]
fn a_drain_keeps_to_its_parallelism() {
    let mut cluster = Cluster::of_hosts(4);
    (1..=4).for_each(|number| cluster.hold(1, &request(number, 1, 4)));
    let waves = |per_source, per_target, cluster_wide| {
        let limits = Parallelism { per_source, per_target, cluster: cluster_wide };
        cluster.drain(&[1], limits).unwrap().waves.iter().map(|wave| wave.moves.len()).collect::<Vec<_>>()
    };
    assert_eq!(waves(4, 4, 4), [4]);
    assert_eq!(waves(2, 4, 4), [2, 2]);
    assert_eq!(waves(4, 4, 3), [3, 1]);
    // `pack` sends all to one host.
    assert_eq!(waves(4, 1, 4), [1, 1, 1, 1]);
}

#[test]
fn a_drain_that_cannot_place_all_moves_none_and_says_why() {
    let mut cluster = Cluster::of_hosts(2);
    cluster.hold(1, &request(1, 2, 8));
    cluster.hold(1, &request(2, 4, 16));
    cluster.hold(2, &request(3, 4, 16));
    let refused = cluster.drain(&[1], Parallelism::default()).unwrap_err();
    let DrainRefused::Stuck(stuck) = &refused else { panic!("{refused}") };
    assert_eq!(stuck.iter().map(|stuck| stuck.vm).collect::<Vec<_>>(), [vm_id(1)]);
    let text = refused.to_string();
    assert!(text.contains("'vm-1'") && text.contains("vCPU"), "{text}");
    cluster.immovable.insert(vm_id(2));
    let DrainRefused::Stuck(stuck) = cluster.drain(&[1], Parallelism::default()).unwrap_err() else {
        panic!()
    };
    assert_eq!((stuck[0].vm, &stuck[0].cause), (vm_id(2), &StuckCause::Immovable));
    assert_eq!(cluster.drain(&[9], Parallelism::default()), Err(DrainRefused::UnknownHost(node(9))));
}

#[test]
fn a_drain_goes_on_while_a_vm_is_on_its_way() {
    let mut cluster = Cluster::of_hosts(3);
    cluster.hold(1, &request(1, 4, 8));
    cluster.hold(1, &request(2, 6, 8));
    cluster.hold(2, &request(1, 4, 8));
    let plan = cluster.drain(&[1], Parallelism::default()).unwrap();
    assert_eq!(shape(&plan), [[(vm_id(2), node(1), node(3))]], "what is on its way counts where it goes");
    // Between the hosts that are to be empty it cannot stay.
    let DrainRefused::Stuck(stuck) = cluster.drain(&[1, 2], Parallelism::default()).unwrap_err() else {
        panic!()
    };
    assert!(stuck.iter().all(|stuck| (stuck.vm, &stuck.cause) == (vm_id(1), &StuckCause::Moving)));
}

#[test]
fn a_drain_moves_others_out_of_the_way() {
    // Each other host has 4 threads free; the large VM needs 6.
    let mut cluster = Cluster::of_hosts(3);
    cluster.hold(1, &request(1, 6, 8));
    cluster.hold(2, &request(2, 4, 8));
    cluster.hold(3, &request(3, 4, 8));
    let plan = cluster.drain(&[1], Parallelism::default()).unwrap();
    assert_eq!(plan.waves.len(), 2, "{plan:?}");
    let order: Vec<VmId> = plan.moves().map(|mv| mv.vm).collect();
    assert_eq!(order[1], vm_id(1), "{plan:?}");
    assert_eq!(plan.moves().map(|mv| mv.why.clone()).collect::<Vec<_>>(), [Why::MakeRoom, Why::Drain]);
}

#[test]
fn what_must_be_together_leaves_together() {
    let mut cluster = Cluster::of_hosts(3);
    for number in 1..=3 {
        cluster.hold(1, &with_rule(request(number, 2, 4), Direction::Together, "db"));
    }
    cluster.hold(2, &request(4, 3, 4));
    let plan = cluster.drain(&[1], Parallelism { per_source: 1, per_target: 1, cluster: 1 }).unwrap();
    assert_eq!(plan.waves.len(), 1);
    assert!(plan.moves().all(|mv| mv.to == node(3)), "{plan:?}");
}

#[test]
fn what_must_be_apart_stays_apart_when_a_rack_is_drained() {
    let mut cluster = Cluster::of_hosts(6);
    for number in 1..=4 {
        cluster.hold(number, &with_rule(request(number, 2, 4), Direction::Apart, "web"));
    }
    let rack = cluster.basis().hosts_of_rack("r1");
    assert_eq!(rack, [node(1), node(2)].into());
    let plan = drain(&cluster.basis(), &rack, &Parallelism::default()).unwrap();
    let targets: BTreeSet<NodeId> = plan.moves().map(|mv| mv.to).collect();
    assert_eq!(targets, [node(5), node(6)].into());
    assert_eq!(cluster.basis().hosts_of_zone("z").len(), 6);
}

#[test]
fn a_drain_may_use_what_is_kept_for_failures() {
    let mut cluster = Cluster::of_hosts(2);
    cluster.policies.cluster = Policy { host_failures: 1, ..Policy::default() };
    cluster.hold(1, &request(1, 4, 8));
    cluster.hold(2, &request(2, 4, 8));
    assert_eq!(cluster.drain(&[1], Parallelism::default()).unwrap().len(), 1);
}

#[test]
fn one_cheap_move_makes_room() {
    let mut cluster = Cluster::of_hosts(2);
    cluster.hold(1, &request(1, 4, 16));
    cluster.hold(1, &request(2, 2, 2));
    cluster.hold(2, &request(3, 4, 4));
    let made = defragment(&cluster.basis(), &[request(9, 4, 8)], &RoomLimits::default()).unwrap();
    assert!(made.plan.is_empty(), "it fits on host 2");
    let large = request(9, 6, 8);
    let refused = defragment(&cluster.basis(), &[request(9, 8, 8)], &RoomLimits::default()).unwrap_err();
    assert!(refused.to_string().contains("no few migrations make room"), "{refused}");
    // Without vm-2 there are only 4 threads on host 1; without vm-3, all of host 2.
    cluster.inventory.remove_vm(vm_id(1)).unwrap();
    cluster.hold(1, &request(1, 2, 16));
    let made = defragment(&cluster.basis(), std::slice::from_ref(&large), &RoomLimits::default()).unwrap();
    assert_eq!(made.plan.len(), 1);
    cluster.apply(&made.plan);
    cluster.hold(2, &request(8, 1, 1));
    assert_eq!(cluster.inventory.check(&large, made.hosts[0]), Some(vec![]));
}

#[test]
fn room_is_made_by_chains_of_two() {
    // Whoever wants all of a host needs a host's VM gone; it fits nowhere until another one makes way for it.
    let mut cluster = Cluster::of_hosts(3);
    cluster.hold(1, &request(1, 5, 8));
    cluster.hold(2, &request(2, 4, 8));
    cluster.hold(3, &request(3, 4, 8));
    let whole = request(9, 8, 8);
    let made = defragment(&cluster.basis(), std::slice::from_ref(&whole), &RoomLimits::default()).unwrap();
    cluster.apply(&made.plan);
    assert_eq!(cluster.inventory.check(&whole, made.hosts[0]), Some(vec![]));
    // vm-1 in the way, vm-2 in its way: with host 3 cut off from the rest nothing else is possible.
    let mut cluster = Cluster::of_hosts(3);
    cluster.hold(1, &request(1, 5, 8));
    cluster.hold(2, &request(2, 4, 8));
    cluster.hold(3, &request(3, 4, 8));
    let only = Request { only: Some(node(1)), ..whole };
    let made = defragment(&cluster.basis(), std::slice::from_ref(&only), &RoomLimits::default()).unwrap();
    assert_eq!(made.plan.len(), 2, "{:?}", made.plan);
    assert_eq!(made.plan.waves.len(), 2, "one after the other");
    assert_eq!(made.plan.moves().last().map(|mv| (mv.vm, mv.from)), Some((vm_id(1), node(1))));
    assert_eq!(made.hosts, [node(1)]);
    let one = RoomLimits { moves: 1, ..RoomLimits::default() };
    assert!(defragment(&cluster.basis(), &[only], &one).is_err());
}

#[test]
fn several_requests_get_room_together() {
    let mut cluster = Cluster::of_hosts(4);
    (1..=4).for_each(|number| cluster.hold(number, &request(number, 2, 4)));
    let whole = [request(8, 8, 8), request(9, 8, 8)];
    let made = defragment(&cluster.basis(), &whole, &RoomLimits::default()).unwrap();
    assert_eq!(made.plan.len(), 2);
    assert_ne!(made.hosts[0], made.hosts[1]);
    cluster.apply(&made.plan);
    for (request, host) in whole.iter().zip(&made.hosts) {
        assert_eq!(cluster.inventory.check(request, *host), Some(vec![]));
    }
}

#[test]
fn consolidation_empties_what_takes_least_moving() {
    let mut cluster = Cluster::of_hosts(3);
    cluster.policies.cluster = Policy::named("spread").unwrap();
    cluster.hold(1, &request(1, 4, 16));
    cluster.hold(2, &request(2, 2, 4));
    let limits = ConsolidateLimits { moves: 4, parallelism: Parallelism::default() };
    let plan = consolidate(&cluster.basis(), &limits);
    assert_eq!(shape(&plan), [[(vm_id(2), node(2), node(1))]]);
    cluster.apply(&plan);
    assert!(consolidate(&cluster.basis(), &limits).is_empty(), "one host is as few as can be");
    cluster.inventory.set_state(node(1), HostState::Cordoned).unwrap();
    assert!(consolidate(&cluster.basis(), &limits).is_empty());
}

/// Host 1 is all busy, the others are idle.
fn lopsided() -> Cluster {
    let mut cluster = Cluster::of_hosts(3);
    for number in 1..=4 {
        cluster.hold(1, &request(number, 2, 4));
        cluster.uses(number, 200);
    }
    cluster
}

fn at(seconds: u64) -> Moment {
    Moment::from_millis(seconds * 1000)
}

fn propose(cluster: &Cluster, rebalancer: &mut Rebalancer, seconds: u64) -> Proposal {
    rebalancer.propose(at(seconds), &cluster.basis())
}

#[test]
fn a_busy_host_is_relieved_and_then_left_alone() {
    let mut cluster = lopsided();
    let mut rebalancer = Rebalancer::new(Settings::default());
    let proposal = propose(&cluster, &mut rebalancer, 0);
    assert!(!proposal.plan.is_empty() && !proposal.apply && !proposal.rate_limited, "{proposal:?}");
    assert!(proposal.after.deviation < proposal.before.deviation);
    for mv in proposal.plan.moves() {
        assert!(mv.gain.0 >= 3.0 * mv.price.0, "{mv:?}");
        assert!(
            matches!(mv.why, Why::Relieve { .. }) && mv.why.to_string().starts_with("CPU: source"),
            "{}",
            mv.why
        );
        rebalancer.began(at(0), mv.vm);
    }
    cluster.apply(&proposal.plan);
    let next = propose(&cluster, &mut rebalancer, 3600);
    assert!(next.plan.is_empty(), "{next:?}");
}

#[test]
fn relief_begins_later_than_it_ends() {
    // 62.5 % on one host, the mean of three 29 %: further above than where relief ends.
    let cluster = |settings: Settings| {
        let mut cluster = Cluster::of_hosts(3);
        for number in 1..=5 {
            cluster.hold(1, &request(number, 1, 2));
            cluster.uses(number, 100);
        }
        cluster.hold(2, &request(6, 1, 2));
        cluster.hold(3, &request(7, 1, 2));
        (6..=7).for_each(|number| cluster.uses(number, 100));
        propose(&cluster, &mut Rebalancer::new(settings), 0).plan.len()
    };
    let start =
        |per_mille| Settings { start_above: drover_rebalance::PerMille(per_mille), ..Settings::default() };
    assert_eq!(cluster(start(400)), 0, "not bad enough to begin");
    assert_eq!(cluster(start(300)), 2, "once begun, it goes on below the distance at which it began");
    assert_eq!(
        cluster(Settings { busy_from: drover_rebalance::PerMille(700), ..start(300) }),
        0,
        "nothing waits"
    );
}

#[test]
fn a_move_that_costs_more_than_it_brings_is_not_made() {
    let mut cluster = lopsided();
    let short = Settings { horizon: Duration::from_secs(1), ..Settings::default() };
    assert!(propose(&cluster, &mut Rebalancer::new(short), 0).plan.is_empty());
    // Measured: this network takes an hour for a migration.
    let slow = MigrationSample {
        vm: vm_id(99),
        memory: Bytes::gib(4),
        sent: Bytes::gib(4),
        total: Duration::from_secs(3600),
        downtime: Duration::from_millis(100),
    };
    cluster.costs.observe(slow);
    assert!(propose(&cluster, &mut Rebalancer::new(Settings::default()), 0).plan.is_empty());
}

#[test]
fn the_vm_that_writes_least_is_moved() {
    let mut cluster = lopsided();
    for number in 1..=4 {
        let dirty_rate = Some(BytesPerSec::new(if number == 3 { 0 } else { 700 << 20 }));
        let usage = VmUsage { cpu_centi: Some(200), memory: None, dirty_rate };
        cluster.usage.measure(vm_id(number), usage);
    }
    let one = Settings { moves_per_interval: 1, ..Settings::default() };
    let proposal = propose(&cluster, &mut Rebalancer::new(one), 0);
    assert_eq!(proposal.plan.moves().map(|mv| mv.vm).collect::<Vec<_>>(), [vm_id(3)]);
    assert!(proposal.rate_limited);
}

#[test]
fn moves_are_rationed_and_a_vm_that_was_moved_stays() {
    let cluster = lopsided();
    let settings = Settings { moves_per_interval: 1, ..Settings::default() };
    let mut rebalancer = Rebalancer::new(settings);
    let first = propose(&cluster, &mut rebalancer, 0).plan.moves().next().unwrap().vm;
    rebalancer.began(at(0), first);
    let rationed = propose(&cluster, &mut rebalancer, 1);
    assert!(rationed.plan.is_empty() && rationed.rate_limited);
    // As if it had not gone: another one is proposed, since this one must stay.
    let second = propose(&cluster, &mut rebalancer, 601).plan.moves().next().unwrap().vm;
    assert_ne!(first, second);
    let much_later = propose(&cluster, &mut rebalancer, 3600).plan.moves().next().unwrap().vm;
    assert_eq!(first, much_later);
}

#[test]
fn only_the_automatic_mode_applies() {
    for (mode, applies) in [(Mode::Manual, false), (Mode::Partial, false), (Mode::Automatic, true)] {
        let mut rebalancer = Rebalancer::new(Settings { mode, ..Settings::default() });
        let proposal = propose(&lopsided(), &mut rebalancer, 0);
        assert_eq!((proposal.apply, proposal.plan.is_empty()), (applies, false));
    }
}

#[test]
fn affinity_is_kept_while_load_is_evened_out() {
    let mut cluster = Cluster::of_hosts(3);
    for number in 1..=4 {
        cluster.hold(1, &with_rule(request(number, 2, 4), Direction::Together, "db"));
        cluster.uses(number, 200);
    }
    let proposal = propose(&cluster, &mut Rebalancer::new(Settings::default()), 0);
    assert!(proposal.plan.is_empty(), "each is where the others are: {proposal:?}");
}

#[test]
fn a_hosts_measured_load_stands_for_vms_that_nobody_measured() {
    let mut cluster = Cluster::of_hosts(2);
    for number in 1..=2 {
        cluster.hold(1, &request(number, 2, 2));
        cluster.hold(2, &request(number + 2, 2, 2));
    }
    let idle = propose(&cluster, &mut Rebalancer::new(Settings::default()), 0);
    assert!(idle.plan.is_empty(), "both are the same");
    let busy = Load { cpu_centi: 790, memory: Bytes::gib(4) };
    cluster.inventory.heartbeat(node(1), busy).unwrap();
    cluster.inventory.heartbeat(node(2), Load { cpu_centi: 10, memory: Bytes::gib(4) }).unwrap();
    let proposal = propose(&cluster, &mut Rebalancer::new(Settings::default()), 0);
    assert_eq!(proposal.plan.moves().map(|mv| (mv.from, mv.to)).collect::<Vec<_>>(), [(node(1), node(2))]);
}
