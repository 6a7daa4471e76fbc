//! Deciding.

mod failover;
mod group;
mod preempt;
pub(crate) mod preferences;
pub(crate) mod score;
pub(crate) mod search;

use drover_ids::NodeId;

use crate::{
    Decision, HostVersion, Inventory, LimitReached, Policy, Refusal, Request, Score, constraints::Question,
    inventory::project_demand,
};

use search::{Candidate, Search, Tables};

/// Decides, and remembers score tables between decisions. It holds nothing that an answer depends on: a new one says the
/// same, a little later.
///
/// ```
/// use std::sync::Arc;
/// use drover_ids::{NodeId, VmId};
/// use drover_placement::{Decider, Demand, HostSpec, Inventory, Policy, Profile, Request};
/// use drover_units::{Bytes, VcpuCount};
///
/// let mut inventory = Inventory::new();
/// for n in 1..=2 {
///     inventory.add_host(&HostSpec::new(NodeId::from_u128(n), "host", VcpuCount::new(8), Bytes::gib(32)))?;
/// }
/// let profile = Arc::new(Profile::new(Demand::new(VcpuCount::new(2), Bytes::gib(4))));
/// let request = Request::new(VmId::from_u128(1), profile);
/// let decision = Decider::new().decide(&inventory, &request, &Policy::named("pack")?)?;
/// inventory.commit(&request, &decision)?;
/// assert_eq!(inventory.host(decision.host).map(|host| host.vm_count()), Some(1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Decider {
    tables: Tables,
}

impl Decider {
    /// One that has decided nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Finds the best host for a request. A host that the request prefers is taken if it will do; otherwise the policy
    /// decides.
    ///
    /// # Errors
    /// A refusal is exact: no host that would do has been overlooked. [`explain`](crate::explain) says the details.
    pub fn decide(
        &mut self,
        inventory: &Inventory,
        request: &Request,
        policy: &Policy,
    ) -> Result<Decision, Refusal> {
        let question = Question::new(inventory, request);
        check_project(inventory, &question)?;
        let decision = match self.find(&question, policy) {
            Some(candidate) => decision_of(&question, candidate),
            None => preempt::decide(self, &question, policy).ok_or(Refusal::NoHost)?,
        };
        if policy.host_failures > 0 && !failover::holds(self, inventory, request, policy, &decision) {
            return Err(Refusal::FailoverReserve { failures: policy.host_failures });
        }
        Ok(decision)
    }

    /// Finds hosts for several VMs together: for all of them, or for none. Each counts for the next.
    ///
    /// For members that ask for the same the answer is exact, also where they must be apart, evenly spread, or together
    /// with their own group; members that differ are placed in the order given, and an order that fails is not tried anew.
    ///
    /// # Errors
    /// How many would have been placed, and why the next could not.
    pub fn decide_group(
        &mut self,
        inventory: &Inventory,
        requests: &[Request],
        policy: &Policy,
    ) -> Result<Vec<Decision>, Refusal> {
        group::decide(self, inventory, requests, policy)
    }

    /// The best hosts for a request, best first, at most so many: for planners that choose among them.
    pub fn rank(
        &mut self,
        inventory: &Inventory,
        request: &Request,
        policy: &Policy,
        most: usize,
    ) -> Vec<(NodeId, Score)> {
        let question = Question::new(inventory, request);
        let ranked = match question.only() {
            Some(_) => self.find(&question, policy).into_iter().collect(),
            None => self.search(&question, policy).ranked(most),
        };
        let named = |c: Candidate| (NodeId::from_u128(inventory.hosts[c.host as usize].id), Score(c.score));
        ranked.into_iter().map(named).collect()
    }

    fn search<'a>(&'a mut self, question: &'a Question<'a>, policy: &'a Policy) -> Search<'a> {
        Search { question, policy, tables: &mut self.tables }
    }

    fn find(&mut self, question: &Question<'_>, policy: &Policy) -> Option<Candidate> {
        let mut search = self.search(question, policy);
        let named = match question.only() {
            Some(only) => Some(only?),
            None => question.request.preferred.and_then(|host| question.inventory.host_slot(host)),
        };
        if let Some(host) = named {
            if question.passes(host) {
                return Some(Candidate { score: search.score(host), tie: 0, host });
            }
            if question.only().is_some() {
                return None;
            }
        }
        search.best()
    }
}

/// Decides once. Whoever decides often keeps a [`Decider`].
pub fn decide(inventory: &Inventory, request: &Request, policy: &Policy) -> Result<Decision, Refusal> {
    Decider::new().decide(inventory, request, policy)
}

pub(crate) fn decision_of(question: &Question<'_>, candidate: Candidate) -> Decision {
    let host = &question.inventory.hosts[candidate.host as usize];
    Decision {
        vm: question.request.vm,
        host: NodeId::from_u128(host.id),
        version: HostVersion(host.version),
        score: Score(candidate.score),
        victims: Vec::new(),
    }
}

/// Whether the project may have the VM. One that is held already counts already.
pub(crate) fn check_project(inventory: &Inventory, question: &Question<'_>) -> Result<(), Refusal> {
    match project_limit_reached(inventory, question) {
        None => Ok(()),
        Some(limit) => Err(Refusal::Project { project: question.request.profile.project.clone(), limit }),
    }
}

pub(crate) fn project_limit_reached(inventory: &Inventory, question: &Question<'_>) -> Option<LimitReached> {
    let project = question.wanted.project.filter(|_| !question.is_held())?;
    let book = inventory.project_books.get(project as usize)?;
    LimitReached::check(book.limit, book.usage, project_demand(&question.request.profile))
}

#[cfg(test)]
mod tests;
