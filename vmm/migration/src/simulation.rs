//! Both machines, both guests and a network that loses, cuts, repeats, reorders and damages, in one thread and under a
//! virtual clock: the same seed gives the same run.
//!
//! The code under test is the drivers' own down to the frames: only threads, sockets and the clock are replaced. Each
//! run draws faults, lets everything happen in random order, lets an orchestrator clear up what stands in Committed,
//! and then checks the promises in the crate's documentation. The [`World`] checks what must hold at every moment.

mod network;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use drover_ids::MigrationId;
use drover_units::Bytes;
use network::{Pipe, PipeSink, Trouble};
use proptest::prelude::*;

use crate::{
    MigratableGuest,
    driver::{Arrival, Incoming, Outgoing, peer_lost},
    fake::{FakeGuest, Fault, Random, SOURCE_EPOCH, Side, TARGET_EPOCH, Vcpu, World, fake_shape},
    source::{self, Source, SourcePlan, SourceTimeouts},
    target::{self, Target, TargetPlan, TargetTimeouts},
    wire::{AbortCode, AbortReason, FrameReader, Message},
};

/// Enough for a clean run with every round; a run that needs more does not end.
const ACTIONS_MAX: u64 = 20_000;

/// An end: its machine, what it still has to do, and its guest.
struct SourceEnd<'g> {
    machine: Source,
    outgoing: Outgoing<'g, FakeGuest>,
    effects: VecDeque<source::Effect>,
    events: VecDeque<source::Event>,
    reader: FrameReader,
    deaf: bool,
}

struct TargetEnd<'g> {
    machine: Target,
    incoming: Incoming<'g, FakeGuest>,
    effects: VecDeque<target::Effect>,
    events: VecDeque<target::Event>,
    reader: FrameReader,
    deaf: bool,
}

struct Simulation<'g> {
    random: Random,
    now: Instant,
    world: Arc<World>,
    troubles: Vec<Trouble>,
    to_target: Pipe,
    to_source: Pipe,
    source: Option<SourceEnd<'g>>,
    target: Option<TargetEnd<'g>>,
    vcpus: [Arc<Vcpu>; 2],
    actions: u64,
    log: Vec<String>,
}

/// How a run went, for the tests that look closer.
#[derive(Debug)]
struct Report {
    actions: u64,
    source: Option<source::Outcome>,
    target: Option<target::Outcome>,
}

fn source_plan() -> SourcePlan {
    let mut plan = SourcePlan {
        migration: MigrationId::from_u128(1),
        source_epoch: SOURCE_EPOCH,
        target_epoch: TARGET_EPOCH,
        limits: crate::convergence::Limits::default(),
        timeouts: SourceTimeouts::default(),
    };
    plan.limits.rounds_max = 8;
    plan
}

fn target_plan() -> TargetPlan {
    let (source, timeouts) = (source_plan(), TargetTimeouts::default());
    TargetPlan { migration: source.migration, target_epoch: source.target_epoch, timeouts }
}

impl<'g> Simulation<'g> {
    fn new(seed: u64, troubles: &[Trouble], world: &Arc<World>, guests: [&'g mut FakeGuest; 2]) -> Self {
        let [a, b] = guests;
        let vcpus = [a.vcpu(), b.vcpu()];
        #[allow(clippy::disallowed_methods, reason = "any origin will do for a virtual clock")]
        let now = Instant::now();
        for trouble in troubles {
            match trouble {
                Trouble::Guest { side: Side::Source, fault } => {
                    a.faults.insert(*fault);
                }
                Trouble::Guest { side: Side::Target, fault } => {
                    b.faults.insert(*fault);
                }
                _ => {}
            }
        }
        let (source_shape, target_shape) = (fake_shape(a.memory()), fake_shape(b.memory()));
        let (machine, effects) = Source::new(source_plan(), source_shape, now);
        let source = SourceEnd {
            machine,
            outgoing: Outgoing::new(a),
            effects: effects.into(),
            events: VecDeque::new(),
            reader: FrameReader::default(),
            deaf: false,
        };
        let target = TargetEnd {
            machine: Target::new(target_plan(), target_shape, now),
            incoming: Incoming::new(b),
            effects: VecDeque::new(),
            events: VecDeque::new(),
            reader: FrameReader::default(),
            deaf: false,
        };
        Self {
            random: Random(seed),
            now,
            world: Arc::clone(world),
            troubles: troubles.to_vec(),
            to_target: Pipe::default(),
            to_source: Pipe::default(),
            vcpus,
            source: Some(source),
            target: Some(target),
            actions: 0,
            log: Vec::new(),
        }
    }

    /// Lets things happen until nothing can.
    fn run(&mut self) {
        loop {
            self.apply_troubles();
            self.actions += 1;
            assert!(
                self.actions < ACTIONS_MAX,
                "the run does not end: {:?}",
                self.log.iter().rev().take(20).collect::<Vec<_>>()
            );
            self.now += Duration::from_micros(self.random.below(300));
            // One vCPU step in a few actions; both are asked, only what runs steps.
            if self.random.one_in(3) {
                let pages = 1 + self.random.below(3);
                for vcpu in &self.vcpus {
                    vcpu.step(pages);
                }
            }
            let mut order = [Side::Source, Side::Target];
            if self.random.one_in(2) {
                order.reverse();
            }
            let moved = order.into_iter().any(|side| match side {
                Side::Source => self.source_acts(),
                Side::Target => self.target_acts(),
            });
            if !moved && !self.tick() && !self.more_troubles() {
                return;
            }
        }
    }

    fn more_troubles(&self) -> bool {
        self.troubles.iter().any(|trouble| trouble.action().is_some_and(|action| action >= self.actions))
    }

    fn apply_troubles(&mut self) {
        for trouble in self.troubles.clone() {
            if trouble.action() != Some(self.actions) {
                continue;
            }
            match trouble {
                Trouble::Cut { loses, .. } => self.cut(loses),
                Trouble::Kill { side, .. } => self.kill(side),
                Trouble::Cancel { side: Side::Source, .. } => {
                    self.tell_source(source::Event::Cancel("test".to_owned()))
                }
                Trouble::Cancel { side: Side::Target, .. } => {
                    if let Some(end) = &mut self.target {
                        end.events.push_back(target::Event::Cancel("test".to_owned()));
                    }
                }
                Trouble::Abandon { .. } => self.tell_source(source::Event::Abandon),
                Trouble::StaleGrant { .. } => self.tell_source(source::Event::Grant(TARGET_EPOCH)),
                Trouble::Stall { millis, .. } => self.now += Duration::from_millis(millis),
                _ => {}
            }
        }
    }

    fn tell_source(&mut self, event: source::Event) {
        if let Some(end) = &mut self.source {
            end.events.push_back(event);
        }
    }

    fn cut(&mut self, loses: bool) {
        for pipe in [&mut self.to_target, &mut self.to_source] {
            pipe.closed = true;
            if loses {
                pipe.frames.clear();
            }
        }
    }

    fn kill(&mut self, side: Side) {
        self.world.kill(side);
        self.vcpus[side as usize].stop();
        let loses = self.random.one_in(2);
        self.cut(loses);
        match side {
            Side::Source => self.source = None,
            Side::Target => self.target = None,
        }
    }

    /// Nobody can do anything but wait: the clock jumps to the next deadline.
    fn tick(&mut self) -> bool {
        let source = self.source.as_ref().and_then(|end| end.machine.deadline());
        let target = self.target.as_ref().and_then(|end| end.machine.deadline());
        let Some(next) = source.into_iter().chain(target).min() else { return false };
        self.now = self.now.max(next);
        if let Some(end) =
            self.source.as_mut().filter(|end| end.machine.deadline() <= Some(next) && source.is_some())
        {
            end.events.push_back(source::Event::Tick);
        }
        if let Some(end) =
            self.target.as_mut().filter(|end| end.machine.deadline() <= Some(next) && target.is_some())
        {
            end.events.push_back(target::Event::Tick);
        }
        true
    }

    fn source_acts(&mut self) -> bool {
        let Some(end) = &mut self.source else { return false };
        let mut sink = PipeSink { to: Side::Target, pipe: &mut self.to_target, troubles: &self.troubles };
        if let Some(effect) = end.effects.pop_front() {
            self.log.push(format!("source does {effect:?}"));
            match effect {
                source::Effect::Connect { .. } => end.events.push_back(source::Event::Connected),
                source::Effect::Close => {
                    self.to_target.closed = true;
                    end.deaf = true;
                }
                effect => end.events.extend(end.outgoing.execute(effect, &mut sink)),
            }
        } else if let Some(event) = end.events.pop_front() {
            self.log.push(format!("source sees {event:?}"));
            end.effects.extend(end.machine.step(self.now, event));
        } else if end.outgoing.is_sending() && !self.random.one_in(4) {
            match end.outgoing.advance(&mut sink) {
                Ok(event) => end.events.extend(event),
                Err(error) => unreachable!("a pipe does not interrupt: {error:?}"),
            }
        } else if !end.deaf && self.to_source.has_news() {
            let event = match end.reader.poll(&mut self.to_source) {
                Ok(None) => return true,
                Ok(Some(frame)) => match Message::decode(frame.kind, frame.payload) {
                    Ok(message) => source::Event::Received(message),
                    Err(error) => {
                        source::Event::PeerLost(AbortReason::new(AbortCode::Protocol, error.to_string()))
                    }
                },
                Err(error) => {
                    end.deaf = true;
                    source::Event::PeerLost(peer_lost(&error))
                }
            };
            end.events.push_back(event);
        } else {
            return end.outgoing.is_sending();
        }
        true
    }

    fn target_acts(&mut self) -> bool {
        let Some(end) = &mut self.target else { return false };
        let mut sink = PipeSink { to: Side::Source, pipe: &mut self.to_source, troubles: &self.troubles };
        if let Some(effect) = end.effects.pop_front() {
            self.log.push(format!("target does {effect:?}"));
            if effect == target::Effect::Close {
                self.to_source.closed = true;
                end.deaf = true;
            } else {
                end.events.extend(end.incoming.execute(effect, None, &mut sink));
            }
        } else if let Some(event) = end.events.pop_front() {
            self.log.push(format!("target sees {event:?}"));
            end.effects.extend(end.machine.step(self.now, event));
        } else if !end.deaf && self.to_target.has_news() {
            let arrival = match end.reader.poll(&mut self.to_target) {
                Ok(None) => return true,
                Ok(Some(frame)) => Arrival::decode(&frame)
                    .map_err(|error| AbortReason::new(AbortCode::Protocol, error.to_string())),
                Err(error) => {
                    end.deaf = true;
                    Err(peer_lost(&error))
                }
            };
            let (event, pages) = match arrival {
                Ok(arrival) => (arrival.event, arrival.pages),
                Err(reason) => (target::Event::PeerLost(reason), None),
            };
            // As the driver does: the pages lie in the reader's buffer and are applied before anything else.
            for effect in end.machine.step(self.now, event) {
                if effect == target::Effect::ApplyPages {
                    end.events.extend(end.incoming.execute(effect, pages, &mut sink));
                } else {
                    end.effects.push_back(effect);
                }
            }
        } else {
            return false;
        }
        true
    }

    /// What a correct orchestrator does with a source that stands in Committed: it fences the target, and gives the
    /// guest back only if the target never owned the volume.
    fn orchestrate(&mut self) {
        let committed = |end: &SourceEnd<'_>| end.machine.is_committed() && end.machine.outcome().is_none();
        if !self.source.as_ref().is_some_and(committed) {
            return;
        }
        if self.world.is_running(Side::Target) {
            self.tell_source(source::Event::Abandon);
        } else {
            let newer = TARGET_EPOCH.next();
            self.kill(Side::Target);
            self.world.fence(newer);
            let granted = !self.world.target_owned();
            self.tell_source(if granted { source::Event::Grant(newer) } else { source::Event::Abandon });
        }
        self.run();
        if self.source.as_ref().is_some_and(committed) {
            // The grant failed (a fault was injected): the orchestrator may repeat it.
            self.tell_source(source::Event::Grant(TARGET_EPOCH.next().next()));
            self.run();
        }
    }
}

/// Runs one migration and checks every promise.
fn check(seed: u64, troubles: &[Trouble]) -> Report {
    let world = Arc::new(World::default());
    let size = Bytes::kib(4 * (3 + Random(seed).below(200)));
    let mut a = FakeGuest::running(&world, size, seed);
    let mut b = FakeGuest::incoming(&world, size);
    let report = {
        let mut simulation = Simulation::new(seed, troubles, &world, [&mut a, &mut b]);
        simulation.run();
        simulation.orchestrate();
        let log = simulation.log.join("\n");
        let report = Report {
            actions: simulation.actions,
            source: simulation.source.as_ref().map(|end| outcome_of(end.machine.outcome(), &log)),
            target: simulation.target.as_ref().map(|end| outcome_of(end.machine.outcome(), &log)),
        };
        assert_eq!(world.violations(), Vec::<String>::new(), "{log}");
        report
    };
    check_source(&report, &world, &mut a, troubles);
    check_target(&report, &world, &b);
    report
}

fn outcome_of<T: Clone>(outcome: Option<&T>, log: &str) -> T {
    outcome.unwrap_or_else(|| panic!("an end does not end:\n{log}")).clone()
}

fn check_source(report: &Report, world: &World, guest: &mut FakeGuest, troubles: &[Trouble]) {
    let running = world.is_running(Side::Source);
    match &report.source {
        None => assert!(!running),
        Some(source::Outcome::Retired) => {
            assert!(!running);
            assert!(world.ever_ran(Side::Target), "retired although the guest never ran at the target");
        }
        Some(source::Outcome::Aborted(reason)) => {
            assert!(running, "aborted ({reason}) and not running");
            assert_eq!(world.holder(), Some((Side::Source, SOURCE_EPOCH)));
            assert!(!world.ever_ran(Side::Target));
            assert!(guest.memory_is_intact());
            let logged = guest.logged();
            assert_eq!(logged.union(&guest.taken), logged, "pages that were taken are not dirty again");
        }
        Some(source::Outcome::Stranded { .. }) => {
            let injected = |fault| troubles.contains(&Trouble::Guest { side: Side::Source, fault });
            assert!(injected(Fault::Acquire) || injected(Fault::Resume), "stranded although nothing failed");
        }
        Some(source::Outcome::Granted(epoch)) => {
            assert!(running);
            assert_eq!(world.holder(), Some((Side::Source, *epoch)));
            assert!(*epoch > TARGET_EPOCH);
            assert!(guest.memory_is_intact());
        }
        Some(source::Outcome::Abandoned) => assert!(!running),
    }
}

fn check_target(report: &Report, world: &World, guest: &FakeGuest) {
    let running = world.is_running(Side::Target);
    match &report.target {
        None => assert!(!running),
        Some(target::Outcome::Running) => {
            assert!(running);
            assert_eq!(world.holder(), Some((Side::Target, TARGET_EPOCH)));
            assert!(guest.memory_is_intact());
        }
        Some(target::Outcome::Discarded { .. }) => {
            assert!(!world.ever_ran(Side::Target), "discarded after it ran");
            assert!(!world.target_owned(), "took the volume before Commit");
        }
        Some(target::Outcome::Failed { .. }) => assert!(!world.ever_ran(Side::Target)),
    }
}

/// Without trouble the guest arrives.
fn check_clean(seed: u64) -> Report {
    let report = check(seed, &[]);
    assert_eq!(report.source, Some(source::Outcome::Retired), "seed {seed}");
    assert_eq!(report.target, Some(target::Outcome::Running), "seed {seed}");
    report
}

#[test]
fn without_trouble_every_guest_arrives() {
    (0..100).for_each(|seed| drop(check_clean(seed)));
}

/// Every single moment of a run, one by one: whatever ends there, the promises hold.
fn at_every_moment(trouble: impl Fn(u64) -> Trouble) -> Vec<Report> {
    let actions = check_clean(11).actions;
    (1..=actions).map(|action| check(11, &[trouble(action)])).collect()
}

#[test]
fn the_source_may_die_at_any_moment() {
    let reports = at_every_moment(|action| Trouble::Kill { side: Side::Source, action });
    assert!(
        reports.iter().any(|report| report.target == Some(target::Outcome::Running)),
        "also after Commit"
    );
    assert!(reports.iter().any(|report| matches!(report.target, Some(target::Outcome::Discarded { .. }))));
}

#[test]
fn the_target_may_die_at_any_moment() {
    let reports = at_every_moment(|action| Trouble::Kill { side: Side::Target, action });
    let some =
        |expect: fn(&source::Outcome) -> bool| reports.iter().filter_map(|r| r.source.as_ref()).any(expect);
    assert!(some(|outcome| matches!(outcome, source::Outcome::Aborted(_))));
    assert!(
        some(|outcome| matches!(outcome, source::Outcome::Granted(_))),
        "died after Commit, before it took over"
    );
    assert!(some(|outcome| matches!(outcome, source::Outcome::Abandoned)), "died after it took over");
}

#[test]
fn the_connection_may_be_cut_at_any_moment() {
    at_every_moment(|action| Trouble::Cut { action, loses: false });
    at_every_moment(|action| Trouble::Cut { action, loses: true });
}

#[test]
fn either_side_may_be_cancelled_at_any_moment() {
    for side in [Side::Source, Side::Target] {
        for report in at_every_moment(|action| Trouble::Cancel { side, action }) {
            let arrived = report.target == Some(target::Outcome::Running);
            let stayed =
                matches!(report.source, Some(source::Outcome::Aborted(_) | source::Outcome::Granted(_)));
            assert!(arrived != stayed, "a cancel loses nothing and doubles nothing: {report:?}");
        }
    }
}

#[test]
fn the_owner_may_stop_the_source_at_any_moment() {
    at_every_moment(|action| Trouble::Abandon { action });
}

#[test]
fn a_stale_grant_is_refused_at_any_moment() {
    for report in at_every_moment(|action| Trouble::StaleGrant { action }) {
        assert_eq!(report.source, Some(source::Outcome::Retired));
    }
}

#[test]
fn time_may_stand_still_at_any_moment() {
    at_every_moment(|action| Trouble::Stall { action, millis: 3_000 });
    at_every_moment(|action| Trouble::Stall { action, millis: 100_000 });
}

#[test]
fn every_frame_may_be_lost_cut_repeated_reordered_or_damaged() {
    for (to, frames) in [(Side::Target, 40), (Side::Source, 10)] {
        for frame in 0..frames {
            for trouble in [
                Trouble::Drop { to, frame },
                Trouble::Truncate { to, frame },
                Trouble::Duplicate { to, frame },
                Trouble::Reorder { to, frame },
                Trouble::Damage { to, frame },
            ] {
                check(23, &[trouble]);
            }
        }
    }
}

#[test]
fn every_step_of_either_guest_may_fail() {
    let steps = [
        Fault::StartDirtyLog,
        Fault::TakeDirty,
        Fault::Pause,
        Fault::Save,
        Fault::Release,
        Fault::Acquire,
        Fault::Resume,
        Fault::Restore,
    ];
    for fault in steps {
        for side in [Side::Source, Side::Target] {
            check(31, &[Trouble::Guest { side, fault }]);
            // Undoing fails as well.
            for (second, action) in [Fault::Acquire, Fault::Resume]
                .into_iter()
                .flat_map(|f| (1..120).step_by(6).map(move |a| (f, a)))
            {
                let cancel = Trouble::Cancel { side: Side::Source, action };
                check(
                    31,
                    &[
                        Trouble::Guest { side, fault },
                        Trouble::Guest { side: Side::Source, fault: second },
                        cancel,
                    ],
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn no_combination_of_troubles_breaks_a_promise(seed: u64, count in 1usize..5) {
        let mut random = Random(seed);
        let troubles: Vec<Trouble> = (0..count).map(|_| Trouble::draw(&mut random)).collect();
        check(seed, &troubles);
    }
}
