//! All of several VMs, or none.

use std::sync::Arc;

use crate::{
    Decision, Direction, Inventory, NumaPolicy, Policy, Profile, Refusal, Request, Scope,
    constraints::Question, inventory::Place,
};

use super::{Decider, failover};

pub(super) fn decide(
    decider: &mut Decider,
    inventory: &Inventory,
    requests: &[Request],
    policy: &Policy,
) -> Result<Vec<Decision>, Refusal> {
    let Some(first) = requests.first() else { return Ok(Vec::new()) };
    let attempt = Attempt { inventory, requests, policy };
    let Some(scope) = gathers(inventory, first) else {
        return attempt.place(decider, &[]).map(|p| p.decisions);
    };
    if let Some(placed) = attempt.on_one_host(decider, scope) {
        return Ok(placed.decisions);
    }
    // Where the first member goes the others must follow. If they cannot, the first goes elsewhere.
    let mut hopeless = Vec::new();
    let mut most: Option<Refusal> = None;
    loop {
        let failed = match attempt.place(decider, &hopeless) {
            Ok(placed) => return Ok(placed.decisions),
            Err(refusal) => refusal,
        };
        let begun = attempt.first_place(decider, &hopeless);
        most = Some(match most {
            Some(earlier) if placed_of(&earlier) >= placed_of(&failed) => earlier,
            _ => failed.clone(),
        });
        let Some(place) = begun else { return Err(most.unwrap_or(failed)) };
        let Some(here) = place.of(scope) else {
            // A host that is in no such place binds nobody, and nobody is with who goes there.
            hopeless.push(drover_ids::NodeId::from_u128(inventory.hosts[place.host as usize].id));
            continue;
        };
        let same = |slot: &u32| inventory.place(*slot).of(scope) == Some(here);
        let hosts = (0..inventory.hosts.len() as u32).filter(|slot| inventory.hosts[*slot as usize].live);
        let ids = hosts.filter(same).map(|slot| inventory.hosts[slot as usize].id);
        hopeless.extend(ids.map(drover_ids::NodeId::from_u128));
    }
}

fn placed_of(refusal: &Refusal) -> usize {
    match refusal {
        Refusal::Group { placed, .. } => *placed,
        // All of them were, and then it was the reserve that would have been taken.
        Refusal::FailoverReserve { .. } => usize::MAX,
        _ => 0,
    }
}

/// The narrowest scope in which a VM wants to be with its own group, of which there is no member yet.
fn gathers(inventory: &Inventory, request: &Request) -> Option<Scope> {
    let question = Question::of_single_hosts(inventory, request);
    let own = question
        .wanted
        .affinity
        .iter()
        .filter(|rule| rule.own && rule.direction == Direction::Together && rule.preferred.is_none());
    let nobody = |group: Option<u32>| {
        group.and_then(|group| inventory.groups.get(group)).is_none_or(|group| group.members.total() == 0)
    };
    own.filter(|rule| nobody(rule.group)).map(|rule| rule.scope).min()
}

struct Placed {
    decisions: Vec<Decision>,
}

struct Attempt<'a> {
    inventory: &'a Inventory,
    requests: &'a [Request],
    policy: &'a Policy,
}

impl Attempt<'_> {
    /// Places one after the other on a snapshot; the first one not on certain hosts.
    fn place(&self, decider: &mut Decider, not: &[drover_ids::NodeId]) -> Result<Placed, Refusal> {
        let mut scratch = self.inventory.clone();
        // The reserve is looked at once, with all members in place.
        let each = Policy { host_failures: 0, ..self.policy.clone() };
        let count = self.requests.len();
        let mut decisions = Vec::with_capacity(count);
        for (placed, request) in self.requests.iter().enumerate() {
            let mut request = request.clone();
            if placed == 0 {
                request.excluded.extend(not);
            }
            let refused = |cause| Refusal::Group { placed, count, cause: Box::new(cause) };
            let mut decision = decider.decide(&scratch, &request, &each).map_err(refused)?;
            for victim in &decision.victims {
                scratch.remove_vm(*victim).map_err(|_| refused(Refusal::NoHost))?;
            }
            scratch.hold(decision.host, &request).map_err(|_| refused(Refusal::NoHost))?;
            if let Some(host) = self.inventory.host(decision.host) {
                decision.version = host.version();
            }
            decisions.push(decision);
        }
        if !failover::survives(decider, &scratch, self.policy) {
            return Err(Refusal::FailoverReserve { failures: self.policy.host_failures });
        }
        Ok(Placed { decisions })
    }

    /// Where the first member would go.
    fn first_place(&self, decider: &mut Decider, not: &[drover_ids::NodeId]) -> Option<Place> {
        let mut first = self.requests.first()?.clone();
        first.excluded.extend(not);
        let each = Policy { host_failures: 0, ..self.policy.clone() };
        let decision = decider.decide(self.inventory, &first, &each).ok()?;
        self.inventory.host_slot(decision.host).map(|slot| self.inventory.place(slot))
    }

    /// Equal members that must share a host are one large VM: finds the host that has room for all of them at once.
    fn on_one_host(&self, decider: &mut Decider, scope: Scope) -> Option<Placed> {
        let first = self.requests.first()?;
        let same = self.requests.iter().all(|r| r.profile == first.profile);
        if scope != Scope::Host || !same || first.profile.demand.numa == NumaPolicy::Single {
            return None;
        }
        let count = u32::try_from(self.requests.len()).ok()?;
        let mut demand = first.profile.demand;
        let page = demand.backing.page().get();
        let memory = demand.memory.get().div_ceil(page).checked_mul(page)?.checked_mul(u64::from(count))?;
        demand.vcpus = drover_units::VcpuCount::new(demand.vcpus.get().checked_mul(count)?);
        demand.memory = drover_units::Bytes::new(memory);
        let whole = Profile { demand, ..Profile::clone(&first.profile) };
        let whole = Request { profile: Arc::new(whole), ..first.clone() };
        let each = Policy { host_failures: 0, preemption: false, ..self.policy.clone() };
        let host = decider.decide(self.inventory, &whole, &each).ok()?.host;
        let together = Request { only: Some(host), ..first.clone() };
        let requests: Vec<Request> =
            std::iter::once(together).chain(self.requests.iter().skip(1).cloned()).collect();
        Attempt { requests: &requests, ..*self }.place(decider, &[]).ok()
    }
}
