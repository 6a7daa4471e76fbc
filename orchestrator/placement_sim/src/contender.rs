//! Who can be asked to place, by name.

use std::{fmt, str::FromStr};

use drover_placement::{NAMED, Policy, PolicyError};

use crate::{Cluster, EngineError, EnginePlacer, Heuristic, HeuristicPlacer, Placer};

/// What begins the name of a policy of the caller's own weights.
const CUSTOM: &str = "custom:";

/// The engine with a policy, or a heuristic. In text: the policy's name, `custom:pack=50,fragmentation=100`, or the
/// heuristic's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contender {
    /// The engine.
    Engine(Policy),
    /// A textbook heuristic.
    Heuristic(Heuristic),
}

/// A name that means nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContenderError {
    /// Neither a policy nor a heuristic.
    #[error(
        "there is no policy '{name}': it may be {policies}, {CUSTOM}TERM=WEIGHT,…, or a heuristic: {heuristics}",
        policies = NAMED.join(", "),
        heuristics = Heuristic::ALL.map(Heuristic::name).join(", ")
    )]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// A term without a weight.
    #[error("'{text}' is no weight of a policy: it may be TERM=WEIGHT, such as pack=50")]
    Weight {
        /// What was there.
        text: String,
    },
    /// The weights make no policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

impl Contender {
    /// Begins with empty hosts.
    ///
    /// # Errors
    /// If the engine refuses a host of the cluster.
    pub fn placer(&self, cluster: &Cluster) -> Result<Box<dyn Placer>, EngineError> {
        Ok(match self {
            Self::Engine(policy) => Box::new(EnginePlacer::new(cluster, policy.clone())?),
            Self::Heuristic(heuristic) => Box::new(HeuristicPlacer::new(*heuristic, cluster)),
        })
    }
}

impl FromStr for Contender {
    type Err = ContenderError;

    fn from_str(name: &str) -> Result<Self, ContenderError> {
        if let Some(terms) = name.strip_prefix(CUSTOM) {
            let weight = |text: &str| -> Option<(String, u64)> {
                let (term, weight) = text.split_once('=')?;
                Some((term.trim().to_owned(), weight.trim().parse().ok()?))
            };
            let parsed: Result<Vec<(String, u64)>, ContenderError> = terms
                .split(',')
                .map(|text| weight(text).ok_or_else(|| ContenderError::Weight { text: text.to_owned() }))
                .collect();
            let parsed = parsed?;
            let terms = parsed.iter().map(|(term, weight)| (term.as_str(), *weight));
            return Ok(Self::Engine(Policy::from_terms("custom", terms)?));
        }
        if let Ok(heuristic) = name.parse() {
            return Ok(Self::Heuristic(heuristic));
        }
        match Policy::named(name) {
            Ok(policy) => Ok(Self::Engine(policy)),
            Err(_) => Err(ContenderError::Unknown { name: name.to_owned() }),
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine(policy) => f.write_str(&policy.name),
            Self::Heuristic(heuristic) => heuristic.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_heuristics_and_own_weights_are_known_by_name() {
        for name in NAMED {
            assert_eq!(name.parse::<Contender>().unwrap().to_string(), name);
        }
        assert_eq!("l2-norm".parse(), Ok(Contender::Heuristic(Heuristic::L2Norm)));
        let Ok(Contender::Engine(policy)) = "custom:pack=50, balance=7".parse() else { panic!() };
        assert_eq!((policy.weights.pack, policy.weights.balance), (50, 7));
    }

    fn check(name: &str, expect: &str) {
        let error = name.parse::<Contender>().unwrap_err().to_string();
        assert!(error.starts_with(expect), "{error}");
    }

    #[test]
    fn a_name_that_means_nobody_says_what_would() {
        check("best", "there is no policy 'best': it may be pack, spread");
        check("custom:pack", "'pack' is no weight of a policy");
        check("custom:paq=1", "there is no term 'paq'");
        check("custom:pack=0", "policy 'custom' gives weight to nothing");
    }
}
