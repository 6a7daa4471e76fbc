//! What each [`Action`] means for the machine.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use drover_ids::OwnerEpoch;
use drover_lifecycle::{Action, CancelCause, Outcome, PauseCause, State};
use drover_machine::Reclaimed;
use drover_migration::MigratableGuest as _;
use tracing::warn;

use super::{
    Machine, VmThread,
    lending::{END_LIMIT, Overdue, within},
};
use crate::{
    boottime,
    hosted::{EndSink, HostedVm as _, Hypervisor, Owner, QUIESCE_LIMIT},
    order::{Change, Task, VmConfig},
    refused::{Refused, chain},
    suspend::{self, NotSuspended},
};

/// How an action went, for the lifecycle and for whoever asked for it.
pub(super) struct Performed {
    pub(super) outcome: Outcome,
    /// The address listened on, where there is one.
    pub(super) result: Result<Option<SocketAddr>, Refused>,
}

impl Performed {
    fn done() -> Self {
        Self { outcome: Outcome::Done, result: Ok(None) }
    }

    fn nothing_changed(why: Refused) -> Self {
        Self { outcome: Outcome::NothingChanged, result: Err(why) }
    }

    fn broken(detail: String) -> Self {
        Self { outcome: Outcome::Broken { detail: detail.clone() }, result: Err(Refused::Failed(detail)) }
    }
}

impl From<Result<Option<SocketAddr>, Refused>> for Performed {
    fn from(result: Result<Option<SocketAddr>, Refused>) -> Self {
        match result {
            Ok(listening) => Self { outcome: Outcome::Done, result: Ok(listening) },
            Err(why) => Self::nothing_changed(why),
        }
    }
}

impl<H: Hypervisor> VmThread<H> {
    /// Does what the lifecycle says. `task` is the order behind it, if there is one.
    pub(super) fn perform(&mut self, action: Action, task: Option<&Task>) -> Performed {
        if let Action::Build { epoch } | Action::Receive { epoch, .. } | Action::Grant { epoch } = &action {
            self.console.owned_by(*epoch);
        }
        match (action, task) {
            (Action::Build { epoch }, Some(Task::Create { config, lease, resume })) => {
                let owner = Owner { vm: config.vm, node: config.node, epoch };
                let ended = self.end_sink();
                // Storage may take its time, and the lease goes on meanwhile.
                self.watchdog.begin(epoch, *lease);
                let built = match resume {
                    None => self.hypervisor.build(config, owner, ended),
                    Some(path) => self.build_resumed(config, owner, (path, ended)),
                };
                if built.is_err() {
                    self.watchdog.clear();
                }
                built.map(|machine| self.settle_in(config, machine)).into()
            }
            (Action::Receive { epoch, .. }, Some(Task::MigrateIn(incoming))) => {
                self.watchdog.begin(epoch, incoming.lease);
                let config = &incoming.config;
                let owner = Owner { vm: config.vm, node: config.node, epoch };
                let ended = self.end_sink();
                let listening = self
                    .hypervisor
                    .build_incoming(config, owner, ended)
                    .and_then(|machine| self.await_arrival(incoming, epoch, machine));
                match &listening {
                    Ok(_) => self.introduce(config),
                    Err(_) => self.watchdog.clear(),
                }
                listening.map(Some).into()
            }
            (Action::Send { .. }, Some(Task::MigrateOut(outgoing))) => match self.take_machine() {
                Some(machine) => self.send_away(outgoing, machine).map(|()| None).into(),
                None => no_machine(),
            },
            (Action::Start, _) => self.start(),
            (Action::Suspend { paused }, Some(Task::Suspend { path })) => self.suspend(path, paused),
            (Action::Pause(cause), _) => self.pause(cause),
            (Action::Resume, _) => self.resume(),
            (Action::End { .. }, _) => self.end(),
            (Action::Grant { epoch }, _) => match &self.machine {
                Machine::Sending(sending) => {
                    let granted = sending.control.grant(epoch);
                    granted.map(|()| None).map_err(|error| Refused::Precondition(error.to_string())).into()
                }
                _ => no_machine(),
            },
            (Action::CancelMigration(cause), _) => self.cancel_migration(cause),
            (Action::AbandonMigration, _) => {
                if let Machine::Sending(sending) = &self.machine {
                    sending.control.abandon();
                }
                Performed::done()
            }
            (
                Action::Build { .. } | Action::Receive { .. } | Action::Send { .. } | Action::Suspend { .. },
                _,
            ) => no_machine(),
        }
    }

    /// Builds a machine and puts the guest of a file into it.
    fn build_resumed(
        &mut self,
        config: &VmConfig,
        owner: Owner,
        (path, ended): (&Path, EndSink),
    ) -> Result<H::Machine, Refused> {
        let mut machine = self.hypervisor.build_incoming(config, owner, Arc::clone(&ended))?;
        self.resumed = Some(suspend::resume(&mut machine, config, owner, (path, &self.files, ended))?);
        Ok(machine)
    }

    fn suspend(&mut self, path: &Path, paused: bool) -> Performed {
        let epoch = self.lifecycle.epoch();
        let Machine::Here(machine) = &mut self.machine else { return no_machine() };
        match suspend::suspend(machine, epoch, (path, &self.files)) {
            Ok(_) => {
                // Its volumes are somebody else's from now on.
                self.machine = Machine::None;
                Performed::done()
            }
            Err(NotSuspended::Broken(why)) => {
                Performed::broken(format!("suspending the machine failed: {why}"))
            }
            Err(NotSuspended::Unchanged(why)) => {
                let detail = format!("suspending the machine failed: {why}");
                match if paused { Ok(()) } else { machine.resume() } {
                    Ok(()) => Performed::nothing_changed(Refused::Failed(detail)),
                    Err(error) => {
                        Performed::broken(format!("{detail}; resuming it failed too: {}", chain(&error)))
                    }
                }
            }
        }
    }

    /// Attaches a device or takes one away: of the running VM of this epoch only, and nothing else changes.
    pub(super) fn change(&mut self, epoch: OwnerEpoch, change: &Change) -> Result<(), Refused> {
        let (ours, state) = (self.lifecycle.epoch(), self.lifecycle.state());
        match &mut self.machine {
            Machine::Here(machine) if epoch == ours && state == State::Running => {
                self.hypervisor.change(machine, change)
            }
            // Nothing has become of it, and something may, once it runs again.
            _ => Err(Refused::NotNow(format!(
                "devices come and go of a VM that is RUNNING, by its owner: this is {state}, of epoch {ours}"
            ))),
        }
    }

    /// Reclaims the guest's free memory: for the running VM of this epoch only, and nothing else changes.
    pub(super) fn reclaim(&mut self, epoch: OwnerEpoch, limit: Duration) -> Result<Reclaimed, Refused> {
        let (ours, state) = (self.lifecycle.epoch(), self.lifecycle.state());
        match &mut self.machine {
            Machine::Here(machine) if epoch == ours && state == State::Running => {
                machine.reclaim(limit).map_err(|error| Refused::Precondition(chain(&error)))
            }
            _ => Err(Refused::Precondition(format!(
                "free memory is reclaimed of a VM that is RUNNING, by its owner: this is {state}, of epoch {ours}"
            ))),
        }
    }

    fn start(&mut self) -> Performed {
        let Machine::Here(machine) = &mut self.machine else { return no_machine() };
        // Before the guest's first step: a file whose guest has run is of no use to anybody.
        if let Some(Err(error)) = self.resumed.take().map(|progress| progress.consume()) {
            return Performed::broken(format!("spending the file failed: {}", chain(&error)));
        }
        self.handle.status().started(boottime::now());
        match machine.start() {
            Ok(()) => Performed::done(),
            Err(error) => Performed::broken(format!("starting the machine failed: {}", chain(&error))),
        }
    }

    fn pause(&mut self, cause: PauseCause) -> Performed {
        let Machine::Here(machine) = &mut self.machine else { return no_machine() };
        let Err(error) = machine.pause(QUIESCE_LIMIT) else { return Performed::done() };
        let detail = format!("pausing the machine failed: {}", chain(&error));
        match cause {
            // What was stopped stays so, and that is what an overdue lease asks for.
            PauseCause::Lease => {
                warn!(detail, "the VM is not quiet, and its lease is overdue");
                Performed::done()
            }
            PauseCause::Command => match machine.resume() {
                Ok(()) => Performed::nothing_changed(Refused::Failed(detail)),
                Err(error) => {
                    Performed::broken(format!("{detail}; resuming it failed too: {}", chain(&error)))
                }
            },
        }
    }

    fn resume(&mut self) -> Performed {
        let Machine::Here(machine) = &mut self.machine else { return no_machine() };
        match machine.resume() {
            Ok(()) => Performed::done(),
            Err(error) => Performed::broken(format!("resuming the machine failed: {}", chain(&error))),
        }
    }

    fn end(&mut self) -> Performed {
        let Some(machine) = self.take_machine() else { return Performed::done() };
        match within("vm-end", END_LIMIT, machine, |machine| machine.end(QUIESCE_LIMIT)) {
            Ok(Ok(())) => Performed::done(),
            Ok(Err(error)) => Performed::broken(format!("ending the machine failed: {}", chain(&error))),
            // Its vCPUs are out. What the storage has of it falls with the process, and is fenced like that of any dead one.
            Err(Overdue) => {
                Performed::broken("its storage does not answer: its locks fall with the process".to_owned())
            }
        }
    }

    fn cancel_migration(&self, cause: CancelCause) -> Performed {
        let why = match cause {
            CancelCause::Command => "cancelled by command",
            CancelCause::Ending => "the VM is being ended",
            CancelCause::LeaseOverdue => "the lease is overdue, and the VM has to be paused",
        };
        match &self.machine {
            Machine::Sending(sending) => sending.control.cancel(why),
            Machine::Receiving { control, .. } => control.cancel(why),
            // The thread has ended by itself; what it has to say is on its way here.
            Machine::None | Machine::Here(_) => {}
        }
        Performed::done()
    }

    fn take_machine(&mut self) -> Option<H::Machine> {
        match std::mem::replace(&mut self.machine, Machine::None) {
            Machine::Here(machine) => Some(machine),
            other => {
                self.machine = other;
                None
            }
        }
    }

    fn settle_in(&mut self, config: &VmConfig, machine: H::Machine) -> Option<SocketAddr> {
        self.machine = Machine::Here(machine);
        self.introduce(config);
        None
    }

    /// Says whose process this is from now on.
    fn introduce(&self, config: &VmConfig) {
        self.handle.status().update(|info| {
            info.vm_id = config.vm.to_string();
            info.name.clone_from(&config.name);
        });
    }

    fn end_sink(&self) -> EndSink {
        let handle = self.handle.clone();
        Arc::new(move |reason, detail| handle.end(reason, detail))
    }
}

/// The lifecycle asked for something that needs a machine, and there is none: a bug, and no reason to take the
/// process down while its storage may be in use.
fn no_machine() -> Performed {
    Performed::nothing_changed(Refused::Failed("there is no machine to do this with".to_owned()))
}
