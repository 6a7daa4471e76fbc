//! Packing tighter: hosts are emptied, so that what is free comes in whole hosts.

use std::collections::BTreeSet;

use drover_ids::{NodeId, VmId};
use drover_placement::{Policies, Policy};

use crate::{
    Basis, Parallelism, Plan, Why,
    trial::{Reserve, Search, Step, Trial},
    waves,
};

/// Hosts in a row that could not be emptied, after which the rest, which are fuller, are not tried.
const FAILURES_MAX: usize = 32;
/// Decisions for each move that may be made; most are for hosts that turn out not to become empty.
const ASKS_PER_MOVE: u32 = 64;

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsolidateLimits {
    /// Moves in all.
    pub moves: usize,
    /// Moves at the same time.
    pub parallelism: Parallelism,
}

/// Finds moves that empty hosts, those first that take the least moving. Hosts are only emptied whole: half a host's
/// migrations free nothing. VMs go to the fullest hosts that may have them, and never to an empty one.
///
/// Takes the cluster as it is: whether there is any use for empty hosts is the caller's to know.
pub fn consolidate(basis: &Basis<'_>, limits: &ConsolidateLimits) -> Plan {
    // Whatever policy places new VMs: to pack tighter is what was asked for.
    let tight = Policies { cluster: tightest(&basis.policies.cluster), projects: projects(basis.policies) };
    let basis = Basis { policies: &tight, ..*basis };
    let start = Trial::new(&basis, Reserve::Kept);
    let asks = ASKS_PER_MOVE.saturating_mul(u32::try_from(limits.moves).unwrap_or(u32::MAX));
    let mut search = Search::new(asks);
    let (mut trial, mut steps, mut failures) = (start.clone(), Vec::new(), 0);
    let mut filled: BTreeSet<NodeId> = BTreeSet::new();
    for (host, vms) in by_effort(&start) {
        if steps.len() + vms.len() > limits.moves || failures >= FAILURES_MAX {
            break;
        }
        // A host that has taken VMs of this plan is not emptied again: each VM moves once.
        if filled.contains(&host) {
            continue;
        }
        match empty(&trial, &mut search, host, &vms) {
            Some((tried, moved)) => {
                filled.extend(moved.iter().flat_map(|step: &Step| step.moves.iter().map(|mv| mv.to)));
                trial = tried;
                steps.extend(moved);
                failures = 0;
            }
            None => failures += 1,
        }
    }
    waves::arrange(&start, &steps, &limits.parallelism).unwrap_or_default()
}

fn tightest(policy: &Policy) -> Policy {
    let tight = Policy::default();
    Policy { weights: tight.weights, ..policy.clone() }
}

fn projects(policies: &Policies) -> std::collections::BTreeMap<String, Policy> {
    policies.projects.iter().map(|(name, policy)| (name.clone(), tightest(policy))).collect()
}

/// Hosts that take work and could be emptied, with their VMs, those first that take the least moving.
fn by_effort(trial: &Trial<'_>) -> Vec<(NodeId, Vec<VmId>)> {
    let mut hosts = Vec::new();
    for host in trial.hosts().into_iter().filter(|host| trial.is_ready(*host)) {
        let vms = trial.vms_of(host);
        if !vms.is_empty() && vms.iter().all(|vm| trial.is_movable(*vm)) {
            let price: f64 = vms.iter().map(|vm| trial.price_of(*vm)).sum();
            hosts.push((price, host, vms));
        }
    }
    hosts.sort_by(|one, two| one.0.total_cmp(&two.0).then(one.1.cmp(&two.1)));
    hosts.into_iter().map(|(_, host, vms)| (host, vms)).collect()
}

/// Moves every VM of a host to hosts that are not empty. `None`: that cannot be done.
fn empty<'a>(
    trial: &Trial<'a>,
    search: &mut Search,
    host: NodeId,
    vms: &[VmId],
) -> Option<(Trial<'a>, Vec<Step>)> {
    let mut tried = trial.clone();
    let mut largest_first: Vec<VmId> = vms.to_vec();
    largest_first.sort_by(|one, two| trial.size(*two).total_cmp(&trial.size(*one)));
    let mut steps = Vec::new();
    for vm in largest_first {
        let to = tried.find(search, vm, None, &BTreeSet::new()).ok()?;
        let step = Step { moves: vec![tried.planned(vm, host, to, Why::Consolidate)] };
        if tried.is_empty(to) || !tried.make(&step) {
            return None;
        }
        steps.push(step);
    }
    Some((tried, steps))
}
