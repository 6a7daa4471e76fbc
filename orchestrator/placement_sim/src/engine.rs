//! The engine as a placer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use drover_ids::{NodeId, VmId};
use drover_placement::{
    Conflict, Decider, Demand, HostCpu, HostMemory, HostSpec, Inventory, InventoryError, Percent, Policies,
    Policy, Profile, Request, Seconds, Topology,
};
use drover_placement_trace::{Flavour, Moment, Priority, TraceVm};

use drover_rebalance::{Basis, CostModel, Parallelism, RoomLimits, Usage, defragment};

use crate::{Ask, Cluster, HostClass, HostIndex, Move, Placer};

/// What may be moved for one request. A simulation asks how tight it could be, not how fast: more than a person would move.
const ROOM_LIMITS: RoomLimits =
    RoomLimits { moves: 64, parallelism: Parallelism { per_source: 2, per_target: 2, cluster: 16 } };

/// For how long after a search that found no room none is made for a VM of that size or a larger one. A search looks at most
/// of the cluster, and a cluster that is full refuses thousands of requests a day.
const RETRY_AFTER: Duration = Duration::from_secs(6 * 3600);

/// The engine refused the cluster.
#[derive(Debug, thiserror::Error)]
#[error("host {host} cannot be added to the inventory")]
pub struct EngineError {
    /// Its name.
    host: String,
    /// Why.
    #[source]
    cause: InventoryError,
}

/// Places by `drover-placement` and one of its policies: each request is decided and committed as a control plane does it.
#[derive(Debug)]
pub struct EnginePlacer {
    inventory: Inventory,
    decider: Decider,
    policies: Policies,
    costs: CostModel,
    usage: Usage,
    immovable: BTreeSet<VmId>,
    /// For which flavours no room could be made when it was last tried.
    no_room_since: BTreeMap<Flavour, Moment>,
    profiles: BTreeMap<(Flavour, Priority), Arc<Profile>>,
}

impl EnginePlacer {
    /// Begins with empty hosts.
    ///
    /// # Errors
    /// If the inventory refuses a host of the cluster.
    pub fn new(cluster: &Cluster, policy: Policy) -> Result<Self, EngineError> {
        let mut inventory = Inventory::new();
        for (index, class, zone, rack) in cluster.hosts() {
            let spec = host_spec(index, class, zone, rack);
            let failed = |cause| EngineError { host: spec.name.clone(), cause };
            inventory.add_host(&spec).map_err(failed)?;
        }
        Ok(Self {
            inventory,
            decider: Decider::new(),
            policies: Policies { cluster: policy, projects: BTreeMap::new() },
            costs: CostModel::new(),
            usage: Usage::new(),
            immovable: BTreeSet::new(),
            no_room_since: BTreeMap::new(),
            profiles: BTreeMap::new(),
        })
    }

    fn request(&mut self, ask: &Ask) -> Request {
        let profile = self.profiles.entry((ask.flavour, ask.priority)).or_insert_with(|| {
            let mut profile = Profile::new(Demand::new(ask.flavour.vcpus, ask.flavour.memory));
            profile.priority = u32::from(ask.priority == Priority::High);
            Arc::new(profile)
        });
        let mut request = Request::new(vm_id(ask.vm), profile.clone());
        request.ends = ask.ends.map(seconds);
        request
    }

    fn migrate(&mut self, vm: VmId, from: NodeId, to: NodeId) -> Move {
        let held = self.inventory.vm(vm).next().expect("a plan moves VMs that are there").request();
        self.inventory.hold(to, &held).expect("a plan moves to hosts that are there");
        self.inventory.release(vm, from).expect("a plan moves VMs from where they are");
        Move { vm: trace_vm(vm), to: host_index(to) }
    }
}

impl Placer for EnginePlacer {
    fn place(&mut self, ask: &Ask) -> Option<HostIndex> {
        let request = self.request(ask);
        let decision = self.decider.decide(&self.inventory, &request, &self.policies.cluster).ok()?;
        let committed: Result<(), Conflict> = self.inventory.commit(&request, &decision);
        committed.expect("nobody else changes this inventory between decision and commit");
        Some(host_index(decision.host))
    }

    fn release(&mut self, vm: TraceVm) {
        self.inventory.remove_vm(vm_id(vm)).expect("it was placed and is released once");
    }

    fn make_room(&mut self, ask: &Ask) -> Vec<Move> {
        let hopeless = |(flavour, at): (&Flavour, &Moment)| {
            let at_least = ask.flavour.vcpus >= flavour.vcpus && ask.flavour.memory >= flavour.memory;
            at_least && ask.at - *at < RETRY_AFTER
        };
        if self.no_room_since.iter().any(hopeless) {
            return Vec::new();
        }
        let request = self.request(ask);
        let basis = Basis {
            inventory: &self.inventory,
            policies: &self.policies,
            costs: &self.costs,
            usage: &self.usage,
            immovable: &self.immovable,
        };
        let Ok(room) = defragment(&basis, &[request], &ROOM_LIMITS) else {
            self.no_room_since.insert(ask.flavour, ask.at);
            return Vec::new();
        };
        let moved: Vec<_> = room.plan.moves().map(|step| (step.vm, step.from, step.to)).collect();
        moved.into_iter().map(|(vm, from, to)| self.migrate(vm, from, to)).collect()
    }
}

// Ids are indices and one: zero stays nobody's.

fn vm_id(vm: TraceVm) -> VmId {
    VmId::from_u128(u128::from(vm.0) + 1)
}

fn trace_vm(vm: VmId) -> TraceVm {
    TraceVm(u32::try_from(vm.as_u128() - 1).expect("every VM's id was made from a number of the trace"))
}

fn node_id(host: HostIndex) -> NodeId {
    NodeId::from_u128(u128::from(host.0) + 1)
}

fn host_index(node: NodeId) -> HostIndex {
    HostIndex(u32::try_from(node.as_u128() - 1).expect("every host's id was made from an index"))
}

fn seconds(moment: Moment) -> Seconds {
    Seconds(u32::try_from(moment.secs()).unwrap_or(u32::MAX))
}

fn host_spec(index: HostIndex, class: &HostClass, zone: &str, rack: String) -> HostSpec {
    let mut spec =
        HostSpec::new(node_id(index), format!("{}-{}", class.name, index.0), class.cores, class.memory);
    spec.cpu = HostCpu {
        reserved: class.reserved_cores,
        overcommit: Percent::new(class.cpu_overcommit_percent),
        ..spec.cpu
    };
    spec.memory = HostMemory {
        reserved: class.reserved_memory,
        overcommit: Percent::new(class.memory_overcommit_percent),
        ..spec.memory
    };
    spec.topology = Topology { zone: zone.to_owned(), rack };
    spec
}
