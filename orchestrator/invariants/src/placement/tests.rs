use super::*;

const GIB: u64 = 1 << 30;

fn node(number: u128) -> NodeId {
    NodeId::from_u128(number)
}

fn vm(number: u128) -> PlainVm {
    PlainVm::new(VmId::from_u128(number), 2, 4 * GIB)
}

fn host(number: u128) -> PlainHost {
    let place = |prefix| format!("{prefix}{}", number % 2);
    PlainHost { zone: place("z"), rack: place("r"), ..PlainHost::new(node(number), 4, 16 * GIB) }
}

fn cluster() -> PlainCluster {
    PlainCluster { hosts: (1..=3).map(host).collect(), ..PlainCluster::default() }
}

/// The rules that putting `vm` on host 1 breaks.
fn check(cluster: &PlainCluster, vm: &PlainVm, expect: &[&str]) {
    let found = cluster.against(vm, node(1));
    assert_eq!(found.iter().map(|violation| violation.rule).collect::<Vec<_>>(), expect, "{found:?}");
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_plain_vm_on_a_plain_host_is_right() {
    check(&cluster(), &vm(1), &[]);
    let unknown = cluster().against(&vm(1), node(9));
    assert_eq!(unknown[0].rule, "host-exists");
}

#[test]
fn what_the_host_does_not_offer_is_named() {
    let plain = vm(1);
    let of = |change: &dyn Fn(&mut PlainVm)| {
        let mut vm = plain.clone();
        change(&mut vm);
        vm
    };
    check(&cluster(), &of(&|vm| vm.pools = set(&["ssd"])), &["pool"]);
    check(&cluster(), &of(&|vm| vm.networks = set(&["blue"])), &["network"]);
    check(&cluster(), &of(&|vm| vm.baseline = "v3".to_owned()), &["baseline"]);
    let rule = |rule: PlainLabelRule| of(&|vm| vm.labels = vec![rule.clone()]);
    check(&cluster(), &rule(PlainLabelRule::Exists("gpu".to_owned())), &["label"]);
    check(&cluster(), &rule(PlainLabelRule::Absent("zone".to_owned())), &["label"]);
    check(&cluster(), &rule(PlainLabelRule::In("rack".to_owned(), set(&["r0"]))), &["label"]);
    check(&cluster(), &rule(PlainLabelRule::In("rack".to_owned(), set(&["r1"]))), &[]);
    check(&cluster(), &rule(PlainLabelRule::NotIn("zone".to_owned(), set(&["z1"]))), &["label"]);
    check(&cluster(), &rule(PlainLabelRule::NotIn("gpu".to_owned(), set(&["a"]))), &[]);
    let mut tainted = cluster();
    tainted.hosts[0].taints = [("only".to_owned(), "gpu".to_owned())].into();
    check(&tainted, &plain, &["taint"]);
    check(&tainted, &of(&|vm| vm.tolerations = vec![("only".to_owned(), None)]), &[]);
    check(&tainted, &of(&|vm| vm.tolerations = vec![("only".to_owned(), Some("x".to_owned()))]), &["taint"]);
    let mut cordoned = cluster();
    cordoned.hosts[0].takes_work = false;
    check(&cordoned, &plain, &["host-takes-work"]);
}

#[test]
fn sums_are_checked_with_overcommit_and_what_is_kept() {
    let mut full = cluster().with(&vm(8), node(1), None).with(&vm(9), node(1), None);
    check(&full, &vm(1), &["cpu"]);
    full.hosts[0].cpu_overcommit = 150;
    check(&full, &vm(1), &[]);
    check(&full, &PlainVm { pinned: true, ..vm(1) }, &["cpu"]);
    full.hosts[0].memory_reserved = 5 * GIB;
    check(&full, &vm(1), &["memory"]);
    full.hosts[0].memory_overcommit = 200;
    check(&full, &vm(1), &[]);
    let huge = PlainVm { pages: PlainPages::TwoMib, memory: 4 * GIB - 1, ..vm(1) };
    check(&full, &huge, &["hugepages-2mib"]);
    full.hosts[0].two_mib = 4 * GIB;
    check(&full, &huge, &[]);
    check(&full, &PlainVm { pages: PlainPages::OneGib, ..huge }, &["hugepages-1gib"]);
    assert_eq!(full.over_capacity(), []);
    full.hosts[0].threads = 2;
    assert_eq!(full.over_capacity()[0].rule, "cpu");
}

#[test]
fn numa_nodes_are_given_out_once() {
    let mut cluster = cluster();
    cluster.hosts[0].numa = vec![(2, 8 * GIB), (2, 8 * GIB)];
    let bound = PlainVm { numa: PlainNuma::OneNode, ..vm(1) };
    let other = PlainVm { id: VmId::from_u128(7), ..bound.clone() };
    let one = cluster.with(&other, node(1), Some(0));
    check(&one, &bound, &[]);
    check(&one, &PlainVm { vcpus: 3, ..bound.clone() }, &["cpu", "numa-cpu"]);
    assert_eq!(one.with(&bound, node(1), Some(0)).over_capacity()[0].rule, "numa-cpu");
    assert_eq!(one.with(&bound, node(1), None).over_capacity()[0].rule, "numa-bound");
    assert_eq!(one.with(&bound, node(1), Some(2)).over_capacity()[0].rule, "numa-bound");
    check(&cluster, &PlainVm { memory: 9 * GIB, ..bound.clone() }, &["numa-memory"]);
    check(&cluster, &PlainVm { memory: 9 * GIB, numa: PlainNuma::RatherOneNode, ..bound }, &[]);
}

fn rule(together: bool, peers: PlainPeers, scope: PlainScope) -> Vec<PlainAffinity> {
    vec![PlainAffinity { together, peers, scope }]
}

#[test]
fn affinity_wants_company_unless_it_is_the_first() {
    let web = || PlainPeers::Group("web".to_owned());
    let member = PlainVm { groups: set(&["web"]), ..vm(8) };
    let wants = |scope| PlainVm { affinity: rule(true, web(), scope), ..vm(1) };
    check(&cluster(), &wants(PlainScope::Host), &["affinity"]);
    check(&cluster(), &PlainVm { groups: set(&["web"]), ..wants(PlainScope::Host) }, &[]);
    check(&cluster().with(&member, node(1), None), &wants(PlainScope::Host), &[]);
    check(&cluster().with(&member, node(3), None), &wants(PlainScope::Host), &["affinity"]);
    check(&cluster().with(&member, node(3), None), &wants(PlainScope::Zone), &[]);
    check(&cluster().with(&member, node(2), None), &wants(PlainScope::Rack), &["affinity"]);
}

#[test]
fn anti_affinity_binds_both_sides() {
    let apart = PlainVm { affinity: rule(false, PlainPeers::Vm(vm(8).id), PlainScope::Rack), ..vm(1) };
    check(&cluster().with(&vm(8), node(2), None), &apart, &[]);
    check(&cluster().with(&vm(8), node(3), None), &apart, &["anti-affinity"]);
    check(&cluster().with(&apart, node(3), None), &vm(8), &["anti-affinity"]);
    check(&cluster().with(&apart, node(3), None), &vm(9), &[]);
    // A host that is in no rack shares none.
    let mut lone = cluster().with(&vm(8), node(3), None);
    lone.hosts[0].rack.clear();
    check(&lone, &apart, &[]);
}

#[test]
fn spread_counts_places_that_would_do() {
    let spread = vec![PlainSpread { group: "web".to_owned(), scope: PlainScope::Zone, max_skew: 1 }];
    let web = PlainVm { groups: set(&["web"]), spread, ..vm(1) };
    let other = PlainVm { id: VmId::from_u128(8), ..web.clone() };
    check(&cluster(), &web, &[]);
    check(&cluster().with(&other, node(3), None), &web, &["spread"]);
    check(&cluster().with(&other, node(2), None), &web, &[]);
    let mut alone = cluster().with(&other, node(3), None);
    alone.hosts[1].takes_work = false;
    check(&alone, &web, &[]);
}

#[test]
fn a_project_counts_a_vm_that_moves_once() {
    let mine = |number| PlainVm { project: "p".to_owned(), ..vm(number) };
    let mut cluster = cluster().with(&mine(8), node(2), None).with(&mine(8), node(3), None);
    cluster.limits.insert("p".to_owned(), PlainLimit { vcpus: Some(4), memory: None, vms: Some(2) });
    check(&cluster, &mine(1), &[]);
    check(&cluster, &PlainVm { vcpus: 3, ..mine(1) }, &["project-limit"]);
    assert_eq!(cluster.over_limits(), []);
    let over = cluster.with(&mine(5), node(2), None).with(&mine(6), node(2), None).over_limits();
    assert_eq!(over.len(), 2);
}

#[test]
fn brute_force_finds_the_only_way() {
    let big = |number| PlainVm { vcpus: 3, ..vm(number) };
    let anywhere = |_: usize, _: NodeId| true;
    assert_eq!(cluster().arrangement(&[big(1), big(2), big(3), big(4)], &anywhere), None);
    assert_eq!(
        cluster().arrangement(&[big(1), big(2), big(3)], &anywhere),
        Some(vec![node(1), node(2), node(3)])
    );
    let only_last = |_: usize, host: NodeId| host == node(3);
    assert_eq!(cluster().arrangement(&[vm(1), vm(2)], &only_last), Some(vec![node(3), node(3)]));
    // One after the other: the second cannot be near the third, which is not there yet.
    let near = PlainVm { affinity: rule(true, PlainPeers::Vm(vm(2).id), PlainScope::Host), ..vm(1) };
    assert_eq!(cluster().arrangement(&[near.clone(), vm(2)], &anywhere), None);
    assert_eq!(cluster().arrangement(&[vm(2), near], &anywhere), Some(vec![node(1), node(1)]));
}

#[test]
fn a_vm_that_stands_wrong_is_named() {
    let mut cluster = cluster().with(&vm(1), node(1), None);
    assert_eq!(cluster.misplaced(), []);
    cluster.hosts[0].takes_work = false;
    assert_eq!(cluster.misplaced()[0].rule, "host-takes-work");
}
