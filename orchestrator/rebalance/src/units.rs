//! Who must leave together.

use std::collections::{BTreeMap, BTreeSet};

use drover_ids::{NodeId, VmId};
use drover_placement::{Affinity, Direction, Peers, Profile, Scope, Strength};

use crate::trial::Trial;

/// VMs that leave together, and from where.
pub(crate) type Unit = Vec<(VmId, NodeId)>;

/// VMs by whom they must stay with: units of several first, then the largest.
pub(crate) fn units(trial: &Trial<'_>, leaving: &[(VmId, NodeId)]) -> Vec<Unit> {
    let mut ties = Ties::of(trial, leaving);
    let mut leaders: Vec<usize> = (0..leaving.len()).collect();
    for (index, (vm, host)) in leaving.iter().enumerate() {
        for other in ties.of_vm(trial, *vm, *host) {
            let (one, two) = (leader(&leaders, index), leader(&leaders, other));
            leaders[one.max(two)] = one.min(two);
        }
    }
    let mut units: BTreeMap<usize, Unit> = BTreeMap::new();
    for (index, entry) in leaving.iter().enumerate() {
        units.entry(leader(&leaders, index)).or_default().push(*entry);
    }
    let size = |unit: &Unit| unit.iter().map(|(vm, _)| trial.size(*vm)).fold(0.0, f64::max);
    let mut sized: Vec<(bool, f64, Unit)> =
        units.into_values().map(|unit| (unit.len() > 1, size(&unit), unit)).collect();
    // Stable: equal ones stay in the order of hosts and ids.
    sized.sort_by(|one, two| two.0.cmp(&one.0).then(two.1.total_cmp(&one.1)));
    sized.into_iter().map(|(_, _, unit)| unit).collect()
}

fn leader(leaders: &[usize], mut index: usize) -> usize {
    while leaders[index] != index {
        index = leaders[index];
    }
    index
}

/// Who leaves, as far as somebody wants to be with them.
struct Ties {
    leaving: BTreeMap<VmId, usize>,
    members: BTreeMap<String, Vec<usize>>,
    /// Whether somebody of a kind stays in a place; the look at every VM that finds it out is made once.
    company: BTreeMap<(Peers, Scope, String), bool>,
}

impl Ties {
    fn of(trial: &Trial<'_>, leaving: &[(VmId, NodeId)]) -> Self {
        let mut ties = Self { leaving: BTreeMap::new(), members: BTreeMap::new(), company: BTreeMap::new() };
        for (index, (vm, _)) in leaving.iter().enumerate() {
            ties.leaving.insert(*vm, index);
            for group in trial.profile(*vm).iter().flat_map(|profile| &profile.groups) {
                ties.members.entry(group.clone()).or_default().push(index);
            }
        }
        ties
    }

    /// Positions of the VMs that one leaves together with: those it insists on being with, unless some that it insists
    /// on stay in the same rack or zone.
    fn of_vm(&mut self, trial: &Trial<'_>, vm: VmId, host: NodeId) -> BTreeSet<usize> {
        let mut tied = BTreeSet::new();
        let Some(profile) = trial.profile(vm) else { return tied };
        for rule in profile.affinity.iter().filter(|rule| insists(rule)) {
            if self.has_company(trial, rule, host) {
                continue;
            }
            match &rule.peers {
                Peers::Group(group) => tied.extend(self.members.get(group).into_iter().flatten()),
                Peers::Vm(peer) => tied.extend(self.leaving.get(peer)),
            }
        }
        tied
    }

    fn has_company(&mut self, trial: &Trial<'_>, rule: &Affinity, host: NodeId) -> bool {
        let Some(place) = trial.place(host, rule.scope).filter(|_| rule.scope != Scope::Host) else {
            return false;
        };
        let leaving = &self.leaving;
        let key = (rule.peers.clone(), rule.scope, place);
        *self.company.entry(key).or_insert_with_key(|(peers, scope, place)| {
            let stays_there = |vm: VmId, profile: &Profile, host: NodeId| {
                !leaving.contains_key(&vm)
                    && is_meant(peers, vm, profile)
                    && trial.place(host, *scope).as_ref() == Some(place)
            };
            trial.any_vm(stays_there)
        })
    }
}

fn insists(rule: &Affinity) -> bool {
    rule.direction == Direction::Together && rule.strength == Strength::Required
}

fn is_meant(peers: &Peers, vm: VmId, profile: &Profile) -> bool {
    match peers {
        Peers::Group(group) => profile.groups.contains(group),
        Peers::Vm(peer) => *peer == vm,
    }
}
