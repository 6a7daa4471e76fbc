//! How an agent obeys.

use drover_cluster_state::{RunState, StopReason, VmSpec};
use drover_ids::{NodeId, OwnerEpoch, VmId, VolumeId};
use drover_reconcile::{AgentAnswer, AgentCall, AgentCommand, CallError};

use super::{World, host::Process, network::Happening};

type Answer = Result<AgentAnswer, CallError>;

fn refuse(why: impl Into<String>) -> Answer {
    Err(CallError::Refused(why.into()))
}

impl World {
    pub(crate) fn obey(&mut self, call: &AgentCall) -> Answer {
        let (node, vm, epoch) = (call.node, call.vm, call.epoch);
        if let Some(answer) = self.hosts[&node].answered.get(&call.operation) {
            return Ok(answer.clone());
        }
        let answer = match &call.command {
            AgentCommand::EnsureVm { spec, resume } => {
                self.ensured.push((node, *resume));
                self.ensure(node, vm, epoch, spec)
            }
            AgentCommand::StopVm => self.stop_vm(node, vm, epoch),
            AgentCommand::PressPowerButton => {
                self.pressed.push(vm);
                Ok(AgentAnswer::Pressed)
            }
            AgentCommand::PrepareIncoming { spec, .. } => self.prepare(node, vm, epoch, spec),
            AgentCommand::MigrateOut { migration, target_address, target_epoch, .. } => {
                self.migrate_out(node, vm, epoch, *migration, target_address, *target_epoch)
            }
            AgentCommand::CancelMigration { migration } => self.cancel_move(node, vm, *migration),
            AgentCommand::GrantEpoch => self.grant(node, vm, epoch),
        };
        if let Ok(answer) = &answer {
            self.hosts.get_mut(&node).unwrap().answered.insert(call.operation, answer.clone());
        }
        answer
    }

    fn ensure(&mut self, node: NodeId, vm: VmId, epoch: OwnerEpoch, spec: &VmSpec) -> Answer {
        if let Some(process) = self.hosts[&node].processes.get(&vm) {
            let report = &process.report;
            if report.epoch == epoch && !process.has_ended() {
                return Ok(AgentAnswer::Status(report.clone()));
            }
            if report.epoch >= epoch {
                return refuse(format!("epoch {} has been here", report.epoch));
            }
        }
        if self.hosts[&node].floor(vm) >= epoch {
            return refuse("this epoch has ended here");
        }
        if !self.may_run(&self.hosts[&node]) {
            return Err(CallError::Unanswered("no lease".to_owned()));
        }
        self.stop_vm(node, vm, OwnerEpoch::new(epoch.get() - 1))?;
        let host = self.hosts.get_mut(&node).unwrap();
        let fails = host.failing_starts > 0;
        host.failing_starts = host.failing_starts.saturating_sub(1);
        if fails || self.rng.chance(self.weather.start_fails) {
            self.hosts.get_mut(&node).unwrap().raise_floor(vm, epoch);
            return refuse("the kernel image is damaged");
        }
        let volumes: Vec<VolumeId> = spec.volumes.iter().map(|v| v.volume).collect();
        self.take_volumes(node, vm, epoch, &volumes).map_err(CallError::Refused)?;
        let mut process = Process::new(epoch, RunState::Created, volumes.clone());
        process.seen = volumes.first().map_or(0, |volume| self.disks[volume].writes);
        let answer = process.report.clone();
        self.hosts.get_mut(&node).unwrap().processes.insert(vm, process);
        let delay = self.rng.range(10, 60);
        self.after(delay, Happening::Boot { node, vm });
        Ok(AgentAnswer::Status(answer))
    }

    pub(crate) fn booted(&mut self, node: NodeId, vm: VmId) {
        let process = self.hosts.get_mut(&node).and_then(|host| host.processes.get_mut(&vm));
        if let Some(process) = process.filter(|p| p.report.state == RunState::Created && !p.has_ended()) {
            process.set(RunState::Running, None);
            self.nudge(node);
        }
    }

    fn stop_vm(&mut self, node: NodeId, vm: VmId, epoch: OwnerEpoch) -> Answer {
        let newer = self.hosts[&node].processes.get(&vm).is_some_and(|p| p.report.epoch > epoch);
        if newer {
            return refuse("a newer epoch runs here");
        }
        let host = self.hosts.get_mut(&node).unwrap();
        host.raise_floor(vm, epoch);
        host.processes.remove(&vm);
        self.free_volumes(node, vm);
        self.nudge(node);
        Ok(AgentAnswer::Stopped)
    }

    fn prepare(&mut self, node: NodeId, vm: VmId, epoch: OwnerEpoch, spec: &VmSpec) -> Answer {
        let address = format!("{node}/{epoch}");
        let host = &self.hosts[&node];
        match host.processes.get(&vm) {
            Some(process) if process.report.epoch == epoch && !process.has_ended() => {
                return Ok(AgentAnswer::Incoming { address });
            }
            Some(process) if process.report.epoch >= epoch => return refuse("this epoch has ended here"),
            _ => {}
        }
        if host.floor(vm) >= epoch {
            return refuse("this epoch has ended here");
        }
        if !self.may_run(host) {
            return Err(CallError::Unanswered("no lease".to_owned()));
        }
        if self.hosts.get_mut(&node).map(|h| std::mem::take(&mut h.failing_starts)).is_some_and(|n| n > 0) {
            return refuse("no memory");
        }
        self.stop_vm(node, vm, OwnerEpoch::new(epoch.get() - 1))?;
        let volumes = spec.volumes.iter().map(|v| v.volume).collect();
        let process = Process::new(epoch, RunState::Incoming, volumes);
        self.hosts.get_mut(&node).unwrap().processes.insert(vm, process);
        self.nudge(node);
        Ok(AgentAnswer::Incoming { address })
    }

    fn grant(&mut self, node: NodeId, vm: VmId, epoch: OwnerEpoch) -> Answer {
        let Some(process) = self.hosts[&node].processes.get(&vm).cloned() else {
            return refuse("no such VM");
        };
        if process.report.epoch == epoch {
            return Ok(AgentAnswer::Status(process.report));
        }
        let newer = process.peer.is_some_and(|(_, target)| epoch > target);
        if process.has_ended() || process.report.state != RunState::Committed || !newer {
            return refuse("not paused behind Commit");
        }
        self.free_volumes(node, vm);
        self.take_volumes(node, vm, epoch, &process.volumes).map_err(CallError::Refused)?;
        let process = self.hosts.get_mut(&node).unwrap().processes.get_mut(&vm).unwrap();
        process.report.epoch = epoch;
        process.set(RunState::Running, None);
        let answer = AgentAnswer::Status(process.report.clone());
        self.nudge(node);
        Ok(answer)
    }

    /// All or none.
    pub(crate) fn take_volumes(
        &mut self,
        node: NodeId,
        vm: VmId,
        epoch: OwnerEpoch,
        volumes: &[VolumeId],
    ) -> Result<(), String> {
        for volume in volumes {
            let taken = self.disks.get_mut(volume).expect("it is there").acquire(node, vm, epoch);
            if let Err(why) = taken {
                self.free_volumes(node, vm);
                return Err(why);
            }
        }
        Ok(())
    }

    pub(crate) fn free_volumes(&mut self, node: NodeId, vm: VmId) {
        self.disks.values_mut().for_each(|disk| disk.release(node, vm));
    }

    pub(crate) fn end_process(&mut self, node: NodeId, vm: VmId, reason: StopReason, exit: &str) {
        let host = self.hosts.get_mut(&node).expect("it is there");
        if let Some(process) = host.processes.get_mut(&vm).filter(|p| !p.has_ended()) {
            process.end(reason, exit);
            self.free_volumes(node, vm);
            self.nudge(node);
        }
    }
}
