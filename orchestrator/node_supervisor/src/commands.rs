//! Which commands are admitted, and what they start.

use drover_ids::{OwnerEpoch, VmId};

use crate::{
    Answer, BootTime, Effect, EndHow, Refusal, Supervisor, Ticket, Verb,
    supervisor::answer_all,
    vm::{Next, Phase, Role},
};

/// A command as it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    pub(crate) ticket: Ticket,
    pub(crate) vm: VmId,
    pub(crate) epoch: OwnerEpoch,
    pub(crate) verb: Verb,
}

impl Supervisor {
    /// An error is the answer; otherwise the answer is among the effects, or will come.
    pub(crate) fn command(
        &mut self,
        now: BootTime,
        command: Command,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let Command { ticket, vm, epoch, verb } = command;
        if epoch == OwnerEpoch::default() {
            return Err(Refusal::NoEpoch);
        }
        let known = self.vms.get(&vm).map_or_else(|| self.floors.get(vm), |entry| entry.floor);
        if epoch < known {
            return Err(Refusal::StaleEpoch { given: epoch, known });
        }
        match verb {
            Verb::Ensure => self.bring_up(now, command, Role::Boot, out),
            Verb::PrepareIncoming { migration } => {
                self.bring_up(now, command, Role::Incoming { migration }, out)
            }
            Verb::Stop => {
                self.stop(command, out);
                Ok(())
            }
            Verb::GrantEpoch => self.grant(command, out),
            Verb::MigrateOut | Verb::CancelMigration | Verb::Pause | Verb::Resume => {
                let entry = self.vms.get(&vm).ok_or(Refusal::UnknownVm)?;
                if epoch != entry.epoch {
                    return Err(Refusal::OtherEpoch { given: epoch, running: entry.epoch });
                }
                self.relay(ticket, vm, out)
            }
        }
    }

    fn bring_up(
        &mut self,
        now: BootTime,
        command: Command,
        role: Role,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let Command { ticket, vm, epoch, .. } = command;
        let allowed = self.may_take_work(now);
        let next = Next { epoch, role, tickets: vec![ticket] };
        let Some(entry) = self.vms.get_mut(&vm) else {
            // The end of this epoch has been confirmed, and the sender may have restarted the VM elsewhere since: this
            // start was sent before that and is late.
            if epoch <= self.floors.get(vm) {
                return Err(Refusal::AlreadyEnded { epoch });
            }
            self.launch(vm, allowed?, next, out);
            return Ok(());
        };
        let same = epoch == entry.epoch;
        if let Some(doom) = &mut entry.doom {
            allowed?;
            // A stop at this very epoch wins over a start: a start after it carries a newer one.
            if same || (epoch == entry.floor && !doom.stops.is_empty()) {
                return Err(Refusal::Ending);
            }
            match &mut doom.next {
                Some(waiting) if waiting.epoch == epoch && waiting.role == role => {
                    waiting.tickets.push(ticket)
                }
                Some(waiting) if waiting.epoch == epoch => return Err(Refusal::Occupied { epoch }),
                waiting => {
                    if let Some(older) = waiting.replace(next) {
                        answer_all(older.tickets, Err(Refusal::Superseded), out);
                    }
                }
            }
            entry.floor = epoch;
            if doom.overdue {
                self.doom(vm, EndHow::Kill, out);
            }
            return Ok(());
        }
        let serves = entry.serves(role);
        match &mut entry.phase {
            Phase::Launching { tickets, .. } if same && serves => tickets.push(ticket),
            Phase::Live { .. } if same && serves && role == Role::Boot => {
                out.push(Effect::Answer { ticket, answer: Ok(Answer::Status) });
            }
            Phase::Live { .. } if same && serves => out.push(Effect::Relay { ticket, vm, run: entry.run }),
            Phase::Launching { .. } | Phase::Live { .. } if same => return Err(Refusal::Occupied { epoch }),
            Phase::Ended { may_have_run: true, .. } if same => return Err(Refusal::AlreadyEnded { epoch }),
            Phase::Ended { .. } => self.launch(vm, allowed?, next, out),
            // An incoming VM is still running somewhere, and that must not be here.
            Phase::Live { .. } if role != Role::Boot => {
                return Err(Refusal::Occupied { epoch: entry.epoch });
            }
            Phase::Launching { .. } | Phase::Live { .. } => {
                allowed?;
                let how = EndHow::Gracefully { epoch };
                entry.floor = epoch;
                self.doom(vm, how, out);
                if let Some(doom) = self.vms.get_mut(&vm).and_then(|entry| entry.doom.as_mut()) {
                    doom.next = Some(next);
                }
            }
        }
        Ok(())
    }

    fn stop(&mut self, command: Command, out: &mut Vec<Effect>) {
        let Command { ticket, vm, epoch, .. } = command;
        let Some(entry) = self.vms.get_mut(&vm) else {
            // Whatever arrives late with an older epoch is refused from here on.
            if self.floors.get(vm) != OwnerEpoch::default() {
                out.push(Effect::Retire { vm, epoch });
            }
            if let Some(vm) = self.floors.retire(vm, epoch) {
                out.push(Effect::Discard { vm });
            }
            out.push(Effect::Answer { ticket, answer: Ok(Answer::Stopped { ended: false }) });
            return;
        };
        entry.floor = epoch;
        if !entry.has_process() {
            self.retire(vm, out);
            out.push(Effect::Answer { ticket, answer: Ok(Answer::Stopped { ended: true }) });
            return;
        }
        let overdue = entry.doom.as_ref().is_some_and(|doom| doom.overdue);
        self.doom(vm, if overdue { EndHow::Kill } else { EndHow::Gracefully { epoch } }, out);
        if let Some(doom) = self.vms.get_mut(&vm).and_then(|entry| entry.doom.as_mut()) {
            doom.stops.push(ticket);
            if let Some(next) = doom.next.take() {
                answer_all(next.tickets, Err(Refusal::Superseded), out);
            }
        }
    }

    fn grant(&mut self, command: Command, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let Command { ticket, vm, epoch, .. } = command;
        let entry = self.vms.get_mut(&vm).ok_or(Refusal::UnknownVm)?;
        // By its own word only: a record of the grant says that it was to be made, not that it was.
        if entry.runs_at(epoch) && entry.doom.is_none() {
            out.push(Effect::Answer { ticket, answer: Ok(Answer::Status) });
            return Ok(());
        }
        self.relay(ticket, vm, out)?;
        // Granted or not, the sender holds this epoch: nothing older is obeyed any more.
        if let Some(entry) = self.vms.get_mut(&vm) {
            entry.floor = epoch;
        }
        Ok(())
    }

    fn relay(&mut self, ticket: Ticket, vm: VmId, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let entry = self.vms.get(&vm).ok_or(Refusal::UnknownVm)?;
        match (&entry.phase, &entry.doom) {
            (Phase::Ended { .. }, _) => Err(Refusal::AlreadyEnded { epoch: entry.epoch }),
            (_, Some(_)) => Err(Refusal::Ending),
            (Phase::Launching { .. }, None) => Err(Refusal::Starting),
            (Phase::Live { .. }, None) => {
                out.push(Effect::Relay { ticket, vm, run: entry.run });
                Ok(())
            }
        }
    }
}
