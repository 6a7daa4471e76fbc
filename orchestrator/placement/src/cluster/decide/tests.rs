use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}
fn node(n: u128) -> NodeId {
    NodeId::from_u128(n)
}
fn capacity(vcpus: u32, gib: u64) -> Capacity {
    Capacity { vcpus: VcpuCount::new(vcpus), memory: Bytes::gib(gib) }
}
fn host(label: &str, vcpus: u32, gib: u64) -> Host {
    Host::new(name(label), NodeState::Ready, capacity(vcpus, gib), [name("default")].into())
}
fn request(vcpus: u32, gib: u64) -> Request {
    Request {
        vm: VmId::from_u128(99),
        demand: capacity(vcpus, gib),
        pools: [name("default")].into(),
        group: None,
        preferred: None,
        only: None,
        leaving: None,
    }
}
fn three_nodes() -> Inventory {
    let mut inventory = Inventory::new();
    inventory.add(node(1), host("n1", 8, 32));
    inventory.add(node(2), host("n2", 4, 8));
    inventory.add(node(3), host("n3", 4, 16));
    inventory
}

fn check(inventory: &Inventory, request: &Request, expect: Result<u128, &str>) {
    match (decide(inventory, request), expect) {
        (Ok(decision), Ok(expect)) => assert_eq!(decision.node, node(expect)),
        (Err(rejections), Err(expect)) => assert_eq!(rejections.to_string(), expect),
        (got, expect) => panic!("got {got:?}, expected {expect:?}"),
    }
}

#[test]
fn the_tightest_node_wins() {
    check(&three_nodes(), &request(2, 4), Ok(2));
    check(&three_nodes(), &request(2, 12), Ok(3));
    check(&three_nodes(), &request(6, 4), Ok(1));
}

#[test]
fn equal_nodes_are_taken_in_order_of_id() {
    let mut inventory = Inventory::new();
    inventory.add(node(7), host("b", 4, 8));
    inventory.add(node(5), host("a", 4, 8));
    check(&inventory, &request(1, 1), Ok(5));
}

#[test]
fn the_preferred_node_wins_if_it_passes() {
    let preferred = Request { preferred: Some(node(1)), ..request(2, 4) };
    check(&three_nodes(), &preferred, Ok(1));
    let too_small = Request { preferred: Some(node(2)), ..request(2, 12) };
    check(&three_nodes(), &too_small, Ok(3));
}

#[test]
fn every_reason_of_every_node_is_named() {
    let mut inventory = three_nodes();
    inventory.host_mut(node(2)).state = NodeState::Suspect;
    inventory.host_mut(node(3)).pools.clear();
    check(
        &inventory,
        &request(16, 12),
        Err("n1: needs 16 vCPU(s), 8 of 8 free; \
             n2: the node is suspect, not ready, needs 16 vCPU(s), 4 of 4 free, needs 12 GiB memory, 8 GiB of 8 GiB free; \
             n3: needs 16 vCPU(s), 4 of 4 free, does not reach pool 'default'"),
    );
}

#[test]
fn without_nodes_the_answer_says_so() {
    check(&Inventory::new(), &request(1, 1), Err("no node has registered"));
}

#[test]
fn a_group_is_kept_apart_and_the_vm_is_not_in_its_own_way() {
    let group = Some(name("db"));
    let mut inventory = Inventory::new();
    inventory.add(node(1), host("n1", 8, 8));
    let wanted = Request { group: group.clone(), ..request(1, 1) };
    inventory.host_mut(node(1)).groups.entry(name("db")).or_default().insert(wanted.vm, name("self"));
    check(&inventory, &wanted, Ok(1));
    for n in 1..=5 {
        let member = name(&format!("db-{n}"));
        inventory.host_mut(node(1)).groups.entry(name("db")).or_default().insert(VmId::from_u128(n), member);
    }
    check(
        &inventory,
        &wanted,
        Err("n1: holds 'db-1', 'db-2', 'db-3' and 2 more of anti-affinity group 'db'"),
    );
}

#[test]
fn a_named_target_is_the_only_one_considered() {
    let inventory = three_nodes();
    check(&inventory, &Request { only: Some(node(3)), ..request(1, 1) }, Ok(3));
    check(
        &inventory,
        &Request { only: Some(node(2)), leaving: Some(node(2)), ..request(1, 1) },
        Err("n1: another node was asked for; n2: the VM is there already; n3: another node was asked for"),
    );
}

prop_compose! {
    fn any_host()(
        vcpus in 0u32..16, memory in 0u64..32, state in 0usize..5, pools in 0u8..4, groups in proptest::collection::vec((0u8..3, 0u128..6), 0..3),
        taken_vcpus in 0u32..8, taken_memory in 0u64..16,
    ) -> Host {
        let states = [NodeState::Ready, NodeState::Ready, NodeState::Ready, NodeState::Suspect, NodeState::Fenced];
        let pools = (0..2).filter(|bit| pools & (1 << bit) != 0).map(|bit| name(&format!("p{bit}"))).collect();
        let mut host = Host::new(name("h"), states[state], capacity(vcpus, memory), pools);
        host.taken = capacity(taken_vcpus, taken_memory);
        for (group, vm) in groups {
            host.groups.entry(name(&format!("g{group}"))).or_default().insert(VmId::from_u128(vm), name("v"));
        }
        host
    }
}
prop_compose! {
    fn any_request()(
        vcpus in 1u32..8, memory in 1u64..16, pools in 0u8..4, group in proptest::option::of(0u8..3), vm in 0u128..6,
        preferred in proptest::option::of(0u128..6), only in proptest::option::weighted(0.1, 0u128..6), leaving in proptest::option::of(0u128..6),
    ) -> Request {
        Request {
            vm: VmId::from_u128(vm),
            demand: capacity(vcpus, memory),
            pools: (0..2).filter(|bit| pools & (1 << bit) != 0).map(|bit| name(&format!("p{bit}"))).collect(),
            group: group.map(|g| name(&format!("g{g}"))),
            preferred: preferred.map(node),
            only: only.map(node),
            leaving: leaving.map(node),
        }
    }
}

/// The constraints again, from their meaning instead of from the code above.
fn allowed(id: NodeId, host: &Host, request: &Request) -> bool {
    let cpus_after = host.taken.vcpus.get() + request.demand.vcpus.get();
    let memory_after = host.taken.memory.get() + request.demand.memory.get();
    let mut ok = cpus_after <= host.capacity.vcpus.get() && memory_after <= host.capacity.memory.get();
    ok &= matches!(host.state, NodeState::Ready);
    for pool in &request.pools {
        ok &= host.pools.contains(pool);
    }
    for (group, vms) in &host.groups {
        for vm in vms.keys() {
            ok &= !(Some(group) == request.group.as_ref() && *vm != request.vm);
        }
    }
    if let Some(only) = request.only {
        ok &= only == id;
    }
    if let Some(leaving) = request.leaving {
        ok &= leaving != id;
    }
    ok
}

proptest! {
    #[test]
    fn a_decision_never_breaks_a_constraint_and_a_refusal_is_never_wrong(
        hosts in proptest::collection::vec(any_host(), 0..6),
        request in any_request(),
    ) {
        let mut inventory = Inventory::new();
        for (index, host) in hosts.iter().enumerate() {
            inventory.add(node(index as u128), host.clone());
        }
        let possible: Vec<NodeId> = inventory.hosts().filter(|(id, h)| allowed(*id, h, &request)).map(|(id, _)| id).collect();
        match decide(&inventory, &request) {
            Ok(decision) => {
                prop_assert!(possible.contains(&decision.node));
                prop_assert_eq!(decision.feasible, possible.len());
                if let Some(preferred) = request.preferred.filter(|p| possible.contains(p)) {
                    prop_assert_eq!(decision.node, preferred);
                } else {
                    let left = |id: &NodeId| inventory.host(*id).unwrap().free().minus(request.demand);
                    let tightest = possible.iter().map(left).map(|c| (c.memory, c.vcpus)).min();
                    prop_assert_eq!(tightest, Some((decision.score.memory, decision.score.vcpus)));
                }
            }
            Err(rejections) => {
                prop_assert!(possible.is_empty());
                prop_assert_eq!(rejections.0.len(), hosts.len());
                prop_assert!(rejections.0.iter().all(|r| !r.reasons.is_empty()), "{}", rejections);
            }
        }
    }

    #[test]
    fn placing_until_nothing_fits_never_overcommits(
        hosts in proptest::collection::vec((1u32..16, 1u64..32), 1..5),
        shapes in proptest::collection::vec((1u32..6, 1u64..8, proptest::option::of(0u8..2)), 1..40),
    ) {
        let mut inventory = Inventory::new();
        for (index, (vcpus, memory)) in hosts.iter().enumerate() {
            inventory.add(node(index as u128), host("h", *vcpus, *memory));
        }
        for (index, (vcpus, memory, group)) in shapes.into_iter().enumerate() {
            let vm = VmId::from_u128(index as u128);
            let spec = drover_cluster_state::VmSpec {
                name: name("v"), vcpus: VcpuCount::new(vcpus), memory: Bytes::gib(memory), image: name("probe"),
                image_pool: name("default"), cmdline: String::new(), volumes: vec![],
                anti_affinity_group: group.map(|g| name(&format!("g{g}"))), priority: 0,
                constraints: drover_cluster_state::Constraints::default(),
            };
            let request = Request { vm, group: spec.anti_affinity_group.clone(), ..request(vcpus, memory) };
            if let Ok(decision) = decide(&inventory, &request) {
                inventory.hold(decision.node, vm, &spec);
            }
        }
        for (_, host) in inventory.hosts() {
            prop_assert!(host.capacity.holds(host.taken));
            prop_assert!(host.groups.values().all(|vms| vms.len() <= 1));
        }
    }
}
