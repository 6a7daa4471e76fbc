//! What is admitted where: the table of states and verbs, and the stories that cross several states.
#![allow(missing_docs, reason = "tests")]

use drover_ids::{MigrationId, OperationId, OwnerEpoch};
use drover_lifecycle::{
    Action, Admission, BootTime, CancelCause, Command, Lease, Lifecycle, Observation, Outcome, PauseCause,
    Refusal, Request, State, StopReason, Verb,
};

const EPOCH: u64 = 5;
const TARGET_EPOCH: u64 = 6;
const MIGRATION: MigrationId = MigrationId::from_u128(0xa);
const NOW: BootTime = BootTime::from_ns(1_000);

fn command(operation: u128, epoch: u64) -> Command {
    Command { operation: OperationId::from_u128(operation), epoch: OwnerEpoch::new(epoch) }
}

fn lease(pause_at: u64, kill_at: u64) -> Lease {
    Lease::new(BootTime::from_ns(pause_at), BootTime::from_ns(kill_at)).expect("a valid lease")
}

fn migrate_out() -> Request {
    Request::MigrateOut { migration: MIGRATION, target_epoch: OwnerEpoch::new(TARGET_EPOCH) }
}

/// A lifecycle with a driver whose every action succeeds.
struct Vm {
    lifecycle: Lifecycle,
    now: BootTime,
    operations: u128,
}

impl Vm {
    fn empty() -> Self {
        Self { lifecycle: Lifecycle::new(), now: NOW, operations: 100 }
    }

    fn in_state(state: State) -> Self {
        Self::leased(state, None)
    }

    fn leased(state: State, lease: Option<Lease>) -> Self {
        let mut vm = Self::empty();
        if state == State::Incoming {
            vm.ok(Request::MigrateIn { migration: MIGRATION, lease });
            return vm;
        }
        if state == State::Empty {
            return vm;
        }
        vm.ok(Request::Create { lease });
        if state == State::Created {
            return vm;
        }
        vm.ok(Request::Start);
        match state {
            State::Paused => _ = vm.ok(Request::Pause),
            State::MigratingOut | State::Committed | State::Migrated => _ = vm.ok(migrate_out()),
            State::Stopped => _ = vm.ok(Request::Stop),
            _ => {}
        }
        if matches!(state, State::Committed | State::Migrated) {
            vm.lifecycle.observe(Observation::SendCommitted);
        }
        if state == State::Migrated {
            vm.lifecycle.observe(Observation::SendConfirmed);
        }
        assert_eq!(vm.lifecycle.state(), state);
        vm
    }

    fn ask(&mut self, epoch: u64, request: Request) -> Result<Admission, Refusal> {
        self.operations += 1;
        self.repeat(self.operations, epoch, request)
    }

    fn repeat(&mut self, operation: u128, epoch: u64, request: Request) -> Result<Admission, Refusal> {
        let admission = self.lifecycle.request(self.now, command(operation, epoch), request);
        if let Ok(Admission::Perform(_) | Admission::PerformAndWait(_)) = admission {
            self.lifecycle.finish(Outcome::Done);
        }
        self.settle();
        admission
    }

    fn ok(&mut self, request: Request) -> Admission {
        self.ask(EPOCH, request).expect("admitted")
    }

    /// Performs what is due until nothing is.
    fn settle(&mut self) -> Vec<Action> {
        let mut performed = Vec::new();
        while let Some(action) = self.lifecycle.due(self.now) {
            performed.push(action);
            self.lifecycle.finish(Outcome::Done);
        }
        performed
    }
}

const STATES: [State; 9] = [
    State::Empty,
    State::Created,
    State::Running,
    State::Paused,
    State::Incoming,
    State::MigratingOut,
    State::Committed,
    State::Migrated,
    State::Stopped,
];

#[test]
fn each_verb_is_admitted_in_its_states_only() {
    let check = |request: Request, admitted: &[State]| {
        for state in STATES {
            let mut vm = Vm::in_state(state);
            let before = vm.lifecycle.clone();
            let answer = vm.ask(EPOCH, request);
            assert_eq!(answer.is_ok(), admitted.contains(&state), "{request:?} in {state}: {answer:?}");
            if answer.is_err() {
                assert_eq!(vm.lifecycle, before, "a refused {request:?} changed something in {state}");
            }
        }
    };
    check(Request::Create { lease: None }, &[State::Empty]);
    check(Request::MigrateIn { migration: MIGRATION, lease: None }, &[State::Empty]);
    check(Request::Start, &[State::Created, State::Running]);
    check(Request::Pause, &[State::Running, State::Paused]);
    check(Request::Resume, &[State::Running, State::Paused]);
    check(migrate_out(), &[State::Running, State::MigratingOut]);
    check(Request::CancelMigration { migration: MIGRATION }, &[State::MigratingOut]);
    check(Request::Stop, &STATES);
    check(Request::Suspend, &[State::Running, State::Paused]);
}

#[test]
fn the_refusal_names_the_states_that_would_do() {
    let refusal = Vm::in_state(State::Created).ask(EPOCH, Request::Pause).unwrap_err();
    assert_eq!(refusal, Refusal::WrongState { verb: Verb::Pause, state: State::Created, needs: "RUNNING" });
    assert_eq!(refusal.to_string(), "Pause is not possible in state CREATED: it needs RUNNING");
}

#[test]
fn an_older_epoch_is_refused_in_every_state() {
    for state in STATES.into_iter().filter(|state| *state != State::Empty) {
        let refusal = Vm::in_state(state).ask(EPOCH - 1, Request::Stop).unwrap_err();
        let stale =
            Refusal::StaleEpoch { given: OwnerEpoch::new(EPOCH - 1), current: OwnerEpoch::new(EPOCH) };
        assert_eq!(refusal, stale, "in {state}");
    }
}

#[test]
fn a_newer_epoch_may_stop_the_vm_and_nothing_else() {
    for request in [Request::Pause, Request::Resume, migrate_out()] {
        let refusal = Vm::in_state(State::Running).ask(EPOCH + 1, request).unwrap_err();
        assert!(matches!(refusal, Refusal::FutureEpoch { .. }), "{request:?}: {refusal}");
    }
    let mut vm = Vm::in_state(State::Running);
    vm.ask(EPOCH + 1, Request::Stop).expect("admitted");
    assert_eq!(vm.lifecycle.state(), State::Stopped);
}

#[test]
fn epoch_zero_is_nobody() {
    assert_eq!(Vm::empty().ask(0, Request::Create { lease: None }), Err(Refusal::NoEpoch));
}

#[test]
fn a_repeated_command_has_the_effect_of_one() {
    let mut vm = Vm::in_state(State::Running);
    assert!(matches!(vm.repeat(1, EPOCH, Request::Pause), Ok(Admission::Perform(_))));
    vm.ok(Request::Resume);
    assert_eq!(vm.repeat(1, EPOCH, Request::Pause), Ok(Admission::Done));
    assert_eq!(vm.lifecycle.state(), State::Running, "the repeated Pause must not pause again");
}

#[test]
fn a_command_that_failed_may_be_tried_again() {
    let mut vm = Vm::empty();
    let create = Request::Create { lease: None };
    assert!(matches!(vm.lifecycle.request(NOW, command(1, EPOCH), create), Ok(Admission::Perform(_))));
    vm.lifecycle.finish(Outcome::NothingChanged);
    assert_eq!(vm.lifecycle, Lifecycle::new());
    assert!(matches!(vm.repeat(1, EPOCH, create), Ok(Admission::Perform(_))));
}

#[test]
fn an_overdue_lease_pauses_and_its_renewal_resumes() {
    let mut vm = Vm::leased(State::Running, Some(lease(2_000, 3_000)));
    assert_eq!(vm.lifecycle.next_deadline(), Some(BootTime::from_ns(2_000)));
    vm.now = BootTime::from_ns(2_000);
    assert_eq!(vm.settle(), [Action::Pause(PauseCause::Lease)]);
    assert_eq!(vm.ask(EPOCH, Request::Resume), Err(Refusal::LeaseOverdue { verb: Verb::Resume }));
    vm.lifecycle.renew(vm.now, OwnerEpoch::new(EPOCH), lease(4_000, 5_000)).expect("renewed in time");
    assert_eq!(vm.settle(), [Action::Resume]);
    assert_eq!(vm.lifecycle.state(), State::Running);
}

#[test]
fn a_renewal_does_not_undo_a_pause_by_command() {
    let mut vm = Vm::leased(State::Running, Some(lease(2_000, 3_000)));
    vm.now = BootTime::from_ns(2_000);
    vm.settle();
    vm.ok(Request::Pause);
    vm.lifecycle.renew(vm.now, OwnerEpoch::new(EPOCH), lease(4_000, 5_000)).expect("renewed in time");
    assert_eq!(vm.settle(), []);
    assert_eq!(vm.lifecycle.state(), State::Paused);
}

#[test]
fn a_lease_past_its_end_cannot_be_renewed() {
    let mut vm = Vm::leased(State::Running, Some(lease(2_000, 3_000)));
    let refusal = vm.lifecycle.renew(BootTime::from_ns(3_000), OwnerEpoch::new(EPOCH), lease(4_000, 5_000));
    assert_eq!(refusal, Err(Refusal::Ending { verb: Verb::ExtendLease }));
}

#[test]
fn only_the_owner_renews() {
    let mut vm = Vm::in_state(State::Running);
    let renewal = lease(4_000, 5_000);
    assert!(matches!(
        vm.lifecycle.renew(NOW, OwnerEpoch::new(EPOCH - 1), renewal),
        Err(Refusal::StaleEpoch { .. })
    ));
    assert!(matches!(
        vm.lifecycle.renew(NOW, OwnerEpoch::new(EPOCH + 1), renewal),
        Err(Refusal::FutureEpoch { .. })
    ));
}

#[test]
fn an_overdue_lease_gives_up_the_migration_first() {
    let mut vm = Vm::leased(State::MigratingOut, Some(lease(2_000, 3_000)));
    vm.now = BootTime::from_ns(2_500);
    assert_eq!(vm.settle(), [Action::CancelMigration(CancelCause::LeaseOverdue)]);
    assert_eq!(vm.settle(), [], "the abort is asked for once");
    vm.lifecycle.observe(Observation::SendAborted { broken: None });
    assert_eq!(vm.settle(), [Action::Pause(PauseCause::Lease)]);
}

#[test]
fn stop_during_a_migration_gives_it_up_and_then_ends() {
    let mut vm = Vm::in_state(State::MigratingOut);
    assert_eq!(vm.ok(Request::Stop), Admission::Wait);
    assert_eq!(vm.lifecycle.state(), State::MigratingOut);
    assert_eq!(vm.ask(EPOCH, Request::Pause), Err(Refusal::Ending { verb: Verb::Pause }));
    vm.lifecycle.observe(Observation::SendAborted { broken: None });
    assert_eq!(vm.settle(), [Action::End { reason: StopReason::Command }]);
    assert_eq!(vm.ok(Request::Stop), Admission::Done);
}

#[test]
fn cancelling_waits_for_the_end_of_the_migration() {
    let cancel = Request::CancelMigration { migration: MIGRATION };
    let mut vm = Vm::in_state(State::MigratingOut);
    assert_eq!(vm.ok(cancel), Admission::Wait);
    vm.lifecycle.observe(Observation::SendAborted { broken: None });
    assert_eq!(vm.ok(cancel), Admission::Done);
    assert_eq!(vm.lifecycle.state(), State::Running);
}

#[test]
fn cancelling_after_commit_is_too_late() {
    let cancel = Request::CancelMigration { migration: MIGRATION };
    let mut vm = Vm::in_state(State::MigratingOut);
    vm.ok(cancel);
    vm.lifecycle.observe(Observation::SendCommitted);
    assert_eq!(vm.ask(EPOCH, cancel), Err(Refusal::AlreadyCommitted { migration: MIGRATION }));
    assert_eq!(vm.settle(), [], "a committed migration is not aborted");
}

#[test]
fn another_migrations_id_is_not_cancelled() {
    let given = MigrationId::from_u128(0xb);
    let refusal = Vm::in_state(State::MigratingOut).ask(EPOCH, Request::CancelMigration { migration: given });
    assert_eq!(refusal, Err(Refusal::UnknownMigration { given, current: Some(MIGRATION) }));
}

#[test]
fn a_target_epoch_that_is_not_newer_is_refused() {
    let request = Request::MigrateOut { migration: MIGRATION, target_epoch: OwnerEpoch::new(EPOCH) };
    let refusal = Vm::in_state(State::Running).ask(EPOCH, request).unwrap_err();
    assert!(matches!(refusal, Refusal::TargetEpochNotNewer { .. }), "{refusal}");
}

#[test]
fn after_commit_only_an_epoch_newer_than_the_targets_takes_the_vm_back() {
    let mut vm = Vm::in_state(State::Committed);
    for epoch in [EPOCH, TARGET_EPOCH] {
        let refusal = vm.ask(epoch, Request::Resume).unwrap_err();
        assert!(matches!(refusal, Refusal::HandedOver { .. }), "epoch {epoch}: {refusal}");
    }
    let epoch = OwnerEpoch::new(TARGET_EPOCH + 1);
    assert_eq!(
        vm.repeat(1, TARGET_EPOCH + 1, Request::Resume),
        Ok(Admission::PerformAndWait(Action::Grant { epoch }))
    );
    assert_eq!(vm.repeat(1, TARGET_EPOCH + 1, Request::Resume), Ok(Admission::Wait), "told once");
    vm.lifecycle.observe(Observation::TakenBack { epoch });
    assert_eq!(vm.repeat(1, TARGET_EPOCH + 1, Request::Resume), Ok(Admission::Done));
    assert_eq!((vm.lifecycle.state(), vm.lifecycle.epoch()), (State::Running, epoch));
}

#[test]
fn a_grant_that_failed_leaves_the_source_committed_and_may_be_repeated() {
    let mut vm = Vm::in_state(State::Committed);
    let grant = Admission::PerformAndWait(Action::Grant { epoch: OwnerEpoch::new(TARGET_EPOCH + 1) });
    assert_eq!(vm.repeat(1, TARGET_EPOCH + 1, Request::Resume), Ok(grant.clone()));
    vm.lifecycle.observe(Observation::GrantFailed);
    assert_eq!((vm.lifecycle.state(), vm.lifecycle.epoch()), (State::Committed, OwnerEpoch::new(EPOCH)));
    assert_eq!(vm.repeat(1, TARGET_EPOCH + 1, Request::Resume), Ok(grant));
}

#[test]
fn stop_after_commit_waits_for_the_target_no_longer() {
    let mut vm = Vm::in_state(State::Committed);
    assert_eq!(vm.lifecycle.request(NOW, command(1, EPOCH), Request::Stop), Ok(Admission::Wait));
    assert_eq!(vm.settle(), [Action::AbandonMigration]);
    vm.lifecycle.observe(Observation::SendUnconfirmed);
    assert_eq!(vm.settle(), [Action::End { reason: StopReason::Command }]);
}

#[test]
fn a_source_that_could_not_resume_after_an_abort_ends() {
    let mut vm = Vm::in_state(State::MigratingOut);
    vm.lifecycle.observe(Observation::SendAborted { broken: Some("volume 7 is held by another".to_owned()) });
    assert_eq!(vm.settle(), [Action::End { reason: StopReason::MigrationFailed }]);
}

#[test]
fn the_first_reason_to_end_is_the_one_reported() {
    let mut vm = Vm::in_state(State::Running);
    for reason in [StopReason::Fenced, StopReason::GuestFault] {
        vm.lifecycle.observe(Observation::Ended { reason, detail: format!("{reason:?}") });
    }
    assert_eq!(vm.settle(), [Action::End { reason: StopReason::Fenced }]);
    assert!(
        matches!(vm.lifecycle.phase(), drover_lifecycle::Phase::Stopped { detail, .. } if detail == "Fenced")
    );
}

#[test]
fn a_broken_start_ends_the_vm() {
    let mut vm = Vm::in_state(State::Created);
    assert!(matches!(
        vm.lifecycle.request(NOW, command(1, EPOCH), Request::Start),
        Ok(Admission::Perform(_))
    ));
    vm.lifecycle.finish(Outcome::Broken { detail: "no vCPU".to_owned() });
    assert_eq!(vm.settle(), [Action::End { reason: StopReason::VmmFailure }]);
}

#[test]
fn an_incoming_guest_that_never_arrives_ends_the_process() {
    let mut vm = Vm::in_state(State::Incoming);
    vm.lifecycle.observe(Observation::ReceiveFailed { detail: "the source gave up".to_owned() });
    assert_eq!(vm.lifecycle.state(), State::Stopped);
    assert_eq!(vm.settle(), []);
}

#[test]
fn a_lease_that_is_overdue_already_admits_nothing() {
    let create = Request::Create { lease: Some(lease(500, 900)) };
    assert_eq!(Vm::empty().ask(EPOCH, create), Err(Refusal::LeaseOverdue { verb: Verb::Create }));
}
