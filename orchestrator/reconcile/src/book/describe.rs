//! Nodes and VMs in the words of placement.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::Arc,
};

use drover_cluster_state::{
    Affinity, ClusterState, CpuBaseline, Domain, LabelRule, LabelTest, Name, Node, NodeState, NumaPolicy,
    Peer, RACK_LABEL, Ratio, Relation, Spread, Strength, TaintEffect, Vm, VmSpec, WallTime, ZONE_LABEL,
};
use drover_ids::VmId;
use drover_placement as placement;
use drover_units::Bytes;
use placement::{HostSpec, HostState, PageBacking, Percent, Profile, Request};

/// What a node is to placement. It is [`HostState::Ready`] only if it is heard, not cordoned and not drained.
pub fn host_spec(state: &ClusterState, node: &Node) -> HostSpec {
    let labels = node.labels();
    let place = |key: &str| node.label(key).map(ToString::to_string).unwrap_or_default();
    let taken = |key: &Name| [RACK_LABEL, ZONE_LABEL, "host"].contains(&key.as_str());
    let (overcommit, reserved, hugepages) = (node.overcommit(), node.reserved(), node.hugepages());
    let pool = |page: Bytes| hugepages.get(&page).copied().unwrap_or_default();
    let numa = node.facts.numa.iter().take(placement::NUMA_NODES_MAX);
    let taint = |taint: drover_cluster_state::Taint| placement::Taint {
        key: taint.key.to_string(),
        value: taint.value.as_ref().map(ToString::to_string).unwrap_or_default(),
        effect: match taint.effect {
            TaintEffect::Avoid => placement::TaintEffect::PreferNoSchedule,
            TaintEffect::Refuse => placement::TaintEffect::NoSchedule,
        },
    };
    HostSpec {
        id: node.id,
        name: node.name.to_string(),
        state: host_state(state, node),
        cpu: placement::HostCpu {
            cores: node.facts.cores,
            threads: node.capacity.vcpus,
            reserved: reserved.vcpus,
            overcommit: percent(overcommit.vcpus),
        },
        memory: placement::HostMemory {
            total: node.capacity.memory,
            hugepages_2mib: pool(PageBacking::Huge2Mib.page()),
            hugepages_1gib: pool(PageBacking::Huge1Gib.page()),
            reserved: reserved.memory,
            overcommit: percent(overcommit.memory),
        },
        numa: numa.map(|numa| placement::NumaNode { threads: numa.cpus, memory: numa.memory }).collect(),
        baselines: CpuBaseline::ALL
            .into_iter()
            .filter(|level| *level <= node.facts.cpu_baseline)
            .map(|level| level.name().to_owned())
            .collect(),
        topology: placement::Topology { zone: place(ZONE_LABEL), rack: place(RACK_LABEL) },
        labels: labels
            .iter()
            .filter(|(key, _)| !taken(key))
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect::<BTreeMap<_, _>>(),
        taints: node.taints().into_iter().map(taint).collect(),
        pools: state.reached_pools(node).iter().map(ToString::to_string).collect(),
        networks: node.facts.networks.iter().map(ToString::to_string).collect(),
    }
}

/// Whether a node takes work, and if not, why.
pub(crate) fn host_state(state: &ClusterState, node: &Node) -> HostState {
    match state.node_state(node.id) {
        Some(NodeState::Ready) if node.settings.drain.is_some() => HostState::Draining,
        Some(NodeState::Ready) if node.settings.cordoned => HostState::Cordoned,
        Some(NodeState::Ready) => HostState::Ready,
        Some(NodeState::Suspect) => HostState::Suspect,
        Some(NodeState::Fencing) => HostState::Fencing,
        Some(NodeState::Fenced) => HostState::Fenced,
        Some(NodeState::Unknown) | None => HostState::Unknown,
    }
}

fn percent(ratio: Ratio) -> Percent {
    // A ratio is at most 1600.
    Percent::new(u16::try_from(ratio.percent()).unwrap_or(u16::MAX))
}

/// What a VM asks for, anywhere.
pub fn request_of(vm: &Vm) -> Request {
    request_of_spec(vm.id, &vm.spec, vm.created_at)
}

/// What a VM of this specification would ask for.
pub fn request_of_spec(vm: VmId, spec: &VmSpec, created_at: WallTime) -> Request {
    let seconds = |lifetime: std::time::Duration| {
        let ends = (created_at.as_unix_millis() / 1000).saturating_add(lifetime.as_secs());
        placement::Seconds(u32::try_from(ends).unwrap_or(u32::MAX))
    };
    Request {
        name: spec.name.to_string(),
        ends: spec.constraints.lifetime.map(seconds),
        ..Request::new(vm, Arc::new(profile(spec)))
    }
}

fn profile(spec: &VmSpec) -> Profile {
    let constraints = &spec.constraints;
    let texts = |names: &BTreeSet<Name>| names.iter().map(ToString::to_string).collect();
    let apart = spec.anti_affinity_group.iter().map(|group| placement::Affinity {
        peers: placement::Peers::Group(group.to_string()),
        direction: placement::Direction::Apart,
        scope: placement::Scope::Host,
        strength: placement::Strength::Required,
    });
    Profile {
        demand: demand(spec),
        project: spec.project().to_owned(),
        priority: spec.priority,
        groups: texts(&spec.groups()),
        affinity: constraints.affinity.iter().map(affinity).chain(apart).collect(),
        spread: constraints.spread.iter().map(spread).collect(),
        labels: constraints.labels.iter().map(label_rule).collect(),
        tolerations: constraints
            .tolerations
            .iter()
            .map(|one| placement::Toleration {
                key: one.key.to_string(),
                value: one.value.as_ref().map(ToString::to_string),
            })
            .collect(),
        pools: texts(&spec.pools()),
        networks: networks(spec),
        // Every host has the first level, also one whose agent does not say.
        baseline: match constraints.cpu_baseline {
            CpuBaseline::V1 => String::new(),
            level => level.name().to_owned(),
        },
    }
}

/// Those that it asks for, and those that its interfaces are in, as they come and go.
fn networks(spec: &VmSpec) -> BTreeSet<String> {
    let asked = spec.constraints.networks.iter().map(ToString::to_string);
    let named = spec.devices.nics.iter().map(|nic| nic.network.clone()).filter(|network| !network.is_empty());
    asked.chain(named).collect()
}

fn demand(spec: &VmSpec) -> placement::Demand {
    let constraints = &spec.constraints;
    placement::Demand {
        vcpus: spec.vcpus,
        memory: spec.memory,
        backing: match constraints.hugepages {
            None => PageBacking::Base,
            Some(page) if page == PageBacking::Huge1Gib.page() => PageBacking::Huge1Gib,
            Some(_) => PageBacking::Huge2Mib,
        },
        pinning: if constraints.pinned { placement::Pinning::Dedicated } else { placement::Pinning::Shared },
        numa: match constraints.numa {
            NumaPolicy::Any => placement::NumaPolicy::Float,
            NumaPolicy::Single => placement::NumaPolicy::Single,
            NumaPolicy::PreferSingle => placement::NumaPolicy::PreferSingle,
        },
    }
}

fn strength(strength: Strength) -> placement::Strength {
    match strength {
        Strength::Required => placement::Strength::Required,
        Strength::Preferred(weight) => placement::Strength::Preferred(weight.into()),
    }
}

fn scope(domain: Domain) -> placement::Scope {
    match domain {
        Domain::Host => placement::Scope::Host,
        Domain::Rack => placement::Scope::Rack,
        Domain::Zone => placement::Scope::Zone,
    }
}

fn affinity(rule: &Affinity) -> placement::Affinity {
    placement::Affinity {
        peers: match &rule.peer {
            Peer::Vm(vm) => placement::Peers::Vm(*vm),
            Peer::Group(group) => placement::Peers::Group(group.to_string()),
        },
        direction: match rule.relation {
            Relation::Together => placement::Direction::Together,
            Relation::Apart => placement::Direction::Apart,
        },
        scope: scope(rule.domain),
        strength: strength(rule.strength),
    }
}

fn spread(rule: &Spread) -> placement::Spread {
    placement::Spread {
        group: rule.group.to_string(),
        scope: scope(rule.domain),
        max_skew: NonZeroU32::new(rule.max_skew).unwrap_or(NonZeroU32::MIN),
        strength: strength(rule.strength),
    }
}

fn label_rule(rule: &LabelRule) -> placement::LabelRule {
    let texts = |names: &BTreeSet<Name>| names.iter().map(ToString::to_string).collect();
    placement::LabelRule {
        key: rule.key.to_string(),
        matches: match &rule.test {
            LabelTest::In(values) => placement::LabelMatch::In(texts(values)),
            LabelTest::NotIn(values) => placement::LabelMatch::NotIn(texts(values)),
            LabelTest::Exists => placement::LabelMatch::Exists,
            LabelTest::Absent => placement::LabelMatch::Absent,
        },
        strength: strength(rule.strength),
    }
}
