//! Small clusters and VMs that have a little of everything, so that rules meet.

use std::collections::BTreeSet;

use drover_ids::{NodeId, VmId};
use drover_invariants::{
    PlainAffinity, PlainHost, PlainLabelRule, PlainNuma, PlainPages, PlainPeers, PlainScope, PlainSpread,
    PlainVm,
};
use proptest::{collection::vec, prelude::*, sample::subsequence};

pub(crate) const GIB: u64 = 1 << 30;
/// Hosts have ids from 1 to this, and VMs likewise.
pub(crate) const HOSTS: u128 = 6;
pub(crate) const VMS: u128 = 24;
pub(crate) const GROUPS: [&str; 3] = ["db", "job", "web"];
pub(crate) const PROJECTS: [&str; 3] = ["", "blue", "red"];

pub(crate) fn node(number: u128) -> NodeId {
    NodeId::from_u128(number)
}

pub(crate) fn vm_id(number: u128) -> VmId {
    VmId::from_u128(number)
}

fn names(of: &'static [&'static str]) -> impl Strategy<Value = BTreeSet<String>> {
    subsequence(of, 0..=of.len()).prop_map(|names| names.into_iter().map(str::to_owned).collect())
}

fn name(of: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(of).prop_map(str::to_owned)
}

/// Rarely there, since each takes hosts away and little is left to decide.
fn rarely<T: std::fmt::Debug + Clone + Default + 'static>(
    strategy: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = T> {
    prop_oneof![5 => Just(T::default()), 1 => strategy]
}

pub(crate) fn scope() -> impl Strategy<Value = PlainScope> {
    prop_oneof![Just(PlainScope::Host), Just(PlainScope::Rack), Just(PlainScope::Zone)]
}

fn taints() -> impl Strategy<Value = BTreeSet<(String, String)>> {
    let taint = prop_oneof![Just(("only", "gpu")), Just(("only", "db")), Just(("old", "yes"))];
    vec(taint, 1..=2)
        .prop_map(|taints| taints.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

pub(crate) fn host(id: NodeId) -> impl Strategy<Value = PlainHost> {
    let size = (1u64..=8, 4u64..=16, 0u64..=1, prop_oneof![Just(100u64), Just(150), Just(400)]);
    let memory = (0u64..=2, 0u64..=2, 0u64..=2, prop_oneof![Just(100u64), Just(150)]);
    let place = (name(&["", "z1", "z2", "z3"]), name(&["", "r1", "r2", "r3"]));
    let reach = (names(&["hdd", "ssd"]), names(&["lan", "wan"]), names(&["v2", "v3"]));
    let labels = (any::<bool>(), name(&["", "a", "b"]));
    (size, memory, any::<bool>(), place, reach, (labels, rarely(taints()))).prop_map(
        move |(size, memory, numa, (zone, rack), (pools, networks, baselines), (labels, taints))| {
            let (threads, gib, reserved, cpu_overcommit) = size;
            let (two_mib, one_gib, kept, memory_overcommit) = memory;
            let mut host = PlainHost::new(id, threads, gib * GIB);
            host.name = format!("host-{}", id.as_u128());
            host.threads_reserved = reserved;
            host.cpu_overcommit = cpu_overcommit;
            (host.two_mib, host.one_gib) = (two_mib * GIB / 2, one_gib * GIB);
            host.memory_reserved = kept * GIB / 2;
            host.memory_overcommit = memory_overcommit;
            if numa {
                let half = threads / 2;
                host.numa = vec![(half, gib * GIB / 2), (threads - half, gib * GIB / 2)];
            }
            (host.zone, host.rack) = (zone, rack);
            (host.pools, host.networks, host.baselines, host.taints) = (pools, networks, baselines, taints);
            if labels.0 {
                host.labels.insert("gpu".to_owned(), "yes".to_owned());
            }
            if !labels.1.is_empty() {
                host.labels.insert("kind".to_owned(), labels.1);
            }
            host
        },
    )
}

fn label_rule() -> impl Strategy<Value = PlainLabelRule> {
    let key = || name(&["gpu", "host", "kind", "rack", "zone"]);
    let values = || names(&["a", "host-1", "host-2", "r1", "yes", "z1"]);
    prop_oneof![
        (key(), values()).prop_map(|(key, values)| PlainLabelRule::In(key, values)),
        (key(), values()).prop_map(|(key, values)| PlainLabelRule::NotIn(key, values)),
        key().prop_map(PlainLabelRule::Exists),
        key().prop_map(PlainLabelRule::Absent),
    ]
}

fn affinity() -> impl Strategy<Value = PlainAffinity> {
    let peers = prop_oneof![
        4 => name(&GROUPS).prop_map(PlainPeers::Group),
        1 => (1..=VMS).prop_map(|number| PlainPeers::Vm(vm_id(number))),
    ];
    (prop::bool::weighted(0.4), peers, scope()).prop_map(|(together, peers, scope)| PlainAffinity {
        together,
        peers,
        scope,
    })
}

fn spread() -> impl Strategy<Value = PlainSpread> {
    (name(&GROUPS), scope(), 1u64..=2).prop_map(|(group, scope, max_skew)| PlainSpread {
        group,
        scope,
        max_skew,
    })
}

/// A VM that insists on this and that.
pub(crate) fn vm() -> impl Strategy<Value = PlainVm> {
    let pages = prop_oneof![6 => Just(PlainPages::Base), 1 => Just(PlainPages::TwoMib), 1 => Just(PlainPages::OneGib)];
    let numa = prop_oneof![
        6 => Just(PlainNuma::Anywhere), 1 => Just(PlainNuma::OneNode), 1 => Just(PlainNuma::RatherOneNode)
    ];
    let demand = (1u64..=4, 1u64..=8, pages, prop::bool::weighted(0.15), numa);
    let who = (name(&PROJECTS), 0u32..=2, names(&GROUPS));
    let others =
        (rarely(vec(affinity(), 1..=2)), rarely(vec(affinity(), 1..=1)), rarely(vec(spread(), 1..=2)));
    let tolerations = vec((name(&["old", "only"]), prop::option::of(name(&["db", "gpu", "yes"]))), 0..=2);
    let needs = (
        rarely(vec(label_rule(), 1..=2)),
        tolerations,
        rarely(names(&["hdd", "ssd"])),
        rarely(names(&["lan", "wan"])),
        rarely(name(&["v2", "v3"])),
    );
    (1..=VMS, demand, who, others, needs).prop_map(|(id, demand, who, others, needs)| {
        let (vcpus, half_gib, pages, pinned, numa) = demand;
        let mut vm = PlainVm::new(vm_id(id), vcpus, half_gib * GIB / 2);
        (vm.pages, vm.pinned, vm.numa) = (pages, pinned, numa);
        (vm.project, vm.priority, vm.groups) = who;
        let (some, more, spread) = others;
        vm.affinity = some.into_iter().chain(more).collect();
        vm.spread = spread;
        (vm.labels, vm.tolerations, vm.pools, vm.networks, vm.baseline) = needs;
        vm
    })
}
