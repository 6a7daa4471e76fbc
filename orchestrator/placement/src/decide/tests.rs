//! Random clusters: decisions against a plain look at every host, and the inventory against one made anew.

use std::{collections::BTreeSet, num::NonZeroU32, sync::Arc};

use drover_ids::{NodeId, VmId};
use drover_units::{Bytes, VcpuCount};
use proptest::prelude::*;

use super::*;
use crate::{
    Affinity, Demand, Direction, HostSpec, HostState, LabelMatch, LabelRule, NAMED, NumaNode, NumaPolicy,
    PageBacking, Peers, Percent, Pinning, Profile, Scope, Seconds, Spread, Strength, Taint, TaintEffect,
    Ties, Toleration,
};

fn node(n: u128) -> NodeId {
    NodeId::from_u128(n)
}

prop_compose! {
    fn any_host()(
        threads in 1u32..24, gib in 1u64..48, overcommit in prop::sample::select(vec![100u16, 150, 400]), reserved in 0u32..2,
        huge in 0u64..3, numa in any::<bool>(), zone in 0u8..3, rack in 0u8..5, label in 0u8..3, taint in prop::sample::select(vec![0u8, 0, 0, 1, 2]),
        pools in 0u8..4, state in prop::sample::select(vec![HostState::Ready, HostState::Ready, HostState::Ready, HostState::Cordoned]),
        memory_overcommit in prop::sample::select(vec![100u16, 100, 130]),
    ) -> HostSpec {
        let place = |kind: &str, n: u8| if n == 0 { String::new() } else { format!("{kind}{n}") };
        let mut spec = HostSpec::new(node(0), "h", VcpuCount::new(threads), Bytes::gib(gib));
        spec.state = state;
        spec.cpu.overcommit = Percent::new(overcommit);
        spec.cpu.reserved = VcpuCount::new(reserved);
        spec.memory.overcommit = Percent::new(memory_overcommit);
        spec.memory.hugepages_2mib = Bytes::gib(huge.min(gib));
        spec.topology.zone = place("z", zone);
        spec.topology.rack = place("r", rack);
        if numa {
            let half = NumaNode { threads: VcpuCount::new(threads / 2), memory: Bytes::gib(gib / 2) };
            spec.numa = vec![half, half];
        }
        if label > 0 {
            spec.labels.insert("disk".to_owned(), place("d", label));
        }
        if taint > 0 {
            let effect = if taint == 1 { TaintEffect::NoSchedule } else { TaintEffect::PreferNoSchedule };
            spec.taints.insert(Taint { key: "t".to_owned(), value: "v".to_owned(), effect });
        }
        spec.pools = (0..2).filter(|bit| pools & (1 << bit) != 0).map(|bit| format!("p{bit}")).collect();
        spec
    }
}

fn any_scope() -> impl Strategy<Value = Scope> {
    prop::sample::select(vec![Scope::Host, Scope::Rack, Scope::Zone])
}

fn any_strength() -> impl Strategy<Value = Strength> {
    prop::sample::select(vec![Strength::Required, Strength::Preferred(40)])
}

prop_compose! {
    fn any_affinity()(
        group in 0u8..4, direction in prop::sample::select(vec![Direction::Apart, Direction::Apart, Direction::Together]),
        scope in any_scope(), strength in any_strength(),
    ) -> Affinity {
        let peers = if group == 3 { Peers::Vm(VmId::from_u128(1)) } else { Peers::Group(format!("g{group}")) };
        Affinity { peers, direction, scope, strength }
    }
}

prop_compose! {
    fn any_profile()(
        vcpus in 1u32..6, gib in 1u64..9, special in 0u8..12, groups in prop::collection::btree_set(0u8..3, 0..2), priority in 0u32..3,
        affinity in prop::collection::vec(any_affinity(), 0..2), spread in prop::option::weighted(0.25, (0u8..3, any_scope(), 1u32..3, any_strength())),
        label in 0u8..9, label_strength in any_strength(), tolerates in any::<bool>(), pool in 0u8..4, project in 0u8..3,
    ) -> Profile {
        let mut demand = Demand::new(VcpuCount::new(vcpus), Bytes::gib(gib));
        match special {
            0 => demand.numa = NumaPolicy::Single,
            1 => demand.numa = NumaPolicy::PreferSingle,
            2 => demand.pinning = Pinning::Dedicated,
            3 => (demand.backing, demand.memory) = (PageBacking::Huge2Mib, Bytes::mib(333)),
            4 => demand.memory = Bytes::mib(gib * 700 + 1),
            _ => {}
        }
        let values: BTreeSet<String> = [format!("d{}", label % 3), "z1".to_owned(), "r2".to_owned()].into();
        let rule = |key: &str, matches| LabelRule { key: key.to_owned(), matches, strength: label_strength };
        let labels = match label {
            0 => vec![rule("disk", LabelMatch::In(values))],
            1 => vec![rule("disk", LabelMatch::NotIn(values))],
            2 => vec![rule("disk", LabelMatch::Exists)],
            3 => vec![rule("zone", LabelMatch::In(values))],
            4 => vec![rule("rack", LabelMatch::NotIn(values))],
            _ => vec![],
        };
        Profile {
            demand,
            labels,
            priority,
            groups: groups.into_iter().map(|g| format!("g{g}")).collect(),
            affinity,
            spread: spread
                .map(|(g, scope, skew, strength)| Spread { group: format!("g{g}"), scope, max_skew: NonZeroU32::new(skew).unwrap(), strength })
                .into_iter()
                .collect(),
            tolerations: if tolerates { [Toleration { key: "t".to_owned(), value: None }].into() } else { BTreeSet::new() },
            pools: if pool < 2 { [format!("p{pool}")].into() } else { BTreeSet::new() },
            project: if project == 0 { "small".to_owned() } else { String::new() },
            ..Profile::default()
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Place(Profile, u8, Option<u8>),
    Release(u8),
    Update(u8, HostSpec),
    State(u8, HostState),
    Move(u8),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (any_profile(), 0u8..8, prop::option::weighted(0.2, 0u8..6)).prop_map(|(p, policy, host)| Step::Place(p, policy, host)),
        2 => (0u8..40).prop_map(Step::Release),
        1 => (0u8..6, any_host()).prop_map(|(host, spec)| Step::Update(host, spec)),
        1 => (0u8..6, prop::sample::select(vec![HostState::Ready, HostState::Draining])).prop_map(|(host, state)| Step::State(host, state)),
        2 => (0u8..40).prop_map(Step::Move),
    ]
}

fn policy(n: u8) -> Policy {
    let mut policy = Policy::named(NAMED[usize::from(n) % NAMED.len()]).unwrap();
    if n >= 6 {
        policy.ties = Ties::Seeded(u64::from(n));
        policy.weights.load = 10;
    }
    policy
}

/// The answer must be what a look at every host says.
fn check_decision(inventory: &Inventory, request: &Request, policy: &Policy) -> Option<Decision> {
    let all = inventory.check_all(request);
    let able: Vec<NodeId> = all.iter().filter(|(_, reasons)| reasons.is_empty()).map(|(id, _)| *id).collect();
    let mut decider = Decider::new();
    let decision = decider.decide(inventory, request, policy);
    assert_eq!(decide(inventory, request, policy), decision, "deterministic");
    match &decision {
        Ok(decision) => assert!(able.contains(&decision.host), "{decision:?} {all:?}"),
        Err(Refusal::Project { .. }) => {}
        Err(Refusal::NoHost) => assert!(able.is_empty(), "{able:?}"),
        Err(other) => panic!("{other}"),
    }
    let decision = decision.ok()?;
    // With few hosts the shortlist holds all of them: the best is the best of each taken alone.
    let alone = |host: &NodeId| {
        let request = Request { only: Some(*host), preferred: None, ..request.clone() };
        decider.decide(inventory, &request, policy).unwrap().score
    };
    if request.preferred != Some(decision.host) {
        assert_eq!(able.iter().map(alone).max(), Some(decision.score));
    }
    let explanation = crate::explain(inventory, request, policy);
    assert_eq!(explanation.feasible, able.len());
    assert!(!explanation.to_string().is_empty());
    Some(decision)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn decisions_are_those_of_a_look_at_every_host_and_state_is_that_of_a_rebuild(
        hosts in prop::collection::vec(any_host(), 1..6),
        steps in prop::collection::vec(any_step(), 1..40),
    ) {
        let mut inventory = Inventory::new();
        let limit = crate::ProjectLimit { vcpus: Some(6), ..crate::ProjectLimit::default() };
        inventory.set_project_limit("small", limit);
        for (n, host) in hosts.iter().enumerate() {
            let host = HostSpec { id: node(n as u128), name: format!("h{n}"), ..host.clone() };
            inventory.add_host(&host).unwrap();
        }
        let count = hosts.len() as u8;
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Place(profile, which, preferred) => {
                    let request = Request {
                        ends: (which % 2 == 0).then_some(Seconds(600 * n as u32)),
                        preferred: preferred.map(|host| node(u128::from(host))),
                        ..Request::new(VmId::from_u128(n as u128), Arc::new(profile))
                    };
                    if let Some(decision) = check_decision(&inventory, &request, &policy(which)) {
                        inventory.commit(&request, &decision).unwrap();
                    }
                }
                Step::Release(vm) => {
                    let _ = inventory.remove_vm(VmId::from_u128(u128::from(vm)));
                }
                Step::Update(host, spec) => {
                    let _ = inventory.update_host(&HostSpec { id: node(u128::from(host % count)), name: "new".to_owned(), ..spec });
                }
                Step::State(host, state) => inventory.set_state(node(u128::from(host % count)), state).unwrap(),
                Step::Move(vm) => {
                    let found = inventory.vm(VmId::from_u128(u128::from(vm))).next().map(|vm| (vm.host().id(), vm.request()));
                    if let Some((from, request)) = found {
                        let request = Request { excluded: vec![from], ..request };
                        let twice = inventory.vm(request.vm).count() > 1;
                        let decision = check_decision(&inventory, &request, &policy(0));
                        let moved = decision.map(|decision| inventory.commit_move(&request, &decision));
                        prop_assert!(twice || moved.is_none_or(|moved| moved.is_ok()));
                        inventory.verify().unwrap();
                        let _ = inventory.release(request.vm, from);
                    }
                }
            }
            prop_assert_eq!(inventory.verify(), Ok(()));
        }
    }
}
