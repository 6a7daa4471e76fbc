//! A live migration between two processes.

use drover_cluster_state::{MigrationPhase, RunState, StopReason};
use drover_ids::{MigrationId, NodeId, OwnerEpoch, VmId};
use drover_reconcile::{AgentAnswer, CallError};

use super::{World, host::Process, network::Happening};

/// One step of a move, seen by whoever takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stage {
    vm: VmId,
    id: MigrationId,
    source: (NodeId, OwnerEpoch),
    target: (NodeId, OwnerEpoch),
    step: Step,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Connect,
    Copy,
    SwitchOver,
    /// The source gives up its volumes and says Commit.
    Commit,
    /// The target hears Commit, with the guest's memory.
    Resume {
        seen: u64,
    },
    /// The source hears that the target runs.
    Retire,
    /// The target has waited long enough.
    TargetTimesOut,
}

impl World {
    pub(crate) fn migrate_out(
        &mut self,
        node: NodeId,
        vm: VmId,
        epoch: OwnerEpoch,
        id: MigrationId,
        address: &str,
        target_epoch: OwnerEpoch,
    ) -> Result<AgentAnswer, CallError> {
        let (target, _) = address.split_once('/').expect("an address of this world");
        let target: NodeId = target.parse().expect("an address of this world");
        let Some(process) = self.hosts.get_mut(&node).unwrap().processes.get_mut(&vm) else {
            return Err(CallError::Refused("no such VM".to_owned()));
        };
        if process.report.migration_of(id).is_some() {
            return Ok(AgentAnswer::Status(process.report.clone()));
        }
        if process.has_ended() || process.report.epoch != epoch || process.report.state != RunState::Running {
            return Err(CallError::Refused(format!("cannot migrate: {:?}", process.report.state)));
        }
        process.begin_move(id, (target, target_epoch));
        let answer = AgentAnswer::Status(process.report.clone());
        self.nudge(node);
        let stage =
            Stage { vm, id, source: (node, epoch), target: (target, target_epoch), step: Step::Connect };
        self.after(5, Happening::Move { stage });
        Ok(answer)
    }

    pub(crate) fn cancel_move(
        &mut self,
        node: NodeId,
        vm: VmId,
        id: MigrationId,
    ) -> Result<AgentAnswer, CallError> {
        let Some(process) = self.hosts.get_mut(&node).unwrap().processes.get_mut(&vm) else {
            return Err(CallError::Refused("no such VM".to_owned()));
        };
        let moving = process.report.state == RunState::MigratingOut && !process.has_ended();
        if moving && process.report.migration_of(id).is_some_and(|m| m.phase < MigrationPhase::Switchover) {
            process.abort_move("cancelled");
        }
        let answer = AgentAnswer::Status(process.report.clone());
        self.nudge(node);
        Ok(answer)
    }

    fn end_of(&mut self, vm: VmId, at: (NodeId, OwnerEpoch)) -> Option<&mut Process> {
        let host = self.hosts.get_mut(&at.0).filter(|host| host.up)?;
        host.processes.get_mut(&vm).filter(|p| p.report.epoch == at.1 && !p.has_ended())
    }

    fn target_waits(&mut self, stage: Stage) -> bool {
        self.end_of(stage.vm, stage.target).is_some_and(|p| p.report.state == RunState::Incoming)
    }

    pub(crate) fn advance_move(&mut self, stage: Stage) {
        match stage.step {
            Step::Connect | Step::Copy | Step::SwitchOver | Step::Commit => self.advance_source(stage),
            Step::Resume { seen } => self.resume_target(stage, seen),
            Step::Retire => {
                if let Some(source) = self.end_of(stage.vm, stage.source)
                    && source.report.state == RunState::Committed
                {
                    source.set(RunState::Migrated, Some(MigrationPhase::SourceRetired));
                    self.nudge(stage.source.0);
                }
            }
            Step::TargetTimesOut => {
                if self.target_waits(stage) {
                    self.end_process(stage.target.0, stage.vm, StopReason::MigrationFailed, "exit status 1");
                }
            }
        }
    }

    fn advance_source(&mut self, stage: Stage) {
        let next = |step| Happening::Move { stage: Stage { step, ..stage } };
        let (lease, reachable) = (self.may_run(&self.hosts[&stage.source.0]), self.target_waits(stage));
        let lost = self.rng.chance(self.weather.move_loss);
        let Some(source) = self.end_of(stage.vm, stage.source) else {
            // The target sees its connection close.
            self.after(20, next(Step::TargetTimesOut));
            return;
        };
        let moving = source.report.migration_of(stage.id).is_some_and(|m| m.phase != MigrationPhase::Aborted);
        if !moving || !lease || !reachable || lost {
            if moving {
                source.abort_move("the target does not answer");
            }
            self.after(20, next(Step::TargetTimesOut));
            self.nudge(stage.source.0);
            return;
        }
        let (phase, state, step, delay) = match stage.step {
            Step::Connect => (MigrationPhase::TargetReady, RunState::MigratingOut, Step::Copy, (20, 60)),
            Step::Copy => (MigrationPhase::Copying, RunState::MigratingOut, Step::SwitchOver, (100, 900)),
            // Paused: it reports that it migrates, and does not execute.
            Step::SwitchOver => (MigrationPhase::Switchover, RunState::Paused, Step::Commit, (5, 30)),
            _ => {
                (MigrationPhase::Committed, RunState::Committed, Step::Resume { seen: source.seen }, (1, 40))
            }
        };
        source.set(state, Some(phase));
        self.nudge(stage.source.0);
        let delay = self.rng.range(delay.0, delay.1);
        if matches!(step, Step::Resume { .. }) {
            self.free_volumes(stage.source.0, stage.vm);
            let lost = self.lose_commits || self.rng.chance(self.weather.move_loss);
            self.after(2_000, next(Step::TargetTimesOut));
            if lost {
                return;
            }
        }
        self.after(delay, next(step));
    }

    fn resume_target(&mut self, stage: Stage, seen: u64) {
        if !self.target_waits(stage) || !self.may_run(&self.hosts[&stage.target.0]) {
            return;
        }
        let (node, epoch) = stage.target;
        let volumes = self.end_of(stage.vm, stage.target).map(|p| p.volumes.clone()).unwrap_or_default();
        if self.take_volumes(node, stage.vm, epoch, &volumes).is_err() {
            self.end_process(node, stage.vm, StopReason::MigrationFailed, "exit status 1");
            return;
        }
        let target = self.end_of(stage.vm, stage.target).expect("it waits");
        target.seen = seen;
        target.set(RunState::Running, None);
        self.nudge(node);
        if !self.lose_resumed && !self.rng.chance(self.weather.move_loss) {
            self.after(5, Happening::Move { stage: Stage { step: Step::Retire, ..stage } });
        }
    }
}
