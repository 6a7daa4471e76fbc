//! Why there, and why not elsewhere. Looks at every host: for people, not for the path of a placement.

use std::{collections::BTreeMap, fmt};

use drover_ids::NodeId;
use drover_units::{Bytes, VcpuCount};

use crate::{
    CentiVcpus, Decider, Decision, Direction, HostView, Inventory, PageBacking, Peers, Policy, Reason,
    Refusal, Request, Scope, Score, Taint, Term, VmName,
    constraints::{Miss, Question},
    decide::{
        preferences::{lifetime_term, load_term, preference_term},
        score::Room,
    },
    inventory::{GroupName, ROW_EMPTY},
};

/// How often one reason stands against hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasonCount {
    /// [`Reason::code`].
    pub code: &'static str,
    /// Hosts that it stands against.
    pub hosts: usize,
    /// Hosts that it alone stands against.
    pub alone: usize,
    /// One of them.
    pub example: String,
    /// The reason there.
    pub reason: Reason,
}

/// The host that is closest to being able.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearestMiss {
    /// The host.
    pub host: NodeId,
    /// Its name.
    pub name: String,
    /// All that stands against it.
    pub reasons: Vec<Reason>,
    /// What would cure each, together enough to make the host fit.
    pub remedies: Vec<String>,
}

/// One term of a host's score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermScore {
    /// Which.
    pub term: Term,
    /// How much it counts.
    pub weight: u16,
    /// What it says, 0 to [`TERM_SCALE`](crate::TERM_SCALE).
    pub value: i64,
}

/// A host that would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// The host.
    pub host: NodeId,
    /// Its name.
    pub name: String,
    /// The sum of its terms.
    pub score: Score,
    /// Terms that count.
    pub terms: Vec<TermScore>,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A host has been chosen.
    Chosen {
        /// The decision.
        decision: Decision,
        /// The host, and what spoke for it.
        winner: Contender,
        /// The next best one.
        runner_up: Option<Contender>,
        /// It won because the request prefers it, whatever the others are like.
        preferred: bool,
    },
    /// None has.
    Refused(Refusal),
}

/// Everything about one decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The VM.
    pub vm: VmName,
    /// The policy's name.
    pub policy: String,
    /// How it went.
    pub outcome: Outcome,
    /// How many hosts there are.
    pub hosts: usize,
    /// How many would do.
    pub feasible: usize,
    /// Why the others would not, the most frequent reason first.
    pub refused: Vec<ReasonCount>,
    /// Of the others, the one that is closest.
    pub nearest: Option<NearestMiss>,
}

impl Inventory {
    /// Everything that stands against a host. Empty: it will do. `None`: there is no such host.
    pub fn check(&self, request: &Request, host: NodeId) -> Option<Vec<Reason>> {
        let slot = self.host_slot(host)?;
        let question = Question::of_single_hosts(self, request);
        Some(question.misses(slot).into_iter().map(|miss| reason_of(&question, slot, miss)).collect())
    }

    /// Everything that stands against each host, in the order of their ids.
    pub fn check_all(&self, request: &Request) -> BTreeMap<NodeId, Vec<Reason>> {
        let question = Question::new(self, request);
        let reasons = |host: HostView<'_>| {
            let slot = self.host_slot(host.id())?;
            let misses = question.misses(slot);
            Some((host.id(), misses.into_iter().map(|miss| reason_of(&question, slot, miss)).collect()))
        };
        self.hosts().filter_map(reasons).collect()
    }
}

/// Decides and says why.
pub fn explain(inventory: &Inventory, request: &Request, policy: &Policy) -> Explanation {
    let mut decider = Decider::new();
    let question = Question::new(inventory, request);
    let (mut feasible, mut nearest) = (0, None);
    let mut counts: BTreeMap<&'static str, ReasonCount> = BTreeMap::new();
    let all = inventory.check_all(request);
    for (host, reasons) in &all {
        if reasons.is_empty() {
            feasible += 1;
            continue;
        }
        let name = inventory.host(*host).map_or("", |view| view.name());
        count(&mut counts, name, reasons);
        let distance = distance(reasons);
        if nearest.as_ref().is_none_or(|(best, _, _)| distance < *best) {
            nearest = Some((distance, *host, reasons));
        }
    }
    let mut refused: Vec<ReasonCount> = counts.into_values().collect();
    refused.sort_by_key(|count| (std::cmp::Reverse(count.hosts), count.code));
    let nearest = nearest.map(|(_, host, reasons)| NearestMiss {
        host,
        name: inventory.host(host).map_or("", |view| view.name()).to_owned(),
        reasons: reasons.clone(),
        remedies: reasons.iter().filter_map(Reason::remedy).collect(),
    });
    let outcome = match decider.decide(inventory, request, policy) {
        Err(refusal) => Outcome::Refused(refusal),
        Ok(decision) => chosen(&mut decider, &question, policy, decision),
    };
    Explanation {
        vm: VmName { id: request.vm, name: request.name.clone() },
        policy: policy.name.clone(),
        outcome,
        hosts: all.len(),
        feasible,
        refused,
        nearest,
    }
}

fn count(counts: &mut BTreeMap<&'static str, ReasonCount>, host: &str, reasons: &[Reason]) {
    let mut seen = Vec::new();
    for reason in reasons {
        let code = reason.code();
        if seen.contains(&code) {
            continue;
        }
        seen.push(code);
        let entry = counts.entry(code).or_insert_with(|| ReasonCount {
            code,
            hosts: 0,
            alone: 0,
            example: host.to_owned(),
            reason: reason.clone(),
        });
        entry.hosts += 1;
        if reasons.len() == 1 {
            entry.alone += 1;
        }
    }
}

/// How far a host is from being able: things that nobody can cure, then the number of things, then how much room is
/// lacking of what is wanted (in thousandths, added up).
fn distance(reasons: &[Reason]) -> (usize, usize, u64) {
    let hopeless = reasons.iter().filter(|reason| reason.remedy().is_none()).count();
    let lacking = |wanted: u64, free: u64| {
        let part = u128::from(wanted.saturating_sub(free)) * 1000 / u128::from(wanted.max(1));
        u64::try_from(part).unwrap_or(1000)
    };
    let room = |reason: &Reason| match reason {
        Reason::Vcpus { wanted, free, .. } => lacking(u64::from(wanted.0), u64::from(free.0)),
        Reason::DedicatedThreads { wanted, free, .. } => {
            lacking(u64::from(wanted.get()), u64::from(free.get()))
        }
        Reason::Memory { wanted, free, .. } => lacking(wanted.get(), free.get()),
        // Not a matter of degree: as far as lacking all of it.
        _ => 1000,
    };
    (hopeless, reasons.len(), reasons.iter().map(room).sum())
}

fn chosen(decider: &mut Decider, question: &Question<'_>, policy: &Policy, decision: Decision) -> Outcome {
    let inventory = question.inventory;
    let contender = |host: NodeId, score: Score| {
        let slot = inventory.host_slot(host)?;
        let name = inventory.host(host)?.name().to_owned();
        Some(Contender { host, name, score, terms: terms(question, policy, slot) })
    };
    let preferred = question.request.preferred == Some(decision.host);
    let others = if question.request.only.is_some() || !decision.victims.is_empty() {
        Vec::new()
    } else {
        decider.rank(inventory, question.request, policy, 2)
    };
    let runner_up = others.into_iter().find(|(host, _)| *host != decision.host);
    let winner = contender(decision.host, decision.score);
    let Some(winner) = winner else { return Outcome::Refused(Refusal::NoHost) };
    let runner_up = runner_up.and_then(|(host, score)| contender(host, score));
    Outcome::Chosen { decision, winner, runner_up, preferred }
}

/// What each term that counts says of a host.
fn terms(question: &Question<'_>, policy: &Policy, slot: u32) -> Vec<TermScore> {
    let inventory = question.inventory;
    let host = &inventory.hosts[slot as usize];
    let Some(class) = inventory.classes.get(host.class) else { return Vec::new() };
    let wanted = &question.wanted;
    let cell =
        (class.scale.row(wanted.cpu(class.key.cpu_overcommit)), class.scale.column(wanted.base_memory()));
    let room = Room::of_cell(class, cell, if host.vms == 0 { ROW_EMPTY } else { host.row }, host.column);
    let value = |term| match term {
        Term::Lifetime => lifetime_term(question, slot),
        Term::Load => load_term(question, slot),
        Term::Preferences => preference_term(question, policy, slot),
        term => room.term(term),
    };
    let counting = policy.weights.terms().into_iter().filter(|(_, weight)| *weight > 0);
    counting.map(|(term, weight)| TermScore { term, weight, value: value(term) }).collect()
}

/// A miss in words.
pub(crate) fn reason_of(question: &Question<'_>, slot: u32, miss: Miss) -> Reason {
    let (inventory, profile) = (question.inventory, &question.request.profile);
    let (host, detail) = (&inventory.hosts[slot as usize], &inventory.details[slot as usize]);
    let wanted = &question.wanted;
    let nth = |set: &std::collections::BTreeSet<String>, n| set.iter().nth(n).cloned().unwrap_or_default();
    match miss {
        Miss::NotReady => Reason::NotReady(host.state),
        Miss::NotAskedFor => Reason::NotAskedFor,
        Miss::Excluded => Reason::Excluded,
        Miss::Vcpus => Reason::Vcpus {
            wanted: CentiVcpus(wanted.cpu(host.cpu_overcommit)),
            free: CentiVcpus(host.cpu_free()),
            capacity: CentiVcpus(host.cpu),
        },
        Miss::DedicatedThreads => {
            let capacity = detail.threads.saturating_sub(detail.threads_reserved);
            Reason::DedicatedThreads {
                wanted: profile.demand.vcpus,
                free: VcpuCount::new(capacity.saturating_sub(detail.pinned)),
                capacity: VcpuCount::new(capacity),
            }
        }
        Miss::Memory => memory_reason(question, slot),
        Miss::Numa => Reason::Numa {
            best_free: CentiVcpus(
                detail.numa.iter().map(|node| node.cpu_free(host.cpu_overcommit)).max().unwrap_or(0),
            ),
            best_memory: Bytes::new(
                detail.numa.iter().map(|n| n.memory.saturating_sub(n.memory_used)).max().unwrap_or(0),
            ),
            nodes: detail.numa.len(),
        },
        Miss::Label(index) => {
            let key = wanted.labels[index].key;
            let value = inventory
                .host(NodeId::from_u128(host.id))
                .and_then(|view| question.label_value(slot, key).and(view.label(&profile.labels[index].key)));
            Reason::Label { rule: profile.labels[index].clone(), value: value.map(str::to_owned) }
        }
        Miss::Taint(index) => Reason::Taint(taint(inventory, detail.traits, index)),
        Miss::Pool(index) => Reason::Pool(nth(&profile.pools, index)),
        Miss::Network(index) => Reason::Network(nth(&profile.networks, index)),
        Miss::Baseline => Reason::Baseline(profile.baseline.clone()),
        Miss::NotTogether(index) => {
            let rule = &profile.affinity[index];
            Reason::NotTogether { peers: rule.peers.clone(), scope: rule.scope }
        }
        Miss::NotApart(index) => {
            let rule = &profile.affinity[index];
            let vms = members_on(question, slot, &rule.peers, rule.scope);
            Reason::NotApart { peers: rule.peers.clone(), scope: rule.scope, vms }
        }
        Miss::KeptAway(group, scope) => kept_away(question, slot, group, scope),
        Miss::Spread(index) => {
            let rule = &profile.spread[index];
            let fewest = question.fewest(index);
            let skew = question.skew(index, inventory.place(slot)).unwrap_or(0);
            Reason::Spread {
                group: rule.group.clone(),
                scope: rule.scope,
                here: fewest.saturating_add(skew),
                fewest,
                max_skew: rule.max_skew.get(),
            }
        }
    }
}

fn memory_reason(question: &Question<'_>, slot: u32) -> Reason {
    let (host, detail) =
        (&question.inventory.hosts[slot as usize], &question.inventory.details[slot as usize]);
    let backing = question.wanted.backing;
    let pool = |n: usize| (detail.huge[n].saturating_sub(detail.huge_used[n]), detail.huge[n]);
    let (free, capacity) = match backing {
        PageBacking::Base => (host.memory_free(), host.memory),
        PageBacking::Huge2Mib => pool(0),
        PageBacking::Huge1Gib => pool(1),
    };
    let bytes = Bytes::new;
    Reason::Memory {
        backing,
        wanted: bytes(question.wanted.memory),
        free: bytes(free),
        capacity: bytes(capacity),
    }
}

fn taint(inventory: &Inventory, traits: u32, index: usize) -> Taint {
    let (key, value, effect) =
        inventory.traits.get(traits).map(|traits| traits.taints[index]).expect("the miss names one of them");
    let text = |id| inventory.names.name(id).to_owned();
    Taint { key: text(key), value: text(value), effect }
}

/// Members of a group on a host itself, by name.
fn members_on(question: &Question<'_>, slot: u32, peers: &Peers, scope: Scope) -> Vec<VmName> {
    let view = question.inventory.host(NodeId::from_u128(question.inventory.hosts[slot as usize].id));
    let is = |vm: &crate::VmView<'_>| match peers {
        Peers::Group(group) => vm.profile().groups.contains(group),
        Peers::Vm(id) => vm.id() == *id,
    };
    let here = view.filter(|_| scope == Scope::Host).into_iter().flat_map(|view| view.vms());
    named(here.filter(|vm| vm.id() != question.request.vm).filter(is))
}

fn named<'a>(vms: impl Iterator<Item = crate::VmView<'a>>) -> Vec<VmName> {
    let mut names: Vec<VmName> = vms.map(|vm| VmName { id: vm.id(), name: vm.name().to_owned() }).collect();
    names.sort_by_key(|vm| vm.id);
    names
}

fn kept_away(question: &Question<'_>, slot: u32, group: u32, scope: Scope) -> Reason {
    let inventory = question.inventory;
    let peers = match inventory.groups.get(group).map(|group| group.name()) {
        Some(GroupName::Named(name)) => Peers::Group(name.to_owned()),
        _ => Peers::Vm(question.request.vm),
    };
    let view = inventory.host(NodeId::from_u128(inventory.hosts[slot as usize].id));
    let says_so = |vm: &crate::VmView<'_>| {
        vm.profile().affinity.iter().any(|rule| {
            rule.direction == Direction::Apart
                && rule.strength == crate::Strength::Required
                && rule.scope == scope
                && rule.peers == peers
        })
    };
    let here = view.filter(|_| scope == Scope::Host).into_iter().flat_map(|view| view.vms());
    let vms = named(here.filter(|vm| vm.id() != question.request.vm).filter(says_so));
    Reason::KeptAway { peers, scope, vms }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Chosen { decision, winner, runner_up, preferred } => {
                write!(f, "{} goes to {} by policy '{}'", self.vm, winner.name, self.policy)?;
                if *preferred {
                    f.write_str(", which the request prefers")?;
                }
                if !decision.victims.is_empty() {
                    write!(f, ", in place of {} VM(s) of lower priority", decision.victims.len())?;
                }
                write!(f, ": score {}", winner.score)?;
                write_terms(f, &winner.terms)?;
                match runner_up {
                    Some(other) => {
                        write!(f, "; next is {} with {}", other.name, other.score)?;
                        write_terms(f, &other.terms)?;
                    }
                    None => f.write_str("; no other host would do")?,
                }
            }
            Outcome::Refused(refusal) => {
                write!(f, "{} cannot be placed by policy '{}': {refusal}", self.vm, self.policy)?;
            }
        }
        write!(f, "\n{} of {} host(s) would do", self.feasible, self.hosts)?;
        for count in &self.refused {
            write!(f, "\n  {} host(s): {}", count.hosts, count.code)?;
            if count.alone > 0 {
                write!(f, " ({} for that alone)", count.alone)?;
            }
            write!(f, ", such as {}: {}", count.example, count.reason)?;
        }
        if let (Some(nearest), true) = (&self.nearest, matches!(self.outcome, Outcome::Refused(_))) {
            write!(f, "\nnearest is {}: to make it fit, {}", nearest.name, nearest.remedies.join("; "))?;
        }
        Ok(())
    }
}

fn write_terms(f: &mut fmt::Formatter<'_>, terms: &[TermScore]) -> fmt::Result {
    let texts: Vec<String> = terms.iter().map(|t| format!("{} {} x {}", t.term, t.value, t.weight)).collect();
    write!(f, " ({})", texts.join(", "))
}
