//! Whatever happens in whatever order, the supervisor's guarantees hold. A small world of processes carries out its
//! effects, fails some of them, and at last stops failing: then every command must have been answered.
#![allow(missing_docs, reason = "tests")]

use std::{collections::BTreeMap, time::Duration};

use drover_ids::{MigrationId, OwnerEpoch, VmId};
use drover_node_supervisor::{
    Answer, BootTime, Effect, Event, LaunchFailed, Refusal, Run, StaleVm, Supervisor, Ticket, Timers, Verb,
    VmReport, VmState,
};
use proptest::{prelude::*, test_runner::FileFailurePersistence};

#[derive(Clone, Copy, Debug)]
enum Step {
    Command {
        vm: u128,
        epoch: u64,
        verb: u8,
    },
    /// The next stage of the oldest launch; false: it fails.
    Launch(bool),
    /// The oldest ordered end is carried out; false: it is overdue first.
    End(bool),
    Crash {
        nth: usize,
    },
    State {
        nth: usize,
        state: u8,
    },
    Heartbeat {
        granted: bool,
        reap: bool,
    },
    HeartbeatLost {
        unknown: bool,
    },
    Pass {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..3_u128, 0..5_u64, 0..8_u8).prop_map(|(vm, epoch, verb)| Step::Command { vm, epoch, verb }),
        6 => any::<bool>().prop_map(Step::Launch),
        4 => any::<bool>().prop_map(Step::End),
        1 => (0..3_usize).prop_map(|nth| Step::Crash { nth }),
        3 => (0..3_usize, 0..6_u8).prop_map(|(nth, state)| Step::State { nth, state }),
        6 => (prop::bool::weighted(0.9), prop::bool::weighted(0.1))
            .prop_map(|(granted, reap)| Step::Heartbeat { granted, reap }),
        1 => any::<bool>().prop_map(|unknown| Step::HeartbeatLost { unknown }),
        3 => (1..1_500_u64).prop_map(|ms| Step::Pass { ms }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Launch {
    vm: VmId,
    run: Run,
    epoch: OwnerEpoch,
    spawned: bool,
    incoming: bool,
}

struct World {
    supervisor: Supervisor,
    now: BootTime,
    launches: Vec<Launch>,
    processes: BTreeMap<(VmId, Run), OwnerEpoch>,
    ends: Vec<(VmId, Run)>,
    heartbeat: Option<u64>,
    asked: BTreeMap<Ticket, (VmId, OwnerEpoch, Verb)>,
    answered: BTreeMap<Ticket, Result<Answer, Refusal>>,
    next_ticket: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            supervisor: Supervisor::default(),
            now: BootTime::from_ns(1),
            launches: Vec::new(),
            processes: BTreeMap::new(),
            ends: Vec::new(),
            heartbeat: None,
            asked: BTreeMap::new(),
            answered: BTreeMap::new(),
            next_ticket: 0,
        };
        world.feed(Event::Tick);
        world
    }

    fn feed(&mut self, event: Event) {
        let effects = self.supervisor.step(self.now, event.clone());
        for effect in effects {
            self.perform(effect, &event);
        }
    }

    fn perform(&mut self, effect: Effect, cause: &Event) {
        match effect {
            Effect::Launch { vm, run, epoch, ticket, lease } => {
                assert!(self.now < lease.pause_at, "launched without a valid lease");
                assert!(
                    !self.processes.keys().any(|(other, _)| *other == vm)
                        && !self.launches.iter().any(|other| other.vm == vm),
                    "a second process of {vm}"
                );
                let (asked_vm, asked_epoch, verb) = self.asked[&ticket];
                assert_eq!((asked_vm, asked_epoch), (vm, epoch));
                let incoming = matches!(verb, Verb::PrepareIncoming { .. });
                self.launches.push(Launch { vm, run, epoch, spawned: false, incoming });
            }
            Effect::End { vm, run, how: _ } => {
                assert!(self.processes.contains_key(&(vm, run)), "ends what is not there");
                self.ends.push((vm, run));
            }
            Effect::Answer { ticket, answer } => self.answer(ticket, answer),
            Effect::Relay { ticket, vm, run } => {
                assert!(self.processes.contains_key(&(vm, run)));
                self.answer(ticket, Ok(Answer::Status));
            }
            Effect::Heartbeat { sequence } => {
                assert!(self.heartbeat.replace(sequence).is_none(), "two heartbeats in flight");
            }
            Effect::Register => {
                let second = Duration::from_secs(1);
                let timers = Timers::new(second / 2, second * 2, second * 3).expect("they rise");
                assert!(!matches!(cause, Event::Registered(_)));
                self.feed(Event::Registered(timers));
            }
            Effect::ExtendLease { vm, run, .. } => {
                assert!(self.processes.contains_key(&(vm, run)));
            }
            Effect::Retire { .. } | Effect::Discard { .. } => {}
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<Answer, Refusal>) {
        let (vm, _, verb) = self.asked[&ticket];
        if matches!(answer, Ok(Answer::Stopped { .. })) {
            assert_eq!(verb, Verb::Stop);
            assert!(
                !self.processes.keys().any(|(other, _)| *other == vm),
                "stop answered over a live process"
            );
        }
        assert_eq!(self.answered.insert(ticket, answer), None, "answered twice");
    }

    fn launch(&mut self, succeeds: bool) {
        let Some(launch) = self.launches.first().copied() else { return };
        let Launch { vm, run, epoch, spawned, incoming } = launch;
        if !spawned && succeeds {
            self.launches[0].spawned = true;
            self.processes.insert((vm, run), epoch);
            self.feed(Event::Spawned { vm, run });
            return;
        }
        self.launches.remove(0);
        let alive = self.processes.contains_key(&(vm, run));
        let state = if incoming { VmState::Incoming } else { VmState::Running };
        let result = if succeeds && alive {
            Ok(VmReport { epoch, state })
        } else {
            Err(LaunchFailed { may_have_run: false })
        };
        self.feed(Event::Launched { vm, run, result });
    }

    fn end(&mut self, in_time: bool) {
        let Some((vm, run)) = self.ends.first().copied() else { return };
        self.ends.remove(0);
        if !in_time {
            if self.processes.contains_key(&(vm, run)) {
                self.feed(Event::EndOverdue { vm, run });
            }
        } else if self.processes.remove(&(vm, run)).is_some() {
            self.feed(Event::ProcessEnded { vm, run });
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Command { vm, epoch, verb } => {
                self.next_ticket += 1;
                let ticket = Ticket(self.next_ticket);
                let verb = match verb {
                    0..=2 => Verb::Ensure,
                    3 => Verb::Stop,
                    4 => Verb::PrepareIncoming { migration: MigrationId::from_u128(1) },
                    5 => Verb::MigrateOut,
                    6 => Verb::GrantEpoch,
                    _ => Verb::Pause,
                };
                let (vm, epoch) = (VmId::from_u128(vm), OwnerEpoch::new(epoch));
                self.asked.insert(ticket, (vm, epoch, verb));
                self.feed(Event::Command { ticket, vm, epoch, verb });
            }
            Step::Launch(succeeds) => self.launch(succeeds),
            Step::End(in_time) => self.end(in_time),
            Step::Crash { nth } => {
                if let Some((vm, run)) = self.processes.keys().nth(nth).copied() {
                    self.processes.remove(&(vm, run));
                    self.feed(Event::ProcessEnded { vm, run });
                }
            }
            Step::State { nth, state } => {
                let found = self.processes.iter().nth(nth).map(|(key, epoch)| (*key, *epoch));
                if let Some(((vm, run), epoch)) = found {
                    let state = [
                        VmState::Running,
                        VmState::Paused,
                        VmState::MigratingOut,
                        VmState::Committed,
                        VmState::Migrated,
                        VmState::Stopped,
                    ][usize::from(state)];
                    self.feed(Event::Reported { vm, run, report: VmReport { epoch, state } });
                }
            }
            Step::Heartbeat { granted, reap } => {
                if let Some(sequence) = self.heartbeat.take() {
                    let stale = StaleVm { vm: VmId::from_u128(1), epoch: OwnerEpoch::new(2) };
                    let reap = if reap { vec![stale] } else { vec![] };
                    self.feed(Event::HeartbeatAnswered { sequence, lease_granted: granted, reap });
                }
            }
            Step::HeartbeatLost { unknown } => {
                if let Some(sequence) = self.heartbeat.take() {
                    self.feed(Event::HeartbeatFailed { sequence, unknown });
                }
            }
            Step::Pass { ms } => {
                self.now = self.now.plus(Duration::from_millis(ms));
                self.feed(Event::Tick);
            }
        }
        // What is reported as ended is not there, and what is there is reported.
        for view in self.supervisor.vms() {
            assert!(!(view.ended && self.processes.contains_key(&(view.vm, view.run))), "{view:?} is alive");
        }
        for (vm, run) in self.processes.keys() {
            assert!(
                self.supervisor.vms().any(|view| (view.vm, view.run) == (*vm, *run)),
                "{vm} is not reported"
            );
        }
        // A deadline that has passed would make the driver spin.
        self.feed(Event::Tick);
        assert!(self.supervisor.next_deadline().is_none_or(|due| due > self.now), "a deadline in the past");
    }

    fn heal(&mut self) {
        for _ in 0..200 {
            self.launch(true);
            self.end(true);
            self.apply(Step::Heartbeat { granted: true, reap: false });
            self.apply(Step::Pass { ms: 100 });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/properties.regressions"
        )))),
        ..ProptestConfig::with_cases(2_000)
    })]

    #[test]
    fn one_process_per_vm_and_one_answer_per_command(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            world.apply(step);
        }
        world.heal();
        prop_assert!(world.launches.is_empty());
        for ticket in world.asked.keys() {
            prop_assert!(world.answered.contains_key(ticket), "{:?} was not answered: {:?}", ticket, world.asked[ticket]);
        }
    }

    #[test]
    fn a_lost_lease_leaves_no_process(steps in prop::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        for step in steps {
            world.apply(step);
        }
        if world.supervisor.lease().is_none() {
            return Ok(());
        }
        world.heartbeat = None;
        world.apply(Step::Pass { ms: 3_000 });
        for _ in 0..20 {
            world.launch(true);
            world.end(true);
            world.apply(Step::Pass { ms: 100 });
        }
        prop_assert!(world.processes.is_empty(), "{:?}", world.processes);
    }
}

/// The proof of the tests' own teeth: an end that is only ordered is not an end.
#[test]
fn a_kill_order_is_not_an_end() {
    let mut world = World::new();
    world.apply(Step::Heartbeat { granted: true, reap: false });
    world.apply(Step::Command { vm: 1, epoch: 1, verb: 0 });
    world.launch(true);
    world.launch(true);
    world.apply(Step::Command { vm: 1, epoch: 1, verb: 3 });
    assert_eq!(world.ends.len(), 1);
    assert!(!world.answered.contains_key(&Ticket(2)));
    world.end(true);
    assert_eq!(world.answered[&Ticket(2)], Ok(Answer::Stopped { ended: true }));
}
