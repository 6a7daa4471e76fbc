//! What a VM insists on.

use std::collections::BTreeMap;

use super::{PlainAffinity, PlainCluster, PlainHost, PlainLabelRule, PlainPeers, PlainScope, PlainVm};
use crate::Violation;

/// The place that a host is in, in some sense. `None`: it is in none.
fn place(host: &PlainHost, scope: PlainScope) -> Option<String> {
    let place = match scope {
        PlainScope::Host => host.id.to_string(),
        PlainScope::Rack => host.rack.clone(),
        PlainScope::Zone => host.zone.clone(),
    };
    (!place.is_empty()).then_some(place)
}

fn label(host: &PlainHost, key: &str) -> Option<String> {
    let place = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match key {
        "host" => place(&host.name),
        "rack" => place(&host.rack),
        "zone" => place(&host.zone),
        _ => host.labels.get(key).cloned(),
    }
}

fn label_rule_holds(rule: &PlainLabelRule, host: &PlainHost) -> bool {
    match rule {
        PlainLabelRule::In(key, values) => label(host, key).is_some_and(|value| values.contains(&value)),
        PlainLabelRule::NotIn(key, values) => label(host, key).is_none_or(|value| !values.contains(&value)),
        PlainLabelRule::Exists(key) => label(host, key).is_some(),
        PlainLabelRule::Absent(key) => label(host, key).is_none(),
    }
}

/// What is wrong between a VM and a host, whatever else stands there.
pub(super) fn of_host(vm: &PlainVm, host: &PlainHost, violations: &mut Vec<Violation>) {
    let mut wrong = |rule, what: String| {
        violations.push(Violation::new(rule, format!("VM {} on host {}: {what}", vm.id, host.name)));
    };
    if !host.takes_work {
        wrong("host-takes-work", "it takes no work".to_owned());
    }
    for rule in vm.labels.iter().filter(|rule| !label_rule_holds(rule, host)) {
        wrong("label", format!("{rule:?}"));
    }
    for (key, value) in &host.taints {
        let tolerated = |(other, any): &(String, Option<String>)| {
            other == key && any.as_ref().is_none_or(|other| other == value)
        };
        if !vm.tolerations.iter().any(tolerated) {
            wrong("taint", format!("{key}={value}"));
        }
    }
    for pool in vm.pools.difference(&host.pools) {
        wrong("pool", pool.clone());
    }
    for network in vm.networks.difference(&host.networks) {
        wrong("network", network.clone());
    }
    if !vm.baseline.is_empty() && !host.baselines.contains(&vm.baseline) {
        wrong("baseline", vm.baseline.clone());
    }
}

/// Whether a VM is one of those that a rule means.
fn is_meant(peers: &PlainPeers, vm: &PlainVm) -> bool {
    match peers {
        PlainPeers::Group(group) => vm.groups.contains(group),
        PlainPeers::Vm(id) => vm.id == *id,
    }
}

/// What is wrong between a VM on a host and the other VMs.
pub(super) fn of_others(
    cluster: &PlainCluster,
    vm: &PlainVm,
    host: &PlainHost,
    violations: &mut Vec<Violation>,
) {
    for rule in &vm.affinity {
        affinity(cluster, vm, host, rule, violations);
    }
    for other in cluster.standing.iter().filter(|standing| standing.vm.id != vm.id) {
        let Some(stands) = cluster.host(other.host) else { continue };
        for rule in other.vm.affinity.iter().filter(|rule| !rule.together && is_meant(&rule.peers, vm)) {
            let here = place(host, rule.scope);
            if here.is_some() && here == place(stands, rule.scope) {
                let what = format!("VM {} wants VM {} away from {}", other.vm.id, vm.id, host.name);
                violations.push(Violation::new("anti-affinity", what));
            }
        }
    }
    spread(cluster, vm, host, violations);
}

fn affinity(
    cluster: &PlainCluster,
    vm: &PlainVm,
    host: &PlainHost,
    rule: &PlainAffinity,
    violations: &mut Vec<Violation>,
) {
    let Some(here) = place(host, rule.scope) else { return };
    let meant = || cluster.standing.iter().filter(|s| s.vm.id != vm.id && is_meant(&rule.peers, &s.vm));
    let in_place = meant()
        .filter_map(|standing| cluster.host(standing.host))
        .any(|stands| place(stands, rule.scope).as_ref() == Some(&here));
    // The first member of its own group has nobody to go to.
    let first =
        matches!(&rule.peers, PlainPeers::Group(group) if vm.groups.contains(group)) && meant().count() == 0;
    if rule.together && !in_place && !first {
        let what = format!("VM {} on {} is away from {:?}", vm.id, host.name, rule.peers);
        violations.push(Violation::new("affinity", what));
    }
    if !rule.together && in_place {
        let what = format!("VM {} on {} is near {:?}", vm.id, host.name, rule.peers);
        violations.push(Violation::new("anti-affinity", what));
    }
}

/// Evenness: of the places with a host that would do if it had room, none may have `max_skew` members less than this
/// one with the VM in it.
fn spread(cluster: &PlainCluster, vm: &PlainVm, host: &PlainHost, violations: &mut Vec<Violation>) {
    for rule in &vm.spread {
        let Some(here) = place(host, rule.scope) else { continue };
        let mut members: BTreeMap<String, u64> = BTreeMap::new();
        for candidate in &cluster.hosts {
            let mut wrong = Vec::new();
            of_host(vm, candidate, &mut wrong);
            if let (true, Some(place)) = (wrong.is_empty(), place(candidate, rule.scope)) {
                members.insert(place, 0);
            }
        }
        members.entry(here.clone()).or_default();
        let others = cluster.standing.iter().filter(|standing| standing.vm.id != vm.id);
        for standing in others.filter(|standing| standing.vm.groups.contains(&rule.group)) {
            let place = cluster.host(standing.host).and_then(|stands| place(stands, rule.scope));
            if let Some(count) = place.and_then(|place| members.get_mut(&place)) {
                *count += 1;
            }
        }
        *members.entry(here.clone()).or_default() += 1;
        let fewest = members.values().copied().min().unwrap_or(0);
        if members[&here] - fewest > rule.max_skew {
            let what = format!("VM {} makes {} of {} lead by too much: {members:?}", vm.id, here, rule.group);
            violations.push(Violation::new("spread", what));
        }
    }
}
