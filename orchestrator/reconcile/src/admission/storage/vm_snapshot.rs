//! Snapshots of whole VMs: every volume that a VM writes, all at one moment.
//!
//! There is no record of such a snapshot but those of its parts, one in each volume. All have its id and its name, and say
//! how many they are; so a part that has been deleted by itself shows.

use std::collections::BTreeSet;

use drover_cluster_state::{
    ClusterState, Desired, Key, Name, Record, Right, Snapshot, SnapshotState, StorageWork, Stored, Subject,
    Txn, Vm, VmPhase, VmSnapshot, Volume, VolumeState, WallTime,
};
use drover_ids::{OperationId, SnapshotId, VmId};

use super::{
    AdmissionError, Admitted, RequestIdentity, begin, repeated_work, require_free,
    snapshot::{NONE, SNAPSHOTS_MAX, require_no_clones},
};
use crate::admission::{
    find_vm,
    vm::{parse_name, require_not_suspended},
};

/// A VM's snapshot, as a client names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmSnapshotName {
    /// Name or id; of a VM that is gone, its id.
    pub vm: String,
    /// Name or id.
    pub snapshot: String,
}

/// A part of a VM's snapshot.
#[derive(Clone, Copy, Debug)]
pub struct VmSnapshotPart<'a> {
    /// Of which volume.
    pub volume: &'a Stored<Volume>,
    /// The volume's snapshot.
    pub snapshot: &'a Snapshot,
    /// What it is a part of.
    pub whole: &'a VmSnapshot,
}

/// Every part of every VM's snapshot, in the order of the volumes.
pub fn vm_snapshot_parts(state: &ClusterState) -> impl Iterator<Item = VmSnapshotPart<'_>> {
    state.volumes.values().flat_map(|volume| {
        volume.snapshots.iter().filter_map(move |snapshot| {
            let whole = snapshot.part_of.as_ref()?;
            Some(VmSnapshotPart { volume, snapshot, whole })
        })
    })
}

/// Admits a snapshot of a VM, which runs or is stopped. `configured` are the pools that are directories: what is in one
/// cannot be kept while a VM runs.
pub fn create_vm_snapshot(
    state: &ClusterState,
    configured: &BTreeSet<Name>,
    name: &VmSnapshotName,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let snapshot = SnapshotId::from_u128(identity.operation().as_u128());
    let work = StorageWork::VmSnapshotCreate { snapshot };
    if let Some(earlier) = repeated_work(state, identity, work.name(), &name.vm)? {
        return Ok(earlier);
    }
    let vm = find_vm(state, "vm", &name.vm)?;
    let runs = match (vm.desired, vm.ownership.right()) {
        (Desired::Running, _) if state.vm_phase(vm) == VmPhase::Running => true,
        (Desired::Stopped, Right::Unowned) => false,
        _ => {
            let problem = format!("VM '{}' is {:?}", vm.spec.name, state.vm_phase(vm));
            return Err(AdmissionError::wrong_state("vm", problem, "a VM that is Running or Stopped"));
        }
    };
    let kept = parse_name("name", &name.snapshot)?;
    let parts = vm_snapshot_parts(state).filter(|part| part.whole.vm == vm.id);
    if let Some(taken) = parts.map(|part| part.snapshot).find(|snapshot| snapshot.name == kept) {
        let (name, holder) = (kept.to_string(), format!("{} of the same VM", taken.id));
        return Err(AdmissionError::NameTaken { field: "name", kind: "VM snapshot", name, holder });
    }
    let volumes = writable_volumes(state, vm)?;
    let whole =
        VmSnapshot { vm: vm.id, volumes: u32::try_from(volumes.len()).unwrap_or(u32::MAX), hold: None };
    let mut txn = Txn::new();
    let operation = begin(&mut txn, identity, work, (Subject::Vm(vm.id), vm.spec.name.clone()), now);
    txn.require(Key::Vm(vm.id), vm);
    for volume in volumes {
        if runs && configured.contains(&volume.pool) {
            let problem = format!(
                "volume '{}' is in pool '{}', a directory: its content cannot be kept while VM '{}' runs",
                volume.name, volume.pool, vm.spec.name
            );
            let valid = "a VM that is stopped, or one whose volumes are all in Ceph";
            return Err(AdmissionError::wrong_state("vm", problem, valid));
        }
        require_room(state, volume, &kept)?;
        let mut changed = Volume { operation: Some(operation), ..volume.value.clone() };
        changed.snapshots.push(Snapshot {
            id: snapshot,
            name: kept.clone(),
            size: volume.size,
            protected: false,
            state: SnapshotState::Creating,
            created_at: now,
            part_of: Some(whole.clone()),
        });
        txn.update(volume.revision, Record::Volume(changed));
    }
    Ok(Admitted { operation, txn: Some(txn) })
}

/// Admits that every volume of a VM is given the content it had. The VM must be stopped, and is not started meanwhile.
pub fn rollback_vm_snapshot(
    state: &ClusterState,
    name: &VmSnapshotName,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let work = |snapshot| StorageWork::VmSnapshotRollback { snapshot };
    if let Some(earlier) = repeated_work(state, identity, work(NONE).name(), &name.vm)? {
        return Ok(earlier);
    }
    let found = find(state, name)?;
    let (has, all) = (found.parts.len(), found.parts[0].whole.volumes);
    if u32::try_from(has) != Ok(all) {
        let problem = format!("VM snapshot '{}' has {has} of its {all} parts", found.name());
        return Err(AdmissionError::wrong_state("snapshot", problem, "one that is complete"));
    }
    let (mut txn, operation) = found.begin(identity, &work, now);
    for part in &found.parts {
        if part.snapshot.state != SnapshotState::Ready {
            let problem = format!("VM snapshot '{}' is not ready ({:?})", found.name(), part.snapshot.state);
            return Err(AdmissionError::wrong_state("snapshot", problem, "one that is ready"));
        }
        require_idle(state, part.volume)?;
        if let Some(vm) = part.volume.attached.and_then(|vm| state.vms.get(&vm)) {
            require_stopped(vm)?;
            require_not_suspended(vm)?;
            // Its volumes mostly have one.
            if !txn.keys().any(|key| *key == Key::Vm(vm.id)) {
                txn.require(Key::Vm(vm.id), vm);
            }
        }
        let changed = Volume { operation: Some(operation), ..part.volume.value.clone() };
        txn.update(part.volume.revision, Record::Volume(changed));
    }
    Ok(Admitted { operation, txn: Some(txn) })
}

/// Admits the removal of a VM's snapshot, of what is left of one too.
pub fn delete_vm_snapshot(
    state: &ClusterState,
    name: &VmSnapshotName,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let work = |snapshot| StorageWork::VmSnapshotDelete { snapshot };
    if let Some(earlier) = repeated_work(state, identity, work(NONE).name(), &name.vm)? {
        return Ok(earlier);
    }
    let found = find(state, name)?;
    let (mut txn, operation) = found.begin(identity, &work, now);
    for part in &found.parts {
        require_idle(state, part.volume)?;
        if part.snapshot.protected {
            let problem = format!("its part in volume '{}' is protected", part.volume.name);
            return Err(AdmissionError::wrong_state("snapshot", problem, "one that has been unprotected"));
        }
        require_no_clones(state, part.volume, part.snapshot)?;
        let mut changed = Volume { operation: Some(operation), ..part.volume.value.clone() };
        for one in changed.snapshots.iter_mut().filter(|one| one.id == part.snapshot.id) {
            one.state = SnapshotState::Deleting;
        }
        txn.update(part.volume.revision, Record::Volume(changed));
    }
    Ok(Admitted { operation, txn: Some(txn) })
}

/// The parts of one snapshot, at least one.
struct Found<'a> {
    vm: VmId,
    vm_name: Name,
    parts: Vec<VmSnapshotPart<'a>>,
}

impl Found<'_> {
    fn name(&self) -> &Name {
        &self.parts[0].snapshot.name
    }

    fn begin(
        &self,
        identity: &RequestIdentity,
        work: &dyn Fn(SnapshotId) -> StorageWork,
        now: WallTime,
    ) -> (Txn, OperationId) {
        let mut txn = Txn::new();
        let subject = (Subject::Vm(self.vm), self.vm_name.clone());
        let operation = begin(&mut txn, identity, work(self.parts[0].snapshot.id), subject, now);
        (txn, operation)
    }
}

fn find<'a>(state: &'a ClusterState, name: &VmSnapshotName) -> Result<Found<'a>, AdmissionError> {
    let (vm, vm_name) = match (find_vm(state, "vm", &name.vm), name.vm.parse::<VmId>()) {
        (Ok(vm), _) => (vm.id, vm.spec.name.clone()),
        // A VM that is gone may have left snapshots; its name may be another one's.
        (Err(error), Ok(id)) => match Name::new(&id.to_string()) {
            Ok(text) if vm_snapshot_parts(state).any(|part| part.whole.vm == id) => (id, text),
            _ => return Err(error),
        },
        (Err(error), Err(_)) => return Err(error),
    };
    let of_vm: Vec<VmSnapshotPart<'a>> =
        vm_snapshot_parts(state).filter(|part| part.whole.vm == vm).collect();
    let text = name.snapshot.as_str();
    let is_meant = |part: &&VmSnapshotPart<'_>| {
        text.parse() == Ok(part.snapshot.id) || part.snapshot.name.as_str() == text
    };
    let parts: Vec<_> = of_vm.iter().filter(is_meant).copied().collect();
    if parts.is_empty() {
        let known: BTreeSet<&str> = of_vm.iter().map(|part| part.snapshot.name.as_str()).collect();
        return Err(AdmissionError::not_found("snapshot", "VM snapshot", text, known.into_iter()));
    }
    Ok(Found { vm, vm_name, parts })
}

fn writable_volumes<'a>(state: &'a ClusterState, vm: &Vm) -> Result<Vec<&'a Stored<Volume>>, AdmissionError> {
    let volumes: Vec<_> =
        vm.spec.writable_volumes().filter_map(|attachment| state.volumes.get(&attachment.volume)).collect();
    if volumes.is_empty() {
        let problem = format!("VM '{}' has no volume that it writes", vm.spec.name);
        return Err(AdmissionError::wrong_state("vm", problem, "a VM with volumes"));
    }
    Ok(volumes)
}

fn require_idle(state: &ClusterState, volume: &Volume) -> Result<(), AdmissionError> {
    if volume.state != VolumeState::Ready {
        let problem = format!("volume '{}' is not ready ({:?})", volume.name, volume.state);
        return Err(AdmissionError::wrong_state("vm", problem, "a VM whose volumes are ready"));
    }
    require_free(state, "vm", &format!("volume '{}'", volume.name), volume.operation)
}

/// Whether a volume can have one more snapshot, of this name.
fn require_room(state: &ClusterState, volume: &Volume, name: &Name) -> Result<(), AdmissionError> {
    require_idle(state, volume)?;
    if let Some(taken) = volume.snapshots.iter().find(|snapshot| snapshot.name == *name) {
        let (name, holder) = (name.to_string(), format!("{} of volume '{}'", taken.id, volume.name));
        return Err(AdmissionError::NameTaken { field: "name", kind: "snapshot", name, holder });
    }
    if volume.snapshots.len() >= SNAPSHOTS_MAX {
        let problem = format!("volume '{}' has {SNAPSHOTS_MAX} snapshots", volume.name);
        return Err(AdmissionError::wrong_state("vm", problem, format!("less than {SNAPSHOTS_MAX}")));
    }
    Ok(())
}

fn require_stopped(vm: &Vm) -> Result<(), AdmissionError> {
    if vm.desired == Desired::Running || vm.ownership.right() != Right::Unowned {
        let problem = format!("VM '{}' runs", vm.spec.name);
        return Err(AdmissionError::wrong_state("vm", problem, "a VM that is stopped"));
    }
    Ok(())
}
