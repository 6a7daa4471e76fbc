//! The machine away from home: the threads that send and receive it, and what their ends mean.

use std::{net::SocketAddr, sync::Arc};

use drover_ids::{MigrationId, OwnerEpoch};
use drover_lifecycle::{Observation, Phase};
use drover_migration::{
    MigrationControl, MigrationProgress, Phase as MigrationPhase, ProgressHandle,
    convergence::Limits,
    driver,
    source::{self, SourcePlan},
    target::{self, TargetPlan},
};
use drover_thread_role::Role;
use drover_wire::vm::v1 as wire;
use tracing::warn;

use super::{
    Input, Machine, VmHandle, VmThread,
    lending::{END_LIMIT, lend, within},
};
use crate::{
    courtesy,
    hosted::{HostedVm, Hypervisor},
    order::{Incoming, Outgoing, Task},
    refused::Refused,
    status::Status,
};

/// How this thread reaches the one that sends.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) control: MigrationControl,
    progress: ProgressHandle,
    /// Failed grants that have been told to whoever granted.
    grants_failed: u32,
}

/// The sending thread's end.
pub(super) struct SendEnded<M> {
    machine: M,
    outcome: source::Outcome,
}

/// The receiving thread's end.
pub(super) struct ReceiveEnded<M> {
    machine: M,
    outcome: target::Outcome,
}

impl<H: Hypervisor> VmThread<H> {
    /// Hands the machine to a thread that sends it.
    pub(super) fn send_away(&mut self, outgoing: &Outgoing, machine: H::Machine) -> Result<(), Refused> {
        let (control, receiver) = drover_migration::control();
        let progress = published_progress(&self.handle, outgoing.migration);
        let mut limits = Limits::default();
        if let Some(target) = outgoing.downtime_target {
            limits.downtime_target = target;
        }
        let plan = SourcePlan {
            migration: outgoing.migration,
            source_epoch: self.lifecycle.epoch(),
            target_epoch: outgoing.target_epoch,
            limits,
            timeouts: source::SourceTimeouts::default(),
        };
        let unreachable = |error| {
            Refused::Precondition(format!("target_address: no connection to {}: {error}", outgoing.target))
        };
        let connector = match self.files.connector(&outgoing.target.to_string()) {
            Ok(connector) => connector,
            Err(error) => {
                self.machine = Machine::Here(machine);
                return Err(unreachable(error));
            }
        };
        let (handle, observed) = (self.handle.clone(), progress.clone());
        let lent = lend((Role::Migration, "migrate-out"), machine, move |mut machine| {
            let outcome = driver::send(&mut machine, connector.as_ref(), plan, receiver, &observed);
            handle.send(Input::SendEnded(Box::new(SendEnded { machine, outcome })));
        });
        match lent {
            Ok(()) => {
                self.machine = Machine::Sending(Sending { control, progress, grants_failed: 0 });
                Ok(())
            }
            Err((machine, error)) => {
                self.machine = Machine::Here(machine);
                Err(Refused::Failed(format!("cannot start the sending thread: {error}")))
            }
        }
    }

    /// Listens for the guest, and hands the machine that was built for it to a thread that receives it.
    pub(super) fn await_arrival(
        &mut self,
        incoming: &Incoming,
        epoch: OwnerEpoch,
        machine: H::Machine,
    ) -> Result<SocketAddr, Refused> {
        let address = incoming.listen.to_string();
        let cannot =
            |error| Refused::Precondition(format!("listen_address: cannot listen on {address}: {error}"));
        let acceptor = self.files.listen(&address).map_err(cannot)?;
        let listening = acceptor.local_address().map_err(cannot)?;
        let (control, receiver) = drover_migration::control();
        let progress = published_progress(&self.handle, incoming.migration);
        let plan = TargetPlan {
            migration: incoming.migration,
            target_epoch: epoch,
            timeouts: target::TargetTimeouts::default(),
        };
        let handle = self.handle.clone();
        let lent = lend((Role::Migration, "migrate-in"), machine, move |mut machine| {
            // The others on this host run; this one does not yet.
            courtesy::let_guests_go_first();
            let outcome = driver::receive(&mut machine, &acceptor, plan, &receiver, &progress);
            handle.send(Input::ReceiveEnded(Box::new(ReceiveEnded { machine, outcome })));
        });
        lent.map_err(|(_, error)| Refused::Failed(format!("cannot start the receiving thread: {error}")))?;
        self.machine = Machine::Receiving { control, listening };
        Ok(listening)
    }

    /// Learns what the sending thread has done since: it may have committed, or failed to take the VM back.
    pub(super) fn follow_migration(&mut self) {
        let Machine::Sending(sending) = &mut self.machine else { return };
        let MigrationProgress { phase, grants_failed, grant_failure, .. } = sending.progress.latest();
        if matches!(phase, MigrationPhase::Committed | MigrationPhase::SourceRetired)
            && let Phase::MigratingOut { .. } = self.lifecycle.phase()
        {
            self.lifecycle.observe(Observation::SendCommitted);
        }
        if grants_failed != sending.grants_failed {
            sending.grants_failed = grants_failed;
            self.lifecycle.observe(Observation::GrantFailed);
            self.fail_waiting(
                |order| !matches!(order.task, Task::Resume),
                || Refused::Precondition(grant_failure.clone()),
            );
        }
    }

    pub(super) fn send_ended(&mut self, SendEnded { machine, outcome }: SendEnded<H::Machine>) {
        let observation = match outcome {
            source::Outcome::Retired => {
                self.machine = Machine::None;
                if within("vm-retire", END_LIMIT, machine, drop).is_err() {
                    warn!("storage does not answer: what it still has of this VM goes with the process");
                }
                self.lifecycle.observe(Observation::SendConfirmed);
                return;
            }
            source::Outcome::Aborted(reason) => {
                let detail = format!("a migration was given up: {reason}");
                self.handle.status().update(|info| info.detail = detail);
                Observation::SendAborted { broken: None }
            }
            source::Outcome::Stranded { reason, failure } => {
                let detail = format!(
                    "the migration was given up ({reason}), and then the VM could not go on here: {failure}"
                );
                Observation::SendAborted { broken: Some(detail) }
            }
            source::Outcome::Granted(epoch) => Observation::TakenBack { epoch },
            source::Outcome::Abandoned => Observation::SendUnconfirmed,
        };
        self.machine = Machine::Here(machine);
        self.lifecycle.observe(observation);
    }

    pub(super) fn receive_ended(&mut self, ReceiveEnded { machine, outcome }: ReceiveEnded<H::Machine>) {
        self.machine = Machine::None;
        let observation = match outcome {
            target::Outcome::Running => {
                self.machine = Machine::Here(machine);
                Observation::Arrived
            }
            target::Outcome::Discarded { reason, .. } => {
                Observation::ReceiveFailed { detail: format!("the migration was given up: {reason}") }
            }
            target::Outcome::Failed { reason } => Observation::ReceiveFailed {
                detail: format!("the VM was handed over and could not run here: {reason}"),
            },
        };
        self.lifecycle.observe(observation);
    }
}

/// A progress whose every change is published, and makes the VM's thread look.
fn published_progress<M: HostedVm>(handle: &VmHandle<M>, migration: MigrationId) -> ProgressHandle {
    let publish = move |status: &Status, progress: &MigrationProgress| {
        let message = migration_status(migration, progress);
        status.update(|info| info.migration = Some(message));
    };
    publish(handle.status(), &MigrationProgress::default());
    // What an earlier migration has left there is no longer of interest.
    handle.status().update(|info| info.detail.clear());
    // The handle keeps the thread's channel open, but not the thread: it ends with the process.
    let (status, handle) = (Arc::clone(handle.status()), handle.clone());
    ProgressHandle::observed_by(move |progress| {
        publish(&status, progress);
        handle.tick();
    })
}

fn migration_status(migration: MigrationId, progress: &MigrationProgress) -> wire::MigrationStatus {
    let phase = match progress.phase {
        MigrationPhase::Reserved => wire::MigrationPhase::Reserved,
        MigrationPhase::TargetReady => wire::MigrationPhase::TargetReady,
        MigrationPhase::Copying => wire::MigrationPhase::Copying,
        MigrationPhase::Switchover => wire::MigrationPhase::Switchover,
        MigrationPhase::Committed => wire::MigrationPhase::Committed,
        MigrationPhase::SourceRetired => wire::MigrationPhase::SourceRetired,
        MigrationPhase::Aborted => wire::MigrationPhase::Aborted,
    };
    wire::MigrationStatus {
        migration_id: migration.to_string(),
        phase: phase.into(),
        rounds: progress.rounds,
        bytes_sent: progress.bytes_sent.get(),
        bytes_remaining: progress.bytes_remaining.get(),
        total_us: progress.total.as_micros() as u64,
        downtime_us: progress.downtime.as_micros() as u64,
        error: progress.detail.clone(),
    }
}
