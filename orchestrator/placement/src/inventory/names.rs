//! What hosts and requests say in words, as numbers.

use crate::{
    Direction, HostSpec, LabelMatch, PageBacking, Pinning, Profile, Scope, Strength, TaintEffect,
    containers::{Interner, NameId},
};

/// The parts of a host that many hosts share and that hardly ever change. Sorted, so that equal ones are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Traits {
    pub(crate) labels: Box<[(NameId, NameId)]>,
    pub(crate) taints: Box<[(NameId, NameId, TaintEffect)]>,
    pub(crate) pools: Box<[NameId]>,
    pub(crate) networks: Box<[NameId]>,
    pub(crate) baselines: Box<[NameId]>,
}

impl Traits {
    pub(crate) fn of(spec: &HostSpec, names: &mut Interner) -> Self {
        let mut labels: Vec<_> =
            spec.labels.iter().map(|(key, value)| (names.intern(key), names.intern(value))).collect();
        let mut taints: Vec<_> =
            spec.taints.iter().map(|t| (names.intern(&t.key), names.intern(&t.value), t.effect)).collect();
        labels.sort_unstable();
        taints.sort_unstable();
        let mut set = |values: &std::collections::BTreeSet<String>| {
            let mut ids: Vec<NameId> = values.iter().map(|value| names.intern(value)).collect();
            ids.sort_unstable();
            ids.into_boxed_slice()
        };
        Self {
            pools: set(&spec.pools),
            networks: set(&spec.networks),
            baselines: set(&spec.baselines),
            labels: labels.into(),
            taints: taints.into(),
        }
    }

    /// The value of a label.
    pub(crate) fn label(&self, key: NameId) -> Option<NameId> {
        let index = self.labels.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        Some(self.labels[index].1)
    }
}

/// A label that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LabelKey {
    /// One of the host's own.
    Own(NameId),
    /// Where it stands.
    Zone,
    /// Where it stands.
    Rack,
    /// Its name.
    Host,
}

#[derive(Clone, Debug)]
pub(crate) struct RuleIds {
    pub(crate) key: LabelKey,
    /// For `In` and `NotIn`.
    pub(crate) values: Box<[NameId]>,
    pub(crate) preferred: Option<u16>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct AffinityIds {
    /// One VM, if the rule is about one.
    pub(crate) vm: Option<u128>,
    /// `None`: nobody speaks of that group. Of a VM: the group in which those are counted that must be apart from it.
    pub(crate) group: Option<u32>,
    pub(crate) direction: Direction,
    pub(crate) scope: Scope,
    pub(crate) preferred: Option<u16>,
    /// The VM is a member of that group itself.
    pub(crate) own: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct SpreadIds {
    pub(crate) group: Option<u32>,
    pub(crate) scope: Scope,
    pub(crate) max_skew: u32,
    pub(crate) preferred: Option<u16>,
}

/// Most vCPUs of one VM, and most threads of one host: far above any machine, and far enough below 32 bits that a
/// thread given out 655 times still counts.
pub(crate) const DEMAND_VCPUS_MAX: u32 = 1 << 15;
/// Most memory of one VM, and of one host: 256 TiB, so that the sum of any thousands of VMs is far below 64 bits.
pub(crate) const DEMAND_MEMORY_MAX: u64 = 1 << 48;

/// A [`Profile`] in numbers. Indices of rules are those of the profile. Names that the inventory does not know are
/// [`NameId::NONE`], which no host has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// More than any VM may be: fits nowhere.
    pub(crate) oversized: bool,
    pub(crate) vcpus: u32,
    pub(crate) dedicated: bool,
    pub(crate) memory: u64,
    pub(crate) backing: PageBacking,
    pub(crate) numa: crate::NumaPolicy,
    pub(crate) project: Option<u32>,
    pub(crate) priority: u32,
    pub(crate) groups: Box<[u32]>,
    pub(crate) affinity: Box<[AffinityIds]>,
    pub(crate) spread: Box<[SpreadIds]>,
    pub(crate) labels: Box<[RuleIds]>,
    pub(crate) tolerations: Box<[(NameId, Option<NameId>)]>,
    pub(crate) pools: Box<[NameId]>,
    pub(crate) networks: Box<[NameId]>,
    pub(crate) baseline: Option<NameId>,
}

/// What a preference counts; `None` for what is required.
pub(crate) fn preferred(strength: Strength) -> Option<u16> {
    match strength {
        Strength::Required => None,
        Strength::Preferred(weight) => Some(weight.clamp(1, crate::PREFERENCE_MAX)),
    }
}

/// How names of one kind become numbers: by looking up, or by making new ones.
pub(crate) trait Naming {
    /// Labels, taints, pools, networks, baselines, zones.
    fn name(&mut self, text: &str) -> NameId;
    /// Racks.
    fn rack(&mut self, text: &str) -> NameId;
    /// Projects.
    fn project(&mut self, text: &str) -> Option<u32>;
    /// Groups. `None`: there is no such group.
    fn group(&mut self, group: GroupName<'_>) -> Option<u32>;
}

/// Whose group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupName<'a> {
    /// One with a name.
    Named(&'a str),
    /// What is said of one VM. It has no members: where a VM is needs no counting.
    Vm(u128),
}

impl Wanted {
    pub(crate) fn of(profile: &Profile, naming: &mut impl Naming) -> Self {
        let demand = profile.demand;
        let page = demand.backing.page().get();
        let whole_pages = |bytes: u64| bytes.div_ceil(page).saturating_mul(page);
        let memory = match demand.backing {
            PageBacking::Base => demand.memory.get(),
            PageBacking::Huge2Mib | PageBacking::Huge1Gib => whole_pages(demand.memory.get()),
        };
        let mut groups: Vec<u32> =
            profile.groups.iter().filter_map(|group| naming.group(GroupName::Named(group))).collect();
        groups.sort_unstable();
        Self {
            oversized: demand.vcpus.get() > DEMAND_VCPUS_MAX || demand.memory.get() > DEMAND_MEMORY_MAX,
            vcpus: demand.vcpus.get(),
            dedicated: demand.pinning == Pinning::Dedicated,
            memory,
            backing: demand.backing,
            numa: demand.numa,
            project: if profile.project.is_empty() { None } else { naming.project(&profile.project) },
            priority: profile.priority,
            groups: groups.into(),
            affinity: profile
                .affinity
                .iter()
                .map(|affinity| Self::affinity(profile, affinity, naming))
                .collect(),
            spread: profile
                .spread
                .iter()
                .map(|spread| SpreadIds {
                    group: naming.group(GroupName::Named(&spread.group)),
                    scope: spread.scope,
                    max_skew: spread.max_skew.get(),
                    preferred: preferred(spread.strength),
                })
                .collect(),
            labels: profile.labels.iter().map(|rule| Self::rule(rule, naming)).collect(),
            tolerations: profile
                .tolerations
                .iter()
                .map(|t| (naming.name(&t.key), t.value.as_deref().map(|value| naming.name(value))))
                .collect(),
            pools: profile.pools.iter().map(|pool| naming.name(pool)).collect(),
            networks: profile.networks.iter().map(|network| naming.name(network)).collect(),
            baseline: (!profile.baseline.is_empty()).then(|| naming.name(&profile.baseline)),
        }
    }

    fn affinity(profile: &Profile, affinity: &crate::Affinity, naming: &mut impl Naming) -> AffinityIds {
        let (name, own, vm) = match &affinity.peers {
            crate::Peers::Group(group) => (GroupName::Named(group), profile.groups.contains(group), None),
            crate::Peers::Vm(vm) => (GroupName::Vm(vm.as_u128()), false, Some(vm.as_u128())),
        };
        AffinityIds {
            vm,
            group: naming.group(name),
            direction: affinity.direction,
            scope: affinity.scope,
            preferred: preferred(affinity.strength),
            own,
        }
    }

    fn rule(rule: &crate::LabelRule, naming: &mut impl Naming) -> RuleIds {
        let key = match rule.key.as_str() {
            "zone" => LabelKey::Zone,
            "rack" => LabelKey::Rack,
            "host" => LabelKey::Host,
            key => LabelKey::Own(naming.name(key)),
        };
        let mut value = |text: &String| match key {
            LabelKey::Rack => naming.rack(text),
            _ => naming.name(text),
        };
        let values = match &rule.matches {
            LabelMatch::In(values) | LabelMatch::NotIn(values) => values.iter().map(&mut value).collect(),
            LabelMatch::Exists | LabelMatch::Absent => Box::default(),
        };
        RuleIds { key, values, preferred: preferred(rule.strength) }
    }

    /// Hundredths of shared vCPUs that it takes of a host with this overcommit.
    pub(crate) fn cpu(&self, overcommit: u16) -> u32 {
        self.vcpus.saturating_mul(if self.dedicated { u32::from(overcommit) } else { 100 })
    }

    /// Base-page memory that it takes.
    pub(crate) fn base_memory(&self) -> u64 {
        if self.backing == PageBacking::Base { self.memory } else { 0 }
    }

    /// Whether what else is placed matters to it.
    pub(crate) fn is_social(&self) -> bool {
        !self.groups.is_empty() || !self.affinity.is_empty() || !self.spread.is_empty()
    }
}
