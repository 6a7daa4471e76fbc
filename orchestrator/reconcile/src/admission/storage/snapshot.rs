//! Snapshots of volumes.

use drover_cluster_state::{
    ClusterState, Desired, Key, Record, Right, Snapshot, SnapshotState, StorageWork, Stored, Volume,
    VolumeParent, WallTime,
};
use drover_ids::SnapshotId;

use super::{
    AdmissionError, Admitted, RequestIdentity, clones_of, repeated_work, shown,
    volume::{admit, find_idle, last_put},
};
use crate::admission::vm::{find_volume, parse_name, require_not_suspended};

/// Most snapshots of a volume: they are part of its record, about 60 bytes each.
pub(super) const SNAPSHOTS_MAX: usize = 256;
/// No snapshot: for work whose kind is all that matters.
pub(super) const NONE: SnapshotId = SnapshotId::from_u128(0);

/// A snapshot, as a client names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotName {
    /// Name or id.
    pub volume: String,
    /// Name or id.
    pub snapshot: String,
}

/// The snapshot a client means.
pub(super) fn find_snapshot<'a>(
    state: &'a ClusterState,
    name: &SnapshotName,
) -> Result<(&'a Stored<Volume>, &'a Snapshot), AdmissionError> {
    let volume = find_volume(state, "volume", &name.volume)?;
    let text = name.snapshot.as_str();
    let by_id = text.parse::<SnapshotId>().ok().and_then(|id| volume.snapshot(id));
    let found = by_id.or_else(|| volume.snapshots.iter().find(|snapshot| snapshot.name.as_str() == text));
    let known = volume.snapshots.iter().map(|snapshot| snapshot.name.as_str());
    let found = found.ok_or_else(|| AdmissionError::not_found("snapshot", "snapshot", text, known))?;
    Ok((volume, found))
}

/// Admits a snapshot of a volume's present content.
pub fn create_snapshot(
    state: &ClusterState,
    volume: &str,
    name: &str,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let snapshot = SnapshotId::from_u128(identity.operation().as_u128());
    let work = StorageWork::SnapshotCreate { snapshot };
    if let Some(earlier) = repeated_work(state, identity, work.name(), volume)? {
        return Ok(earlier);
    }
    let volume = find_idle(state, volume)?;
    let name = parse_name("name", name)?;
    if let Some(taken) = volume.snapshots.iter().find(|snapshot| snapshot.name == name) {
        let (name, holder) = (name.to_string(), format!("{} of the same volume", taken.id));
        return Err(AdmissionError::NameTaken { field: "name", kind: "snapshot", name, holder });
    }
    if volume.snapshots.len() >= SNAPSHOTS_MAX {
        let problem = format!("volume '{}' has {SNAPSHOTS_MAX} snapshots", volume.name);
        return Err(AdmissionError::wrong_state("volume", problem, format!("less than {SNAPSHOTS_MAX}")));
    }
    let size = volume.size;
    let mut admitted = admit(volume, work, identity, now);
    if let Some(Record::Volume(record)) = admitted.txn.as_mut().and_then(last_put) {
        let state = SnapshotState::Creating;
        record.snapshots.push(Snapshot {
            id: snapshot,
            name,
            size,
            protected: false,
            state,
            created_at: now,
            part_of: None,
        });
    }
    Ok(admitted)
}

/// Admits that a snapshot is kept from being deleted, or not any longer.
pub fn protect_snapshot(
    state: &ClusterState,
    name: &SnapshotName,
    protect: bool,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let work = |snapshot| StorageWork::SnapshotProtect { snapshot, protect };
    if let Some(earlier) = repeated_work(state, identity, work(NONE).name(), &name.volume)? {
        return Ok(earlier);
    }
    let (volume, snapshot) = find_usable(state, name)?;
    if !protect {
        require_no_clones(state, volume, snapshot)?;
    }
    Ok(admit(volume, work(snapshot.id), identity, now))
}

/// Admits that a volume is given the content it had. Its VM must be stopped, and is not started meanwhile.
pub fn rollback_snapshot(
    state: &ClusterState,
    name: &SnapshotName,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let work = |snapshot| StorageWork::SnapshotRollback { snapshot };
    if let Some(earlier) = repeated_work(state, identity, work(NONE).name(), &name.volume)? {
        return Ok(earlier);
    }
    let (volume, snapshot) = find_usable(state, name)?;
    let mut admitted = admit(volume, work(snapshot.id), identity, now);
    if let Some(vm) = volume.attached.and_then(|vm| state.vms.get(&vm)) {
        if vm.desired == Desired::Running || vm.ownership.right() != Right::Unowned {
            let problem = format!("volume '{}' is used by VM '{}', which runs", volume.name, vm.spec.name);
            return Err(AdmissionError::wrong_state("volume", problem, "a volume of a VM that is stopped"));
        }
        require_not_suspended(vm)?;
        if let Some(txn) = &mut admitted.txn {
            txn.require(Key::Vm(vm.id), vm);
        }
    }
    Ok(admitted)
}

/// Admits the removal of a snapshot that nothing needs.
pub fn delete_snapshot(
    state: &ClusterState,
    name: &SnapshotName,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let work = |snapshot| StorageWork::SnapshotDelete { snapshot };
    if let Some(earlier) = repeated_work(state, identity, work(NONE).name(), &name.volume)? {
        return Ok(earlier);
    }
    let volume = find_idle(state, &name.volume)?;
    let (_, snapshot) = find_snapshot(state, name)?;
    if snapshot.protected {
        let problem = format!("snapshot '{}' is protected", snapshot.name);
        return Err(AdmissionError::wrong_state("snapshot", problem, "one that has been unprotected"));
    }
    require_no_clones(state, volume, snapshot)?;
    let id = snapshot.id;
    let mut admitted = admit(volume, work(id), identity, now);
    if let Some(Record::Volume(record)) = admitted.txn.as_mut().and_then(last_put) {
        for one in record.snapshots.iter_mut().filter(|one| one.id == id) {
            one.state = SnapshotState::Deleting;
        }
    }
    Ok(admitted)
}

fn find_usable<'a>(
    state: &'a ClusterState,
    name: &SnapshotName,
) -> Result<(&'a Stored<Volume>, &'a Snapshot), AdmissionError> {
    find_idle(state, &name.volume)?;
    let (volume, snapshot) = find_snapshot(state, name)?;
    if snapshot.state != SnapshotState::Ready {
        let problem = format!("snapshot '{}' is not ready ({:?})", snapshot.name, snapshot.state);
        return Err(AdmissionError::wrong_state("snapshot", problem, "a snapshot that is ready"));
    }
    Ok((volume, snapshot))
}

pub(super) fn require_no_clones(
    state: &ClusterState,
    volume: &Volume,
    snapshot: &Snapshot,
) -> Result<(), AdmissionError> {
    let parent = VolumeParent::Snapshot { volume: volume.id, snapshot: snapshot.id };
    let clones = clones_of(state, &volume.pool, parent);
    if clones.is_empty() {
        return Ok(());
    }
    Err(AdmissionError::InUse {
        field: "snapshot",
        kind: "snapshot",
        name: snapshot.name.to_string(),
        users: format!("{} (a clone; one that is flattened does not need it)", shown("volume", &clones)),
    })
}
