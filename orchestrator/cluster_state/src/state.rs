//! The whole of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
};

use drover_ids::{NodeId, OperationId, OwnerEpoch, VmId, VolumeId};

use crate::{
    Blocklisting, Capacity, Change, Claim, Desired, DiskImage, Image, Key, Liveness, Name, NameKind,
    NameRecord, Node, NodeFence, NodeSession, NodeState, Operation, PolicyRecord, Pool, PoolAccess, Progress,
    Project, ProjectUsage, Record, Revision, Right, RunState, Settings, Vm, VmPhase, VmReport, VmSpec,
    Volume,
};

/// Deletions remembered, so that an older change of the same record that arrives late does not bring it back. A change
/// can only be late by what is between a commit's answer and its echo on the watch: far less than this.
const TOMBSTONES_MAX: usize = 4096;

/// A record with the revision that a transaction must name to change it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<T> {
    /// The transaction that last wrote it.
    pub revision: Revision,
    /// What was written.
    pub value: T,
}

impl<T> Deref for Stored<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// What the VMs of a node take of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The sum of their demands. Both ends of a migration count.
    pub taken: Capacity,
    /// How many they are.
    pub vms: u32,
}

/// Desired and observed state of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterState {
    /// Stored: nodes.
    pub nodes: BTreeMap<NodeId, Stored<Node>>,
    /// Stored: VMs.
    pub vms: BTreeMap<VmId, Stored<Vm>>,
    /// Stored: volumes.
    pub volumes: BTreeMap<VolumeId, Stored<Volume>>,
    /// Stored: boot images.
    pub images: BTreeMap<Name, Stored<Image>>,
    /// Stored: pools that clients made.
    pub pools: BTreeMap<Name, Stored<Pool>>,
    /// Stored: disk images.
    pub disk_images: BTreeMap<Name, Stored<DiskImage>>,
    /// Stored: operations, ended ones until they are pruned.
    pub operations: BTreeMap<OperationId, Stored<Operation>>,
    /// Stored: names in use.
    pub names: BTreeMap<(NameKind, Name), Stored<NameRecord>>,
    /// Stored: placement policies.
    pub policies: BTreeMap<Name, Stored<PolicyRecord>>,
    /// Stored: projects.
    pub projects: BTreeMap<Name, Stored<Project>>,
    /// Stored: the cluster's settings, if anybody has changed them.
    pub settings: Option<Stored<Settings>>,
    /// Stored: what fences have had refused.
    pub blocklistings: BTreeMap<(VmId, OwnerEpoch), Stored<Blocklisting>>,
    /// Observed: what has been heard of each node.
    pub sessions: BTreeMap<NodeId, NodeSession>,
    /// Observed: what reconcile is doing about each VM that is not settled.
    pub progress: BTreeMap<VmId, Progress>,
    tombstones: BTreeMap<Key, Revision>,
}

impl ClusterState {
    /// An empty cluster.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in what the store says has happened. Returns whether it was news: a change that is not newer than what is
    /// known is dropped, so that a transaction's own answer and its echo on the watch may arrive in any order.
    pub fn apply(&mut self, change: Change) -> bool {
        let key = change.key();
        let revision = change.revision();
        if self
            .revision_of(&key)
            .or_else(|| self.tombstones.get(&key).copied())
            .is_some_and(|known| revision <= known)
        {
            return false;
        }
        match change {
            Change::Put { record, .. } => {
                self.tombstones.remove(&key);
                self.put(revision, record);
            }
            Change::Delete { .. } => {
                self.remove(&key);
                self.bury(key, revision);
            }
        }
        true
    }

    /// The revision of a record, if it is there.
    pub fn revision_of(&self, key: &Key) -> Option<Revision> {
        match key {
            Key::Node(id) => self.nodes.get(id).map(|s| s.revision),
            Key::Vm(id) => self.vms.get(id).map(|s| s.revision),
            Key::Volume(id) => self.volumes.get(id).map(|s| s.revision),
            Key::Image(name) => self.images.get(name).map(|s| s.revision),
            Key::Pool(name) => self.pools.get(name).map(|s| s.revision),
            Key::DiskImage(name) => self.disk_images.get(name).map(|s| s.revision),
            Key::Operation(id) => self.operations.get(id).map(|s| s.revision),
            Key::Name(kind, name) => self.names.get(&(*kind, name.clone())).map(|s| s.revision),
            Key::Policy(name) => self.policies.get(name).map(|s| s.revision),
            Key::Project(name) => self.projects.get(name).map(|s| s.revision),
            Key::Settings => self.settings.as_ref().map(|s| s.revision),
            Key::Blocklisting(vm, floor) => self.blocklistings.get(&(*vm, *floor)).map(|s| s.revision),
        }
    }

    /// The VM with this name.
    pub fn vm_named(&self, name: &str) -> Option<&Stored<Vm>> {
        self.vms.values().find(|vm| vm.spec.name.as_str() == name)
    }

    /// The volume with this name.
    pub fn volume_named(&self, name: &str) -> Option<&Stored<Volume>> {
        self.volumes.values().find(|volume| volume.name.as_str() == name)
    }

    /// The node with this name.
    pub fn node_named(&self, name: &str) -> Option<&Stored<Node>> {
        self.nodes.values().find(|node| node.name.as_str() == name)
    }

    /// What a node's name is, for people; its id if it is not known.
    pub fn node_name(&self, node: NodeId) -> String {
        self.nodes.get(&node).map_or_else(|| node.to_string(), |n| n.name.to_string())
    }

    /// The pools that a node reaches: those it is configured with, and all of RBD images where it has the library.
    pub fn reached_pools(&self, node: &Node) -> BTreeSet<Name> {
        let rbd = self.pools.keys().filter(|_| !node.librbd.is_empty());
        node.pools.iter().chain(rbd).cloned().collect()
    }

    /// How a node reaches the VM's volumes, where its own configuration does not say.
    pub fn pool_access(&self, spec: &VmSpec) -> BTreeMap<Name, PoolAccess> {
        let access = |pool: &Name| Some((pool.clone(), self.pools.get(pool)?.access()?));
        spec.volumes.iter().filter_map(|volume| access(&volume.pool)).collect()
    }

    /// Whether a process of the VM can leave something behind in a storage cluster when it ends: a lock, a watch.
    pub fn holds_rbd(&self, spec: &VmSpec) -> bool {
        spec.writable_volumes().any(|volume| self.pools.contains_key(&volume.pool))
    }

    /// What a node said last about a VM.
    pub fn report(&self, vm: VmId, node: NodeId) -> Option<&VmReport> {
        self.sessions.get(&node)?.vms.get(&vm)
    }

    /// What the VM's present owner (of a migration: the source) said last about it.
    pub fn owner_report(&self, vm: &Vm) -> Option<&VmReport> {
        let owner = vm.ownership.candidates().next()?;
        self.report(vm.id, owner.node).filter(|report| report.epoch == owner.epoch)
    }

    /// The state of a node. `None`: no such node.
    pub fn node_state(&self, node: NodeId) -> Option<NodeState> {
        let stored = self.nodes.get(&node)?;
        let liveness = self.sessions.get(&node).map_or(Liveness::Unheard, |s| s.liveness);
        Some(match (&stored.fence, liveness) {
            (NodeFence::Fencing { .. }, _) => NodeState::Fencing,
            (NodeFence::Fenced(_), _) => NodeState::Fenced,
            (NodeFence::Clear, Liveness::Alive) => NodeState::Ready,
            (NodeFence::Clear, Liveness::Suspect) => NodeState::Suspect,
            (NodeFence::Clear, Liveness::Unheard) => NodeState::Unknown,
        })
    }

    /// What its VMs take of each node.
    pub fn usage(&self) -> BTreeMap<NodeId, Usage> {
        let mut usage: BTreeMap<NodeId, Usage> =
            self.nodes.keys().map(|id| (*id, Usage::default())).collect();
        for vm in self.vms.values() {
            for candidate in vm.ownership.candidates() {
                let entry = usage.entry(candidate.node).or_default();
                entry.taken = entry.taken.plus(vm.spec.demand());
                entry.vms += 1;
            }
        }
        usage
    }

    /// What the VMs of a project take, running or not.
    pub fn project_usage(&self, project: &str) -> ProjectUsage {
        let mut usage = ProjectUsage::default();
        let counts = |vm: &&Stored<Vm>| vm.desired != Desired::Deleted && vm.spec.project() == project;
        for vm in self.vms.values().filter(counts) {
            usage.vms = usage.vms.saturating_add(1);
            usage.taken = usage.taken.plus(vm.spec.demand());
        }
        usage
    }

    /// The cluster's settings: what is stored, or else the defaults.
    pub fn settings(&self) -> Settings {
        self.settings.as_ref().map(|stored| stored.value.clone()).unwrap_or_default()
    }

    /// The state of a VM for people.
    pub fn vm_phase(&self, vm: &Vm) -> VmPhase {
        let progress = self.progress.get(&vm.id);
        let fencing = progress.is_some_and(|p| p.fencing);
        match (vm.desired, vm.ownership.right()) {
            (Desired::Deleted, _) => VmPhase::Deleting,
            (Desired::Stopped, Right::Unowned) => VmPhase::Stopped,
            (Desired::Running, Right::Unowned) if progress.is_some_and(|p| p.next_try.is_some()) => {
                VmPhase::Backoff
            }
            (Desired::Running, Right::Unowned) => VmPhase::Pending,
            _ if fencing => VmPhase::Fencing,
            (Desired::Stopped, _) => VmPhase::Stopping,
            (Desired::Running, Right::Migrating { .. }) => VmPhase::Migrating,
            (Desired::Running, Right::Owned { claim, .. }) => match self.owner_report(vm).map(|r| r.state) {
                Some(RunState::Running | RunState::Paused | RunState::MigratingOut) => VmPhase::Running,
                // A settled VM whose node has not reported since this control plane started.
                None if claim == Claim::Taken => VmPhase::Running,
                _ => VmPhase::Starting,
            },
        }
    }

    fn put(&mut self, revision: Revision, record: Record) {
        match record {
            Record::Node(value) => {
                self.nodes.insert(value.id, Stored { revision, value });
            }
            Record::Vm(value) => {
                self.vms.insert(value.id, Stored { revision, value });
            }
            Record::Volume(value) => {
                self.volumes.insert(value.id, Stored { revision, value });
            }
            Record::Image(value) => {
                self.images.insert(value.name.clone(), Stored { revision, value });
            }
            Record::Pool(value) => {
                self.pools.insert(value.name.clone(), Stored { revision, value });
            }
            Record::DiskImage(value) => {
                self.disk_images.insert(value.name.clone(), Stored { revision, value });
            }
            Record::Operation(value) => {
                self.operations.insert(value.id, Stored { revision, value });
            }
            Record::Name(value) => {
                self.names.insert((value.kind, value.name.clone()), Stored { revision, value });
            }
            Record::Policy(value) => {
                self.policies.insert(value.name.clone(), Stored { revision, value });
            }
            Record::Project(value) => {
                self.projects.insert(value.name.clone(), Stored { revision, value });
            }
            Record::Settings(value) => self.settings = Some(Stored { revision, value }),
            Record::Blocklisting(value) => {
                self.blocklistings.insert((value.vm, value.floor), Stored { revision, value });
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        match key {
            Key::Node(id) => {
                self.nodes.remove(id);
                self.sessions.remove(id);
            }
            Key::Vm(id) => {
                self.vms.remove(id);
                self.progress.remove(id);
            }
            Key::Volume(id) => {
                self.volumes.remove(id);
            }
            Key::Image(name) => {
                self.images.remove(name);
            }
            Key::Pool(name) => {
                self.pools.remove(name);
            }
            Key::DiskImage(name) => {
                self.disk_images.remove(name);
            }
            Key::Operation(id) => {
                self.operations.remove(id);
            }
            Key::Name(kind, name) => {
                self.names.remove(&(*kind, name.clone()));
            }
            Key::Policy(name) => {
                self.policies.remove(name);
            }
            Key::Project(name) => {
                self.projects.remove(name);
            }
            Key::Settings => self.settings = None,
            Key::Blocklisting(vm, floor) => {
                self.blocklistings.remove(&(*vm, *floor));
            }
        }
    }

    fn bury(&mut self, key: Key, revision: Revision) {
        self.tombstones.insert(key, revision);
        if self.tombstones.len() > TOMBSTONES_MAX {
            let oldest =
                self.tombstones.iter().min_by_key(|(_, revision)| **revision).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                self.tombstones.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Subject, VolumeState, WallTime};

    fn volume(size: u64) -> Record {
        let (name, pool) = (Name::new("data").unwrap(), Name::new("default").unwrap());
        let size = drover_units::Bytes::new(size);
        let volume = Volume::new(VolumeId::from_u128(1), name, pool, size, WallTime::default());
        Record::Volume(Volume { state: VolumeState::Ready, ..volume })
    }
    fn put(revision: u64, size: u64) -> Change {
        Change::Put { revision: Revision::new(revision), record: volume(size) }
    }
    fn delete(revision: u64) -> Change {
        Change::Delete { revision: Revision::new(revision), key: Key::Volume(VolumeId::from_u128(1)) }
    }

    #[test]
    fn the_newest_change_wins_in_any_order_of_arrival() {
        let mut state = ClusterState::new();
        assert!(state.apply(put(2, 1024)));
        assert!(!state.apply(put(1, 512)));
        assert!(!state.apply(put(2, 1024)));
        assert_eq!(state.volumes[&VolumeId::from_u128(1)].size.get(), 1024);
    }

    #[test]
    fn a_late_echo_does_not_bring_a_deleted_record_back() {
        let mut state = ClusterState::new();
        assert!(state.apply(put(1, 512)));
        assert!(state.apply(delete(3)));
        assert!(!state.apply(put(2, 1024)));
        assert!(state.volumes.is_empty());
        assert!(state.apply(put(4, 2048)), "a new record with the key is news");
    }

    #[test]
    fn a_name_is_found_by_its_kind() {
        let mut state = ClusterState::new();
        let record = NameRecord {
            kind: NameKind::Vm,
            name: Name::new("web").unwrap(),
            holder: Subject::Vm(VmId::from_u128(7)),
        };
        state.apply(Change::Put { revision: Revision::new(1), record: Record::Name(record) });
        assert!(state.revision_of(&Key::Name(NameKind::Vm, Name::new("web").unwrap())).is_some());
        assert!(state.revision_of(&Key::Name(NameKind::Node, Name::new("web").unwrap())).is_none());
    }
}
