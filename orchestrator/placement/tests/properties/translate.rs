//! The model's words in the engine's.

use std::{num::NonZeroU32, sync::Arc};

use drover_invariants::{
    PlainAffinity, PlainHost, PlainLabelRule, PlainLimit, PlainNuma, PlainPages, PlainPeers, PlainScope,
    PlainVm,
};
use drover_placement::{
    Affinity, Demand, Direction, HostCpu, HostMemory, HostSpec, HostState, LabelMatch, LabelRule, NumaNode,
    NumaPolicy, PageBacking, Peers, Percent, Pinning, Profile, ProjectLimit, Request, Scope, Spread,
    Strength, Taint, TaintEffect, Toleration, Topology,
};
use drover_units::{Bytes, VcpuCount};

fn threads(number: u64) -> VcpuCount {
    VcpuCount::new(u32::try_from(number).expect("the model's numbers are small"))
}

fn percent(number: u64) -> Percent {
    Percent::new(u16::try_from(number).expect("the model's numbers are small"))
}

pub(crate) fn host_spec(host: &PlainHost) -> HostSpec {
    let taint = |(key, value): &(String, String)| Taint {
        key: key.clone(),
        value: value.clone(),
        effect: TaintEffect::NoSchedule,
    };
    HostSpec {
        id: host.id,
        name: host.name.clone(),
        state: if host.takes_work { HostState::Ready } else { HostState::Cordoned },
        cpu: HostCpu {
            cores: threads(host.threads).get(),
            threads: threads(host.threads),
            reserved: threads(host.threads_reserved),
            overcommit: percent(host.cpu_overcommit),
        },
        memory: HostMemory {
            total: Bytes::new(host.memory),
            hugepages_2mib: Bytes::new(host.two_mib),
            hugepages_1gib: Bytes::new(host.one_gib),
            reserved: Bytes::new(host.memory_reserved),
            overcommit: percent(host.memory_overcommit),
        },
        numa: host
            .numa
            .iter()
            .map(|(t, m)| NumaNode { threads: threads(*t), memory: Bytes::new(*m) })
            .collect(),
        baselines: host.baselines.clone(),
        topology: Topology { zone: host.zone.clone(), rack: host.rack.clone() },
        labels: host.labels.clone(),
        taints: host.taints.iter().map(taint).collect(),
        pools: host.pools.clone(),
        networks: host.networks.clone(),
    }
}

fn scope(scope: PlainScope) -> Scope {
    match scope {
        PlainScope::Host => Scope::Host,
        PlainScope::Rack => Scope::Rack,
        PlainScope::Zone => Scope::Zone,
    }
}

fn affinity(rule: &PlainAffinity) -> Affinity {
    Affinity {
        peers: match &rule.peers {
            PlainPeers::Group(group) => Peers::Group(group.clone()),
            PlainPeers::Vm(vm) => Peers::Vm(*vm),
        },
        direction: if rule.together { Direction::Together } else { Direction::Apart },
        scope: scope(rule.scope),
        strength: Strength::Required,
    }
}

fn label_rule(rule: &PlainLabelRule) -> LabelRule {
    let (key, matches) = match rule {
        PlainLabelRule::In(key, values) => (key, LabelMatch::In(values.clone())),
        PlainLabelRule::NotIn(key, values) => (key, LabelMatch::NotIn(values.clone())),
        PlainLabelRule::Exists(key) => (key, LabelMatch::Exists),
        PlainLabelRule::Absent(key) => (key, LabelMatch::Absent),
    };
    LabelRule { key: key.clone(), matches, strength: Strength::Required }
}

pub(crate) fn profile(vm: &PlainVm) -> Profile {
    let spread = |rule: &drover_invariants::PlainSpread| Spread {
        group: rule.group.clone(),
        scope: scope(rule.scope),
        max_skew: NonZeroU32::new(u32::try_from(rule.max_skew).expect("small")).expect("at least one"),
        strength: Strength::Required,
    };
    Profile {
        demand: Demand {
            vcpus: threads(vm.vcpus),
            memory: Bytes::new(vm.memory),
            backing: match vm.pages {
                PlainPages::Base => PageBacking::Base,
                PlainPages::TwoMib => PageBacking::Huge2Mib,
                PlainPages::OneGib => PageBacking::Huge1Gib,
            },
            pinning: if vm.pinned { Pinning::Dedicated } else { Pinning::Shared },
            numa: match vm.numa {
                PlainNuma::Anywhere => NumaPolicy::Float,
                PlainNuma::OneNode => NumaPolicy::Single,
                PlainNuma::RatherOneNode => NumaPolicy::PreferSingle,
            },
        },
        project: vm.project.clone(),
        priority: vm.priority,
        groups: vm.groups.clone(),
        affinity: vm.affinity.iter().map(affinity).collect(),
        spread: vm.spread.iter().map(spread).collect(),
        labels: vm.labels.iter().map(label_rule).collect(),
        tolerations: vm
            .tolerations
            .iter()
            .map(|(key, value)| Toleration { key: key.clone(), value: value.clone() })
            .collect(),
        pools: vm.pools.clone(),
        networks: vm.networks.clone(),
        baseline: vm.baseline.clone(),
    }
}

pub(crate) fn request(vm: &PlainVm) -> Request {
    Request::new(vm.id, Arc::new(profile(vm)))
}

pub(crate) fn limit(limit: PlainLimit) -> ProjectLimit {
    ProjectLimit { vcpus: limit.vcpus, memory: limit.memory.map(Bytes::new), vms: limit.vms }
}
