//! What a node does in the situations that matter, one test each.
#![allow(missing_docs, reason = "tests")]

use std::time::Duration;

use drover_ids::{MigrationId, OwnerEpoch, VmId};
use drover_node_supervisor::{
    Answer, BootTime, Effect, EndHow, Event, LaunchFailed, Process, Refusal, Run, StaleVm, Supervisor,
    Ticket, Timers, Verb, VmReport, VmState,
};

const VM: VmId = VmId::from_u128(7);
const MIGRATION: MigrationId = MigrationId::from_u128(9);

struct Node {
    supervisor: Supervisor,
    now: BootTime,
    tickets: u64,
}

impl Node {
    /// A node that has just started and knows nobody.
    fn fresh() -> Self {
        Self { supervisor: Supervisor::default(), now: BootTime::from_ns(1_000_000_000), tickets: 0 }
    }

    /// A node that holds a lease.
    fn leased() -> Self {
        let mut node = Self::fresh();
        assert_eq!(node.step(Event::Tick), [Effect::Register]);
        let effects = node.step(Event::Registered(timers()));
        assert_eq!(effects, [Effect::Heartbeat { sequence: 1 }]);
        node.answer_heartbeat(1, vec![]);
        node
    }

    /// A node with `VM` running under epoch 1 as run 1.
    fn running() -> Self {
        let mut node = Self::leased();
        node.command(1, Verb::Ensure);
        node.step(Event::Spawned { vm: VM, run: Run(1) });
        node.launched(1, VmState::Running, 1);
        node.flush();
        node
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        self.supervisor.step(self.now, event)
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus(Duration::from_millis(ms));
    }

    fn command(&mut self, epoch: u64, verb: Verb) -> Vec<Effect> {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.step(Event::Command { ticket, vm: VM, epoch: OwnerEpoch::new(epoch), verb })
    }

    fn launched(&mut self, run: u64, state: VmState, epoch: u64) -> Vec<Effect> {
        let report = VmReport { epoch: OwnerEpoch::new(epoch), state };
        self.step(Event::Launched { vm: VM, run: Run(run), result: Ok(report) })
    }

    fn reported(&mut self, run: u64, state: VmState, epoch: u64) -> Vec<Effect> {
        let report = VmReport { epoch: OwnerEpoch::new(epoch), state };
        self.step(Event::Reported { vm: VM, run: Run(run), report })
    }

    fn answer_heartbeat(&mut self, sequence: u64, reap: Vec<StaleVm>) -> Vec<Effect> {
        let lease_granted = reap.is_empty();
        self.step(Event::HeartbeatAnswered { sequence, lease_granted, reap })
    }

    /// Answers the heartbeats that are due now.
    fn flush(&mut self) {
        for sequence in 1..=50 {
            self.answer_heartbeat(sequence, vec![]);
        }
    }
}

fn timers() -> Timers {
    Timers::new(Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(3))
        .expect("they rise")
}

fn answer(effects: &[Effect], ticket: u64) -> Option<Result<Answer, Refusal>> {
    effects.iter().find_map(|effect| match effect {
        Effect::Answer { ticket: given, answer } if given.0 == ticket => Some(*answer),
        _ => None,
    })
}

fn ends(effects: &[Effect]) -> Vec<EndHow> {
    let how = |effect: &Effect| if let Effect::End { how, .. } = effect { Some(*how) } else { None };
    effects.iter().filter_map(how).collect()
}

fn launches(effects: &[Effect]) -> Vec<(u64, u64)> {
    let launch = |effect: &Effect| match effect {
        Effect::Launch { run, epoch, .. } => Some((run.0, epoch.get())),
        _ => None,
    };
    effects.iter().filter_map(launch).collect()
}

const fn graceful(epoch: u64) -> EndHow {
    EndHow::Gracefully { epoch: OwnerEpoch::new(epoch) }
}

#[test]
fn a_vm_is_brought_up_and_reported_at_once() {
    let mut node = Node::leased();
    let effects = node.command(1, Verb::Ensure);
    assert_eq!(launches(&effects), [(1, 1)]);
    assert!(effects.contains(&Effect::Heartbeat { sequence: 2 }), "{effects:?}");
    node.step(Event::Spawned { vm: VM, run: Run(1) });
    let effects = node.launched(1, VmState::Running, 1);
    assert_eq!(answer(&effects, 1), Some(Ok(Answer::Status)));
    let view = node.supervisor.vms().next().unwrap();
    assert_eq!((view.state, view.ended, view.epoch), (VmState::Running, false, OwnerEpoch::new(1)));
}

#[test]
fn a_repeated_ensure_shares_the_launch_and_finds_the_running_vm() {
    let mut node = Node::leased();
    node.command(1, Verb::Ensure);
    assert_eq!(launches(&node.command(1, Verb::Ensure)), []);
    let effects = node.launched(1, VmState::Running, 1);
    assert_eq!(
        (answer(&effects, 1), answer(&effects, 2)),
        (Some(Ok(Answer::Status)), Some(Ok(Answer::Status)))
    );
    assert_eq!(answer(&node.command(1, Verb::Ensure), 3), Some(Ok(Answer::Status)));
}

#[test]
fn older_epochs_are_refused_by_every_verb_also_after_the_end() {
    let stale = Some(Err(Refusal::StaleEpoch { given: OwnerEpoch::new(4), known: OwnerEpoch::new(5) }));
    let verbs = [
        Verb::Ensure,
        Verb::Stop,
        Verb::PrepareIncoming { migration: MIGRATION },
        Verb::MigrateOut,
        Verb::CancelMigration,
        Verb::GrantEpoch,
        Verb::Pause,
        Verb::Resume,
    ];
    let mut node = Node::leased();
    node.command(5, Verb::Ensure);
    node.step(Event::Spawned { vm: VM, run: Run(1) });
    node.launched(1, VmState::Running, 5);
    for (index, verb) in verbs.into_iter().enumerate() {
        assert_eq!(answer(&node.command(4, verb), 2 + index as u64), stale, "{verb:?}");
    }
    node.command(5, Verb::Stop);
    node.step(Event::ProcessEnded { vm: VM, run: Run(1) });
    assert_eq!(node.supervisor.vms().count(), 0);
    for (index, verb) in verbs.into_iter().enumerate() {
        assert_eq!(answer(&node.command(4, verb), 11 + index as u64), stale, "{verb:?} after the end");
    }
}

#[test]
fn nothing_is_launched_without_a_lease() {
    let mut node = Node::fresh();
    assert_eq!(answer(&node.command(1, Verb::Ensure), 1), Some(Err(Refusal::NoLease)));
    let mut node = Node::leased();
    node.pass(2_000);
    assert_eq!(answer(&node.command(1, Verb::Ensure), 1), Some(Err(Refusal::NoLease)));
}

#[test]
fn stop_is_answered_by_the_proof_and_not_before() {
    let mut node = Node::running();
    let effects = node.command(1, Verb::Stop);
    assert_eq!(ends(&effects), [graceful(1)]);
    assert_eq!(answer(&effects, 2), None);
    assert_eq!(ends(&node.command(1, Verb::Stop)), []);
    let effects = node.step(Event::ProcessEnded { vm: VM, run: Run(1) });
    assert_eq!(answer(&effects, 2), Some(Ok(Answer::Stopped { ended: true })));
    assert_eq!(answer(&effects, 3), Some(Ok(Answer::Stopped { ended: true })));
    assert!(effects.contains(&Effect::Retire { vm: VM, epoch: OwnerEpoch::new(1) }));
    assert_eq!(answer(&node.command(1, Verb::Stop), 4), Some(Ok(Answer::Stopped { ended: false })));
}

#[test]
fn stop_during_a_launch_kills_what_it_spawned() {
    let mut node = Node::leased();
    node.command(1, Verb::Ensure);
    assert_eq!(ends(&node.command(1, Verb::Stop)), []);
    assert_eq!(ends(&node.step(Event::Spawned { vm: VM, run: Run(1) })), [EndHow::Kill]);
    assert_eq!(answer(&node.step(Event::ProcessEnded { vm: VM, run: Run(1) }), 2), None);
    let failed = LaunchFailed { may_have_run: false };
    let effects = node.step(Event::Launched { vm: VM, run: Run(1), result: Err(failed) });
    assert_eq!(answer(&effects, 1), Some(Err(Refusal::Superseded)));
    assert_eq!(answer(&effects, 2), Some(Ok(Answer::Stopped { ended: true })));
}

#[test]
fn a_dead_process_is_reported_until_stop_acknowledges_it() {
    let mut node = Node::running();
    node.step(Event::ProcessEnded { vm: VM, run: Run(1) });
    node.flush();
    let view = node.supervisor.vms().next().unwrap();
    assert!(view.ended);
    assert_eq!(
        answer(&node.command(1, Verb::Ensure), 2),
        Some(Err(Refusal::AlreadyEnded { epoch: OwnerEpoch::new(1) }))
    );
    assert_eq!(answer(&node.command(1, Verb::Stop), 3), Some(Ok(Answer::Stopped { ended: true })));
    assert_eq!(node.supervisor.vms().count(), 0);
}

#[test]
fn a_start_that_is_overtaken_by_the_confirmed_end_of_its_epoch_is_refused() {
    let ended = Some(Err(Refusal::AlreadyEnded { epoch: OwnerEpoch::new(1) }));
    let mut node = Node::leased();
    assert_eq!(answer(&node.command(1, Verb::Stop), 1), Some(Ok(Answer::Stopped { ended: false })));
    assert_eq!(answer(&node.command(1, Verb::Ensure), 2), ended);
    assert_eq!(launches(&node.command(2, Verb::Ensure)), [(1, 2)]);
    let mut node = Node::running();
    node.command(1, Verb::Stop);
    node.step(Event::ProcessEnded { vm: VM, run: Run(1) });
    assert_eq!(answer(&node.command(1, Verb::PrepareIncoming { migration: MIGRATION }), 3), ended);
}

#[test]
fn a_launch_that_never_ran_may_be_repeated_under_its_epoch() {
    let mut node = Node::leased();
    node.command(1, Verb::Ensure);
    let failed = LaunchFailed { may_have_run: false };
    let effects = node.step(Event::Launched { vm: VM, run: Run(1), result: Err(failed) });
    assert_eq!(answer(&effects, 1), Some(Err(Refusal::LaunchFailed)));
    assert_eq!(launches(&node.command(1, Verb::Ensure)), [(2, 1)]);
}

#[test]
fn a_failed_launch_is_killed_before_it_counts_as_ended() {
    let mut node = Node::leased();
    node.command(1, Verb::Ensure);
    node.step(Event::Spawned { vm: VM, run: Run(1) });
    let failed = LaunchFailed { may_have_run: true };
    let effects = node.step(Event::Launched { vm: VM, run: Run(1), result: Err(failed) });
    assert_eq!(ends(&effects), [EndHow::Kill]);
    assert!(!node.supervisor.vms().next().unwrap().ended);
    node.step(Event::ProcessEnded { vm: VM, run: Run(1) });
    assert!(matches!(answer(&node.command(1, Verb::Ensure), 2), Some(Err(Refusal::AlreadyEnded { .. }))));
}

#[test]
fn a_newer_epoch_ends_the_old_process_before_it_launches() {
    let mut node = Node::running();
    let effects = node.command(2, Verb::Ensure);
    assert_eq!((ends(&effects), launches(&effects)), (vec![graceful(2)], vec![]));
    let effects = node.step(Event::ProcessEnded { vm: VM, run: Run(1) });
    assert_eq!(launches(&effects), [(2, 2)]);
    // Words of the old process are not the new one's.
    assert_eq!(node.step(Event::ProcessEnded { vm: VM, run: Run(1) }), []);
    node.step(Event::Spawned { vm: VM, run: Run(2) });
    assert_eq!(answer(&node.launched(2, VmState::Running, 2), 2), Some(Ok(Answer::Status)));
}

#[test]
fn a_lease_that_is_over_kills_everything_once() {
    let mut node = Node::running();
    let kill_at = node.supervisor.lease().unwrap().kill_at;
    assert_eq!(node.supervisor.next_deadline().map(|due| due <= kill_at), Some(true));
    node.pass(2_999);
    assert_eq!(ends(&node.step(Event::Tick)), []);
    node.pass(1);
    assert_eq!(ends(&node.step(Event::Tick)), [EndHow::Kill]);
    assert_eq!(ends(&node.step(Event::Tick)), []);
}

#[test]
fn a_lease_counts_from_when_the_heartbeat_was_sent() {
    let mut node = Node::running();
    node.pass(500);
    let sent = node.now;
    let effects = node.step(Event::Tick);
    let Some(Effect::Heartbeat { sequence }) = effects.first().cloned() else { panic!("{effects:?}") };
    node.pass(700);
    let effects = node.answer_heartbeat(sequence, vec![]);
    let lease = timers().lease_from(sent);
    assert_eq!(effects[0], Effect::ExtendLease { vm: VM, run: Run(1), epoch: OwnerEpoch::new(1), lease });
    // An answer that comes twice buys nothing.
    assert_eq!(ends(&node.answer_heartbeat(sequence, vec![])), []);
    assert_eq!(node.supervisor.lease(), Some(lease));
}

#[test]
fn stale_vms_are_killed_and_no_work_is_taken_until_they_are_gone() {
    let mut node = Node::running();
    node.pass(500);
    let Some(Effect::Heartbeat { sequence }) = node.step(Event::Tick).first().cloned() else { panic!() };
    let stale = StaleVm { vm: VM, epoch: OwnerEpoch::new(1) };
    assert_eq!(ends(&node.answer_heartbeat(sequence, vec![stale])), [EndHow::Kill]);
    let ticket = Ticket(99);
    let other = VmId::from_u128(8);
    let command = Event::Command { ticket, vm: other, epoch: OwnerEpoch::new(1), verb: Verb::Ensure };
    assert_eq!(answer(&node.step(command.clone()), 99), Some(Err(Refusal::Reaping)));
    // The end is reported at once; listing it again acknowledges it; an empty list gives the right to work back.
    let effects = node.step(Event::ProcessEnded { vm: VM, run: Run(1) });
    let Some(Effect::Heartbeat { sequence }) = effects.last().cloned() else { panic!("{effects:?}") };
    let effects = node.answer_heartbeat(sequence, vec![stale]);
    assert!(effects.contains(&Effect::Retire { vm: VM, epoch: OwnerEpoch::new(1) }), "{effects:?}");
    node.pass(500);
    node.step(Event::Tick);
    node.flush();
    assert_eq!(launches(&node.step(command)), [(2, 1)]);
}

#[test]
fn a_reap_list_does_not_touch_a_newer_epoch() {
    let mut node = Node::leased();
    node.command(3, Verb::Ensure);
    node.step(Event::Spawned { vm: VM, run: Run(1) });
    let effects = node.launched(1, VmState::Running, 3);
    let sequence = effects
        .iter()
        .find_map(|e| if let Effect::Heartbeat { sequence } = e { Some(*sequence) } else { None });
    let effects =
        node.answer_heartbeat(sequence.unwrap_or(2), vec![StaleVm { vm: VM, epoch: OwnerEpoch::new(2) }]);
    assert_eq!(ends(&effects), []);
}

#[test]
fn an_adopted_vm_is_as_good_as_one_started_here() {
    let mut node = Node::fresh();
    let report = VmReport { epoch: OwnerEpoch::new(3), state: VmState::Running };
    node.step(Event::Recovered { vm: VM, epoch: OwnerEpoch::new(3), process: Process::Alive(Some(report)) });
    assert_eq!(answer(&node.command(3, Verb::Ensure), 1), Some(Ok(Answer::Status)));
    assert_eq!(ends(&node.command(3, Verb::Stop)), [graceful(3)]);
}

#[test]
fn what_an_agent_left_half_started_is_killed() {
    for state in [VmState::Empty, VmState::Created] {
        let mut node = Node::fresh();
        let report = VmReport { epoch: OwnerEpoch::new(0), state };
        let process = Process::Alive(Some(report));
        let effects = node.step(Event::Recovered { vm: VM, epoch: OwnerEpoch::new(3), process });
        assert_eq!(ends(&effects), [EndHow::Kill], "{state:?}");
    }
}

#[test]
fn an_adopted_process_that_does_not_answer_is_killed() {
    let mut node = Node::fresh();
    node.step(Event::Recovered { vm: VM, epoch: OwnerEpoch::new(3), process: Process::Alive(None) });
    assert_eq!(ends(&node.step(Event::Unresponsive { vm: VM, run: Run(1) })), [EndHow::Kill]);
}

#[test]
fn a_vm_that_ended_unseen_is_reported_as_ended() {
    let mut node = Node::fresh();
    node.step(Event::Recovered { vm: VM, epoch: OwnerEpoch::new(3), process: Process::Gone });
    assert!(node.supervisor.vms().next().unwrap().ended);
    assert_eq!(answer(&node.command(3, Verb::Stop), 1), Some(Ok(Answer::Stopped { ended: true })));
}

#[test]
fn an_incoming_vm_that_has_arrived_satisfies_ensure() {
    let mut node = Node::leased();
    let verb = Verb::PrepareIncoming { migration: MIGRATION };
    assert_eq!(launches(&node.command(2, verb)), [(1, 2)]);
    node.step(Event::Spawned { vm: VM, run: Run(1) });
    node.launched(1, VmState::Incoming, 2);
    assert_eq!(
        answer(&node.command(2, Verb::Ensure), 2),
        Some(Err(Refusal::Occupied { epoch: OwnerEpoch::new(2) }))
    );
    node.reported(1, VmState::Running, 2);
    assert_eq!(answer(&node.command(2, Verb::Ensure), 3), Some(Ok(Answer::Status)));
}

#[test]
fn a_source_that_has_handed_over_is_cleared_away_but_stays_reported() {
    let mut node = Node::running();
    node.reported(1, VmState::MigratingOut, 1);
    assert_eq!(ends(&node.reported(1, VmState::Committed, 1)), []);
    assert_eq!(ends(&node.reported(1, VmState::Migrated, 1)), [graceful(1)]);
    node.step(Event::ProcessEnded { vm: VM, run: Run(1) });
    assert!(node.supervisor.vms().next().unwrap().ended);
}

#[test]
fn a_grant_raises_the_epoch_that_later_commands_need() {
    let mut node = Node::running();
    node.reported(1, VmState::Committed, 1);
    let effects = node.command(3, Verb::GrantEpoch);
    assert!(effects.iter().any(|e| matches!(e, Effect::Relay { .. })), "{effects:?}");
    assert!(matches!(answer(&node.command(2, Verb::Stop), 3), Some(Err(Refusal::StaleEpoch { .. }))));
    node.reported(1, VmState::Running, 3);
    assert_eq!(answer(&node.command(3, Verb::GrantEpoch), 4), Some(Ok(Answer::Status)));
}

#[test]
fn migrating_to_the_node_that_runs_the_vm_is_refused() {
    let mut node = Node::running();
    let effects = node.command(2, Verb::PrepareIncoming { migration: MIGRATION });
    assert_eq!(ends(&effects), []);
    assert_eq!(answer(&effects, 2), Some(Err(Refusal::Occupied { epoch: OwnerEpoch::new(1) })));
}

#[test]
fn a_process_that_does_not_die_is_an_error_and_is_killed_again() {
    let mut node = Node::running();
    node.command(1, Verb::Stop);
    let effects = node.step(Event::EndOverdue { vm: VM, run: Run(1) });
    assert_eq!(answer(&effects, 2), Some(Err(Refusal::EndOverdue)));
    assert_eq!(ends(&node.command(1, Verb::Stop)), [EndHow::Kill]);
    let effects = node.step(Event::ProcessEnded { vm: VM, run: Run(1) });
    assert_eq!(answer(&effects, 3), Some(Ok(Answer::Stopped { ended: true })));
}

#[test]
fn an_unknown_node_registers_again() {
    let mut node = Node::leased();
    node.pass(500);
    node.step(Event::Tick);
    assert_eq!(node.step(Event::HeartbeatFailed { sequence: 2, unknown: true }), []);
    node.pass(250);
    assert_eq!(node.step(Event::Tick), [Effect::Register]);
    assert_eq!(node.step(Event::Registered(timers())), [Effect::Heartbeat { sequence: 3 }]);
}

#[test]
fn a_control_plane_that_is_down_is_not_asked_in_a_tight_loop() {
    let mut node = Node::running();
    node.pass(500);
    let Some(Effect::Heartbeat { sequence }) = node.step(Event::Tick).first().cloned() else { panic!() };
    assert_eq!(node.step(Event::HeartbeatFailed { sequence, unknown: false }), []);
    assert_eq!(node.step(Event::Tick), []);
    node.pass(250);
    assert_eq!(node.step(Event::Tick), [Effect::Heartbeat { sequence: sequence + 1 }]);
}

fn extended(effects: &[Effect]) -> Vec<u64> {
    let epoch = |effect: &Effect| match effect {
        Effect::ExtendLease { epoch, .. } => Some(epoch.get()),
        _ => None,
    };
    effects.iter().filter_map(epoch).collect()
}

#[test]
fn a_vm_that_is_slow_to_start_keeps_its_lease() {
    let mut node = Node::leased();
    node.command(4, Verb::Ensure);
    assert_eq!(extended(&node.answer_heartbeat(2, vec![])), [], "there is nobody to tell yet");
    node.step(Event::Spawned { vm: VM, run: Run(1) });
    node.pass(500);
    node.step(Event::Tick);
    let effects = node.answer_heartbeat(3, vec![]);
    assert_eq!(extended(&effects), [4]);
}

#[test]
fn an_adopted_vm_goes_by_its_own_epoch_not_by_the_recorded_one() {
    let mut node = Node::leased();
    // The agent before this one recorded a grant of epoch 5 and died before it was handed on.
    node.step(Event::Recovered { vm: VM, epoch: OwnerEpoch::new(5), process: Process::Alive(None) });
    let effects = node.command(5, Verb::GrantEpoch);
    assert!(matches!(effects[..], [Effect::Relay { .. }, ..]), "not taken for granted: {effects:?}");
    node.reported(1, VmState::Committed, 3);
    node.flush();
    node.pass(500);
    let sequence = node
        .step(Event::Tick)
        .iter()
        .find_map(|effect| match effect {
            Effect::Heartbeat { sequence } => Some(*sequence),
            _ => None,
        })
        .unwrap();
    assert_eq!(extended(&node.answer_heartbeat(sequence, vec![])), [3]);
    let effects = node.command(5, Verb::GrantEpoch);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Relay { .. })), "{effects:?}");
    node.reported(1, VmState::Running, 5);
    let effects = node.command(5, Verb::GrantEpoch);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Answer { answer: Ok(Answer::Status), .. })));
    assert!(answer(&node.command(4, Verb::Stop), 4).unwrap().is_err(), "older commands stay refused");
}
