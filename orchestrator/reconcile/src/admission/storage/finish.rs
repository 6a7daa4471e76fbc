//! How work on storage ends, and what is written meanwhile.

use drover_cluster_state::{
    ClusterState, DiskImage, DiskImageState, Hold, ImageFormat, Key, Name, Operation, OperationKind,
    OperationState, Pool, PoolState, RbdCredentials, Record, SnapshotState, StorageWork, Stored, Subject,
    Txn, Volume, VolumeState, WallTime,
};
use drover_ids::OperationId;
use drover_units::Bytes;

use crate::admission::volume::forget;

/// What came of the work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorageOutcome {
    /// It is done, and there is nothing more to say.
    Done,
    /// A pool's user has been made.
    Pool(RbdCredentials),
    /// A volume has this size now.
    Volume(Bytes),
    /// A disk image is complete.
    Image {
        /// Size of the disk.
        size: Bytes,
        /// Size of the file.
        file_size: Bytes,
        /// Its format.
        format: ImageFormat,
    },
    /// A VM's volumes are kept, as they were at one moment: how the VM was held, where it ran.
    Kept(Option<Hold>),
    /// It is not done.
    Failed(StorageFailure),
}

/// Why work is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageFailure {
    /// For people.
    pub reason: String,
    /// Somebody took it back.
    pub cancelled: bool,
    /// The storage may hold a part of what was to be made, or of what was to be removed: it is removed later.
    pub leftover: bool,
}

/// How far an import is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Bytes that need not be sent again.
    pub received: Bytes,
    /// Size of the file, once it is known.
    pub file_size: Bytes,
    /// Its format, once it is known.
    pub format: Option<ImageFormat>,
}

/// Ends an operation on storage together with what it worked on. `None`: it has ended.
pub fn finish_storage(
    state: &ClusterState,
    operation: OperationId,
    outcome: &StorageOutcome,
    now: WallTime,
) -> Option<Txn> {
    let (operation, work) = running(state, operation)?;
    let mut txn = Txn::new();
    let ended = match outcome {
        StorageOutcome::Failed(failure) => {
            let how = if failure.cancelled { OperationState::Cancelled } else { OperationState::Failed };
            operation.ended(how, failure.reason.clone(), now)
        }
        StorageOutcome::Kept(hold) => {
            Operation { hold: *hold, ..operation.ended(OperationState::Done, "", now) }
        }
        _ => operation.ended(OperationState::Done, "", now),
    };
    txn.update(operation.revision, Record::Operation(ended));
    match &operation.subject {
        Subject::Pool(name) => finish_pool(state, name, work, outcome, &mut txn),
        Subject::Volume(id) => {
            if let Some(volume) = state.volumes.get(id).filter(|v| v.operation == Some(operation.id)) {
                finish_volume(state, volume, work, outcome, &mut txn);
            }
        }
        Subject::DiskImage(name) => finish_image(state, name, work, outcome, &mut txn),
        Subject::Vm(_) => {
            for volume in state.volumes.values().filter(|v| v.operation == Some(operation.id)) {
                finish_volume(state, volume, work, outcome, &mut txn);
            }
        }
        _ => {}
    }
    Some(txn)
}

/// Shows how far an operation is. `None`: it is shown already, or has ended.
pub fn progress_storage(
    state: &ClusterState,
    operation: OperationId,
    percent: u8,
    step: &str,
) -> Option<Txn> {
    let (operation, _) = running(state, operation)?;
    let percent = percent.min(99).max(operation.percent);
    if operation.percent == percent && operation.step == step {
        return None;
    }
    let mut txn = Txn::new();
    let shown = Operation { percent, step: step.to_owned(), ..operation.value.clone() };
    txn.update(operation.revision, Record::Operation(shown));
    Some(txn)
}

/// Remembers how far an import is. `None`: nothing has changed, or the image is gone.
pub fn checkpoint_disk_image(state: &ClusterState, image: &Name, checkpoint: Checkpoint) -> Option<Txn> {
    let image = state.disk_images.get(image).filter(|image| image.state == DiskImageState::Importing)?;
    let Checkpoint { received, file_size, format } = checkpoint;
    let changed = DiskImage { received, file_size, format, ..image.value.clone() };
    if changed == image.value {
        return None;
    }
    let mut txn = Txn::new();
    txn.update(image.revision, Record::DiskImage(changed));
    Some(txn)
}

fn running(state: &ClusterState, operation: OperationId) -> Option<(&Stored<Operation>, &StorageWork)> {
    let operation = state.operations.get(&operation).filter(|operation| operation.is_running())?;
    match &operation.kind {
        OperationKind::Storage(work) => Some((operation, work)),
        _ => None,
    }
}

fn finish_pool(
    state: &ClusterState,
    name: &Name,
    work: &StorageWork,
    outcome: &StorageOutcome,
    txn: &mut Txn,
) {
    let Some(pool) = state.pools.get(name) else { return };
    let mut changed = Pool { operation: None, ..pool.value.clone() };
    match (work, outcome) {
        (StorageWork::PoolCreate, StorageOutcome::Pool(credentials)) => {
            changed.rbd.credentials = Some(credentials.clone());
            changed.state = PoolState::Ready;
        }
        // It can still be used: nothing in it has been touched.
        (StorageWork::PoolDelete, StorageOutcome::Failed(_)) => changed.state = PoolState::Ready,
        _ => return txn.delete(Key::Pool(name.clone()), pool),
    }
    txn.update(pool.revision, Record::Pool(changed));
}

fn finish_volume(
    state: &ClusterState,
    volume: &Stored<Volume>,
    work: &StorageWork,
    outcome: &StorageOutcome,
    txn: &mut Txn,
) {
    let mut changed = Volume { operation: None, ..volume.value.clone() };
    let failure = match outcome {
        StorageOutcome::Failed(failure) => Some(failure),
        StorageOutcome::Volume(size) => {
            changed.size = *size;
            None
        }
        _ => None,
    };
    let leftover = failure.is_some_and(|failure| failure.leftover);
    match (work, failure.is_none()) {
        (StorageWork::VolumeClone(_), true) => changed.state = VolumeState::Ready,
        (StorageWork::VolumeClone(_), false) if leftover => changed.state = VolumeState::Deleting,
        (StorageWork::VolumeClone(_), false) | (StorageWork::VolumeDelete, true) => {
            return forget(state, volume, txn);
        }
        (StorageWork::VolumeDelete, false) if !leftover => changed.state = VolumeState::Ready,
        (StorageWork::VolumeFlatten, true) => changed.parent = None,
        (StorageWork::VmSnapshotRollback { snapshot }, true) => {
            changed.size = changed.snapshot(*snapshot).map_or(changed.size, |snapshot| snapshot.size);
        }
        (work, done) => finish_snapshot(&mut changed, work, done, leftover),
    }
    if let (StorageWork::VmSnapshotCreate { snapshot }, StorageOutcome::Kept(hold)) = (work, outcome) {
        let parts = changed.snapshots.iter_mut().filter(|one| one.id == *snapshot);
        parts.filter_map(|one| one.part_of.as_mut()).for_each(|whole| whole.hold = *hold);
    }
    txn.update(volume.revision, Record::Volume(changed));
}

fn finish_snapshot(volume: &mut Volume, work: &StorageWork, done: bool, leftover: bool) {
    let snapshots = &mut volume.snapshots;
    let mut set = |id, state| {
        for snapshot in snapshots.iter_mut().filter(|snapshot| snapshot.id == id) {
            snapshot.state = state;
        }
    };
    match *work {
        StorageWork::SnapshotCreate { snapshot } | StorageWork::VmSnapshotCreate { snapshot } => match done {
            true => set(snapshot, SnapshotState::Ready),
            false if leftover => set(snapshot, SnapshotState::Deleting),
            false => snapshots.retain(|one| one.id != snapshot),
        },
        StorageWork::SnapshotDelete { snapshot } | StorageWork::VmSnapshotDelete { snapshot } => match done {
            true => snapshots.retain(|one| one.id != snapshot),
            // Some of it may be gone.
            false if leftover => {}
            false => set(snapshot, SnapshotState::Ready),
        },
        StorageWork::SnapshotProtect { snapshot, protect } if done => {
            for one in snapshots.iter_mut().filter(|one| one.id == snapshot) {
                one.protected = protect;
            }
        }
        _ => {}
    }
}

fn finish_image(
    state: &ClusterState,
    name: &Name,
    work: &StorageWork,
    outcome: &StorageOutcome,
    txn: &mut Txn,
) {
    let Some(image) = state.disk_images.get(name) else { return };
    let mut changed = DiskImage { operation: None, ..image.value.clone() };
    changed.source = changed.source.without_credentials();
    match (work, outcome) {
        (_, StorageOutcome::Image { size, file_size, format }) => {
            changed.state = DiskImageState::Ready;
            (changed.size, changed.file_size) = (*size, *file_size);
            (changed.format, changed.received) = (Some(*format), *file_size);
        }
        (StorageWork::DiskImageDelete, StorageOutcome::Failed(failure)) if !failure.leftover => {
            changed.state = DiskImageState::Ready;
        }
        (_, StorageOutcome::Failed(failure)) if failure.leftover => changed.state = DiskImageState::Deleting,
        _ => return txn.delete(Key::DiskImage(name.clone()), image),
    }
    txn.update(image.revision, Record::DiskImage(changed));
}
