//! Stored policies in the words of placement.

use std::collections::BTreeSet;

use drover_cluster_state::{ClusterState, Name, PolicyRecord};
use drover_placement::{NAMED, Policies, Policy, PolicyError, Ties, Weights};

/// The base of a policy that starts from nothing.
const CUSTOM: &str = "custom";

/// Names of the policies that come with Drover.
pub fn built_in_policies() -> BTreeSet<Name> {
    NAMED.iter().filter_map(|name| Name::new(name).ok()).collect()
}

/// Names of every policy there is.
pub fn policy_names(state: &ClusterState) -> BTreeSet<Name> {
    built_in_policies().into_iter().chain(state.policies.keys().cloned()).collect()
}

/// What a stored policy comes to: its base, with its own weights in place of the base's.
///
/// # Errors
/// An unknown base or term, a weight that is too large, or nothing that weighs.
pub fn check_policy(record: &PolicyRecord) -> Result<Policy, PolicyError> {
    let base = match record.base.as_str() {
        CUSTOM => Weights::default(),
        name => Policy::named(name)?.weights,
    };
    let own: Vec<(&str, u64)> =
        record.weights.iter().map(|(term, weight)| (term.as_str(), u64::from(*weight))).collect();
    let inherited = base.terms().into_iter().map(|(term, weight)| (term.name(), u64::from(weight)));
    // Later ones replace earlier ones of the same name.
    let mut policy = Policy::from_terms(record.name.as_str(), inherited.chain(own))?;
    if record.seed != 0 {
        policy.ties = Ties::Seeded(record.seed);
    }
    Ok(policy)
}

/// Every policy that decides for somebody. A stored one that an older version would have refused counts as the default.
pub fn policies_of(state: &ClusterState) -> Policies {
    let settings = state.settings();
    let failures = u8::try_from(settings.failures_to_survive).unwrap_or(u8::MAX);
    let resolve = |name: &Name| -> Policy {
        let stored = state.policies.get(name).and_then(|record| check_policy(record).ok());
        let mut policy = stored.or_else(|| Policy::named(name.as_str()).ok()).unwrap_or_default();
        policy.host_failures = failures.min(drover_placement::HOST_FAILURES_MAX);
        policy
    };
    let own = state.projects.values().filter_map(|p| Some((p.name.to_string(), resolve(p.policy.as_ref()?))));
    Policies { cluster: resolve(&settings.policy), projects: own.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(base: &str, weights: &[(&str, u32)]) -> PolicyRecord {
        let name = |text: &str| Name::new(text).unwrap();
        let weights = weights.iter().map(|(term, weight)| (name(term), *weight)).collect();
        PolicyRecord { name: name("mine"), base: name(base), weights, seed: 0 }
    }

    #[test]
    fn own_weights_take_the_place_of_the_bases() {
        let policy = check_policy(&record("balance", &[("spread", 0), ("energy", 7)])).unwrap();
        let base = Policy::named("balance").unwrap().weights;
        assert_eq!(policy.weights, Weights { spread: 0, energy: 7, ..base });
        let custom = check_policy(&record(CUSTOM, &[("load", 3)])).unwrap();
        assert_eq!(custom.weights, Weights { load: 3, ..Weights::default() });
    }

    #[test]
    fn what_does_not_exist_is_refused_by_name() {
        let error = |base: &str, weights: &[(&str, u32)]| {
            check_policy(&record(base, weights)).unwrap_err().to_string()
        };
        assert!(error("fastest", &[]).contains("fastest"));
        assert!(error("pack", &[("price", 1)]).contains("price"));
        assert!(error(CUSTOM, &[]).contains("nothing"));
        assert!(error("pack", &[("pack", 1001)]).contains("1001"));
    }
}
