//! The properties.

use std::{collections::BTreeSet, time::Duration};

use drover_cluster_state::Moment;
use drover_ids::{NodeId, VmId};
use drover_placement::{Decider, Policies, Policy};
use drover_rebalance::{
    Basis, ConsolidateLimits, CostModel, DrainRefused, Parallelism, PerMille, Rebalancer, RoomLimits,
    Settings, Usage, VmUsage, consolidate, defragment, drain,
};
use drover_units::Bytes;
use proptest::{collection::vec, prelude::*, test_runner::FileFailurePersistence};

use crate::{
    events::{World, asked, history, policy},
    model::{HOSTS, node, vm_id},
    replay::Replay,
};

/// Clusters per property when nobody asks for more: seconds.
const CASES: u32 = 48;
/// Events that a cluster has behind it.
const LENGTH: usize = 50;

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    ProptestConfig {
        cases,
        max_shrink_iters: 4096,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

fn limits() -> impl Strategy<Value = Parallelism> {
    (1u32..=2, 1u32..=2, 1u32..=4).prop_map(|(per_source, per_target, cluster)| Parallelism {
        per_source,
        per_target,
        cluster,
    })
}

fn replay(world: &World) -> Replay {
    Replay { plain: world.plain.clone(), inventory: world.inventory.clone() }
}

/// A world and what else planners are told.
struct Known {
    world: World,
    policies: Policies,
    costs: CostModel,
    usage: Usage,
    immovable: BTreeSet<VmId>,
}

impl Known {
    fn new(world: World, policy: Policy, immovable: &[u128]) -> Self {
        Self {
            world,
            policies: Policies { cluster: policy, ..Policies::default() },
            costs: CostModel::new(),
            usage: Usage::new(),
            immovable: immovable.iter().map(|number| vm_id(*number)).collect(),
        }
    }

    fn basis(&self) -> Basis<'_> {
        Basis {
            inventory: &self.world.inventory,
            policies: &self.policies,
            costs: &self.costs,
            usage: &self.usage,
            immovable: &self.immovable,
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_drain_empties_its_hosts_and_never_breaks_anything(
        events in history(LENGTH),
        policy in policy(),
        hosts in vec((1..=HOSTS).prop_map(node), 1..=2),
        immovable in vec(1u128..=24, 0..=1),
        limits in limits(),
    ) {
        let known = Known::new(World::after(&events), policy, &immovable);
        let hosts: BTreeSet<NodeId> = hosts.into_iter().filter(|h| known.world.plain.host(*h).is_some()).collect();
        let mut replay = replay(&known.world);
        for host in &mut replay.plain.hosts {
            host.takes_work &= !hosts.contains(&host.id);
        }
        let leaves = |host: NodeId| hosts.contains(&host);
        match drain(&known.basis(), &hosts, &limits) {
            Ok(plan) => {
                replay.carry_out(&plan, &limits);
                prop_assert!(!replay.plain.standing.iter().any(|standing| leaves(standing.host)));
                prop_assert!(plan.moves().all(|mv| !known.immovable.contains(&mv.vm)));
            }
            Err(DrainRefused::Stuck(stuck)) => {
                prop_assert!(!stuck.is_empty());
                prop_assert!(stuck.iter().all(|stuck| leaves(stuck.host) && !stuck.to_string().is_empty()));
                let leaving: Vec<_> = replay.plain.standing.iter().filter(|s| leaves(s.host)).collect();
                // One VM, on its own: it really has nowhere to go.
                if let ([only], true) = (&leaving[..], immovable.is_empty()) {
                    let elsewhere = replay.plain.hosts.iter().filter(|host| host.id != only.host);
                    let free = elsewhere.filter(|host| replay.plain.against(&only.vm, host.id).is_empty()).count();
                    prop_assert_eq!(free, 0);
                }
            }
            Err(refused) => prop_assert_eq!(refused, DrainRefused::NoOrder),
        }
    }

    #[test]
    fn what_room_was_made_for_fits_then(
        events in history(LENGTH),
        asked in asked(),
        immovable in vec(1u128..=24, 0..=2),
        parallelism in limits(),
    ) {
        let policy = Policy { preemption: false, ..asked.policy.clone() };
        let known = Known::new(World::after(&events), policy.clone(), &immovable);
        let request = World::request(&asked);
        prop_assume!(known.world.inventory.vm(request.vm).next().is_none());
        let direct = Decider::new().decide(&known.world.inventory, &request, &policy);
        let limits = RoomLimits { moves: 4, parallelism };
        match defragment(&known.basis(), std::slice::from_ref(&request), &limits) {
            Ok(made) => {
                prop_assert_eq!(made.plan.is_empty(), direct.is_ok());
                prop_assert!(made.plan.len() <= limits.moves);
                prop_assert!(made.plan.moves().all(|mv| !known.immovable.contains(&mv.vm)));
                let mut replay = replay(&known.world);
                replay.carry_out(&made.plan, &limits.parallelism);
                prop_assert_eq!(replay.plain.against(&asked.vm, made.hosts[0]), []);
                prop_assert!(World::is_asked_for(&asked, made.hosts[0]));
            }
            Err(no_room) => {
                prop_assert_eq!(&no_room.refusal, &direct.expect_err("what fits needs no room"));
            }
        }
    }

    #[test]
    fn rebalancing_evens_out_and_settles(
        events in history(LENGTH),
        used in vec((1u128..=24, 0u32..800), 0..=24),
        rate in 1usize..=6,
        parallelism in limits(),
    ) {
        let mut known = Known::new(World::after(&events), Policy::default(), &[]);
        for (number, cpu_centi) in used {
            known.usage.measure(vm_id(number), VmUsage { cpu_centi: Some(cpu_centi), ..VmUsage::default() });
        }
        // Eager: it is the limits and the constraints that are tried here.
        let settings = Settings {
            start_above: PerMille(50),
            settle_below: PerMille(20),
            busy_from: PerMille(0),
            worth_percent: 100,
            moves_per_interval: rate,
            parallelism,
            interval: Duration::from_secs(60),
            cooldown: Duration::from_secs(86_400),
            ..Settings::default()
        };
        let mut rebalancer = Rebalancer::new(settings.clone());
        let mut moved = BTreeSet::new();
        // An interval between two passes, all within one cooldown: no VM moves twice.
        for pass in 0..20 {
            let now = Moment::from_millis(pass * 60_000);
            let proposal = rebalancer.propose(now, &known.basis());
            prop_assert!(proposal.plan.len() <= rate);
            prop_assert!(proposal.plan.moves().all(|mv| mv.gain.0 > mv.price.0 && moved.insert(mv.vm)));
            prop_assert!(!proposal.apply);
            if proposal.plan.is_empty() {
                break;
            }
            let mut replay = replay(&known.world);
            replay.carry_out(&proposal.plan, &settings.parallelism);
            for mv in proposal.plan.moves() {
                rebalancer.began(now, mv.vm);
            }
            let again = rebalancer.propose(now, &known.basis()).plan;
            prop_assert!(again.len() + proposal.plan.len() <= rate);
            prop_assert!(again.moves().all(|mv| !moved.contains(&mv.vm)));
            known.world.plain = replay.plain;
            known.world.inventory = replay.inventory;
        }
    }

    #[test]
    fn consolidation_frees_hosts_within_its_budget(
        events in history(LENGTH),
        moves in 1usize..=8,
        parallelism in limits(),
    ) {
        let known = Known::new(World::after(&events), Policy::named("spread").expect("named"), &[]);
        let limits = ConsolidateLimits { moves, parallelism };
        let plan = consolidate(&known.basis(), &limits);
        prop_assert!(plan.len() <= moves);
        let mut replay = replay(&known.world);
        replay.carry_out(&plan, &parallelism);
        let in_use = |standing: &[drover_invariants::Standing]| {
            standing.iter().map(|standing| standing.host).collect::<BTreeSet<_>>().len()
        };
        let (before, after) = (in_use(&known.world.plain.standing), in_use(&replay.plain.standing));
        prop_assert_eq!(plan.is_empty(), after == before);
        prop_assert!(after <= before);
        prop_assert_eq!(Bytes::ZERO == plan.sent(), plan.is_empty());
    }
}
