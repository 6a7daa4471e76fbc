//! What happens to a cluster, told to the engine and to the model alike.

use std::{cmp::Reverse, collections::BTreeMap, fmt::Debug};

use drover_ids::{NodeId, VmId};
use drover_invariants::{PlainCluster, PlainHost, PlainLimit, PlainPages, PlainVm, Standing, Violation};
use drover_placement::{
    Decider, Decision, HostState, Inventory, Load, NAMED, Outcome, Policy, Refusal, Request, Ties, explain,
};
use drover_units::Bytes;
use proptest::{collection::vec, prelude::*};

use crate::{
    model::{GIB, HOSTS, PROJECTS, VMS, host, node, vm, vm_id},
    translate,
};

/// How a request is put.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) vm: PlainVm,
    pub(crate) policy: Policy,
    pub(crate) preferred: Option<NodeId>,
    pub(crate) only: Option<NodeId>,
    pub(crate) excluded: Vec<NodeId>,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A host comes, or changes.
    Host(PlainHost),
    /// A host that holds nothing goes.
    HostGoes(NodeId),
    Ready(NodeId, bool),
    Heartbeat(NodeId, u32),
    Limit(String, PlainLimit),
    Place(Asked),
    PlaceGroup(Vec<PlainVm>, Policy),
    /// A VM moves to where the engine says, and counts on both ends until then.
    Move(VmId, Policy),
    /// A VM is found on a host, fit or not.
    Found(PlainVm, NodeId),
    Departs(VmId),
}

pub(crate) fn policy() -> impl Strategy<Value = Policy> {
    let host_failures = prop_oneof![5 => Just(0u8), 1 => 1u8..=2];
    (prop::sample::select(&NAMED[..]), any::<bool>(), prop::option::of(any::<u64>()), host_failures).prop_map(
        |(name, preemption, seed, host_failures)| Policy {
            preemption,
            host_failures,
            ties: seed.map_or(Ties::SmallestId, Ties::Seeded),
            ..Policy::named(name).expect("it is one of the named ones")
        },
    )
}

fn some_node() -> impl Strategy<Value = NodeId> {
    (1..=HOSTS).prop_map(node)
}

pub(crate) fn asked() -> impl Strategy<Value = Asked> {
    let rarely = || prop::option::weighted(0.1, some_node());
    (vm(), policy(), rarely(), rarely(), prop_oneof![4 => Just(vec![]), 1 => vec(some_node(), 1..=3)])
        .prop_map(|(vm, policy, preferred, only, excluded)| Asked { vm, policy, preferred, only, excluded })
}

fn event() -> impl Strategy<Value = Event> {
    let limit = (prop::option::of(1u64..=12), prop::option::of(1u64..=24), prop::option::of(0u64..=6));
    let limit =
        limit.prop_map(|(vcpus, gib, vms)| PlainLimit { vcpus, memory: gib.map(|gib| gib * GIB), vms });
    let alike = (vm(), 2u128..=4).prop_map(|(vm, count)| {
        (0..count).map(|index| PlainVm { id: vm_id(100 + index), ..vm.clone() }).collect::<Vec<_>>()
    });
    let group = (prop_oneof![vec(vm(), 2..=3), alike], policy());
    prop_oneof![
        3 => (1..=HOSTS).prop_flat_map(|id| host(node(id))).prop_map(Event::Host),
        1 => some_node().prop_map(Event::HostGoes),
        1 => (some_node(), prop::bool::weighted(0.7)).prop_map(|(host, ready)| Event::Ready(host, ready)),
        1 => (some_node(), 0u32..800).prop_map(|(host, load)| Event::Heartbeat(host, load)),
        1 => (prop::sample::select(&PROJECTS[1..]), limit).prop_map(|(p, limit)| Event::Limit(p.to_owned(), limit)),
        12 => asked().prop_map(Event::Place),
        3 => group.prop_map(|(vms, policy)| Event::PlaceGroup(vms, policy)),
        2 => ((1..=VMS).prop_map(vm_id), policy()).prop_map(|(vm, policy)| Event::Move(vm, policy)),
        1 => (vm(), some_node()).prop_map(|(vm, host)| Event::Found(vm, host)),
        4 => (1..=VMS).prop_map(vm_id).prop_map(Event::Departs),
    ]
}

/// A few hosts first, then anything.
pub(crate) fn history(length: usize) -> impl Strategy<Value = Vec<Event>> {
    let hosts: Vec<_> = (1..=HOSTS - 2).map(|id| host(node(id)).prop_map(Event::Host)).collect();
    (hosts, vec(event(), 0..=length)).prop_map(|(hosts, events)| [hosts, events].concat())
}

/// The engine and the model, side by side.
pub(crate) struct World {
    pub(crate) inventory: Inventory,
    pub(crate) decider: Decider,
    pub(crate) plain: PlainCluster,
    pub(crate) loads: BTreeMap<NodeId, Load>,
    /// What was decided so far, in words.
    pub(crate) decided: Vec<String>,
}

fn must<T, E: Debug>(result: Result<T, E>) -> T {
    result.expect("the model says that this can be done")
}

/// The room and the rules of one host, without the project's limit, which is nobody's host's.
pub(crate) fn host_against(plain: &PlainCluster, vm: &PlainVm, host: NodeId) -> Vec<Violation> {
    let mut against = plain.against(vm, host);
    against.retain(|violation| violation.rule != "project-limit");
    against
}

/// Whether the project may have the VM.
pub(crate) fn project_against(plain: &PlainCluster, vm: &PlainVm) -> bool {
    let elsewhere = plain.with(vm, node(0), None);
    let before = plain.over_limits();
    elsewhere.over_limits().iter().any(|violation| !before.contains(violation))
}

/// Whether all ask for the same.
fn alike(vms: &[PlainVm]) -> bool {
    let same = |vm: &PlainVm| PlainVm { id: vms[0].id, ..vm.clone() } == vms[0];
    vms.iter().all(same)
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            inventory: Inventory::new(),
            decider: Decider::new(),
            plain: PlainCluster::default(),
            loads: BTreeMap::new(),
            decided: Vec::new(),
        }
    }

    pub(crate) fn after(events: &[Event]) -> Self {
        let mut world = Self::new();
        events.iter().for_each(|event| world.happen(event));
        world
    }

    fn stands(&self, vm: VmId) -> Vec<NodeId> {
        self.plain.standing.iter().filter(|s| s.vm.id == vm).map(|s| s.host).collect()
    }

    pub(crate) fn happen(&mut self, event: &Event) {
        match event {
            Event::Host(host) => self.host(host),
            Event::HostGoes(host) => self.host_goes(*host),
            Event::Ready(host, ready) => {
                if let Some(known) = self.plain.hosts.iter_mut().find(|known| known.id == *host) {
                    known.takes_work = *ready;
                    let state = if *ready { HostState::Ready } else { HostState::Draining };
                    must(self.inventory.set_state(*host, state));
                }
            }
            Event::Heartbeat(host, cpu_centi) => {
                let load = Load { cpu_centi: *cpu_centi, memory: Bytes::new(u64::from(*cpu_centi) << 20) };
                let known = self.plain.host(*host).is_some();
                assert_eq!(self.inventory.heartbeat(*host, load).is_ok(), known);
                if known {
                    self.loads.insert(*host, load);
                }
            }
            Event::Limit(project, limit) => {
                self.plain.limits.insert(project.clone(), *limit);
                self.inventory.set_project_limit(project, translate::limit(*limit));
            }
            Event::Place(asked) => self.place(asked),
            Event::PlaceGroup(vms, policy) => self.place_group(vms, policy),
            Event::Move(vm, policy) => self.move_vm(*vm, policy),
            Event::Found(vm, host) => {
                if self.plain.host(*host).is_some() && self.stands(vm.id).is_empty() {
                    must(self.inventory.hold(*host, &translate::request(vm)));
                    self.stand(vm, *host);
                }
            }
            Event::Departs(vm) => self.departs(*vm),
        }
    }

    fn host(&mut self, host: &PlainHost) {
        let spec = translate::host_spec(host);
        if let Some(known) = self.plain.hosts.iter_mut().find(|known| known.id == host.id) {
            *known = host.clone();
            must(self.inventory.update_host(&spec));
            self.read_numa_nodes();
        } else {
            self.plain.hosts.push(host.clone());
            must(self.inventory.add_host(&spec));
        }
    }

    fn host_goes(&mut self, host: NodeId) {
        let holds = self.plain.standing.iter().any(|standing| standing.host == host);
        let gone = self.inventory.remove_host(host);
        assert_eq!(gone.is_ok(), self.plain.host(host).is_some() && !holds);
        if gone.is_ok() {
            self.plain.hosts.retain(|known| known.id != host);
            self.loads.remove(&host);
        }
    }

    /// Which NUMA node a VM is bound to is the engine's choice; that it is a good one is not.
    fn numa_node(&self, vm: VmId, host: NodeId) -> Option<usize> {
        self.inventory.vm(vm).find(|view| view.host().id() == host).and_then(|view| view.numa_node())
    }

    fn read_numa_nodes(&mut self) {
        let mut standing = std::mem::take(&mut self.plain.standing);
        for one in &mut standing {
            one.numa_node = self.numa_node(one.vm.id, one.host);
        }
        self.plain.standing = standing;
    }

    /// Writes down in the model what the engine already counts.
    fn stand(&mut self, vm: &PlainVm, host: NodeId) {
        let numa_node = self.numa_node(vm.id, host);
        self.plain.standing.push(Standing { vm: vm.clone(), host, numa_node });
    }

    fn departs(&mut self, vm: VmId) {
        let there = !self.stands(vm).is_empty();
        assert_eq!(self.inventory.remove_vm(vm).is_ok(), there);
        self.plain.standing.retain(|standing| standing.vm.id != vm);
    }

    pub(crate) fn request(asked: &Asked) -> Request {
        Request {
            preferred: asked.preferred,
            only: asked.only,
            excluded: asked.excluded.clone(),
            ..translate::request(&asked.vm)
        }
    }

    /// Whether the request itself rules a host out.
    pub(crate) fn is_asked_for(asked: &Asked, host: NodeId) -> bool {
        asked.only.is_none_or(|only| only == host) && !asked.excluded.contains(&host)
    }

    fn place(&mut self, asked: &Asked) {
        if !self.stands(asked.vm.id).is_empty() {
            return;
        }
        let request = Self::request(asked);
        let decided = self.decider.decide(&self.inventory, &request, &asked.policy);
        self.decided.push(format!("{decided:?}"));
        self.agrees(asked, &request, &decided);
        match decided {
            Ok(decision) => {
                self.is_right(asked, &decision);
                must(self.inventory.commit(&request, &decision));
                for victim in &decision.victims {
                    self.plain.standing.retain(|standing| standing.vm.id != *victim);
                }
                self.stand(&asked.vm, decision.host);
                self.nothing_worse_on(decision.host);
                self.may_lose(asked.policy.host_failures);
            }
            Err(refusal) => self.is_impossible(asked, &refusal),
        }
    }

    /// The VMs of the fullest hosts have places on the others, all at once.
    fn may_lose(&self, failures: u8) {
        let on = |host: NodeId| -> Vec<&PlainVm> {
            self.plain.standing.iter().filter(|s| s.host == host).map(|s| &s.vm).collect()
        };
        let fullness = |host: &PlainHost| {
            let base = |vm: &&PlainVm| if vm.pages == PlainPages::Base { vm.memory } else { 0 };
            let cpu = |vm: &&PlainVm| vm.vcpus * if vm.pinned { host.cpu_overcommit } else { 100 };
            let vms = on(host.id);
            (vms.iter().map(base).sum::<u64>(), vms.iter().map(cpu).sum::<u64>())
        };
        let mut full: Vec<&PlainHost> =
            self.plain.hosts.iter().filter(|host| host.takes_work && !on(host.id).is_empty()).collect();
        full.sort_by_key(|host| (Reverse(fullness(host)), host.id));
        full.truncate(usize::from(failures));
        let mut vms: Vec<PlainVm> = full.iter().flat_map(|host| on(host.id)).cloned().collect();
        // Every arrangement of more is too much work for a test.
        if vms.is_empty() || vms.len() > 4 {
            return;
        }
        vms.sort_by_key(|vm| (Reverse(vm.memory), Reverse(vm.vcpus), vm.id));
        let mut rest = vms.iter().fold(self.plain.clone(), |rest, vm| rest.without(vm.id));
        for host in &mut rest.hosts {
            host.takes_work &= !full.iter().any(|lost| lost.id == host.id);
        }
        // A project's limit does not keep its VMs from being restarted: they count already.
        rest.limits.clear();
        assert!(rest.arrangement(&vms, &|_, _| true).is_some(), "no room is kept for {vms:?}");
    }

    /// No decision violates anything.
    fn is_right(&self, asked: &Asked, decision: &Decision) {
        assert!(Self::is_asked_for(asked, decision.host), "{decision:?} was not asked for");
        assert!(decision.victims.is_empty() || asked.policy.preemption, "{decision:?} without preemption");
        let mut left = self.plain.clone();
        for victim in &decision.victims {
            let standing = left.standing.iter().find(|standing| standing.vm.id == *victim);
            assert!(standing.is_some_and(|s| s.vm.priority < asked.vm.priority), "{victim} is no victim");
            left = left.without(*victim);
        }
        assert_eq!(left.against(&asked.vm, decision.host), [], "{decision:?} of {asked:?}");
        if let (Some(preferred), true) = (asked.preferred, decision.victims.is_empty()) {
            let would_do =
                Self::is_asked_for(asked, preferred) && self.plain.against(&asked.vm, preferred).is_empty();
            assert!(!would_do || decision.host == preferred, "{decision:?} instead of {preferred}");
        }
    }

    /// What stands on a host is right as it lies there: sums of NUMA nodes that the engine chose are.
    fn nothing_worse_on(&self, host: NodeId) {
        let name = &self.plain.host(host).expect("it was chosen").name;
        let mut without_newest = self.plain.clone();
        without_newest.standing.pop();
        let of_host = |plain: &PlainCluster| -> Vec<Violation> {
            plain.over_capacity().into_iter().filter(|v| v.what.contains(&format!("host {name} "))).collect()
        };
        if of_host(&without_newest).is_empty() {
            assert_eq!(of_host(&self.plain), [], "the newest VM lies wrong");
        }
    }

    /// A refusal is confirmed by trying every host, and with preemption every set of victims on it.
    fn is_impossible(&self, asked: &Asked, refusal: &Refusal) {
        if let Refusal::Project { .. } = refusal {
            assert!(project_against(&self.plain, &asked.vm), "{refusal} is not so");
            return;
        }
        if let Refusal::FailoverReserve { failures } = refusal {
            // That there is no way to restart them is not proven: the engine tries one.
            assert!(*failures > 0 && *failures == asked.policy.host_failures);
            return;
        }
        assert_eq!(*refusal, Refusal::NoHost);
        for host in self.plain.hosts.iter().filter(|host| Self::is_asked_for(asked, host.id)) {
            let against = self.plain.against(&asked.vm, host.id);
            assert_ne!(against, [], "{:?} would do for {asked:?}", host.id);
            if asked.policy.preemption {
                let victims = self.victims_on(asked, host.id);
                assert_eq!(victims, None, "with victims, {:?} would do for {asked:?}", host.id);
            }
        }
    }

    /// A set of VMs of lower priority on a host without which it would do.
    fn victims_on(&self, asked: &Asked, host: NodeId) -> Option<Vec<VmId>> {
        let lower = |standing: &&Standing| standing.host == host && standing.vm.priority < asked.vm.priority;
        let lower: Vec<VmId> =
            self.plain.standing.iter().filter(lower).map(|standing| standing.vm.id).collect();
        (1u32..1 << lower.len().min(10)).find_map(|bits| {
            let chosen = (0..lower.len()).filter(|index| bits & 1 << index != 0).map(|index| lower[index]);
            let chosen: Vec<VmId> = chosen.collect();
            let left = chosen.iter().fold(self.plain.clone(), |left, vm| left.without(*vm));
            left.against(&asked.vm, host).is_empty().then_some(chosen)
        })
    }

    /// What the engine says of single hosts, and in its explanation, is what it decides.
    fn agrees(&self, asked: &Asked, request: &Request, decided: &Result<Decision, Refusal>) {
        let mut feasible = 0;
        for host in &self.plain.hosts {
            let said = self.inventory.check(request, host.id).expect("it is there");
            let against = host_against(&self.plain, &asked.vm, host.id);
            let passes = against.is_empty() && Self::is_asked_for(asked, host.id);
            assert_eq!(
                said.is_empty(),
                passes,
                "{:?}: engine {said:?}, model {against:?}, {asked:?}",
                host.id
            );
            feasible += usize::from(passes);
        }
        let explanation = explain(&self.inventory, request, &asked.policy);
        assert_eq!(explanation.hosts, self.plain.hosts.len());
        assert_eq!(explanation.feasible, feasible);
        let refused = explanation.hosts - feasible;
        assert_eq!(explanation.nearest.is_some(), refused > 0);
        assert!(explanation.refused.iter().all(|count| count.alone <= count.hosts && count.hosts <= refused));
        assert!(explanation.refused.iter().map(|count| count.hosts).sum::<usize>() >= refused);
        match (explanation.outcome, decided) {
            (Outcome::Refused(said), Err(refusal)) => assert_eq!(said, *refusal),
            (Outcome::Chosen { decision: said, winner, runner_up, preferred }, Ok(decision)) => {
                assert_eq!((&said, winner.score), (decision, decision.score));
                let better = runner_up.is_none_or(|second| second.score <= winner.score);
                assert!(better || preferred || asked.preferred == Some(decision.host), "{winner:?} won");
            }
            (said, decided) => panic!("explained as {said:?}, decided as {decided:?}"),
        }
    }

    fn place_group(&mut self, vms: &[PlainVm], policy: &Policy) {
        let mut ids: Vec<VmId> = vms.iter().map(|vm| vm.id).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.len() != vms.len() || ids.iter().any(|vm| !self.stands(*vm).is_empty()) {
            return;
        }
        let policy = Policy { preemption: false, ..policy.clone() };
        let requests: Vec<Request> = vms.iter().map(translate::request).collect();
        let decided = self.decider.decide_group(&self.inventory, &requests, &policy);
        self.decided.push(format!("{decided:?}"));
        match decided {
            Ok(decisions) => {
                assert_eq!(
                    decisions.iter().map(|d| d.vm).collect::<Vec<_>>(),
                    vms.iter().map(|v| v.id).collect::<Vec<_>>()
                );
                must(self.inventory.commit_group(&requests, &decisions));
                for (vm, decision) in vms.iter().zip(&decisions) {
                    let against = self.plain.against(vm, decision.host);
                    assert_eq!(against, [], "{} of the group {vms:?}, placed as {decisions:?}", vm.id);
                    self.stand(vm, decision.host);
                    self.nothing_worse_on(decision.host);
                }
            }
            Err(Refusal::FailoverReserve { failures }) => assert_eq!(failures, policy.host_failures),
            Err(refusal) if alike(vms) => {
                let way = self.plain.arrangement(vms, &|_, _| true);
                assert_eq!(way, None, "{refusal:?}, but there is a way for {vms:?}");
            }
            // Of members that differ the engine tries one order.
            Err(_) => {}
        }
    }

    fn move_vm(&mut self, vm: VmId, policy: &Policy) {
        let [from] = self.stands(vm)[..] else { return };
        let plain =
            self.plain.standing.iter().find(|standing| standing.vm.id == vm).expect("it stands").vm.clone();
        let policy = Policy { preemption: false, ..policy.clone() };
        let asked = Asked { vm: plain, policy, preferred: None, only: None, excluded: vec![from] };
        let request = Self::request(&asked);
        let decided = self.decider.decide(&self.inventory, &request, &asked.policy);
        self.decided.push(format!("{decided:?}"));
        match decided {
            Ok(decision) => {
                assert_eq!(self.plain.against(&asked.vm, decision.host), [], "{decision:?} of {asked:?}");
                must(self.inventory.commit_move(&request, &decision));
                self.stand(&asked.vm, decision.host);
                self.nothing_worse_on(decision.host);
                must(self.inventory.release(vm, from));
                self.plain.standing.retain(|standing| standing.vm.id != vm || standing.host != from);
            }
            Err(refusal) => self.is_impossible(&asked, &refusal),
        }
    }
}
