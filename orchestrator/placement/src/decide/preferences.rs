//! What differs between equally roomy hosts: preferences of the request, lifetimes, load.

use crate::{
    Direction, Policy, Scope, TERM_SCALE, TaintEffect,
    constraints::{Question, tolerates},
    containers::NameId,
    inventory::{Class, LabelKey, Place},
};

use super::search::SHORTLIST;

/// What a taint that only discourages counts, among preferences of 1 to 100.
const TAINT_WEIGHT: i64 = 50;
/// Life that a VM adds to a host's is bad by its logarithm: this many doublings of a minute are as bad as can be. 2^15
/// minutes are three weeks.
const LIFE_DOUBLINGS_MAX: i64 = 15;

/// What counts beyond room for one request under one policy.
#[derive(Debug)]
pub(crate) struct Weighing {
    lifetime: i64,
    load: i64,
    preferences: i64,
    /// The sum of the weights of all preferences.
    total: i64,
    /// Something counts that differs between hosts of a class.
    pub(crate) each_host: bool,
}

/// Classes know zones and labels; racks and hosts must be looked at.
fn class_knows(scope: Scope) -> bool {
    scope == Scope::Zone
}

fn class_knows_label(key: LabelKey) -> bool {
    matches!(key, LabelKey::Own(_) | LabelKey::Zone)
}

impl Weighing {
    pub(crate) fn new(question: &Question<'_>, policy: &Policy) -> Self {
        let (weights, wanted) = (&policy.weights, &question.wanted);
        let labels = wanted.labels.iter().filter_map(|r| r.preferred.map(|w| (w, class_knows_label(r.key))));
        let near = wanted.affinity.iter().filter_map(|r| r.preferred.map(|w| (w, class_knows(r.scope))));
        let even = wanted.spread.iter().filter_map(|r| r.preferred.map(|w| (w, class_knows(r.scope))));
        let (mut total, mut of_hosts) = (TAINT_WEIGHT, false);
        for (weight, known) in labels.chain(near).chain(even) {
            total += i64::from(weight);
            of_hosts |= !known;
        }
        let lifetime = if question.request.ends.is_some() { i64::from(weights.lifetime) } else { 0 };
        let (load, preferences) = (i64::from(weights.load), i64::from(weights.preferences));
        let each_host = lifetime > 0 || load > 0 || (preferences > 0 && of_hosts);
        Self { lifetime, load, preferences, total, each_host }
    }

    /// Hosts with VMs that the request would rather be with, at most [`SHORTLIST`] for each such rule.
    pub(crate) fn companions(&self, question: &Question<'_>) -> Vec<u32> {
        let inventory = question.inventory;
        let mut hosts = Vec::new();
        let rules = question.wanted.affinity.iter();
        let near = rules.filter(|rule| rule.preferred.is_some() && rule.direction == Direction::Together);
        for rule in near.filter(|_| self.preferences > 0) {
            if let Some(vm) = rule.vm {
                hosts.extend(question.hosts_of_peer(vm));
                continue;
            }
            let Some(group) = rule.group.and_then(|group| inventory.groups.get(group)) else { continue };
            match rule.scope {
                Scope::Host => {
                    hosts.extend(group.members.by(Scope::Host).iter().map(|(host, _)| host).take(SHORTLIST));
                }
                Scope::Rack => {
                    let racks = group.members.by(Scope::Rack).iter();
                    let books = racks.filter_map(|(rack, _)| inventory.rack_books.get(rack as usize));
                    hosts.extend(books.flat_map(|book| book.hosts.iter()).take(SHORTLIST));
                }
                Scope::Zone => {}
            }
        }
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    fn weigh(&self, satisfied: i64) -> i64 {
        self.preferences * (satisfied * TERM_SCALE / self.total)
    }
}

/// What a class is worth by preferences that it knows of.
pub(crate) fn class_bonus(question: &Question<'_>, weighing: &Weighing, class: &Class) -> i64 {
    if weighing.preferences == 0 {
        return 0;
    }
    let traits = question.inventory.traits.get(class.key.traits);
    let discourages = traits.is_some_and(|traits| {
        traits.taints.iter().any(|(key, value, effect)| {
            *effect == TaintEffect::PreferNoSchedule && !tolerates(&question.wanted, *key, *value)
        })
    });
    let mut satisfied = if discourages { 0 } else { TAINT_WEIGHT };
    let zone = (class.key.zone != NameId::NONE).then_some(class.key.zone);
    for (index, rule) in question.wanted.labels.iter().enumerate() {
        let value = match rule.key {
            LabelKey::Own(key) => traits.and_then(|traits| traits.label(key)),
            _ => zone,
        };
        if class_knows_label(rule.key) && question.label_holds(index, value) {
            satisfied += i64::from(rule.preferred.unwrap_or(0));
        }
    }
    let place = Place { host: u32::MAX, rack: None, zone: zone.map(|zone| zone.0) };
    satisfied += social(question, place, class_knows);
    weighing.weigh(satisfied)
}

/// What a host is worth beyond its class and its room.
pub(crate) fn host_bonus(question: &Question<'_>, weighing: &Weighing, host: u32) -> i64 {
    weighing.lifetime * lifetime_term(question, host)
        + weighing.load * load_term(question, host)
        + weighing.weigh(host_preferences(question, host))
}

/// What a host satisfies of the preferences that its class does not know of.
fn host_preferences(question: &Question<'_>, host: u32) -> i64 {
    let mut satisfied = 0;
    for (index, rule) in question.wanted.labels.iter().enumerate() {
        if !class_knows_label(rule.key) && question.label_holds(index, question.label_value(host, rule.key)) {
            satisfied += i64::from(rule.preferred.unwrap_or(0));
        }
    }
    satisfied + social(question, question.inventory.place(host), |scope| !class_knows(scope))
}

/// What a place satisfies of the preferences about other VMs.
fn social(question: &Question<'_>, place: Place, about: impl Fn(Scope) -> bool) -> i64 {
    let mut satisfied = 0;
    for (index, rule) in question.wanted.affinity.iter().enumerate() {
        if let Some(weight) = rule.preferred.filter(|_| about(rule.scope)) {
            satisfied += if question.affinity_holds(index, place) { i64::from(weight) } else { 0 };
        }
    }
    for (index, rule) in question.wanted.spread.iter().enumerate() {
        if let Some(weight) = rule.preferred.filter(|_| about(rule.scope)) {
            // Full while within the bound, and the less the further beyond.
            let (most, skew) = (i64::from(rule.max_skew), question.skew(index, place).unwrap_or(0));
            satisfied += i64::from(weight) * most / most.max(i64::from(skew));
        }
    }
    satisfied
}

/// Whether a host lives on as long anyway: full if the VM adds nothing to its life, and the less the more doublings of a
/// minute it adds.
pub(crate) fn lifetime_term(question: &Question<'_>, host: u32) -> i64 {
    let Some(ends) = question.request.ends else { return 0 };
    let added = ends.0.saturating_sub(question.inventory.hosts[host as usize].ends);
    let doublings = i64::from((added / 60 + 1).ilog2()).min(LIFE_DOUBLINGS_MAX);
    let doublings = if added == 0 { 0 } else { doublings.max(1) };
    TERM_SCALE - TERM_SCALE * doublings / LIFE_DOUBLINGS_MAX
}

/// How idle a host is: the idler half of its CPUs and memory does not make up for the busier.
pub(crate) fn load_term(question: &Question<'_>, host: u32) -> i64 {
    let inventory = question.inventory;
    let (load, detail) = (inventory.loads[host as usize], &inventory.details[host as usize]);
    let part = |used: u64, all: u64| {
        let scaled = u128::from(used) * TERM_SCALE as u128 / u128::from(all.max(1));
        i64::try_from(scaled).unwrap_or(TERM_SCALE).min(TERM_SCALE)
    };
    let cpu = part(u64::from(load.cpu_centi), u64::from(detail.threads) * 100);
    let memory = part(load.memory.get(), detail.memory_total);
    TERM_SCALE - cpu.max(memory)
}

/// How much of its preferences a host satisfies.
pub(crate) fn preference_term(question: &Question<'_>, policy: &Policy, host: u32) -> i64 {
    let unit = Policy { weights: crate::Weights { preferences: 1, ..policy.weights }, ..policy.clone() };
    let weighing = Weighing::new(question, &unit);
    let class = question.inventory.classes.get(question.inventory.hosts[host as usize].class);
    let of_class = class.map_or(0, |class| class_bonus(question, &weighing, class));
    of_class + weighing.weigh(host_preferences(question, host))
}
