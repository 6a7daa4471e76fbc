//! One VM on its way between two nodes.
//!
//! ```text
//!  Owned{source} --begin--> Migrating --PrepareIncoming--> target waits --MigrateOut--> copying ... Commit
//!                               |                                                         |          |
//!                               +---- anything goes wrong before Commit -----> abort <----+          |
//!                                                     Owned{source}                                   |
//!            Owned{target} <--- complete: the target runs, or the source says that it does <---------+
//!            Owned{source, Resume} <--- strand: the target is out of use and never took a volume <----+
//!            Unowned (restart from disks) <--- release: evidence for both ends <---------------------+
//! ```
//!
//! [`judge`](table::judge) is the pure table; this module looks up what it needs to know and does what it says.

mod strand;
mod table;

use drover_cluster_state::{
    Candidate, Desired, MigrationPhase, MigrationReport, MigrationResult, Operation, OperationKind,
    OperationState, Record, Right, RunState, Stored, Txn, Vm, VmReport, event_kind,
};
use drover_ids::{MigrationId, NodeId, OwnerEpoch};
use drover_placement::{Policy, Reason, Request};
use drover_rebalance::MigrationSample;
use drover_units::Bytes;
use std::time::Duration;
use table::{Judgement, Situation, Source, Target, judge};

use crate::{
    AgentAnswer, AgentCommand,
    book::{explain, rejections, request_of_move},
    calls::{Slot, Verb},
    fencing::{Cause, cause_of_end, has_ended},
    ident,
    planner::{Next, Planner, Standing, Wait},
};

/// A done migration's operation waits this long for the source's last word on what it cost.
const LAST_WORD_WAIT: Duration = Duration::from_secs(2);
/// How long a target may take from the source's Commit to running.
const COMMIT_WAIT: Duration = Duration::from_secs(5);
/// How long a target whose source is gone may take to find that it has everything, or that it has not.
const TARGET_ALONE_WAIT: Duration = Duration::from_secs(3);
/// Calls without an answer after which a migration is given up.
const UNANSWERED_MAX: u32 = 5;

/// The parts of [`Right::Migrating`].
#[derive(Clone, Copy, Debug)]
struct Move {
    source: Candidate,
    target: Candidate,
    id: MigrationId,
}

impl Planner {
    /// Starts the move that an operation asks for.
    pub(crate) fn begin_migration(
        &mut self,
        vm: &Stored<Vm>,
        owner: Candidate,
        operation: &Stored<Operation>,
        target: Option<NodeId>,
    ) -> Next {
        if operation.cancel_requested {
            return self.end_operation(vm, operation, OperationState::Cancelled, "cancelled before it began");
        }
        let request = request_of_move(vm, owner.node, target);
        // A move takes nobody's place, and the room for failures is checked when VMs are admitted.
        let policy = Policy { preemption: false, host_failures: 0, ..self.book.policy_for(&vm.spec) };
        let (decision, took) = self.decide(&request, &policy);
        let host = match decision {
            Ok(decision) => decision.host,
            Err(_) if operation.parent.is_some() && self.leads_company(&request) => {
                target.unwrap_or(owner.node)
            }
            Err(_) => {
                let explanation = explain(self.book.inventory(), &request, &policy);
                let reason = format!("no node can take it: {explanation}");
                let mut failed = operation.ended(OperationState::Failed, reason, self.now.wall);
                failed.rejections = rejections(self.book.inventory(), &request);
                failed.explanation = Some(Box::new(explanation));
                failed.placement = Some(took);
                let mut txn = Txn::new();
                txn.update(operation.revision, Record::Operation(failed));
                return self.submit_for(vm.id, txn);
            }
        };
        let id = ident::migration(vm.id, vm.ownership.next_epoch());
        let Ok(ownership) = vm.ownership.begin_migration(host, id) else {
            return Next::wait("its right to run does not allow a migration");
        };
        let mut txn = Txn::new();
        let names = (self.state.node_name(owner.node), self.state.node_name(host));
        let message = format!("from node {} to node {}", names.0, names.1);
        txn.event(self.vm_event(event_kind::MIGRATION_STARTED, vm, message));
        let mut placed = operation.value.clone();
        placed.step = format!("preparing node {}", names.1);
        placed.percent = placed.percent.max(5);
        placed.placement = Some(took);
        if let OperationKind::VmMigrate { migration, .. } = &mut placed.kind {
            *migration = Some(id);
        }
        self.guard_assignment(&mut txn, host);
        txn.update(operation.revision, Record::Operation(placed));
        txn.update(vm.revision, Record::Vm(Vm { ownership, ..vm.value.clone() }));
        self.book.began(self.now.moment, vm.id);
        self.submit_assignment(vm.id, txn, vec![(vm.id, host)])
    }

    /// Whether all that stands against a planned move is that the VMs are not there yet which it must be with: they
    /// follow by the same plan, and somebody must be first.
    fn leads_company(&self, request: &Request) -> bool {
        let reasons = request.only.and_then(|target| self.book.inventory().check(request, target));
        reasons.is_some_and(|reasons| {
            !reasons.is_empty() && reasons.iter().all(|reason| matches!(reason, Reason::NotTogether { .. }))
        })
    }

    /// The next thing to do about a VM that is being moved.
    pub(crate) fn plan_migrating(&mut self, vm: &Stored<Vm>) -> Next {
        let Right::Migrating { source, epoch, target, target_epoch, migration } = vm.ownership.right() else {
            return Next::Settled;
        };
        let mv = Move {
            source: Candidate { node: source, epoch },
            target: Candidate { node: target, epoch: target_epoch },
            id: migration,
        };
        let situation = self.situation(vm, &mv);
        match judge(&situation) {
            Judgement::Complete => self.complete(vm, &mv),
            Judgement::Drive => self.drive(vm, &mv),
            Judgement::Withdraw => self.withdraw(vm, &mv),
            Judgement::Abort => self.abort(vm, &mv),
            Judgement::AwaitCommit => match self.waited(vm.id, Wait::Commit, target_epoch) {
                waited if waited < COMMIT_WAIT => {
                    self.progress_operation(vm, 95, "waiting for the target to run".to_owned());
                    Next::wait("waiting for the target to run")
                }
                _ => self.strand(vm, Some(mv.target)),
            },
            Judgement::Strand => self.strand(vm, Some(mv.target)),
            Judgement::AwaitTarget => match self.waited(vm.id, Wait::TargetAlone, target_epoch) {
                waited if waited < TARGET_ALONE_WAIT => {
                    Next::fencing("its source is gone; the target may still run it")
                }
                _ => self.release_both(vm, &mv),
            },
            Judgement::ReleaseBoth => self.release_both(vm, &mv),
            Judgement::Wait => Next::wait("waiting for both nodes to report"),
        }
    }

    fn situation(&mut self, vm: &Stored<Vm>, mv: &Move) -> Situation {
        let present = self.state.report(vm.id, mv.source.node).is_some_and(|r| r.epoch == mv.source.epoch);
        let vanished = self.has_vanished(vm, mv.source, present);
        let report = |c: Candidate| self.state.report(vm.id, c.node).filter(|r| r.epoch == c.epoch);
        let source = match (self.standing(mv.source.node), report(mv.source)) {
            (_, Some(report)) if report.state == RunState::Migrated => Source::Migrated,
            (Standing::Lost, _) => Source::Lost,
            (Standing::Silent, _) => Source::Silent,
            (Standing::Heard, None) if vanished => Source::Gone,
            (Standing::Heard, None) => Source::Silent,
            (Standing::Heard, Some(report)) if has_ended(report) => Source::Gone,
            (Standing::Heard, Some(report)) if report.state == RunState::Committed => Source::Committed,
            (Standing::Heard, Some(report)) => match report.migration_of(mv.id).map(|m| m.phase) {
                None => Source::Serving,
                Some(MigrationPhase::Aborted) => Source::Aborted,
                Some(_) => Source::Sending,
            },
        };
        let target = match (self.standing(mv.target.node), report(mv.target)) {
            // What the process says of itself outlives the node's good standing: a VM that runs, ran.
            (_, Some(report)) if !has_ended(report) && is_running(report) => Target::Running,
            (Standing::Lost, _) => Target::Out,
            (Standing::Silent, _) => Target::Silent,
            (Standing::Heard, Some(report)) if has_ended(report) => Target::Out,
            (Standing::Heard, Some(_)) => Target::Waiting,
            (Standing::Heard, None) => Target::Absent,
        };
        let stopped = self.calls.stopped(vm.id, mv.target.node, mv.target.epoch);
        let target = if stopped && target != Target::Running { Target::Out } else { target };
        Situation { source, target, wanted: self.still_wanted(vm, mv) }
    }

    fn still_wanted(&self, vm: &Stored<Vm>, mv: &Move) -> bool {
        let operation = self.running_operation(vm);
        let asked = operation.is_some_and(|operation| {
            let this =
                matches!(operation.kind, OperationKind::VmMigrate { migration: Some(id), .. } if id == mv.id);
            this && !operation.cancel_requested
        });
        asked && vm.desired == Desired::Running && self.given_up(vm, mv.target.epoch).is_none()
    }

    fn given_up(&self, vm: &Vm, epoch: OwnerEpoch) -> Option<&str> {
        let (at, reason) = self.memory.get(&vm.id)?.given_up.as_ref()?;
        (*at == epoch).then_some(reason.as_str())
    }

    fn give_up(&mut self, vm: &Vm, epoch: OwnerEpoch, reason: String) {
        self.memory.entry(vm.id).or_default().given_up.get_or_insert((epoch, reason));
    }

    fn slot(&self, vm: &Vm, candidate: Candidate, verb: Verb) -> Slot {
        Slot { vm: vm.id, node: candidate.node, epoch: candidate.epoch, verb }
    }

    /// Prepares the target, then has the source send; each is repeated until its effect shows.
    fn drive(&mut self, vm: &Stored<Vm>, mv: &Move) -> Next {
        let prepare = self.calls.book(self.slot(vm, mv.target, Verb::Prepare));
        let out = self.calls.book(self.slot(vm, mv.source, Verb::MigrateOut(mv.id)));
        for (book, node) in [(&prepare, mv.target.node), (&out, mv.source.node)] {
            if book.refused > 0 || book.unanswered >= UNANSWERED_MAX {
                let reason = format!("node {} refused: {}", self.state.node_name(node), book.error);
                self.give_up(vm, mv.target.epoch, reason);
                return self.withdraw(vm, mv);
            }
        }
        let sending = self.state.report(vm.id, mv.source.node).and_then(|r| r.migration_of(mv.id)).cloned();
        if let Some(sending) = sending {
            self.show_copying(vm, &sending);
            return Next::wait(format!("migrating, {:?}", sending.phase));
        }
        let Some(AgentAnswer::Incoming { address }) = prepare.answer else {
            let command = AgentCommand::PrepareIncoming { migration: mv.id, spec: vm.spec.clone() };
            self.call(mv.target.node, vm.id, mv.target.epoch, command);
            return Next::wait(format!("preparing node {}", self.state.node_name(mv.target.node)));
        };
        let downtime_target_ms = match self.running_operation(vm).map(|operation| operation.value.kind) {
            Some(OperationKind::VmMigrate { downtime_target_ms, .. }) => downtime_target_ms,
            _ => None,
        };
        let command = AgentCommand::MigrateOut {
            migration: mv.id,
            target_address: address,
            target_epoch: mv.target.epoch,
            downtime_target_ms,
        };
        self.progress_operation(vm, 10, "starting to send".to_owned());
        self.call(mv.source.node, vm.id, mv.source.epoch, command);
        Next::wait("starting to send")
    }

    fn show_copying(&mut self, vm: &Stored<Vm>, sending: &MigrationReport) {
        let memory = vm.spec.memory.get().max(1);
        let left = sending.bytes_remaining.min(memory);
        // 20 to 80 percent is copying; the share that is left says how far it is.
        let copied = u8::try_from(60 * (memory - left) / memory).unwrap_or(60);
        let (percent, step) = match sending.phase {
            MigrationPhase::Reserved | MigrationPhase::TargetReady => (15, "connecting".to_owned()),
            MigrationPhase::Copying => (20 + copied, format!("copying, round {}", sending.rounds)),
            MigrationPhase::Switchover => (85, "switching over".to_owned()),
            _ => (95, "waiting for the target to run".to_owned()),
        };
        self.progress_operation(vm, percent, step);
    }

    /// Takes a migration back that has not committed: tells the source, ends the target, and waits for the source to
    /// say that it will not commit, or for proof that there is nothing left to commit to.
    fn withdraw(&mut self, vm: &Stored<Vm>, mv: &Move) -> Next {
        let sending =
            self.state.report(vm.id, mv.source.node).is_some_and(|r| r.migration_of(mv.id).is_some());
        if sending {
            self.call(
                mv.source.node,
                vm.id,
                mv.source.epoch,
                AgentCommand::CancelMigration { migration: mv.id },
            );
        } else if self.standing(mv.target.node) == Standing::Heard {
            // The source knows of nothing; a MigrateOut may still be on its way to it. Without a target it will fail.
            self.call(mv.target.node, vm.id, mv.target.epoch, AgentCommand::StopVm);
        }
        Next::wait("taking the migration back")
    }

    /// The source stays the owner. What is left of the target is ended as a stray.
    fn abort(&mut self, vm: &Stored<Vm>, mv: &Move) -> Next {
        let Ok(ownership) = vm.ownership.abort_migration() else { return Next::Settled };
        let reason = self.why_aborted(vm, mv);
        let mut txn = Txn::new();
        txn.event(self.vm_event(event_kind::MIGRATION_ABORTED, vm, reason.clone()));
        if let Some(operation) = self.running_operation(vm)
            && matches!(operation.kind, OperationKind::VmMigrate { .. })
        {
            let state =
                if operation.cancel_requested { OperationState::Cancelled } else { OperationState::Failed };
            let ended = operation.ended(state, format!("{reason}; the VM runs where it was"), self.now.wall);
            txn.update(operation.revision, Record::Operation(ended));
        }
        txn.update(vm.revision, Record::Vm(Vm { ownership, ..vm.value.clone() }));
        self.submit_for(vm.id, txn)
    }

    fn why_aborted(&self, vm: &Stored<Vm>, mv: &Move) -> String {
        if let Some(reason) = self.given_up(vm, mv.target.epoch) {
            return reason.to_owned();
        }
        let target = self.state.node_name(mv.target.node);
        let source_says = self.state.report(vm.id, mv.source.node).and_then(|r| r.migration_of(mv.id));
        let target_says = self.state.report(vm.id, mv.target.node).filter(|r| r.epoch == mv.target.epoch);
        match (self.running_operation(vm), source_says, target_says) {
            (Some(operation), ..) if operation.cancel_requested => "it was cancelled".to_owned(),
            _ if vm.desired != Desired::Running => "the VM is no longer wanted to run".to_owned(),
            _ if self.standing(mv.target.node) == Standing::Lost => format!("node {target} died"),
            (_, Some(report), _) if !report.error.is_empty() => report.error.clone(),
            (_, _, Some(report)) if has_ended(report) => {
                format!("its process on node {target} ended: {}", report.describe_end())
            }
            _ => "the source gave it up".to_owned(),
        }
    }

    /// The target is the owner. The operation ends when the source has had its last word.
    fn complete(&mut self, vm: &Stored<Vm>, mv: &Move) -> Next {
        let Ok(ownership) = vm.ownership.complete_migration() else { return Next::Settled };
        let mut txn = Txn::new();
        let message =
            format!("runs on node {}, epoch {}", self.state.node_name(mv.target.node), mv.target.epoch);
        txn.event(self.vm_event(event_kind::MIGRATION_COMMITTED, vm, message));
        txn.update(vm.revision, Record::Vm(Vm { ownership, ..vm.value.clone() }));
        self.submit_for(vm.id, txn)
    }

    /// Ends the operation of a migration that is done. `None`: there is none, or it still waits.
    pub(crate) fn finish_migration(&mut self, vm: &Stored<Vm>) -> Option<Next> {
        let operation = self.running_operation(vm)?;
        let OperationKind::VmMigrate { migration: Some(id), .. } = operation.kind else { return None };
        let owner = vm.ownership.candidates().next()?;
        let sources: Vec<NodeId> = self.sightings.get(&vm.id).into_iter().flatten().copied().collect();
        let said = sources.into_iter().filter(|node| *node != owner.node).find_map(|node| {
            self.state.report(vm.id, node)?.migration_of(id).map(|report| (node, report.clone()))
        });
        let last_word =
            said.as_ref().is_some_and(|(_, report)| report.phase == MigrationPhase::SourceRetired);
        if !last_word && self.waited(vm.id, Wait::LastWord, owner.epoch) < LAST_WORD_WAIT {
            return None;
        }
        let mut ended = operation.ended(OperationState::Done, "", self.now.wall);
        if let Some((_, report)) = said.as_ref().filter(|_| last_word) {
            self.book.measured(MigrationSample {
                vm: vm.id,
                memory: vm.spec.memory,
                sent: Bytes::new(report.bytes_sent),
                total: report.total,
                downtime: report.downtime,
            });
        }
        ended.migration = said.map(|(source, report)| MigrationResult {
            rounds: report.rounds,
            bytes: report.bytes_sent,
            total: report.total,
            downtime: report.downtime,
            source,
            target: owner.node,
        });
        let mut txn = Txn::new();
        txn.update(operation.revision, Record::Operation(ended));
        Some(self.submit_for(vm.id, txn))
    }

    fn release_both(&mut self, vm: &Stored<Vm>, mv: &Move) -> Next {
        let report =
            self.state.report(vm.id, mv.source.node).filter(|r| r.epoch == mv.source.epoch && has_ended(r));
        let cause = match report {
            Some(report) => cause_of_end(mv.source.node, report),
            None => {
                let name = self.state.node_name(mv.source.node);
                Cause::NodeLost(format!("its source, node {name}, was lost while it was being moved"))
            }
        };
        self.release(vm, cause)
    }
}

fn is_running(report: &VmReport) -> bool {
    matches!(report.state, RunState::Running | RunState::MigratingOut)
}
