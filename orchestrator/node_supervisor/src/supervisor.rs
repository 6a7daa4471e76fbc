//! The state machine itself: what happens to processes and to the lease. Commands are in `commands`.

use std::collections::BTreeMap;

use drover_ids::{OwnerEpoch, VmId};

use crate::{
    Answer, BootTime, Effect, EndHow, Event, LaunchFailed, Lease, Process, Refusal, Run, StaleVm, Ticket,
    VmReport, VmState,
    floors::Floors,
    heartbeat::{Due, Heartbeats},
    vm::{Doom, Next, Phase, Role, Vm},
};

/// The VMs of one node, and its lease. See the crate's documentation.
#[derive(Clone, Debug, Default)]
pub struct Supervisor {
    pub(crate) vms: BTreeMap<VmId, Vm>,
    pub(crate) floors: Floors,
    pub(crate) heartbeats: Heartbeats,
    last_run: Run,
}

/// A VM as a heartbeat reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmView {
    /// The VM.
    pub vm: VmId,
    /// Its present or last process.
    pub run: Run,
    /// The epoch that process runs or ran under.
    pub epoch: OwnerEpoch,
    /// What it reported last; [`VmState::Empty`] while it is being launched.
    pub state: VmState,
    /// The end of the process has been proven.
    pub ended: bool,
}

impl Supervisor {
    /// Takes one event and gives back what is to be done, in order.
    pub fn step(&mut self, now: BootTime, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        let out = &mut effects;
        match event {
            Event::Recovered { vm, epoch, process } => self.recovered(vm, epoch, process, out),
            Event::Command { ticket, vm, epoch, verb } => {
                if let Err(refusal) =
                    self.command(now, crate::commands::Command { ticket, vm, epoch, verb }, out)
                {
                    out.push(Effect::Answer { ticket, answer: Err(refusal) });
                }
            }
            Event::Spawned { vm, run } => self.spawned(vm, run, out),
            Event::Launched { vm, run, result } => self.launched(now, (vm, run), result, out),
            Event::Reported { vm, run, report } => self.reported((vm, run), report, out),
            Event::Unresponsive { vm, run } => {
                if self.current(vm, run).is_some() {
                    self.doom(vm, EndHow::Kill, out);
                }
            }
            Event::ProcessEnded { vm, run } => self.process_ended(now, vm, run, out),
            Event::EndOverdue { vm, run } => self.end_overdue(vm, run, out),
            Event::Registered(timers) => self.heartbeats.registered(now, timers),
            Event::RegisterFailed => self.heartbeats.register_failed(now),
            Event::HeartbeatAnswered { sequence, lease_granted, reap } => {
                self.heartbeat_answered(sequence, lease_granted, &reap, out);
            }
            Event::HeartbeatFailed { sequence, unknown } => self.heartbeats.failed(now, sequence, unknown),
            Event::Tick => {}
        }
        self.fence_self(now, out);
        self.converse(now, out);
        effects
    }

    /// When [`Event::Tick`] is due, unless something else happens before.
    pub fn next_deadline(&self) -> Option<BootTime> {
        let fence = self
            .heartbeats
            .lease()
            .filter(|_| {
                self.vms.values().any(|vm| vm.has_process() && !vm.doom.as_ref().is_some_and(|d| d.killing))
            })
            .map(|lease| lease.kill_at);
        [fence, self.heartbeats.next_deadline()].into_iter().flatten().min()
    }

    /// The lease as last granted, which may be over.
    pub const fn lease(&self) -> Option<Lease> {
        self.heartbeats.lease()
    }

    /// Every VM that a heartbeat has to report, in the order of their ids.
    pub fn vms(&self) -> impl Iterator<Item = VmView> {
        self.vms.iter().map(|(id, vm)| VmView {
            vm: *id,
            run: vm.run,
            epoch: vm.epoch,
            state: match vm.phase {
                Phase::Launching { .. } => VmState::Empty,
                Phase::Live { report } => report.state,
                Phase::Ended { .. } => VmState::Stopped,
            },
            ended: !vm.has_process(),
        })
    }

    /// The VM's entry, if `run` is its present process.
    pub(crate) fn current(&mut self, vm: VmId, run: Run) -> Option<&mut Vm> {
        self.vms.get_mut(&vm).filter(|entry| entry.run == run && entry.has_process())
    }

    /// Starts a process for `vm`, whose entry (if there is one) has none.
    pub(crate) fn launch(&mut self, vm: VmId, lease: Lease, next: Next, out: &mut Vec<Effect>) {
        let Next { epoch, role, tickets } = next;
        let Some(ticket) = tickets.first().copied() else { return };
        self.last_run = Run(self.last_run.0 + 1);
        let run = self.last_run;
        let known = self.vms.get(&vm).map(|entry| entry.floor).unwrap_or_default();
        let floor = self.floors.take(vm).max(known).max(epoch);
        let phase = Phase::Launching { tickets, spawned: false, exited: false };
        self.vms.insert(vm, Vm { floor, epoch, run, role, phase, doom: None });
        self.heartbeats.hurry();
        out.push(Effect::Launch { vm, run, epoch, ticket, lease });
    }

    /// Makes sure that the VM's process ends; does nothing where it has been ordered as firmly before.
    pub(crate) fn doom(&mut self, vm: VmId, how: EndHow, out: &mut Vec<Effect>) {
        let Some(entry) = self.vms.get_mut(&vm).filter(|entry| entry.has_process()) else { return };
        let run = entry.run;
        // A process that does not run its VM yet has nothing to quiesce; one that is not there yet is killed when it is.
        let (how, reachable) = match entry.phase {
            Phase::Launching { spawned, exited, .. } => (EndHow::Kill, spawned && !exited),
            _ => (how, true),
        };
        let ordered = entry.doom.is_some();
        let doom = entry.doom.get_or_insert_default();
        let kill = how == EndHow::Kill;
        if doom.killing || (ordered && !kill) {
            return;
        }
        doom.killing = kill;
        if reachable {
            out.push(Effect::End { vm, run, how });
        }
    }

    fn recovered(&mut self, vm: VmId, epoch: OwnerEpoch, process: Process, out: &mut Vec<Effect>) {
        if self.vms.contains_key(&vm) {
            return;
        }
        self.last_run = Run(self.last_run.0 + 1);
        let run = self.last_run;
        let (epoch_run, phase) = match process {
            Process::Retired => {
                if let Some(vm) = self.floors.retire(vm, epoch) {
                    out.push(Effect::Discard { vm });
                }
                return;
            }
            Process::Gone => (epoch, Phase::Ended { may_have_run: true, reported_in: None }),
            Process::Alive(report) => {
                // Until it answers, the recorded epoch stands in for its own, which may be older: a grant is recorded
                // before it is handed on.
                let report = report.unwrap_or(VmReport { epoch, state: VmState::Unreported });
                // A process that holds nothing yet says epoch zero.
                (
                    if report.epoch == OwnerEpoch::default() { epoch } else { report.epoch },
                    Phase::Live { report },
                )
            }
        };
        let floor = epoch.max(epoch_run);
        self.vms.insert(vm, Vm { floor, epoch: epoch_run, run, role: Role::Adopted, phase, doom: None });
        self.judge_report(vm, out);
    }

    fn spawned(&mut self, vm: VmId, run: Run, out: &mut Vec<Effect>) {
        let Some(entry) = self.current(vm, run) else { return };
        let Phase::Launching { spawned, .. } = &mut entry.phase else { return };
        *spawned = true;
        if entry.doom.is_some() {
            out.push(Effect::End { vm, run, how: EndHow::Kill });
        }
    }

    fn launched(
        &mut self,
        now: BootTime,
        (vm, run): (VmId, Run),
        result: Result<VmReport, LaunchFailed>,
        out: &mut Vec<Effect>,
    ) {
        let lease = self.heartbeats.valid_lease(now);
        let Some(entry) = self.current(vm, run) else { return };
        let Phase::Launching { spawned, exited, .. } = entry.phase else { return };
        let tickets = entry.take_launch_tickets();
        let answer = match result {
            _ if entry.doom.is_some() => Err(Refusal::Superseded),
            Ok(_) if !exited => Ok(Answer::Status),
            _ => Err(Refusal::LaunchFailed),
        };
        match result {
            Ok(report) if !exited => {
                entry.phase = Phase::Live { report };
                entry.learn_epoch(report.epoch);
                let epoch = entry.epoch;
                // The lease may have been extended since the launch began.
                if let (Some(lease), None) = (lease, &entry.doom) {
                    out.push(Effect::ExtendLease { vm, run, epoch, lease });
                }
                self.judge_report(vm, out);
            }
            Err(_) if spawned && !exited => {
                let may_have_run = matches!(result, Err(LaunchFailed { may_have_run: true }));
                let epoch = entry.epoch;
                let state = if may_have_run { VmState::Unreported } else { VmState::Empty };
                entry.phase = Phase::Live { report: VmReport { epoch, state } };
                self.doom(vm, EndHow::Kill, out);
            }
            Ok(_) => self.end(now, vm, true, out),
            Err(LaunchFailed { may_have_run }) => self.end(now, vm, may_have_run, out),
        }
        out.extend(tickets.into_iter().map(|ticket| Effect::Answer { ticket, answer }));
        self.heartbeats.hurry();
    }

    fn reported(&mut self, (vm, run): (VmId, Run), report: VmReport, out: &mut Vec<Effect>) {
        let Some(entry) = self.current(vm, run) else { return };
        // While it is being launched, the launch says when it is up; what else it says is worth passing on.
        let Phase::Live { report: last } = &mut entry.phase else {
            self.heartbeats.hurry();
            return;
        };
        let changed = last.state != report.state || last.epoch != report.epoch;
        *last = report;
        entry.learn_epoch(report.epoch);
        entry.floor = entry.floor.max(report.epoch);
        if changed {
            self.heartbeats.hurry();
            self.judge_report(vm, out);
        }
    }

    /// Ends a process whose report says that it is of no more use.
    fn judge_report(&mut self, vm: VmId, out: &mut Vec<Effect>) {
        let Some(entry) = self.vms.get(&vm) else { return };
        let Phase::Live { report } = entry.phase else { return };
        match report.state {
            state if state.is_final() => self.doom(vm, EndHow::Gracefully { epoch: entry.floor }, out),
            // An agent died between spawn and start. Whoever wanted the VM asks again, and gets a fresh process.
            VmState::Empty | VmState::Created if entry.role == Role::Adopted => {
                self.doom(vm, EndHow::Kill, out)
            }
            _ => {}
        }
    }

    fn process_ended(&mut self, now: BootTime, vm: VmId, run: Run, out: &mut Vec<Effect>) {
        let Some(entry) = self.current(vm, run) else { return };
        match &mut entry.phase {
            // Its `Launched` is to come, and knows whether the vCPUs ran.
            Phase::Launching { exited, .. } => *exited = true,
            Phase::Live { report } => {
                let may_have_run = !matches!(report.state, VmState::Empty | VmState::Created);
                self.end(now, vm, may_have_run, out);
            }
            Phase::Ended { .. } => {}
        }
    }

    /// The process has ended, whatever phase it was in: answers who waited for that, and goes on to what comes next.
    fn end(&mut self, now: BootTime, vm: VmId, may_have_run: bool, out: &mut Vec<Effect>) {
        let Some(entry) = self.vms.get_mut(&vm) else { return };
        let Doom { stops, next, .. } = entry.doom.take().unwrap_or_default();
        let tickets = entry.take_launch_tickets();
        entry.phase = Phase::Ended { may_have_run, reported_in: None };
        self.heartbeats.hurry();
        answer_all(tickets, Err(Refusal::LaunchFailed), out);
        let acknowledged = !stops.is_empty();
        answer_all(stops, Ok(Answer::Stopped { ended: true }), out);
        match (next, self.may_take_work(now)) {
            (Some(next), Ok(lease)) => self.launch(vm, lease, next, out),
            (Some(next), Err(refusal)) => answer_all(next.tickets, Err(refusal), out),
            (None, _) if acknowledged => self.retire(vm, out),
            (None, _) => {}
        }
    }

    fn end_overdue(&mut self, vm: VmId, run: Run, out: &mut Vec<Effect>) {
        let Some(doom) = self.current(vm, run).and_then(|entry| entry.doom.as_mut()) else { return };
        // The next command that wants the end orders it anew; the proof still counts whenever it comes.
        doom.killing = false;
        doom.overdue = true;
        let stops = std::mem::take(&mut doom.stops);
        let next = doom.next.take().map(|next| next.tickets).unwrap_or_default();
        answer_all(stops, Err(Refusal::EndOverdue), out);
        answer_all(next, Err(Refusal::EndOverdue), out);
    }

    /// Forgets a VM whose end has been acknowledged, but for its epoch.
    pub(crate) fn retire(&mut self, vm: VmId, out: &mut Vec<Effect>) {
        let Some(entry) = self.vms.remove(&vm) else { return };
        out.push(Effect::Retire { vm, epoch: entry.floor });
        if let Some(vm) = self.floors.retire(vm, entry.floor) {
            out.push(Effect::Discard { vm });
        }
    }

    fn heartbeat_answered(
        &mut self,
        sequence: u64,
        lease_granted: bool,
        reap: &[StaleVm],
        out: &mut Vec<Effect>,
    ) {
        if let Some(lease) = self.heartbeats.answered(sequence, lease_granted, !reap.is_empty()) {
            for (vm, entry) in &self.vms {
                // One that is being launched too: slow storage must not cost a VM its first lease.
                if entry.is_reachable() && entry.doom.is_none() {
                    out.push(Effect::ExtendLease { vm: *vm, run: entry.run, epoch: entry.epoch, lease });
                }
            }
        }
        for stale in reap {
            let Some(entry) = self.vms.get(&stale.vm).filter(|entry| entry.epoch <= stale.epoch) else {
                continue;
            };
            match entry.phase {
                // The control plane has seen the end and still lists the VM: that is its acknowledgement.
                Phase::Ended { reported_in: Some(reported), .. } if reported <= sequence => {
                    self.retire(stale.vm, out);
                }
                Phase::Ended { .. } => {}
                _ => self.doom(stale.vm, EndHow::Kill, out),
            }
        }
    }

    /// Why this node may not take work; else the lease under which it may.
    pub(crate) fn may_take_work(&self, now: BootTime) -> Result<Lease, Refusal> {
        if self.heartbeats.is_reaping() {
            return Err(Refusal::Reaping);
        }
        self.heartbeats.valid_lease(now).ok_or(Refusal::NoLease)
    }

    /// Past the lease nothing may run here. The vmmds know their deadlines; this is for those that hang.
    fn fence_self(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        if self.heartbeats.lease().is_none_or(|lease| now < lease.kill_at) {
            return;
        }
        let running: Vec<VmId> =
            self.vms.iter().filter(|(_, vm)| vm.has_process()).map(|(id, _)| *id).collect();
        for vm in running {
            self.doom(vm, EndHow::Kill, out);
        }
    }

    fn converse(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        match self.heartbeats.due(now) {
            None => {}
            Some(Due::Register) => out.push(Effect::Register),
            Some(Due::Heartbeat { sequence }) => {
                for entry in self.vms.values_mut() {
                    if let Phase::Ended { reported_in, .. } = &mut entry.phase {
                        reported_in.get_or_insert(sequence);
                    }
                }
                out.push(Effect::Heartbeat { sequence });
            }
        }
    }
}

pub(crate) fn answer_all(tickets: Vec<Ticket>, answer: Result<Answer, Refusal>, out: &mut Vec<Effect>) {
    out.extend(tickets.into_iter().map(|ticket| Effect::Answer { ticket, answer }));
}
