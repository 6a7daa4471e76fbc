//! Making room: few migrations after which what did not fit fits.
//!
//! For each of the hosts that lack least, sets of VMs are tried in the order of what moving them costs, until the
//! request passes without them and each has a place elsewhere; a VM that has none may have another one moved out of its
//! way, once (chains of two moves). The cheapest of the first few ways is taken. Every number is bounded: this is a
//! search for a good way, not proof that there is none.

use std::{collections::BTreeSet, fmt};

use drover_ids::{NodeId, VmId};
use drover_placement::{Explanation, Reason, Refusal, Request, Scope};
use drover_units::Bytes;

use crate::{
    Basis, Parallelism, Plan, Why,
    trial::{Reserve, Search, Step, Trial},
    waves,
};

/// Hosts that are looked at closely for a request, those first that lack least.
const HOSTS_TRIED: usize = 32;
/// The same for a VM that is in the way itself: there are many such, and each only opens one more way.
const HOSTS_TRIED_DEEPER: usize = 4;
/// Ways after which the cheapest is taken.
const WAYS_COMPARED: usize = 4;
/// Sets of VMs that are tried on one host.
const SETS_TRIED: usize = 32;
/// VMs of a host from which pairs and triples are formed, the cheapest ones. 16 make 120 pairs and 560 triples.
const COMBINED: usize = 16;
/// Moves in a row that one VM's leaving may take.
const CHAIN: u32 = 2;
/// Questions to the engine in one search, at a few microseconds each.
const ASKS: u32 = 100_000;

/// What a search may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomLimits {
    /// Moves in all.
    pub moves: usize,
    /// Moves at the same time.
    pub parallelism: Parallelism,
}

impl Default for RoomLimits {
    /// Sixteen moves: beyond that, people rather add a host.
    fn default() -> Self {
        Self { moves: 16, parallelism: Parallelism::default() }
    }
}

/// How requests will fit.
#[derive(Clone, Debug, PartialEq)]
pub struct RoomMade {
    /// What to move first. Empty: they fit as it is.
    pub plan: Plan,
    /// Where each request will fit then, in the order of the requests.
    pub hosts: Vec<NodeId>,
}

/// Why there is no room to be made. Nothing has been moved.
#[derive(Clone, Debug, PartialEq)]
pub struct NoRoom {
    /// The request that does not fit.
    pub vm: VmId,
    /// What the engine says of it, as things are.
    pub refusal: Refusal,
    /// Host by host, counted, with the nearest miss.
    pub explanation: Box<Explanation>,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no few migrations make room for VM {}: {}", self.vm, self.explanation)
    }
}

impl std::error::Error for NoRoom {}

/// Finds migrations after which requests fit that do not fit now. They are made before any of the requests is placed.
pub fn defragment(basis: &Basis<'_>, requests: &[Request], limits: &RoomLimits) -> Result<RoomMade, NoRoom> {
    let start = Trial::new(basis, Reserve::Kept);
    let mut trial = start.clone();
    let mut search = Search::new(ASKS);
    let mut made = RoomMade { plan: Plan::default(), hosts: Vec::new() };
    let mut steps: Vec<Step> = Vec::new();
    for request in requests {
        let refusal = match trial.find_for(&mut search, request) {
            Ok(host) => {
                trial.hold(request, host);
                made.hosts.push(host);
                continue;
            }
            Err(refusal) => refusal,
        };
        let moves = limits.moves.saturating_sub(steps.len());
        let way = match refusal {
            Refusal::NoHost => open(&trial, &mut search, request, moves),
            // Where the VMs are is not what stands in the way.
            _ => None,
        };
        let planned = way.and_then(|way| {
            steps.extend(way.steps.iter().cloned());
            Some((waves::arrange(&start, &steps, &limits.parallelism)?, way))
        });
        let Some((plan, way)) = planned else {
            return Err(NoRoom { vm: request.vm, refusal, explanation: Box::new(start.explain(request)) });
        };
        made.plan = plan;
        way.steps.iter().for_each(|step| trial.force(step));
        trial.hold(request, way.host);
        made.hosts.push(way.host);
    }
    Ok(made)
}

/// Moves after which a request fits on a host.
pub(crate) struct Way {
    pub(crate) steps: Vec<Step>,
    pub(crate) host: NodeId,
    price: f64,
}

/// The cheapest of the first few ways to make room for a request, in so many moves at most. The steps are right one
/// after the other from `trial` on.
pub(crate) fn open(trial: &Trial<'_>, search: &mut Search, request: &Request, moves: usize) -> Option<Way> {
    let aim = Aim { moves, chain: CHAIN, fixed: [request.vm].into(), closed: BTreeSet::new() };
    way(trial, search, request, &aim)
}

/// What a search for a way must keep to.
struct Aim {
    /// Moves that it may take.
    moves: usize,
    /// Moves in a row.
    chain: u32,
    /// VMs that stay where they are.
    fixed: BTreeSet<VmId>,
    /// Hosts that room is being made on already.
    closed: BTreeSet<NodeId>,
}

fn way(trial: &Trial<'_>, search: &mut Search, request: &Request, aim: &Aim) -> Option<Way> {
    if aim.chain == 0 || aim.moves == 0 {
        return None;
    }
    let mut lacking: Vec<(Lack, NodeId)> = Vec::new();
    for (host, reasons) in trial.all_reasons(request) {
        if !aim.closed.contains(&host) && search.ask() {
            lacking.extend(Lack::of(&reasons).map(|lack| (lack, host)));
        }
    }
    lacking.sort_by(|one, two| one.0.share.total_cmp(&two.0.share).then(one.1.cmp(&two.1)));
    lacking.truncate(if aim.chain == CHAIN { HOSTS_TRIED } else { HOSTS_TRIED_DEEPER });
    let mut ways: Vec<Way> = Vec::new();
    for (lack, host) in lacking {
        let sets = sets(trial, host, &lack, aim);
        ways.extend(sets.iter().find_map(|set| clear(trial, search, request, host, set, aim)));
        if ways.len() >= WAYS_COMPARED {
            break;
        }
    }
    ways.into_iter().min_by(|one, two| one.price.total_cmp(&two.price))
}

/// Moves a set of VMs off a host, if the request passes then and each has a place elsewhere.
fn clear(
    trial: &Trial<'_>,
    search: &mut Search,
    request: &Request,
    host: NodeId,
    set: &[VmId],
    aim: &Aim,
) -> Option<Way> {
    let mut after = trial.clone();
    set.iter().for_each(|vm| after.lift(*vm));
    if !search.ask() || !after.reasons(request, host).is_empty() {
        return None;
    }
    after.hold(request, host);
    let mut steps: Vec<Step> = Vec::new();
    for vm in set {
        let mut leaving = trial.request(*vm)?;
        leaving.excluded.extend(aim.closed.iter().copied().chain([host]));
        let to = match after.find_for(search, &leaving) {
            Ok(to) => to,
            Err(_) => {
                let deeper = Aim {
                    moves: aim.moves.saturating_sub(steps.len() + set.len()),
                    chain: aim.chain - 1,
                    fixed: aim.fixed.iter().chain(set).copied().collect(),
                    closed: aim.closed.iter().copied().chain([host]).collect(),
                };
                let way = way(&after, search, &leaving, &deeper)?;
                way.steps.iter().for_each(|step| after.force(step));
                steps.extend(way.steps);
                way.host
            }
        };
        after.hold(&leaving, to);
        steps.push(Step { moves: vec![trial.planned(*vm, host, to, Why::MakeRoom)] });
    }
    // Found with the set away and the request there; what counts is that they are right one after the other.
    let mut real = trial.clone();
    let right = steps.len() <= aim.moves && steps.iter().all(|step| real.make(step));
    let price = steps.iter().flat_map(|step| &step.moves).map(|mv| mv.price.0).sum();
    right.then_some(Way { steps, host, price })
}

/// What a host lacks for a request, where moving VMs off it can help.
struct Lack {
    /// Hundredths of a vCPU.
    cpu_centi: u64,
    /// Memory, of the kind that the request asks for.
    memory: Bytes,
    /// VMs that must go.
    blockers: BTreeSet<VmId>,
    /// How much of the host is lacking: what hosts are compared by.
    share: f64,
}

impl Lack {
    fn of(reasons: &[Reason]) -> Option<Self> {
        let mut lack = Self { cpu_centi: 0, memory: Bytes::ZERO, blockers: BTreeSet::new(), share: 0.0 };
        for reason in reasons {
            match reason {
                Reason::Vcpus { wanted, free, capacity } => {
                    lack.cpu_centi = u64::from(wanted.0.saturating_sub(free.0));
                    lack.share += lack.cpu_centi as f64 / f64::from(capacity.0.max(1));
                    if wanted.0 > capacity.0 {
                        return None;
                    }
                }
                Reason::Memory { wanted, free, capacity, .. } => {
                    lack.memory = wanted.saturating_sub(*free);
                    lack.share += lack.memory.get() as f64 / capacity.get().max(1) as f64;
                    if wanted > capacity {
                        return None;
                    }
                }
                Reason::DedicatedThreads { wanted, capacity, .. } if wanted <= capacity => lack.share += 0.1,
                Reason::Numa { .. } => lack.share += 0.1,
                Reason::NotApart { vms, scope: Scope::Host, .. }
                | Reason::KeptAway { vms, scope: Scope::Host, .. } => {
                    lack.blockers.extend(vms.iter().map(|vm| vm.id));
                    lack.share += 0.1 * vms.len() as f64;
                }
                _ => return None,
            }
        }
        Some(lack)
    }
}

/// A VM that could go, and what its going brings.
#[derive(Clone, Copy)]
struct Leaver {
    vm: VmId,
    cpu_centi: u64,
    memory: Bytes,
    price: f64,
}

/// Sets of VMs whose going may be enough, the cheapest first.
fn sets(trial: &Trial<'_>, host: NodeId, lack: &Lack, aim: &Aim) -> Vec<Vec<VmId>> {
    let free = |vm: &VmId| trial.is_movable(*vm) && !aim.fixed.contains(vm);
    if !lack.blockers.iter().all(free) {
        return Vec::new();
    }
    let leaver = |vm: VmId| {
        let (cpu_centi, memory) = trial.takes(vm, host);
        Leaver { vm, cpu_centi, memory, price: trial.price_of(vm) }
    };
    let must: Vec<Leaver> = lack.blockers.iter().map(|vm| leaver(*vm)).collect();
    let others = trial.vms_of(host).into_iter().filter(|vm| free(vm) && !lack.blockers.contains(vm));
    let mut may: Vec<Leaver> = others.map(leaver).collect();
    may.sort_by(|one, two| one.worth(lack).total_cmp(&two.worth(lack)).then(one.vm.cmp(&two.vm)));
    let mut sets: Vec<Vec<Leaver>> = Vec::new();
    let mut offer = |more: &[Leaver]| {
        let set: Vec<Leaver> = must.iter().chain(more).copied().collect();
        if !set.is_empty() && set.len() <= aim.moves && is_enough(&set, lack) {
            sets.push(set);
        }
    };
    offer(&[]);
    may.iter().for_each(|one| offer(&[*one]));
    let few = &may[..may.len().min(COMBINED)];
    for (index, one) in few.iter().enumerate() {
        for (second, two) in few.iter().enumerate().skip(index + 1) {
            offer(&[*one, *two]);
            few[second + 1..].iter().for_each(|three| offer(&[*one, *two, *three]));
        }
    }
    // As many as it takes, the most worthwhile first.
    let takes = (4..=may.len()).find(|count| is_enough(&may[..*count], lack));
    takes.into_iter().for_each(|count| offer(&may[..count]));
    let mut priced: Vec<(f64, Vec<VmId>)> = sets
        .into_iter()
        .map(|mut set| {
            set.sort_by(|one, two| two.memory.cmp(&one.memory).then(two.cpu_centi.cmp(&one.cpu_centi)));
            (set.iter().map(|leaver| leaver.price).sum(), set.into_iter().map(|leaver| leaver.vm).collect())
        })
        .collect();
    priced.sort_by(|one, two| one.0.total_cmp(&two.0));
    priced.truncate(SETS_TRIED);
    priced.into_iter().map(|(_, set)| set).collect()
}

impl Leaver {
    /// What it costs for what it brings of what is lacking: small is good.
    fn worth(&self, lack: &Lack) -> f64 {
        let part = |brings: f64, lacks: f64| if lacks > 0.0 { (brings / lacks).min(1.0) } else { 0.0 };
        let brings = part(self.cpu_centi as f64, lack.cpu_centi as f64)
            + part(self.memory.get() as f64, lack.memory.get() as f64);
        // Where neither is lacking in sum (NUMA), the cheapest is as good as any.
        self.price / brings.max(0.01)
    }
}

fn is_enough(set: &[Leaver], lack: &Lack) -> bool {
    let cpu: u64 = set.iter().map(|leaver| leaver.cpu_centi).sum();
    let memory = set.iter().fold(Bytes::ZERO, |sum, leaver| sum.saturating_add(leaver.memory));
    cpu >= lack.cpu_centi && memory >= lack.memory
}
