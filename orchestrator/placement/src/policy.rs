//! Policies: what a good host is, as data.
//!
//! A policy is a set of weighted terms. Each term says how good a host is in one respect, between 0 and
//! [`TERM_SCALE`]; the weighted sum decides, and a tie goes by [`Ties`]. All of it is integer arithmetic: equal input
//! gives equal output on every machine.

use std::{collections::BTreeMap, fmt};

/// What a term says of a host that is as good as can be.
pub const TERM_SCALE: i64 = 100_000;
/// Largest weight of one term.
pub const WEIGHT_MAX: u16 = 1000;
/// Most hosts whose failure can be provided for: the restart of each is tried at every admission.
pub const HOST_FAILURES_MAX: u8 = 8;
/// Longest name of a policy, bytes.
pub const POLICY_NAME_MAX: usize = 63;

/// How much each term counts, 0 to [`WEIGHT_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Weights {
    /// Little is left: the tightest host, so that large gaps stay whole.
    pub pack: u16,
    /// Much is left: the emptiest host.
    pub spread: u16,
    /// CPU and memory are used in equal parts, so that neither is left over alone.
    pub balance: u16,
    /// Few large shapes lose their place: of VMs that take 1/2, 1/4, 1/8 … of a host, as many as possible still fit.
    pub fragmentation: u16,
    /// VMs that end together are together, so that whole hosts become free: the host's other VMs live as least as
    /// long.
    pub lifetime: u16,
    /// No empty host is woken.
    pub energy: u16,
    /// Measured load is low.
    pub load: u16,
    /// The request's preferences: soft affinity, soft spread, preferred labels, taints that only discourage.
    pub preferences: u16,
}

impl Weights {
    /// Every term's name and weight, in the order of the fields.
    pub fn terms(&self) -> [(Term, u16); 8] {
        [
            (Term::Pack, self.pack),
            (Term::Spread, self.spread),
            (Term::Balance, self.balance),
            (Term::Fragmentation, self.fragmentation),
            (Term::Lifetime, self.lifetime),
            (Term::Energy, self.energy),
            (Term::Load, self.load),
            (Term::Preferences, self.preferences),
        ]
    }

    /// The weight of a term.
    pub fn get_mut(&mut self, term: Term) -> &mut u16 {
        match term {
            Term::Pack => &mut self.pack,
            Term::Spread => &mut self.spread,
            Term::Balance => &mut self.balance,
            Term::Fragmentation => &mut self.fragmentation,
            Term::Lifetime => &mut self.lifetime,
            Term::Energy => &mut self.energy,
            Term::Load => &mut self.load,
            Term::Preferences => &mut self.preferences,
        }
    }
}

/// One respect in which a host is good or bad. Its text form is the field's name in [`Weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the fields of Weights say what each is")]
pub enum Term {
    Pack,
    Spread,
    Balance,
    Fragmentation,
    Lifetime,
    Energy,
    Load,
    Preferences,
}

impl Term {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Pack,
        Self::Spread,
        Self::Balance,
        Self::Fragmentation,
        Self::Lifetime,
        Self::Energy,
        Self::Load,
        Self::Preferences,
    ];

    /// Its stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pack => "pack",
            Self::Spread => "spread",
            Self::Balance => "balance",
            Self::Fragmentation => "fragmentation",
            Self::Lifetime => "lifetime",
            Self::Energy => "energy",
            Self::Load => "load",
            Self::Preferences => "preferences",
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whom a tie between equally good hosts goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ties {
    /// The host with the smallest id.
    #[default]
    SmallestId,
    /// A host that follows from this seed and the VM's id: replicas that decide at the same time rarely collide.
    Seeded(u64),
}

/// What a good host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What it is called, 1 to [`POLICY_NAME_MAX`] bytes.
    pub name: String,
    /// How much each term counts.
    pub weights: Weights,
    /// Whom ties go to.
    pub ties: Ties,
    /// Room is kept to restart the VMs of this many hosts, the fullest ones, on the others; at most
    /// [`HOST_FAILURES_MAX`].
    pub host_failures: u8,
    /// Whether a request of higher priority may take the place of VMs of lower priority where nothing is free.
    pub preemption: bool,
}

/// Names of the policies that are always there.
pub const NAMED: [&str; 6] = ["pack", "spread", "balance", "least-fragmentation", "lifetime-aware", "energy"];

/// A policy that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Its name is empty or too long.
    #[error("a policy's name has 1 to {POLICY_NAME_MAX} bytes, not {length}")]
    Name {
        /// Its length.
        length: usize,
    },
    /// A weight is too large.
    #[error("weight '{term}' of policy '{policy}' is {weight}: it may be 0 to {WEIGHT_MAX}")]
    Weight {
        /// The policy.
        policy: String,
        /// Whose weight.
        term: Term,
        /// What it is.
        weight: u64,
    },
    /// Nothing counts.
    #[error("policy '{policy}' gives weight to nothing: at least one of {terms} must be above 0", terms = term_names())]
    NoWeight {
        /// The policy.
        policy: String,
    },
    /// Too many failures.
    #[error(
        "policy '{policy}' keeps room for {host_failures} host failures: it may be 0 to {HOST_FAILURES_MAX}"
    )]
    HostFailures {
        /// The policy.
        policy: String,
        /// What it asks for.
        host_failures: u8,
    },
    /// No such policy.
    #[error("there is no policy '{name}': it may be {known}", known = NAMED.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// No such term.
    #[error("there is no term '{name}': it may be {terms}", terms = term_names())]
    UnknownTerm {
        /// What was asked for.
        name: String,
    },
}

fn term_names() -> String {
    Term::ALL.map(Term::name).join(", ")
}

impl Policy {
    /// A policy of given weights.
    pub fn custom(name: impl Into<String>, weights: Weights) -> Result<Self, PolicyError> {
        let policy =
            Self { name: name.into(), weights, ties: Ties::default(), host_failures: 0, preemption: false };
        policy.validate()?;
        Ok(policy)
    }

    /// A policy from names of terms, as a configuration has them.
    pub fn from_terms<'a>(
        name: &str,
        terms: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> Result<Self, PolicyError> {
        let mut weights = Weights::default();
        for (text, weight) in terms {
            let term = Term::ALL
                .into_iter()
                .find(|term| term.name() == text)
                .ok_or_else(|| PolicyError::UnknownTerm { name: text.to_owned() })?;
            let too_large = |_| PolicyError::Weight { policy: name.to_owned(), term, weight };
            *weights.get_mut(term) = u16::try_from(weight).map_err(too_large)?;
        }
        Self::custom(name, weights)
    }

    /// One of [`NAMED`].
    pub fn named(name: &str) -> Result<Self, PolicyError> {
        // A preference of full weight outdoes any one term.
        let none = Weights { preferences: 300, ..Weights::default() };
        let weights = match name {
            "pack" => Weights { pack: 100, ..none },
            "spread" => Weights { spread: 100, ..none },
            "balance" => Weights { balance: 100, spread: 20, ..none },
            "least-fragmentation" => Weights { fragmentation: 100, pack: 100, ..none },
            "lifetime-aware" => Weights { lifetime: 100, pack: 100, ..none },
            "energy" => Weights { energy: 100, pack: 50, ..none },
            _ => return Err(PolicyError::Unknown { name: name.to_owned() }),
        };
        Self::custom(name, weights)
    }

    /// The same weights with other names for ties, failures and preemption: policies compose by blending. Each of
    /// `parts` counts by its share; ties, failures and preemption are the first one's.
    pub fn blend(name: &str, parts: &[(&Self, u16)]) -> Result<Self, PolicyError> {
        let mut weights = Weights::default();
        let shares: u64 = parts.iter().map(|(_, share)| u64::from(*share)).sum();
        for term in Term::ALL {
            let of = |policy: &Self| u64::from(*policy.weights.clone().get_mut(term));
            let sum: u64 = parts.iter().map(|(policy, share)| of(policy) * u64::from(*share)).sum();
            // Parts are at most WEIGHT_MAX each, and so is their mean.
            *weights.get_mut(term) = u16::try_from(sum.checked_div(shares).unwrap_or(0)).unwrap_or(u16::MAX);
        }
        let mut blended = Self::custom(name, weights)?;
        if let Some((first, _)) = parts.first() {
            blended.ties = first.ties;
            blended.host_failures = first.host_failures;
            blended.preemption = first.preemption;
        }
        Ok(blended)
    }

    /// Whether it can be used. Every constructor has asked; whoever changes a field asks again.
    pub fn validate(&self) -> Result<(), PolicyError> {
        if !(1..=POLICY_NAME_MAX).contains(&self.name.len()) {
            return Err(PolicyError::Name { length: self.name.len() });
        }
        for (term, weight) in self.weights.terms() {
            if weight > WEIGHT_MAX {
                let weight = u64::from(weight);
                return Err(PolicyError::Weight { policy: self.name.clone(), term, weight });
            }
        }
        if self.weights.terms().iter().all(|(_, weight)| *weight == 0) {
            return Err(PolicyError::NoWeight { policy: self.name.clone() });
        }
        if self.host_failures > HOST_FAILURES_MAX {
            let host_failures = self.host_failures;
            return Err(PolicyError::HostFailures { policy: self.name.clone(), host_failures });
        }
        Ok(())
    }
}

impl Default for Policy {
    /// `pack`.
    fn default() -> Self {
        Self::named("pack").expect("it is one of the named ones")
    }
}

/// Which policy decides for whom: one for the cluster, others for single projects. Plain data; replaced as a whole,
/// between two decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// The cluster's.
    pub cluster: Policy,
    /// Projects that have their own.
    pub projects: BTreeMap<String, Policy>,
}

impl Policies {
    /// The policy of a project.
    pub fn of(&self, project: &str) -> &Policy {
        self.projects.get(project).unwrap_or(&self.cluster)
    }

    /// Whether each can be used.
    pub fn validate(&self) -> Result<(), PolicyError> {
        self.cluster.validate()?;
        self.projects.values().try_for_each(Policy::validate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_policy_is_valid_and_keeps_its_name() {
        for name in NAMED {
            assert_eq!(Policy::named(name).map(|policy| policy.name), Ok(name.to_owned()));
        }
        let unknown = Policy::named("best").unwrap_err().to_string();
        assert!(unknown.contains("least-fragmentation"), "{unknown}");
    }

    #[test]
    fn a_policy_that_cannot_be_used_says_what_would_be_valid() {
        let check = |policy: Result<Policy, PolicyError>, expect: &str| {
            assert_eq!(policy.unwrap_err().to_string(), expect);
        };
        let pack = Weights { pack: 1, ..Weights::default() };
        check(Policy::custom("", pack), "a policy's name has 1 to 63 bytes, not 0");
        check(
            Policy::from_terms("p", [("pack", 1001)]),
            "weight 'pack' of policy 'p' is 1001: it may be 0 to 1000",
        );
        check(
            Policy::from_terms("p", [("pack", 1 << 40)]),
            "weight 'pack' of policy 'p' is 1099511627776: it may be 0 to 1000",
        );
        check(
            Policy::custom("p", Weights::default()),
            "policy 'p' gives weight to nothing: at least one of pack, spread, balance, fragmentation, lifetime, energy, load, preferences must be above 0",
        );
        check(
            Policy::from_terms("p", [("packing", 1)]),
            "there is no term 'packing': it may be pack, spread, balance, fragmentation, lifetime, energy, load, preferences",
        );
        let failures = Policy { host_failures: 9, ..Policy::default() };
        assert!(failures.validate().unwrap_err().to_string().contains("0 to 8"));
    }

    #[test]
    fn a_blend_weighs_its_parts_by_their_shares() {
        let (pack, energy) = (Policy::named("pack").unwrap(), Policy::named("energy").unwrap());
        let blend = Policy::blend("mix", &[(&pack, 1), (&energy, 3)]).unwrap();
        assert_eq!((blend.weights.pack, blend.weights.energy), (62, 75));
        assert!(Policy::blend("mix", &[]).is_err());
    }

    #[test]
    fn a_project_without_its_own_policy_has_the_clusters() {
        let spread = Policy::named("spread").unwrap();
        let policies = Policies { projects: [("web".to_owned(), spread)].into(), ..Policies::default() };
        assert_eq!((policies.of("web").name.as_str(), policies.of("db").name.as_str()), ("spread", "pack"));
    }
}
