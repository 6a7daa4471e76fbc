//! A copy of the inventory on which moves are tried.

use std::collections::{BTreeMap, BTreeSet};

use drover_ids::{NodeId, VmId};
use drover_placement::{
    Decider, Explanation, HostState, HostView, Inventory, PageBacking, Pinning, Policy, Profile, Reason,
    Refusal, Request, Scope, VmView, explain,
};
use drover_units::Bytes;

use crate::{Basis, CoreSeconds, MigrationCost, Move, Why, load::Amount};

/// Threads that copying keeps busy: one sends, one receives.
const THREADS_PER_MIGRATION: f64 = 2.0;
/// Share of its speed that a guest loses while its memory is copied: write-protection faults and contention for
/// memory bandwidth. Published figures for pre-copy are between 5 and 20 percent.
const SLOWDOWN: f64 = 0.1;

/// Moves that belong together: each is only right because the others are made, too.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Step {
    pub(crate) moves: Vec<Move>,
}

impl Step {
    pub(crate) fn hosts(&self) -> impl Iterator<Item = NodeId> {
        self.moves.iter().flat_map(|mv| [mv.from, mv.to])
    }
}

/// What is kept from one question to the next, and how many may still be asked: what bounds a planner's work.
pub(crate) struct Search {
    decider: Decider,
    asks_left: u32,
}

impl Search {
    pub(crate) fn new(asks: u32) -> Self {
        Self { decider: Decider::new(), asks_left: asks }
    }

    /// Counts a question. `false`: there were too many.
    pub(crate) fn ask(&mut self) -> bool {
        let may = self.asks_left > 0;
        self.asks_left = self.asks_left.saturating_sub(1);
        may
    }
}

/// Whether room that is kept for host failures may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserve {
    /// It stays.
    Kept,
    /// A host is given up on purpose: that is what the room is for.
    Used,
}

/// Moves found so far, on a copy of the inventory. Copies share what they have in common.
#[derive(Clone)]
pub(crate) struct Trial<'a> {
    pub(crate) basis: &'a Basis<'a>,
    inventory: Inventory,
    reserve: Reserve,
}

impl<'a> Trial<'a> {
    pub(crate) fn new(basis: &'a Basis<'a>, reserve: Reserve) -> Self {
        Self { basis, inventory: basis.inventory.clone(), reserve }
    }

    /// Closes hosts to everything new.
    pub(crate) fn close(&mut self, hosts: &BTreeSet<NodeId>) {
        for host in hosts {
            let known = self.inventory.set_state(*host, HostState::Draining);
            debug_assert!(known.is_ok(), "the planner asked for hosts that are there");
        }
    }

    fn view(&self, host: NodeId) -> Option<HostView<'_>> {
        self.inventory.host(host)
    }

    /// A VM, if it is held anywhere: the first of where it is.
    fn vm(&self, vm: VmId) -> Option<VmView<'_>> {
        self.inventory.vm(vm).next()
    }

    /// Every host, by id.
    pub(crate) fn hosts(&self) -> Vec<NodeId> {
        let mut hosts: Vec<NodeId> = self.inventory.hosts().map(|host| host.id()).collect();
        hosts.sort_unstable();
        hosts
    }

    /// Whether a host takes work.
    pub(crate) fn is_ready(&self, host: NodeId) -> bool {
        self.view(host).is_some_and(|host| host.state() == HostState::Ready)
    }

    /// Where a host is, in some sense. `None`: in no place.
    pub(crate) fn place(&self, host: NodeId, scope: Scope) -> Option<String> {
        let view = self.view(host)?;
        let place = match scope {
            Scope::Host => host.to_string(),
            Scope::Rack => view.rack().to_owned(),
            Scope::Zone => view.zone().to_owned(),
        };
        (!place.is_empty()).then_some(place)
    }

    /// VMs of a host, by id.
    pub(crate) fn vms_of(&self, host: NodeId) -> Vec<VmId> {
        let mut vms: Vec<VmId> =
            self.view(host).into_iter().flat_map(|view| view.vms()).map(|vm| vm.id()).collect();
        vms.sort_unstable();
        vms
    }

    /// Whether a host holds nothing.
    pub(crate) fn is_empty(&self, host: NodeId) -> bool {
        self.view(host).is_none_or(|view| view.vm_count() == 0)
    }

    /// Where a VM is, if it is in one place only.
    pub(crate) fn home(&self, vm: VmId) -> Option<NodeId> {
        let mut held = self.inventory.vm(vm);
        let home = held.next()?.host().id();
        held.next().is_none().then_some(home)
    }

    /// Whether a VM is on several hosts, one of them not among these.
    pub(crate) fn is_moving_out(&self, vm: VmId, hosts: &BTreeSet<NodeId>) -> bool {
        self.home(vm).is_none() && self.inventory.vm(vm).any(|view| !hosts.contains(&view.host().id()))
    }

    /// Whether a VM may be moved at all.
    pub(crate) fn is_movable(&self, vm: VmId) -> bool {
        !self.basis.immovable.contains(&vm) && self.home(vm).is_some()
    }

    /// What a VM insists on.
    pub(crate) fn profile(&self, vm: VmId) -> Option<&Profile> {
        self.vm(vm).map(|view| view.profile().as_ref())
    }

    /// What it is called; empty if nobody said.
    pub(crate) fn name(&self, vm: VmId) -> String {
        self.vm(vm).map(|view| view.name().to_owned()).unwrap_or_default()
    }

    /// Whether there is a VM, on a host, of which something is true.
    pub(crate) fn any_vm(&self, is: impl Fn(VmId, &Profile, NodeId) -> bool) -> bool {
        self.inventory.vms().any(|view| is(view.id(), view.profile(), view.host().id()))
    }

    /// What a VM asks for.
    pub(crate) fn request(&self, vm: VmId) -> Option<Request> {
        self.vm(vm).map(|view| view.request())
    }

    /// What a VM takes of a host: hundredths of a vCPU, and memory of its kind.
    pub(crate) fn takes(&self, vm: VmId, host: NodeId) -> (u64, Bytes) {
        let (Some(vm), Some(host)) = (self.vm(vm), self.view(host)) else { return (0, Bytes::ZERO) };
        let demand = vm.profile().demand;
        let each = match demand.pinning {
            Pinning::Shared => 100,
            Pinning::Dedicated => u64::from(host.cpu_overcommit().get()),
        };
        let page = demand.backing.page().get();
        let memory = demand.memory.get().div_ceil(page).saturating_mul(page);
        (u64::from(demand.vcpus.get()) * each, Bytes::new(memory))
    }

    /// How large a VM is, compared to others: the larger of its shares of the cluster's mean host does not matter, only
    /// the order, so CPU counts as what usually goes with it.
    pub(crate) fn size(&self, vm: VmId) -> f64 {
        let demand = self.profile(vm).map(|profile| profile.demand).unwrap_or_default();
        let usual_memory = Bytes::gib(4).get() as f64;
        f64::from(demand.vcpus.get()).max(demand.memory.get() as f64 / usual_memory)
    }

    /// What a VM is expected to use of a host if nobody measured: threads, bytes.
    pub(crate) fn nominal(&self, vm: VmId, host: NodeId) -> Amount {
        let (Some(vm), Some(host)) = (self.vm(vm), self.view(host)) else { return [0.0; 2] };
        let demand = vm.profile().demand;
        let threads = f64::from(demand.vcpus.get());
        // Overcommit is the owner's word for how much of a vCPU is idle.
        let busy = match demand.pinning {
            Pinning::Shared => threads * 100.0 / f64::from(host.cpu_overcommit().get().max(1)),
            Pinning::Dedicated => threads,
        };
        [busy, demand.memory.get() as f64]
    }

    /// What a host has to give, threads and bytes, and its measured load, if it reports any.
    pub(crate) fn capacity_and_load(&self, host: NodeId) -> (Amount, Option<Amount>) {
        let Some(view) = self.view(host) else { return ([0.0; 2], None) };
        let threads = f64::from(view.cpu_capacity().0) / f64::from(view.cpu_overcommit().get().max(1));
        let huge =
            [PageBacking::Huge2Mib, PageBacking::Huge1Gib].map(|backing| view.hugepages(backing).capacity);
        let memory = huge.into_iter().fold(view.memory_capacity(), Bytes::saturating_add);
        let load = view.load();
        let measured = [f64::from(load.cpu_centi) / 100.0, load.memory.get() as f64];
        ([threads, memory.get() as f64], (load != Default::default()).then_some(measured))
    }

    /// The policy that decides for a request. A move never preempts.
    fn policy(&self, request: &Request) -> Policy {
        let policy = self.basis.policies.of(&request.profile.project);
        let host_failures = if self.reserve == Reserve::Kept { policy.host_failures } else { 0 };
        Policy { preemption: false, host_failures, ..policy.clone() }
    }

    /// The best host for a VM other than where it is; of all, or `only` this.
    pub(crate) fn find(
        &self,
        search: &mut Search,
        vm: VmId,
        only: Option<NodeId>,
        excluded: &BTreeSet<NodeId>,
    ) -> Result<NodeId, Refusal> {
        let Some(mut request) = self.request(vm) else { return Err(Refusal::NoHost) };
        request.only = only;
        request.excluded.extend(self.home(vm));
        request.excluded.extend(excluded);
        self.find_for(search, &request)
    }

    /// The best host for a request.
    pub(crate) fn find_for(&self, search: &mut Search, request: &Request) -> Result<NodeId, Refusal> {
        if !search.ask() {
            return Err(Refusal::NoHost);
        }
        let decision = search.decider.decide(&self.inventory, request, &self.policy(request))?;
        Ok(decision.host)
    }

    /// Hosts for VMs that are only right together, as if none of them were anywhere.
    pub(crate) fn find_together(&self, search: &mut Search, vms: &[VmId]) -> Result<Vec<NodeId>, Refusal> {
        if !search.ask() {
            return Err(Refusal::NoHost);
        }
        let requests: Vec<Request> = vms.iter().filter_map(|vm| self.request(*vm)).collect();
        let mut without = self.clone();
        for vm in vms {
            without.lift(*vm);
        }
        let Some(first) = requests.first() else { return Ok(Vec::new()) };
        let policy = self.policy(first);
        let decisions = search.decider.decide_group(&without.inventory, &requests, &policy)?;
        Ok(decisions.into_iter().map(|decision| decision.host).collect())
    }

    /// Everything against a request on a host.
    pub(crate) fn reasons(&self, request: &Request, host: NodeId) -> Vec<Reason> {
        self.inventory.check(request, host).unwrap_or_else(|| vec![Reason::Excluded])
    }

    /// Everything against a request on each host.
    pub(crate) fn all_reasons(&self, request: &Request) -> BTreeMap<NodeId, Vec<Reason>> {
        self.inventory.check_all(request)
    }

    /// Counts a VM nowhere.
    pub(crate) fn lift(&mut self, vm: VmId) {
        let held = self.inventory.remove_vm(vm);
        debug_assert!(held.is_ok(), "VM {vm} was found in this inventory");
    }

    fn release(&mut self, vm: VmId, host: NodeId) {
        let held = self.inventory.release(vm, host);
        debug_assert!(held.is_ok(), "VM {vm} was found on host {host}");
    }

    /// Counts a request on a host.
    pub(crate) fn hold(&mut self, request: &Request, host: NodeId) {
        let held = self.inventory.hold(host, request);
        debug_assert!(held.is_ok(), "host {host} was found in this inventory");
    }

    /// Whether each of a step's moves is right while all of them, and all that has begun, count on both ends.
    pub(crate) fn may_begin(&self, step: &Step) -> bool {
        if let [mv] = step.moves.as_slice() {
            return self.request(mv.vm).is_some_and(|request| self.reasons(&request, mv.to).is_empty());
        }
        step.moves.iter().all(|mv| {
            let mut others = self.clone();
            for other in step.moves.iter().filter(|other| other.vm != mv.vm) {
                others.begin_move(other);
            }
            others.request(mv.vm).is_some_and(|request| others.reasons(&request, mv.to).is_empty())
        })
    }

    fn begin_move(&mut self, mv: &Move) {
        if let Some(request) = self.request(mv.vm) {
            self.hold(&request, mv.to);
        }
    }

    /// Counts a step's VMs on both ends.
    pub(crate) fn begin(&mut self, step: &Step) {
        for mv in &step.moves {
            self.begin_move(mv);
        }
    }

    /// Counts a step's VMs on their targets only.
    pub(crate) fn end(&mut self, step: &Step) {
        for mv in &step.moves {
            self.release(mv.vm, mv.from);
        }
    }

    /// Makes a step as if nothing else moved. `false`, and nothing is changed: it is not right.
    pub(crate) fn make(&mut self, step: &Step) -> bool {
        let right = self.may_begin(step);
        if right {
            self.force(step);
        }
        right
    }

    /// Makes a step that has been found right.
    pub(crate) fn force(&mut self, step: &Step) {
        self.begin(step);
        self.end(step);
    }

    /// Everything against every host.
    pub(crate) fn explain(&self, request: &Request) -> Explanation {
        explain(&self.inventory, request, &self.policy(request))
    }

    /// What moving a VM is expected to take.
    fn cost(&self, vm: VmId) -> MigrationCost {
        let memory = self.profile(vm).map(|profile| profile.demand.memory).unwrap_or_default();
        let dirty_rate = self.basis.usage.of(vm).and_then(|usage| usage.dirty_rate);
        self.basis.costs.expect(vm, memory, dirty_rate)
    }

    /// What moving a VM comes to, core seconds.
    pub(crate) fn price_of(&self, vm: VmId) -> f64 {
        self.price(vm, self.cost(vm)).0
    }

    fn price(&self, vm: VmId, cost: MigrationCost) -> CoreSeconds {
        let vcpus = self.profile(vm).map_or(0.0, |profile| f64::from(profile.demand.vcpus.get()));
        let copying = cost.time.as_secs_f64() * (THREADS_PER_MIGRATION + vcpus * SLOWDOWN);
        CoreSeconds(copying + cost.downtime.as_secs_f64() * vcpus)
    }

    /// A move with its cost worked out, and nothing gained yet.
    pub(crate) fn planned(&self, vm: VmId, from: NodeId, to: NodeId, why: Why) -> Move {
        let cost = self.cost(vm);
        Move { vm, from, to, why, cost, gain: CoreSeconds::default(), price: self.price(vm, cost) }
    }
}
