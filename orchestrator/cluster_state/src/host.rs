//! What a host is made of and carries, as far as placement asks: labels, taints, processors, NUMA nodes, networks, and
//! how much of it may be given away.
//!
//! Two voices speak about a host. Its agent reports [`HostFacts`] with every registration; an operator changes
//! [`NodeSettings`] at the control plane. Where both say something, the operator wins, and a registration never undoes
//! what an operator has set. [`Node`](crate::Node) has the effective values.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use drover_ids::OperationId;
use drover_units::{Bytes, VcpuCount};

use crate::{Capacity, Name};

/// Labels of a host: what its place, its kind or its owner is. Keys and values are names.
pub type Labels = BTreeMap<Name, Name>;

/// The label that names a host's rack.
pub const RACK_LABEL: &str = "rack";
/// The label that names a host's zone.
pub const ZONE_LABEL: &str = "zone";

/// What a taint does to VMs that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaintEffect {
    /// The host is taken only if nothing else will do.
    Avoid,
    /// The host takes no new VM; those that are there stay.
    Refuse,
}

impl fmt::Display for TaintEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Avoid => "avoid",
            Self::Refuse => "refuse",
        })
    }
}

/// Keeps VMs away from a host unless they tolerate it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taint {
    /// What it is about.
    pub key: Name,
    /// Which kind of it.
    pub value: Option<Name>,
    /// What it does.
    pub effect: TaintEffect,
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}:{}", self.key, self.effect),
            None => write!(f, "{}:{}", self.key, self.effect),
        }
    }
}

/// A VM's word that it does not mind a taint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Toleration {
    /// Which taints.
    pub key: Name,
    /// Of which kind. `None`: any.
    pub value: Option<Name>,
}

impl Toleration {
    /// Whether this taint does not matter to the VM.
    pub fn covers(&self, taint: &Taint) -> bool {
        self.key == taint.key && self.value.as_ref().is_none_or(|value| Some(value) == taint.value.as_ref())
    }
}

/// The x86-64 instruction-set level that a host offers and a VM may demand.
///
/// Levels: x86-64 psABI, section 3.1.1 "Processor Architecture".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum CpuBaseline {
    /// Every x86-64 processor.
    #[default]
    V1,
    /// SSE4.2, POPCNT, CMPXCHG16B.
    V2,
    /// AVX2, BMI, FMA.
    V3,
    /// AVX-512.
    V4,
}

impl CpuBaseline {
    /// Every level, least first.
    pub const ALL: [Self; 4] = [Self::V1, Self::V2, Self::V3, Self::V4];

    /// The psABI's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1 => "x86-64-v1",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
            Self::V4 => "x86-64-v4",
        }
    }
}

impl fmt::Display for CpuBaseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A text that names no level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{shown}' is no CPU baseline: use x86-64-v1, x86-64-v2, x86-64-v3 or x86-64-v4")]
pub struct CpuBaselineError {
    shown: String,
}

impl FromStr for CpuBaseline {
    type Err = CpuBaselineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|level| level.name() == text);
        found.ok_or_else(|| CpuBaselineError { shown: text.chars().take(32).collect() })
    }
}

/// One NUMA node of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NumaNode {
    /// Its number on the host.
    pub id: u32,
    /// Hardware threads.
    pub cpus: VcpuCount,
    /// Memory, hugepages included.
    pub memory: Bytes,
    /// Memory reserved as hugepages, by page size.
    pub hugepages: BTreeMap<Bytes, Bytes>,
}

/// How much more may be given away than there is: a factor in hundredths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio(u32);

impl Ratio {
    /// As much as there is.
    pub const ONE: Self = Self(100);
    /// A tenth: less is a host that offers nothing.
    pub const MIN: Self = Self(10);
    /// Sixteen times, the most that any cloud is known to run with.
    pub const MAX: Self = Self(1_600);

    /// From hundredths, within [`Self::MIN`] and [`Self::MAX`].
    pub fn from_percent(percent: u32) -> Option<Self> {
        let ratio = Self(percent);
        (Self::MIN..=Self::MAX).contains(&ratio).then_some(ratio)
    }

    /// In hundredths.
    pub const fn percent(self) -> u32 {
        self.0
    }

    fn of(self, value: u64) -> u64 {
        u64::try_from(u128::from(value) * u128::from(self.0) / 100).unwrap_or(u64::MAX)
    }
}

impl Default for Ratio {
    fn default() -> Self {
        Self::ONE
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

/// Factors by which a host's capacity is multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overcommit {
    /// For virtual CPUs.
    pub vcpus: Ratio,
    /// For guest memory.
    pub memory: Ratio,
}

impl Overcommit {
    /// What may be given away of `capacity`, once `reserved` has been put aside.
    pub fn apply(self, capacity: Capacity, reserved: Capacity) -> Capacity {
        let left = capacity.minus(reserved);
        let vcpus = self.vcpus.of(u64::from(left.vcpus.get()));
        Capacity {
            vcpus: VcpuCount::new(u32::try_from(vcpus).unwrap_or(u32::MAX)),
            memory: Bytes::new(self.memory.of(left.memory.get())),
        }
    }
}

/// What an agent says of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Where it is and what it is for.
    pub labels: Labels,
    /// Whom it keeps away.
    pub taints: BTreeSet<Taint>,
    /// Physical cores. 0: not said.
    pub cores: u32,
    /// Hardware threads. 0: not said.
    pub threads: u32,
    /// By number. Empty: not said; the host counts as one.
    pub numa: Vec<NumaNode>,
    /// What every VM may use there.
    pub cpu_baseline: CpuBaseline,
    /// Networks it reaches.
    pub networks: BTreeSet<Name>,
    /// How far it may be filled.
    pub overcommit: Overcommit,
    /// What is kept for the host itself.
    pub reserved: Capacity,
}

/// A host that is being emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// The operation that empties it.
    pub operation: OperationId,
}

/// What an operator has set for a host. Whatever is not set is as the agent reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSettings {
    /// Labels added or replaced; `None` takes away one that the agent reports.
    pub labels: BTreeMap<Name, Option<Name>>,
    /// Taints besides those that the agent reports.
    pub taints: BTreeSet<Taint>,
    /// Factor for virtual CPUs.
    pub vcpu_overcommit: Option<Ratio>,
    /// Factor for memory.
    pub memory_overcommit: Option<Ratio>,
    /// What is kept for the host itself.
    pub reserved: Option<Capacity>,
    /// Takes no new VM.
    pub cordoned: bool,
    /// Is to hold no VM at all. Its cordon stays when this ends.
    pub drain: Option<Drain>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("a test's name")
    }

    #[test]
    fn overcommit_counts_what_is_left_of_the_reserve() {
        let of = |vcpus, gib| Capacity { vcpus: VcpuCount::new(vcpus), memory: Bytes::gib(gib) };
        let overcommit = Overcommit { vcpus: Ratio::from_percent(250).unwrap(), memory: Ratio::ONE };
        assert_eq!(overcommit.apply(of(10, 16), of(2, 4)), of(20, 12));
        assert_eq!(overcommit.apply(of(1, 1), of(2, 4)), Capacity::default());
        assert_eq!(Ratio::from_percent(5), None);
        assert_eq!(Ratio::from_percent(150).unwrap().to_string(), "1.50");
    }

    #[test]
    fn a_toleration_without_a_value_covers_every_kind() {
        let taint = Taint { key: name("gpu"), value: Some(name("a100")), effect: TaintEffect::Refuse };
        let toleration =
            |key: &str, value: Option<&str>| Toleration { key: name(key), value: value.map(name) };
        assert!(toleration("gpu", None).covers(&taint));
        assert!(toleration("gpu", Some("a100")).covers(&taint));
        assert!(!toleration("gpu", Some("h100")).covers(&taint));
        assert!(!toleration("disk", None).covers(&taint));
        assert_eq!(taint.to_string(), "gpu=a100:refuse");
    }

    #[test]
    fn a_baseline_is_known_by_its_name() {
        for level in CpuBaseline::ALL {
            assert_eq!(level.name().parse(), Ok(level));
        }
        assert!("avx2".parse::<CpuBaseline>().is_err());
        assert!(CpuBaseline::V2 < CpuBaseline::V3);
    }
}
