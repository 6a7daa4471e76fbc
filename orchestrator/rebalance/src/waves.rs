//! From moves one after the other to waves of moves side by side.
//!
//! A planner finds its steps one by one, each on what the ones before have left. Done in that order they are right;
//! done side by side they are right if each still is while the others of its wave count on both ends. A step joins the
//! present wave if its targets are good with everything in the wave begun and nothing of it ended, and if it overtakes
//! no step that touches the same hosts: on a host, the order is the one that was found right.

use std::collections::{BTreeMap, BTreeSet};

use drover_ids::NodeId;

use crate::{
    Parallelism, Plan, Wave,
    trial::{Step, Trial},
};

/// How many moves a wave has begun from and to each host.
#[derive(Default)]
struct Busy {
    sources: BTreeMap<NodeId, u32>,
    targets: BTreeMap<NodeId, u32>,
    moves: u32,
}

impl Busy {
    fn of(step: &Step) -> Self {
        let mut busy = Self::default();
        busy.add(step);
        busy
    }

    /// Whether so many hands are free. A step that is larger than a limit has a wave to itself: its moves belong
    /// together.
    fn has_room(&self, step: &Step, limits: &Parallelism) -> bool {
        let more = Self::of(step);
        let within = |begun: &BTreeMap<NodeId, u32>, more: &BTreeMap<NodeId, u32>, most: u32| {
            more.iter().all(|(host, count)| begun.get(host).copied().unwrap_or(0) + count <= most)
        };
        self.moves == 0
            || self.moves + more.moves <= limits.cluster
                && within(&self.sources, &more.sources, limits.per_source)
                && within(&self.targets, &more.targets, limits.per_target)
    }

    fn add(&mut self, step: &Step) {
        for mv in &step.moves {
            *self.sources.entry(mv.from).or_default() += 1;
            *self.targets.entry(mv.to).or_default() += 1;
            self.moves += 1;
        }
    }
}

/// Puts steps into waves that are right one after the other from `trial` on. `None`: they are not.
pub(crate) fn arrange(trial: &Trial<'_>, steps: &[Step], limits: &Parallelism) -> Option<Plan> {
    // Steps on other hosts may still meet in a rule about a rack or a group, so that overtaking leads nowhere. The
    // given order does.
    in_waves(trial.clone(), steps, limits, true).or_else(|| in_waves(trial.clone(), steps, limits, false))
}

fn in_waves(mut trial: Trial<'_>, steps: &[Step], limits: &Parallelism, overtaking: bool) -> Option<Plan> {
    let mut plan = Plan::default();
    let mut rest: Vec<&Step> = steps.iter().collect();
    while !rest.is_empty() {
        let (wave, later) = one_wave(&mut trial, rest, limits, overtaking);
        if wave.is_empty() {
            return None;
        }
        for step in &wave {
            trial.end(step);
        }
        plan.waves.push(Wave { moves: wave.into_iter().flat_map(|step| step.moves.clone()).collect() });
        rest = later;
    }
    Some(plan)
}

/// Begins what can run now; what cannot is for later.
fn one_wave<'s>(
    trial: &mut Trial<'_>,
    steps: Vec<&'s Step>,
    limits: &Parallelism,
    overtaking: bool,
) -> (Vec<&'s Step>, Vec<&'s Step>) {
    let (mut wave, mut later) = (Vec::new(), Vec::new());
    let (mut busy, mut waiting) = (Busy::default(), BTreeSet::new());
    let mut steps = steps.into_iter();
    for step in steps.by_ref() {
        let overtakes =
            !later.is_empty() && (!overtaking || step.hosts().any(|host| waiting.contains(&host)));
        if overtakes || !busy.has_room(step, limits) || !trial.may_begin(step) {
            waiting.extend(step.hosts());
            later.push(step);
        } else {
            trial.begin(step);
            busy.add(step);
            wave.push(step);
            if busy.moves >= limits.cluster {
                break;
            }
        }
    }
    later.extend(steps);
    (wave, later)
}
