//! What holds after every sequence of requests, outcomes, observations and time.
#![allow(missing_docs, reason = "tests")]

use drover_ids::{MigrationId, OperationId, OwnerEpoch};
use drover_lifecycle::{
    Action, Admission, BootTime, Command, Lease, LeaseVerdict, Lifecycle, Observation, Outcome, Phase,
    Refusal, Request, State, StopReason,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Ask { operation: u128, epoch: u64, request: Request, outcome: Outcome },
    Observe(Observation),
    Renew { epoch: u64, ahead: u64 },
    Pass { ns: u64 },
}

fn lease_at(pause_at: u64) -> Lease {
    Lease::new(BootTime::from_ns(pause_at), BootTime::from_ns(pause_at + 100)).expect("a valid lease")
}

fn migration() -> impl Strategy<Value = MigrationId> {
    (1..3u128).prop_map(MigrationId::from_u128)
}

fn request() -> impl Strategy<Value = Request> {
    let lease = prop::option::of((1..2_000u64).prop_map(lease_at));
    prop_oneof![
        lease.clone().prop_map(|lease| Request::Create { lease }),
        Just(Request::Start),
        Just(Request::Pause),
        Just(Request::Resume),
        Just(Request::Stop),
        Just(Request::Suspend),
        (migration(), 1..6u64).prop_map(|(migration, epoch)| Request::MigrateOut {
            migration,
            target_epoch: OwnerEpoch::new(epoch)
        }),
        migration().prop_map(|migration| Request::CancelMigration { migration }),
        (migration(), lease).prop_map(|(migration, lease)| Request::MigrateIn { migration, lease }),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        8 => Just(Outcome::Done),
        1 => Just(Outcome::NothingChanged),
        1 => Just(Outcome::Broken { detail: "broken".to_owned() }),
    ]
}

fn observation() -> impl Strategy<Value = Observation> {
    let detail = || "why".to_owned();
    prop_oneof![
        1 => Just(Observation::Ended { reason: StopReason::GuestShutdown, detail: detail() }),
        3 => Just(Observation::SendAborted { broken: None }),
        1 => Just(Observation::SendAborted { broken: Some(detail()) }),
        3 => Just(Observation::SendCommitted),
        3 => Just(Observation::SendConfirmed),
        3 => Just(Observation::SendUnconfirmed),
        3 => Just(Observation::TakenBack { epoch: OwnerEpoch::default() }),
        1 => Just(Observation::GrantFailed),
        3 => Just(Observation::Arrived),
        1 => Just(Observation::ReceiveFailed { detail: detail() }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..12u128, 0..6u64, request(), outcome()).prop_map(|(operation, epoch, request, outcome)| {
            Step::Ask { operation, epoch, request, outcome }
        }),
        3 => observation().prop_map(Step::Observe),
        1 => (0..6u64, 0..500u64).prop_map(|(epoch, ahead)| Step::Renew { epoch, ahead }),
        1 => (1..300u64).prop_map(|ns| Step::Pass { ns }),
    ]
}

/// Random steps alone seldom get past Create: half of the sequences start from a VM that is on its way out.
fn prefix() -> impl Strategy<Value = Vec<Step>> {
    let ask = |operation, request| Step::Ask {
        operation,
        epoch: if operation == 104 { 5 } else { 2 },
        request,
        outcome: Outcome::Done,
    };
    let migrate_out =
        Request::MigrateOut { migration: MigrationId::from_u128(1), target_epoch: OwnerEpoch::new(4) };
    let story = [
        ask(101, Request::Create { lease: None }),
        ask(102, Request::Start),
        ask(103, migrate_out),
        Step::Observe(Observation::SendCommitted),
        ask(104, Request::Resume),
    ];
    (0..=story.len(), any::<bool>()).prop_map(
        move |(length, used)| {
            if used { story[..length].to_vec() } else { Vec::new() }
        },
    )
}

/// What a driver knows of its machine: the actions' meaning, independent of the state machine.
#[derive(Debug, Default)]
struct Driver {
    vcpus_run: bool,
    handed_over: Option<OwnerEpoch>,
    /// The sending thread was told, so it may take the VM back at any moment.
    granted: Option<OwnerEpoch>,
}

impl Driver {
    fn perform(&mut self, action: &Action, outcome: &Outcome) {
        if *outcome != Outcome::Done {
            return;
        }
        match action {
            Action::Start | Action::Resume => {
                assert_eq!(self.handed_over, None, "a source runs after Commit without a grant");
                self.vcpus_run = true;
            }
            Action::Grant { epoch } => {
                let target = self.handed_over.expect("granted without having been handed over");
                assert!(*epoch > target, "granted {epoch}, handed over under {target}");
                self.granted = Some(*epoch);
            }
            Action::Pause(_) | Action::Suspend { .. } | Action::End { .. } => self.vcpus_run = false,
            Action::Build { .. }
            | Action::Send { .. }
            | Action::Receive { .. }
            | Action::CancelMigration(_)
            | Action::AbandonMigration => {}
        }
    }

    fn observe(&mut self, before: &Phase, observation: &Observation) {
        match (observation, before) {
            (
                Observation::SendCommitted | Observation::SendConfirmed | Observation::SendUnconfirmed,
                Phase::MigratingOut { target_epoch, .. } | Phase::Committed { target_epoch, .. },
            ) => {
                self.vcpus_run = false;
                self.handed_over = Some(*target_epoch);
            }
            (Observation::TakenBack { .. }, Phase::Committed { .. }) => {
                self.handed_over = None;
                self.vcpus_run = true;
            }
            (Observation::SendAborted { broken: Some(_) }, Phase::MigratingOut { .. }) => {
                self.vcpus_run = false
            }
            (Observation::Arrived, Phase::Incoming { .. }) => self.vcpus_run = true,
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_keeps_the_rules(prefix in prefix(), steps in prop::collection::vec(step(), 1..60)) {
        let mut vm = Lifecycle::new();
        let mut driver = Driver::default();
        let mut now = BootTime::from_ns(1);
        for step in prefix.into_iter().chain(steps) {
            let before = vm.clone();
            match step {
                Step::Ask { operation, epoch, request, outcome } => {
                    let command = Command { operation: OperationId::from_u128(operation), epoch: OwnerEpoch::new(epoch) };
                    match vm.request(now, command, request) {
                        Err(refusal) => {
                            prop_assert_eq!(&vm, &before, "a refused request changed something: {}", refusal);
                            prop_assert!(!refusal.to_string().is_empty());
                        }
                        Ok(_) if command.epoch < before.epoch() => {
                            prop_assert!(false, "an older epoch was admitted");
                        }
                        Ok(Admission::PerformAndWait(action)) => {
                            driver.perform(&action, &Outcome::Done);
                            vm.finish(Outcome::Done);
                        }
                        Ok(Admission::Perform(action)) => {
                            driver.perform(&action, &outcome);
                            let done = outcome == Outcome::Done;
                            vm.finish(outcome);
                            if done && !vm.state().is_terminal() && vm.epoch() <= command.epoch {
                                // A repeat finds the work done, or is refused because of what the first has changed.
                                let repeat = vm.clone().request(now, command, request);
                                prop_assert_eq!(repeat, Ok(Admission::Done));
                            }
                        }
                        Ok(Admission::Done | Admission::Wait) => {}
                    }
                }
                // A sending thread takes back what it was told to and nothing else.
                Step::Observe(Observation::TakenBack { .. }) if driver.granted.is_none() => {}
                Step::Observe(observation) => {
                    let observation = match (observation, driver.granted) {
                        (Observation::TakenBack { .. }, Some(epoch)) => {
                            driver.granted = None;
                            Observation::TakenBack { epoch }
                        }
                        (observation, _) => observation,
                    };
                    driver.observe(before.phase(), &observation);
                    vm.observe(observation);
                }
                Step::Renew { epoch, ahead } => {
                    let renewal = lease_at(now.as_ns() + ahead);
                    match vm.renew(now, OwnerEpoch::new(epoch), renewal) {
                        Ok(()) => prop_assert_eq!(OwnerEpoch::new(epoch), vm.epoch()),
                        Err(refusal) => {
                            prop_assert_eq!(&vm, &before, "a refused renewal changed something: {}", &refusal);
                            prop_assert!(!matches!(refusal, Refusal::LeaseOverdue { .. }), "renewing cures it");
                        }
                    }
                }
                Step::Pass { ns } => now = BootTime::from_ns(now.as_ns() + ns),
            }

            for round in 0.. {
                let Some(action) = vm.due(now) else { break };
                prop_assert!(round < 4, "what is due never ends: {:?}", action);
                driver.perform(&action, &Outcome::Done);
                vm.finish(Outcome::Done);
            }

            prop_assert!(vm.epoch() >= before.epoch(), "the epoch went back");
            if before.state().is_terminal() {
                prop_assert_eq!(vm.phase(), before.phase(), "a VM came back from its end");
            }
            let runs = matches!(vm.state(), State::Running | State::MigratingOut);
            prop_assert_eq!(runs, driver.vcpus_run, "the state is {}", vm.state());
            if vm.state() == State::Running
                && let Some(lease) = vm.lease()
            {
                prop_assert_eq!(lease.verdict(now), LeaseVerdict::Valid, "runs on an overdue lease");
            }
        }
    }
}
