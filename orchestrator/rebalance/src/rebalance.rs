//! Rebalancing: few migrations, each worth what it costs.
//!
//! ```text
//!             a host is start_above over the mean              none is settle_below over it, or nothing is worth it
//!   settled ---------------------------------------> relieving ---------------------------------------> settled
//! ```
//!
//! A pass looks at the host that is furthest above the others, tries its VMs on the hosts that are least full, and takes
//! the move that brings most beyond its cost, if it brings enough; then the next. What a move brings is the work that
//! no longer waits (see the module on load), for as long as load is expected to stay as it is. Three things keep a
//! cluster from swinging: relief begins at one distance from the mean and goes on to a smaller one; a VM that was moved
//! stays for a while; and a move must bring several times what it costs.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use drover_cluster_state::Moment;
use drover_ids::VmId;

use crate::{
    Basis, CoreSeconds, Move, Parallelism, PerMille, Plan, Why,
    load::{Amount, Board, DIMENSIONS, per_mille},
    loads::Loads,
    trial::{Reserve, Search, Step, Trial},
    waves,
};

/// Hosts that are looked at in one pass without finding a move, after which the others, which are less above the mean,
/// are left alone.
const FRUITLESS_MAX: usize = 16;
/// Targets that each VM is weighed on: the emptiest ones.
const TARGETS_WEIGHED: usize = 24;
/// Of the moves weighed for a host, those that the engine is asked about, the best first.
const CHECKED_MAX: usize = 48;
/// Questions to the engine in one pass.
const ASKS: u32 = 20_000;

/// Who decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// People: nothing is placed or moved by itself. Moves are proposed when somebody asks.
    #[default]
    Manual,
    /// New VMs are placed by the engine; moves are proposed, and people apply them.
    Partial,
    /// Moves are proposed and applied.
    Automatic,
}

impl Mode {
    /// Whether what a pass proposes is to be carried out without asking.
    pub const fn applies(self) -> bool {
        matches!(self, Self::Automatic)
    }
}

/// When to move, and how much.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Who decides.
    pub mode: Mode,
    /// Relief begins when a host is so much fuller than the mean, in CPU or memory.
    pub start_above: PerMille,
    /// And goes on until no host is more than this.
    pub settle_below: PerMille,
    /// A host that is less full than this in what it has most of is left alone, however empty the others are: nothing
    /// waits there.
    pub busy_from: PerMille,
    /// How long load is expected to stay as it was measured.
    pub horizon: Duration,
    /// What a move must bring for what it costs: hundredths; 300 is three times.
    pub worth_percent: u32,
    /// How much CPU and memory count.
    pub weights: [f64; 2],
    /// How long a VM that has been moved stays, at least.
    pub cooldown: Duration,
    /// In `interval`,
    pub interval: Duration,
    /// so many moves begin at most.
    pub moves_per_interval: usize,
    /// Moves at the same time.
    pub parallelism: Parallelism,
}

impl Default for Settings {
    /// A pass every few minutes that reacts to what lasts.
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            start_above: PerMille(200),
            settle_below: PerMille(80),
            busy_from: PerMille(500),
            horizon: Duration::from_secs(3600),
            worth_percent: 300,
            weights: [1.0, 0.5],
            cooldown: Duration::from_secs(1800),
            interval: Duration::from_secs(600),
            moves_per_interval: 32,
            parallelism: Parallelism::default(),
        }
    }
}

/// How even a cluster is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Standard deviation of the hosts' shares in use, in CPU or memory, whichever is more.
    pub deviation: PerMille,
    /// How far the fullest host is above the mean.
    pub highest_above_mean: PerMille,
}

/// What a pass proposes.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// The moves; empty: all is well, or nothing is worth it.
    pub plan: Plan,
    /// Whether to carry it out without asking.
    pub apply: bool,
    /// As it is.
    pub before: Balance,
    /// As it would be afterwards.
    pub after: Balance,
    /// Moves that are only left out because so many have begun in this interval.
    pub rate_limited: bool,
}

/// Proposes moves, pass by pass. Remembers what has moved when; everything else is told anew each time.
#[derive(Clone, Debug)]
pub struct Rebalancer {
    settings: Settings,
    relieving: bool,
    /// When moves began, oldest first, no longer ago than an interval.
    begun: VecDeque<Moment>,
    /// When VMs were moved last, no longer ago than they must stay.
    moved: BTreeMap<VmId, Moment>,
}

impl Rebalancer {
    /// One that has moved nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, relieving: false, begun: VecDeque::new(), moved: BTreeMap::new() }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Other settings from now on. What has moved is remembered.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// A move has begun: by itself, or because people wanted it. Both count against the rate, and a VM that people have
    /// put somewhere stays there, too.
    pub fn began(&mut self, now: Moment, vm: VmId) {
        self.begun.push_back(now);
        self.moved.insert(vm, now);
    }

    /// A VM is gone.
    pub fn forget(&mut self, vm: VmId) {
        self.moved.remove(&vm);
    }

    /// Looks at the cluster and proposes what is worth moving now.
    pub fn propose(&mut self, now: Moment, basis: &Basis<'_>) -> Proposal {
        self.expire(now);
        let trial = Trial::new(basis, Reserve::Kept);
        let loads = Loads::of(&trial);
        let mut pass = Pass {
            settings: &self.settings,
            stays: self.moved.keys().copied().collect(),
            board: Board::new(loads.gauges()),
            loads,
            trial: trial.clone(),
            search: Search::new(ASKS),
            steps: Vec::new(),
        };
        let before = pass.balance();
        let start = if self.relieving { self.settings.settle_below } else { self.settings.start_above };
        let rate = self.settings.moves_per_interval.saturating_sub(self.begun.len());
        let mut rate_limited = false;
        if pass.is_any_above(start) {
            rate_limited = pass.relieve(rate);
        }
        // Nothing left to do, or nothing worth doing: wait until it is bad again.
        self.relieving = !pass.steps.is_empty() || rate_limited;
        let after = pass.balance();
        let plan = waves::arrange(&trial, &pass.steps, &self.settings.parallelism).unwrap_or_default();
        Proposal { plan, apply: self.settings.mode.applies(), before, after, rate_limited }
    }

    fn expire(&mut self, now: Moment) {
        let Settings { interval, cooldown, .. } = self.settings;
        while self.begun.front().is_some_and(|begun| now.since(*begun) >= interval) {
            self.begun.pop_front();
        }
        self.moved.retain(|_, moved| now.since(*moved) < cooldown);
    }
}

/// A move that was weighed by its numbers.
struct Weighed {
    surplus: f64,
    vm: VmId,
    to: usize,
    gain: CoreSeconds,
}

/// One look at the cluster.
struct Pass<'a> {
    settings: &'a Settings,
    /// VMs that have moved lately, or are to move in this pass.
    stays: BTreeSet<VmId>,
    board: Board,
    loads: Loads,
    trial: Trial<'a>,
    search: Search,
    steps: Vec<Step>,
}

impl Pass<'_> {
    fn balance(&self) -> Balance {
        let highest = self.board.hottest().next().map_or(0.0, |host| self.board.excess(host).1);
        Balance { deviation: per_mille(self.board.imbalance()), highest_above_mean: per_mille(highest) }
    }

    /// Whether a host is so far above the mean, and busy enough for it to matter.
    fn is_above(&self, host: usize, distance: PerMille) -> bool {
        let (dimension, excess) = self.board.excess(host);
        per_mille(excess) > distance
            && per_mille(self.board.gauge(host).share(dimension)) >= self.settings.busy_from
    }

    fn is_any_above(&self, distance: PerMille) -> bool {
        self.board.hottest().take(FRUITLESS_MAX).any(|host| self.is_above(host, distance))
    }

    /// Finds moves until all is even, nothing is worth it, or as many have been found as may begin. `true`: it was the
    /// last of these.
    fn relieve(&mut self, rate: usize) -> bool {
        let mut fruitless: BTreeSet<usize> = BTreeSet::new();
        while fruitless.len() < FRUITLESS_MAX {
            let next = self.board.hottest().find(|host| !fruitless.contains(host));
            let Some(host) = next.filter(|host| self.is_above(*host, self.settings.settle_below)) else {
                return false;
            };
            let Some((step, to)) = self.best_move(host) else {
                fruitless.insert(host);
                continue;
            };
            if self.steps.len() >= rate {
                return true;
            }
            self.make(step, host, to);
        }
        false
    }

    /// The move off a host that brings most beyond its cost, of those that the engine allows.
    fn best_move(&mut self, host: usize) -> Option<(Step, usize)> {
        let weighed = self.weigh(host);
        let from = self.loads.host(host);
        for Weighed { vm, to, gain, .. } in weighed.into_iter().take(CHECKED_MAX) {
            let target = self.loads.host(to);
            if self.trial.find(&mut self.search, vm, Some(target), &BTreeSet::new()).is_err() {
                continue;
            }
            let why = self.relief(host, to, self.loads.of_vm(vm));
            let planned = Move { gain, ..self.trial.planned(vm, from, target, why) };
            let step = Step { moves: vec![planned] };
            if self.trial.may_begin(&step) {
                return Some((step, to));
            }
        }
        None
    }

    fn relief(&self, host: usize, to: usize, load: Amount) -> Why {
        let (source, target) = (self.board.gauge(host), self.board.gauge(to));
        let (dimension, _) = self.board.excess(host);
        let shares = |before: f64, after: f64| [per_mille(before), per_mille(after)];
        Why::Relieve {
            dimension: DIMENSIONS[dimension],
            source: shares(source.share(dimension), source.minus(load).share(dimension)),
            target: shares(target.share(dimension), target.plus(load).share(dimension)),
        }
    }

    /// Every VM of a host on the emptiest hosts, by numbers, best first.
    fn weigh(&self, host: usize) -> Vec<Weighed> {
        let targets: Vec<usize> =
            self.board.coldest().filter(|target| *target != host).take(TARGETS_WEIGHED).collect();
        let (dimension, _) = self.board.excess(host);
        let seconds = self.settings.horizon.as_secs_f64();
        let mut weighed = Vec::new();
        for vm in self.trial.vms_of(self.loads.host(host)) {
            if self.stays.contains(&vm) || !self.trial.is_movable(vm) {
                continue;
            }
            let load = self.loads.of_vm(vm);
            let price = self.trial.price_of(vm);
            for to in &targets {
                let gain = self.board.gain(host, *to, load, self.settings.weights, seconds);
                let least = price * f64::from(self.settings.worth_percent) / 100.0;
                // The target must not become what the source is now.
                let target = self.board.gauge(*to).plus(load).share(dimension);
                if gain.0 > least && target < self.board.gauge(host).share(dimension) {
                    weighed.push(Weighed { surplus: gain.0 - least, vm, to: *to, gain });
                }
            }
        }
        weighed.sort_by(|one, two| {
            two.surplus.total_cmp(&one.surplus).then(one.vm.cmp(&two.vm)).then(one.to.cmp(&two.to))
        });
        weighed
    }

    fn make(&mut self, step: Step, from: usize, to: usize) {
        for mv in &step.moves {
            self.stays.insert(mv.vm);
            self.board.shift(from, to, self.loads.of_vm(mv.vm));
        }
        self.trial.force(&step);
        self.steps.push(step);
    }
}
