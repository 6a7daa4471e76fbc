//! Carrying decisions out, if they still hold.

use drover_ids::VmId;

use crate::{
    Conflict, Decision, Inventory, Request, constraints::Question, decide::project_limit_reached,
    explain::reason_of,
};

/// Whether the VM may be on another host already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Placement,
    Move,
}

impl Inventory {
    /// Carries out a decision that may have been made on an older snapshot: checks host, group, spread and project again,
    /// as they are now, releases the decision's victims, and holds the VM.
    ///
    /// The room that a policy keeps for host failures is not looked at again: it is a rule of admission, and
    /// [`Shared`](crate::Shared) admits one at a time under such a policy.
    ///
    /// # Errors
    /// What has changed in between; nothing has been changed then. Decide again.
    pub fn commit(&mut self, request: &Request, decision: &Decision) -> Result<(), Conflict> {
        self.carry_out(request, decision, Kind::Placement)
    }

    /// The same for a VM that is on another host, and stays there until it is released: the beginning of a move.
    ///
    /// # Errors
    /// As [`Inventory::commit`].
    pub fn commit_move(&mut self, request: &Request, decision: &Decision) -> Result<(), Conflict> {
        self.carry_out(request, decision, Kind::Move)
    }

    /// Carries out all decisions, or none.
    ///
    /// # Errors
    /// The first that does not hold any more; nothing has been changed then.
    pub fn commit_group(&mut self, requests: &[Request], decisions: &[Decision]) -> Result<(), Conflict> {
        let before = self.clone();
        for (request, decision) in requests.iter().zip(decisions) {
            if let Err(cause) = self.commit(request, decision) {
                *self = before;
                return Err(Conflict::Group { vm: request.vm, cause: Box::new(cause) });
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, request: &Request, decision: &Decision, kind: Kind) -> Result<(), Conflict> {
        if decision.victims.is_empty() {
            return self.check_and_hold(request, decision, kind);
        }
        let before = self.clone();
        let done = self
            .release_victims(request, decision)
            .and_then(|()| self.check_and_hold(request, decision, kind));
        if done.is_err() {
            *self = before;
        }
        done
    }

    fn release_victims(&mut self, request: &Request, decision: &Decision) -> Result<(), Conflict> {
        for victim in &decision.victims {
            if !self.may_preempt(request, decision, *victim) {
                return Err(Conflict::Victim(*victim));
            }
            self.remove_vm(*victim).map_err(|_| Conflict::Victim(*victim))?;
        }
        Ok(())
    }

    fn may_preempt(&self, request: &Request, decision: &Decision, victim: VmId) -> bool {
        let mut places = self.vm(victim);
        let (Some(place), None) = (places.next(), places.next()) else { return false };
        place.host().id() == decision.host && place.profile().priority < request.profile.priority
    }

    fn check_and_hold(&mut self, request: &Request, decision: &Decision, kind: Kind) -> Result<(), Conflict> {
        let slot = self.host_slot(decision.host).ok_or(Conflict::HostGone(decision.host))?;
        let question = Question::of_single_hosts(self, request);
        match (kind, question.is_held()) {
            (Kind::Placement, true) => return Err(Conflict::AlreadyPlaced(request.vm)),
            (Kind::Move, false) => return Err(Conflict::NotPlaced(request.vm)),
            _ => {}
        }
        if let Some(miss) = question.first_miss(slot) {
            let reason = reason_of(&question, slot, miss);
            return Err(Conflict::HostChanged { host: decision.host, reason });
        }
        if let Some(limit) = project_limit_reached(self, &question) {
            return Err(Conflict::Project { project: request.profile.project.clone(), limit });
        }
        self.hold(decision.host, request).map_err(|_| Conflict::AlreadyPlaced(request.vm))
    }
}
