//! The state machine itself: [`Lifecycle`].

use drover_ids::{MigrationId, OperationId, OwnerEpoch};

use crate::{
    BootTime, Command, Lease, LeaseVerdict, Link, Phase, Refusal, Request, State, StopReason, Verb,
    operations::RecentOperations,
};

/// Who wants a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseCause {
    /// A Pause command: only Resume ends it.
    Command,
    /// The lease is overdue: its renewal ends it.
    Lease,
}

/// Why a migration is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelCause {
    /// By CancelMigration.
    Command,
    /// The VM is being ended.
    Ending,
    /// The lease is overdue, and the VM has to be paused.
    LeaseOverdue,
}

/// What the driver has to do. One at a time; each is answered with [`Lifecycle::finish`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Build the machine with its volumes locked under this epoch.
    Build {
        /// The owner's epoch.
        epoch: OwnerEpoch,
    },
    /// Run the vCPUs for the first time.
    Start,
    /// Take the vCPUs out and quiesce the devices.
    Pause(PauseCause),
    /// Let the vCPUs in again.
    Resume,
    /// Write the paused machine into a file, release the volumes and drop the machine. [`Outcome::NothingChanged`]: it runs
    /// again, or is paused as it was.
    Suspend {
        /// It was paused before, and is again where this fails.
        paused: bool,
    },
    /// Tell the sending thread to take the VM back. Done when it has been told; how it went is observed later.
    Grant {
        /// The epoch to take it back under.
        epoch: OwnerEpoch,
    },
    /// Quiesce, flush, release the volumes and drop the machine.
    End {
        /// Why, for the log.
        reason: StopReason,
    },
    /// Hand the machine to a sending thread. Done when that thread has it.
    Send {
        /// The migration's id.
        migration: MigrationId,
        /// The target's epoch.
        target_epoch: OwnerEpoch,
    },
    /// Build a machine that waits for its guest, and hand it to a receiving thread. Done when that thread listens.
    Receive {
        /// The migration to expect.
        migration: MigrationId,
        /// The epoch under which the volumes are locked once the source has committed.
        epoch: OwnerEpoch,
    },
    /// Tell the migrating thread to give up unless it has committed. Done at once; its end is observed later.
    CancelMigration(CancelCause),
    /// Tell the sending thread to wait for its target no longer. Done at once; its end is observed later.
    AbandonMigration,
}

/// How an [`Action`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Done,
    /// Not done, and everything is as before.
    NothingChanged,
    /// Half done: the machine cannot be trusted any more and is ended.
    Broken {
        /// For people.
        detail: String,
    },
}

/// What happens by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// The guest, a device, or whoever signals the process has ended the machine.
    Ended {
        /// Why.
        reason: StopReason,
        /// For people.
        detail: String,
    },
    /// The sending thread gave up before Commit and handed the machine back.
    SendAborted {
        /// Why, if the guest could not be resumed; it runs again otherwise.
        broken: Option<String>,
    },
    /// The sending thread is about to send Commit: from here on the target may run the VM.
    SendCommitted,
    /// The target runs the VM.
    SendConfirmed,
    /// The sending thread ended after Commit without the target's confirmation, and handed the machine back.
    SendUnconfirmed,
    /// The sending thread has taken the VM back, as it was granted: it runs here.
    TakenBack {
        /// The epoch granted.
        epoch: OwnerEpoch,
    },
    /// The sending thread could not take the VM back, and waits on.
    GrantFailed,
    /// The guest has arrived and runs here.
    Arrived,
    /// The receiving thread ended without a guest.
    ReceiveFailed {
        /// For people.
        detail: String,
    },
}

/// The answer to an admitted request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// What was asked holds already: answer with the present state.
    Done,
    /// Perform this and answer with its outcome.
    Perform(Action),
    /// Perform this, and then as for [`Admission::Wait`].
    PerformAndWait(Action),
    /// Admitted, and other things have to happen first: perform what is [due](Lifecycle::due), and make the request
    /// again after the next observation. That it is made again has no effect of its own.
    Wait,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct InFlight {
    action: Action,
    /// What to remember once it is done; nothing for what the lifecycle does by itself.
    command: Option<(OperationId, Verb)>,
    /// The lease that comes with a new machine.
    lease: Option<Lease>,
}

/// The life of one VM. See the crate's documentation for the states and for what its driver owes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    phase: Phase,
    epoch: OwnerEpoch,
    lease: Option<Lease>,
    recent: RecentOperations,
    in_flight: Option<InFlight>,
    /// The end that has been asked for or has happened, until the machine is gone.
    ending: Option<(StopReason, String)>,
    /// A CancelMigration waits for the sending thread to give up.
    cancel_wanted: bool,
    last_aborted: Option<MigrationId>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    /// A process in which nothing has been created.
    pub fn new() -> Self {
        Self {
            phase: Phase::Empty,
            epoch: OwnerEpoch::default(),
            lease: None,
            recent: RecentOperations::default(),
            in_flight: None,
            ending: None,
            cancel_wanted: false,
            last_aborted: None,
        }
    }

    /// Where the VM is.
    pub const fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The name of where the VM is.
    pub const fn state(&self) -> State {
        self.phase.state()
    }

    /// The epoch under which the VM is held here; zero while nothing has been created.
    pub const fn epoch(&self) -> OwnerEpoch {
        self.epoch
    }

    /// The lease as last renewed.
    pub const fn lease(&self) -> Option<Lease> {
        self.lease
    }

    /// When the lease next asks for something that [`Self::due`] would name.
    pub fn next_deadline(&self) -> Option<BootTime> {
        match self.phase {
            Phase::Running | Phase::MigratingOut { link: Link::Open, .. } => self.lease.map(Lease::pause_at),
            _ => None,
        }
    }

    /// Asks for something. What is refused has changed nothing.
    ///
    /// # Errors
    /// Why it is refused, for the sender to read.
    pub fn request(
        &mut self,
        now: BootTime,
        command: Command,
        request: Request,
    ) -> Result<Admission, Refusal> {
        let verb = request.verb();
        if command.epoch == OwnerEpoch::default() {
            return Err(Refusal::NoEpoch);
        }
        if command.epoch < self.epoch {
            return Err(Refusal::StaleEpoch { given: command.epoch, current: self.epoch });
        }
        if self.recent.contains(command.operation, verb) {
            return Ok(Admission::Done);
        }
        if let Request::Stop = request {
            return Ok(self.stop());
        }
        self.admissible(command, verb)?;
        let admission = self.admit(now, command.epoch, request)?;
        let lease = match request {
            Request::Create { lease } | Request::MigrateIn { lease, .. } => lease,
            _ => None,
        };
        // What is waited for is remembered by its effect: its request is made again until it shows.
        let (action, command) = match &admission {
            Admission::Perform(action) => (action, Some((command.operation, verb))),
            Admission::PerformAndWait(action) => (action, None),
            Admission::Done | Admission::Wait => return Ok(admission),
        };
        self.in_flight = Some(InFlight { action: action.clone(), command, lease });
        Ok(admission)
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// For another epoch than the VM's, before anything has been created, and once the process has to end.
    pub fn renew(&mut self, now: BootTime, epoch: OwnerEpoch, lease: Lease) -> Result<(), Refusal> {
        let verb = Verb::ExtendLease;
        if let Phase::Empty = self.phase {
            return Err(Refusal::WrongState { verb, state: State::Empty, needs: "a VM" });
        }
        if epoch < self.epoch {
            return Err(Refusal::StaleEpoch { given: epoch, current: self.epoch });
        }
        if epoch > self.epoch {
            return Err(Refusal::FutureEpoch { given: epoch, current: self.epoch });
        }
        if self.verdict(now) == LeaseVerdict::KillDue {
            return Err(Refusal::Ending { verb });
        }
        self.lease = Some(self.lease.map_or(lease, |held| held.renewed(lease)));
        Ok(())
    }

    /// Reports how the action in flight ended. Without one in flight this does nothing.
    pub fn finish(&mut self, outcome: Outcome) {
        let Some(InFlight { action, command, lease }) = self.in_flight.take() else { return };
        if let Action::End { .. } = action {
            // However it went, nothing of the machine is left.
            let (reason, mut detail) = self.ending.take().unwrap_or((StopReason::VmmFailure, String::new()));
            if let Outcome::Broken { detail: more } = outcome {
                detail = if detail.is_empty() { more } else { format!("{detail}; {more}") };
            }
            self.phase = Phase::Stopped { reason, detail };
            return;
        }
        match outcome {
            Outcome::Done => {
                self.done(action, lease);
                if let Some((operation, verb)) = command {
                    self.recent.remember(operation, verb);
                }
            }
            Outcome::NothingChanged => {}
            // A machine that was never built has nothing to end.
            Outcome::Broken { .. } if self.phase == Phase::Empty => {}
            Outcome::Broken { detail } => self.end(StopReason::VmmFailure, detail),
        }
    }

    /// Tells what happened by itself. What cannot happen in the present phase is ignored.
    pub fn observe(&mut self, observation: Observation) {
        match (observation, &self.phase) {
            (Observation::Ended { reason, detail }, _) => self.end(reason, detail),
            (Observation::SendAborted { broken }, &Phase::MigratingOut { migration, .. }) => {
                self.last_aborted = Some(migration);
                self.cancel_wanted = false;
                self.phase = if broken.is_some() {
                    Phase::Paused { resume_on_renewal: false }
                } else {
                    Phase::Running
                };
                if let Some(detail) = broken {
                    self.end(StopReason::MigrationFailed, detail);
                }
            }
            (Observation::SendCommitted, &Phase::MigratingOut { migration, target_epoch, .. }) => {
                self.cancel_wanted = false;
                self.phase = Phase::Committed { migration, target_epoch, link: Link::Open, granted: None };
            }
            (
                Observation::SendConfirmed,
                &(Phase::MigratingOut { migration, .. } | Phase::Committed { migration, .. }),
            ) => {
                self.cancel_wanted = false;
                self.ending = None;
                self.phase = Phase::Migrated { migration };
            }
            (
                Observation::SendUnconfirmed,
                &(Phase::MigratingOut { migration, target_epoch, .. }
                | Phase::Committed { migration, target_epoch, .. }),
            ) => {
                self.cancel_wanted = false;
                self.phase = Phase::Committed { migration, target_epoch, link: Link::Closed, granted: None };
            }
            // Not only for the epoch noted: a grant that was thought to have failed may have been carried out.
            (Observation::TakenBack { epoch }, &Phase::Committed { target_epoch, .. })
                if epoch > target_epoch =>
            {
                self.epoch = epoch;
                self.phase = Phase::Running;
            }
            (Observation::GrantFailed, Phase::Committed { .. }) => {
                if let Phase::Committed { granted, .. } = &mut self.phase {
                    *granted = None;
                }
            }
            (Observation::Arrived, Phase::Incoming { .. }) => {
                self.phase = Phase::Running;
            }
            (Observation::ReceiveFailed { detail }, Phase::Incoming { .. }) => {
                let (reason, detail) = self.ending.take().unwrap_or((StopReason::MigrationFailed, detail));
                self.phase = Phase::Stopped { reason, detail };
            }
            _ => {}
        }
    }

    /// The next thing to do without being asked, if there is one. It is then in flight.
    pub fn due(&mut self, now: BootTime) -> Option<Action> {
        if self.in_flight.is_some() {
            return None;
        }
        let overdue = self.verdict(now) != LeaseVerdict::Valid;
        let ending = self.ending.as_ref().map(|(reason, _)| *reason);
        let action = match (&mut self.phase, ending) {
            (Phase::Migrated { .. } | Phase::Stopped { .. }, _) => None,
            (Phase::MigratingOut { link: link @ Link::Open, .. }, _)
                if overdue || self.cancel_wanted || ending.is_some() =>
            {
                *link = Link::Aborting;
                let cause = match ending {
                    Some(_) => CancelCause::Ending,
                    None if self.cancel_wanted => CancelCause::Command,
                    None => CancelCause::LeaseOverdue,
                };
                Some(Action::CancelMigration(cause))
            }
            (Phase::Incoming { link: link @ Link::Open, .. }, Some(_)) => {
                *link = Link::Aborting;
                Some(Action::CancelMigration(CancelCause::Ending))
            }
            (Phase::Committed { link: link @ Link::Open, .. }, Some(_)) => {
                *link = Link::Aborting;
                Some(Action::AbandonMigration)
            }
            (
                Phase::Empty
                | Phase::Created
                | Phase::Running
                | Phase::Paused { .. }
                | Phase::Committed { link: Link::Closed, .. },
                Some(reason),
            ) => Some(Action::End { reason }),
            (Phase::Running, None) if overdue => Some(Action::Pause(PauseCause::Lease)),
            (Phase::Paused { resume_on_renewal: true }, None) if !overdue => Some(Action::Resume),
            _ => None,
        }?;
        self.in_flight = Some(InFlight { action: action.clone(), command: None, lease: None });
        Some(action)
    }

    fn verdict(&self, now: BootTime) -> LeaseVerdict {
        self.lease.map_or(LeaseVerdict::Valid, |lease| lease.verdict(now))
    }

    /// Notes the first reason to end; what follows is its consequence.
    fn end(&mut self, reason: StopReason, detail: String) {
        if !self.state().is_terminal() && self.ending.is_none() {
            self.ending = Some((reason, detail));
        }
    }

    fn stop(&mut self) -> Admission {
        if self.state().is_terminal() {
            return Admission::Done;
        }
        self.end(StopReason::Command, String::new());
        Admission::Wait
    }

    /// What every request but Stop needs, whatever the state.
    fn admissible(&self, command: Command, verb: Verb) -> Result<(), Refusal> {
        if self.ending.is_some() {
            return Err(Refusal::Ending { verb });
        }
        if self.in_flight.is_some() {
            return Err(Refusal::Busy { verb });
        }
        let opens = matches!(verb, Verb::Create | Verb::MigrateIn);
        let grant = verb == Verb::Resume && matches!(self.phase, Phase::Committed { .. });
        if command.epoch > self.epoch && self.phase != Phase::Empty && !opens && !grant {
            return Err(Refusal::FutureEpoch { given: command.epoch, current: self.epoch });
        }
        Ok(())
    }

    fn admit(&mut self, now: BootTime, epoch: OwnerEpoch, request: Request) -> Result<Admission, Refusal> {
        let verb = request.verb();
        let overdue =
            |lease: Option<Lease>| lease.is_some_and(|lease| lease.verdict(now) != LeaseVerdict::Valid);
        let needs = |state, needs| Err(Refusal::WrongState { verb, state, needs });
        let state = self.state();
        match (request, &self.phase) {
            (Request::Create { lease } | Request::MigrateIn { lease, .. }, Phase::Empty)
                if overdue(lease) =>
            {
                Err(Refusal::LeaseOverdue { verb })
            }
            (Request::Create { .. }, Phase::Empty) => Ok(Admission::Perform(Action::Build { epoch })),
            (Request::MigrateIn { migration, .. }, Phase::Empty) => {
                Ok(Admission::Perform(Action::Receive { migration, epoch }))
            }
            (Request::Create { .. } | Request::MigrateIn { .. }, _) => needs(state, "EMPTY"),

            (Request::Start, Phase::Running) | (Request::Resume, Phase::Running) => Ok(Admission::Done),
            (Request::Start, Phase::Created) | (Request::Resume, Phase::Paused { .. })
                if overdue(self.lease) =>
            {
                Err(Refusal::LeaseOverdue { verb })
            }
            (Request::Start, Phase::Created) => Ok(Admission::Perform(Action::Start)),
            (Request::Start, _) => needs(state, "CREATED"),

            (Request::Pause, Phase::Running) => Ok(Admission::Perform(Action::Pause(PauseCause::Command))),
            (Request::Pause, Phase::Paused { .. }) => {
                self.phase = Phase::Paused { resume_on_renewal: false };
                Ok(Admission::Done)
            }
            (Request::Pause, _) => needs(state, "RUNNING"),

            (Request::Resume, Phase::Paused { .. }) => Ok(Admission::Perform(Action::Resume)),
            (Request::Resume, &Phase::Committed { target_epoch, granted, .. }) => {
                if epoch <= target_epoch {
                    return Err(Refusal::HandedOver { given: epoch, target: target_epoch });
                }
                if overdue(self.lease) {
                    return Err(Refusal::LeaseOverdue { verb });
                }
                if granted == Some(epoch) {
                    return Ok(Admission::Wait);
                }
                Ok(Admission::PerformAndWait(Action::Grant { epoch }))
            }
            (Request::Resume, _) => needs(state, "PAUSED or COMMITTED"),

            (Request::Suspend, Phase::Running | Phase::Paused { .. }) if overdue(self.lease) => {
                Err(Refusal::LeaseOverdue { verb })
            }
            (Request::Suspend, phase @ (Phase::Running | Phase::Paused { .. })) => {
                let paused = matches!(phase, Phase::Paused { .. });
                Ok(Admission::Perform(Action::Suspend { paused }))
            }
            (Request::Suspend, Phase::Stopped { reason: StopReason::Suspended, .. }) => Ok(Admission::Done),
            (Request::Suspend, _) => needs(state, "RUNNING or PAUSED"),

            (Request::MigrateOut { migration, .. }, &Phase::MigratingOut { migration: current, .. })
                if migration == current =>
            {
                Ok(Admission::Done)
            }
            (Request::MigrateOut { migration, target_epoch }, Phase::Running) => {
                if target_epoch <= self.epoch {
                    return Err(Refusal::TargetEpochNotNewer { given: target_epoch, current: self.epoch });
                }
                if overdue(self.lease) {
                    return Err(Refusal::LeaseOverdue { verb });
                }
                Ok(Admission::Perform(Action::Send { migration, target_epoch }))
            }
            (Request::MigrateOut { .. }, _) => needs(state, "RUNNING"),

            (Request::CancelMigration { migration }, _) => self.cancel(migration),
            // Handled before anything else.
            (Request::Stop, _) => Ok(self.stop()),
        }
    }

    fn cancel(&mut self, given: MigrationId) -> Result<Admission, Refusal> {
        match self.phase {
            Phase::MigratingOut { migration, .. } if migration == given => {
                self.cancel_wanted = true;
                Ok(Admission::Wait)
            }
            Phase::Committed { migration, .. } | Phase::Migrated { migration } if migration == given => {
                Err(Refusal::AlreadyCommitted { migration })
            }
            Phase::MigratingOut { migration, .. } | Phase::Committed { migration, .. } => {
                Err(Refusal::UnknownMigration { given, current: Some(migration) })
            }
            _ if self.last_aborted == Some(given) => Ok(Admission::Done),
            _ => Err(Refusal::UnknownMigration { given, current: None }),
        }
    }

    fn done(&mut self, action: Action, lease: Option<Lease>) {
        match action {
            Action::Build { epoch } => {
                (self.epoch, self.lease) = (epoch, lease);
                self.phase = Phase::Created;
            }
            Action::Receive { migration, epoch } => {
                (self.epoch, self.lease) = (epoch, lease);
                self.phase = Phase::Incoming { migration, link: Link::Open };
            }
            Action::Start | Action::Resume => self.phase = Phase::Running,
            Action::Suspend { .. } => {
                self.phase = Phase::Stopped { reason: StopReason::Suspended, detail: String::new() };
                // What ended it meanwhile has come too late: the guest is in its file.
                self.ending = None;
            }
            Action::Grant { epoch } => {
                if let Phase::Committed { granted, .. } = &mut self.phase {
                    *granted = Some(epoch);
                }
            }
            Action::Pause(cause) => {
                self.phase = Phase::Paused { resume_on_renewal: cause == PauseCause::Lease };
            }
            Action::Send { migration, target_epoch } => {
                self.phase = Phase::MigratingOut { migration, target_epoch, link: Link::Open };
            }
            Action::CancelMigration(_) | Action::AbandonMigration | Action::End { .. } => {}
        }
    }
}
