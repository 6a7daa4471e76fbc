//! Emptying hosts: all of it, or nothing.
//!
//! Every VM gets a place before the first one moves. VMs that must be together are placed together; large ones go
//! first, since what is left over fits small ones more easily; what finds no place is tried again first of all, and
//! then by moving others out of the way. Only if that fails, too, the drain is refused, and names who stays and why.

use std::{collections::BTreeSet, fmt};

use drover_ids::{NodeId, VmId};
use drover_placement::{Explanation, Refusal};

use crate::{
    Basis, Parallelism, Plan, Why,
    room::{self, Way},
    trial::{Reserve, Search, Step, Trial},
    units::{Unit, units},
    waves,
};

/// Orders in which VMs are tried before others are moved out of the way. What fails goes first the next time, so each
/// order is better than the one before or nothing is gained by another.
const ORDERS_MAX: usize = 4;
/// Decisions that a drain may ask for, for each VM it moves: a few orders, and what making room takes.
const ASKS_PER_VM: u32 = 2_000;
/// Moves of others that one VM's leaving may take.
const MOVES_FOR_ONE: usize = 6;
/// VMs whose refusal is explained in full; it takes a look at every host for each.
const EXPLAINED_MAX: usize = 8;

/// Why a VM cannot leave.
#[derive(Clone, Debug, PartialEq)]
pub enum StuckCause {
    /// The caller said that it must stay.
    Immovable,
    /// It is being moved already, from one of the hosts to another one of them.
    Moving,
    /// No host will have it.
    NoPlace {
        /// In short.
        refusal: Refusal,
        /// Host by host, counted, with the nearest miss: for the first few.
        explanation: Option<Box<Explanation>>,
    },
}

/// A VM that cannot leave.
#[derive(Clone, Debug, PartialEq)]
pub struct Stuck {
    /// Which.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub host: NodeId,
    /// Why.
    pub cause: StuckCause,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.as_str() {
            "" => write!(f, "VM {}: ", self.vm)?,
            name => write!(f, "VM '{name}': ")?,
        }
        match &self.cause {
            StuckCause::Immovable => f.write_str("it cannot be moved now"),
            StuckCause::Moving => f.write_str("it is being moved already"),
            StuckCause::NoPlace { explanation: Some(explanation), .. } => fmt::Display::fmt(explanation, f),
            StuckCause::NoPlace { refusal, explanation: None } => fmt::Display::fmt(refusal, f),
        }
    }
}

/// Why hosts cannot be emptied. Nothing has been moved.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DrainRefused {
    /// There is no such host.
    #[error("there is no host {0}")]
    UnknownHost(NodeId),
    /// Some VMs have nowhere to go.
    #[error("{} VM(s) cannot leave: {}", .0.len(), list(.0))]
    Stuck(Vec<Stuck>),
    /// Every VM has a place, and yet there is no order in which they can go there: each waits for another.
    #[error("every VM has a place to go to, but there is no order in which to move them")]
    NoOrder,
}

fn list(stuck: &[Stuck]) -> String {
    const SHOWN: usize = 3;
    let shown: Vec<String> = stuck.iter().take(SHOWN).map(ToString::to_string).collect();
    match stuck.len().saturating_sub(SHOWN) {
        0 => shown.join("; "),
        more => format!("{}; and {more} more", shown.join("; ")),
    }
}

/// Finds moves that empty hosts. VMs that are being moved off them already are not moved again. The caller closes the
/// hosts to new work first (cordon): what arrives later is not in the plan. Room that a policy keeps for host failures
/// may be used: hosts are being given up, on purpose.
pub fn drain(
    basis: &Basis<'_>,
    hosts: &BTreeSet<NodeId>,
    limits: &Parallelism,
) -> Result<Plan, DrainRefused> {
    if let Some(unknown) = hosts.iter().find(|host| basis.inventory.host(**host).is_none()) {
        return Err(DrainRefused::UnknownHost(*unknown));
    }
    let mut start = Trial::new(basis, Reserve::Used);
    start.close(hosts);
    let on_hosts: Vec<(VmId, NodeId)> =
        hosts.iter().flat_map(|host| start.vms_of(*host).into_iter().map(|vm| (vm, *host))).collect();
    // What is on a host outside as well is on its way already, and counts on both until it has arrived.
    let leaving: Vec<(VmId, NodeId)> =
        on_hosts.into_iter().filter(|(vm, _)| !start.is_moving_out(*vm, hosts)).collect();
    let stay: Vec<Stuck> = leaving.iter().filter_map(|(vm, host)| stays(&start, *vm, *host)).collect();
    if !stay.is_empty() {
        return Err(DrainRefused::Stuck(stay));
    }
    let mut search =
        Search::new(ASKS_PER_VM.saturating_mul(u32::try_from(leaving.len()).unwrap_or(u32::MAX)));
    let steps = place_all(&start, &mut search, units(&start, &leaving))?;
    waves::arrange(&start, &steps, limits).ok_or(DrainRefused::NoOrder)
}

fn stays(trial: &Trial<'_>, vm: VmId, host: NodeId) -> Option<Stuck> {
    let cause = if trial.basis.immovable.contains(&vm) {
        StuckCause::Immovable
    } else if trial.home(vm).is_none() {
        StuckCause::Moving
    } else {
        return None;
    };
    Some(Stuck { vm, name: trial.name(vm), host, cause })
}

/// Finds a step for each unit, trying several orders.
fn place_all(
    start: &Trial<'_>,
    search: &mut Search,
    mut units: Vec<Unit>,
) -> Result<Vec<Step>, DrainRefused> {
    let mut best: Option<(Trial<'_>, Vec<Step>, Vec<Unit>)> = None;
    for _ in 0..ORDERS_MAX {
        let found = place_in_order(start, search, &units);
        let left = found.2.clone();
        if best.as_ref().is_some_and(|best| left.len() >= best.2.len()) {
            break;
        }
        best = Some(found);
        if left.is_empty() {
            break;
        }
        units.retain(|unit| !left.contains(unit));
        units.splice(0..0, left);
    }
    let Some((mut trial, mut steps, left)) = best else { return Ok(Vec::new()) };
    let mut stuck = Vec::new();
    for unit in left {
        if !place_with_room(&mut trial, search, &unit, &mut steps) {
            stuck.extend(explain_stuck(&trial, search, &unit, stuck.len()));
        }
    }
    if stuck.is_empty() { Ok(steps) } else { Err(DrainRefused::Stuck(stuck)) }
}

fn place_in_order<'a>(
    start: &Trial<'a>,
    search: &mut Search,
    units: &[Unit],
) -> (Trial<'a>, Vec<Step>, Vec<Unit>) {
    let mut trial = start.clone();
    let (mut steps, mut waiting) = (Vec::new(), units.to_vec());
    loop {
        let mut left = Vec::new();
        for unit in &waiting {
            match place(&trial, search, unit) {
                Some(step) if trial.make(&step) => steps.push(step),
                _ => left.push(unit.clone()),
            }
        }
        // One that left may have been in the way of another.
        if left.is_empty() || left.len() == waiting.len() {
            return (trial, steps, left);
        }
        waiting = left;
    }
}

fn place(trial: &Trial<'_>, search: &mut Search, unit: &Unit) -> Option<Step> {
    let moves = match unit.as_slice() {
        [(vm, from)] => {
            let to = trial.find(search, *vm, None, &BTreeSet::new()).ok()?;
            vec![trial.planned(*vm, *from, to, Why::Drain)]
        }
        unit => {
            let vms: Vec<VmId> = unit.iter().map(|(vm, _)| *vm).collect();
            let hosts = trial.find_together(search, &vms).ok()?;
            let moves = unit.iter().zip(hosts);
            moves.map(|((vm, from), to)| trial.planned(*vm, *from, to, Why::Drain)).collect()
        }
    };
    Some(Step { moves })
}

/// Moves others out of the way of a single VM.
fn place_with_room(trial: &mut Trial<'_>, search: &mut Search, unit: &Unit, steps: &mut Vec<Step>) -> bool {
    let [(vm, from)] = unit.as_slice() else { return false };
    let Some(request) = trial.request(*vm) else { return false };
    let Some(Way { host, steps: first, .. }) = room::open(trial, search, &request, MOVES_FOR_ONE) else {
        return false;
    };
    let mut tried = trial.clone();
    let step = Step { moves: vec![trial.planned(*vm, *from, host, Why::Drain)] };
    let right = first.iter().chain([&step]).all(|step| tried.make(step));
    if right {
        *trial = tried;
        steps.extend(first);
        steps.push(step);
    }
    right
}

fn explain_stuck(trial: &Trial<'_>, search: &mut Search, unit: &Unit, explained: usize) -> Vec<Stuck> {
    let stuck = |(index, (vm, host)): (usize, &(VmId, NodeId))| {
        let refusal = trial.find(search, *vm, None, &BTreeSet::new()).err().unwrap_or(Refusal::NoHost);
        let explanation = (explained + index < EXPLAINED_MAX)
            .then(|| trial.request(*vm).map(|request| Box::new(trial.explain(&request))))
            .flatten();
        Stuck {
            vm: *vm,
            name: trial.name(*vm),
            host: *host,
            cause: StuckCause::NoPlace { refusal, explanation },
        }
    };
    unit.iter().enumerate().map(stuck).collect()
}
