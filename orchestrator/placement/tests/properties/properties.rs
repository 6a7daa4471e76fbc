//! The properties.

use std::collections::BTreeSet;

use drover_invariants::PlainNuma;
use drover_placement::{Decider, Inventory};
use proptest::{prelude::*, test_runner::FileFailurePersistence};

use crate::{
    events::{World, asked, history},
    translate,
};

/// Sequences per property when nobody asks for more: seconds.
const CASES: u32 = 64;
/// Events in a sequence.
const LENGTH: usize = 60;

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    ProptestConfig {
        cases,
        max_shrink_iters: 4096,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// Every decision and every refusal on the way is checked as it is made.
    #[test]
    fn no_decision_violates_anything_and_no_refusal_is_wrong(events in history(LENGTH)) {
        World::after(&events);
    }

    #[test]
    fn what_was_built_event_by_event_is_what_is_built_at_once(events in history(LENGTH), asked in asked()) {
        let world = World::after(&events);
        let rebuilt = rebuilt(&world);
        let request = World::request(&asked);
        for host in &world.plain.hosts {
            let (kept, anew) = (world.inventory.host(host.id), rebuilt.host(host.id));
            let (kept, anew) = (kept.expect("it is there"), anew.expect("it is there"));
            prop_assert_eq!(kept.spec(), anew.spec());
            prop_assert_eq!((kept.cpu_used(), kept.memory_used()), (anew.cpu_used(), anew.memory_used()));
            prop_assert_eq!((kept.vm_count(), kept.load()), (anew.vm_count(), anew.load()));
        }
        for project in world.plain.limits.keys() {
            prop_assert_eq!(world.inventory.project_usage(project), rebuilt.project_usage(project));
        }
        // Which NUMA node a VM that wants one was bound to, if any, depends on what else was bound when it came and on
        // what its host was then, and so may what fits since.
        if world.plain.standing.iter().all(|standing| standing.vm.numa == PlainNuma::Anywhere) {
            for host in &world.plain.hosts {
                let said = |inventory: &Inventory| {
                    let reasons = inventory.check(&request, host.id).expect("it is there");
                    reasons.iter().map(ToString::to_string).collect::<BTreeSet<_>>()
                };
                prop_assert_eq!(said(&world.inventory), said(&rebuilt));
            }
            let place = |inventory: &Inventory| {
                let decided = Decider::new().decide(inventory, &request, &asked.policy);
                decided.map(|decision| (decision.host, decision.score, decision.victims))
            };
            prop_assert_eq!(place(&world.inventory), place(&rebuilt));
        }
    }

    #[test]
    fn equal_events_give_equal_decisions(events in history(LENGTH), asked in asked()) {
        let (one, mut two) = (World::after(&events), World::after(&events));
        prop_assert_eq!(&one.decided, &two.decided);
        // What a decider remembers makes it faster, not different.
        let request = World::request(&asked);
        let fresh = Decider::new().decide(&one.inventory, &request, &asked.policy);
        prop_assert_eq!(two.decider.decide(&two.inventory, &request, &asked.policy), fresh);
    }

    #[test]
    fn a_snapshot_stays_as_it_was(events in history(LENGTH), later in history(LENGTH), asked in asked()) {
        let mut world = World::after(&events);
        let snapshot = world.inventory.clone();
        let request = World::request(&asked);
        let before = Decider::new().decide(&snapshot, &request, &asked.policy);
        later.iter().for_each(|event| world.happen(event));
        prop_assert_eq!(Decider::new().decide(&snapshot, &request, &asked.policy), before);
    }
}

/// The same cluster from its hosts and VMs, in one go.
fn rebuilt(world: &World) -> Inventory {
    let mut inventory = Inventory::new();
    let mut hosts = world.plain.hosts.clone();
    hosts.reverse();
    for host in &hosts {
        inventory.add_host(&translate::host_spec(host)).expect("it is new");
        inventory
            .set_state(host.id, world.inventory.host(host.id).expect("it is there").state())
            .expect("it is there");
        inventory
            .heartbeat(host.id, world.loads.get(&host.id).copied().unwrap_or_default())
            .expect("it is there");
    }
    for standing in &world.plain.standing {
        inventory.hold(standing.host, &translate::request(&standing.vm)).expect("it stands nowhere yet");
    }
    for (project, limit) in &world.plain.limits {
        inventory.set_project_limit(project, translate::limit(*limit));
    }
    inventory
}
