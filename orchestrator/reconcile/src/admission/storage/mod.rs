//! Requests for work on storage, and how it ends.
//!
//! Each request that stands becomes an operation, whose record and that of what it works on are written together. The
//! work is the caller's; [`finish_storage`] then writes what became of it, both records together again. A caller that
//! dies in between leaves a running operation, which is enough to do the work again.

mod disk_image;
mod finish;
mod pool;
mod snapshot;
mod vm_snapshot;
mod volume;

use drover_cluster_state::{
    ClusterState, Key, Name, Operation, OperationKind, Record, StorageWork, Stored, Subject, Txn, Vm, Volume,
    VolumeParent, WallTime,
};
use drover_ids::OperationId;

pub use disk_image::{
    CopyDiskImage, ImportDiskImage, ImportFrom, copy_disk_image, delete_disk_image, import_disk_image,
    same_object_as,
};
pub use finish::{
    Checkpoint, StorageFailure, StorageOutcome, checkpoint_disk_image, finish_storage, progress_storage,
};
pub use pool::{CreatePool, create_pool, delete_pool, usable_pools};
pub use snapshot::{SnapshotName, create_snapshot, delete_snapshot, protect_snapshot, rollback_snapshot};
pub use vm_snapshot::{
    VmSnapshotName, VmSnapshotPart, create_vm_snapshot, delete_vm_snapshot, rollback_vm_snapshot,
    vm_snapshot_parts,
};
pub use volume::{CloneOf, CloneVolume, clone_volume, delete_volume, flatten_volume, resize_volume};

use super::{AdmissionError, Admitted, RequestIdentity, repeated};

/// The operation that this request has already got, if it has. `named` is what the client called the subject: one that
/// is gone is known by that alone.
fn repeated_work(
    state: &ClusterState,
    identity: &RequestIdentity,
    kind: &str,
    named: &str,
) -> Result<Option<Admitted>, AdmissionError> {
    repeated(state, identity, |operation| {
        operation.kind.name() == kind
            && (operation.subject_name.as_str() == named || operation.subject.to_string() == named)
    })
}

/// The operation that works on something now.
fn running(state: &ClusterState, operation: Option<OperationId>) -> Option<&Stored<Operation>> {
    state.operations.get(&operation?).filter(|operation| operation.is_running())
}

/// One operation at a time works on a thing.
fn require_free(
    state: &ClusterState,
    field: &'static str,
    what: &str,
    operation: Option<OperationId>,
) -> Result<(), AdmissionError> {
    match running(state, operation) {
        None => Ok(()),
        Some(operation) => Err(AdmissionError::wrong_state(
            field,
            format!("{what} is busy with operation {} ({})", operation.id, operation.kind),
            "one that no operation works on: wait for its end",
        )),
    }
}

/// Adds the operation's record.
fn begin(
    txn: &mut Txn,
    identity: &RequestIdentity,
    work: StorageWork,
    (subject, name): (Subject, Name),
    now: WallTime,
) -> OperationId {
    let operation = identity.operation();
    txn.create(Record::Operation(Operation::new(
        operation,
        OperationKind::Storage(work),
        subject,
        name,
        now,
    )));
    operation
}

/// The volumes that need `parent`, by name.
fn clones_of(state: &ClusterState, pool: &Name, parent: VolumeParent) -> Vec<String> {
    let needs = |volume: &&Stored<Volume>| volume.pool == *pool && volume.parent == Some(parent);
    state.volumes.values().filter(needs).map(|volume| volume.name.to_string()).collect()
}

/// "volume 'a' and 2 more".
fn shown(kind: &str, names: &[String]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [one] => format!("{kind} '{one}'"),
        [first, rest @ ..] => format!("{kind} '{first}' and {} more", rest.len()),
    }
}

/// Refuses a start of a VM while one of its volumes must not change or is given another content, and has the transaction fail if one
/// begins meanwhile.
pub(super) fn require_settled_volumes(
    state: &ClusterState,
    vm: &Vm,
    txn: &mut Txn,
) -> Result<(), AdmissionError> {
    for attachment in &vm.spec.volumes {
        let Some(volume) = state.volumes.get(&attachment.volume) else { continue };
        require_settled(state, "vm", volume)?;
        txn.require(Key::Volume(volume.id), volume);
    }
    Ok(())
}

/// Refuses the use of a volume while it must not change or is given another content.
pub(super) fn require_settled(
    state: &ClusterState,
    field: &'static str,
    volume: &Volume,
) -> Result<(), AdmissionError> {
    let unsettled = running(state, volume.operation).filter(|operation| match &operation.kind {
        OperationKind::Storage(work) => matches!(
            work,
            StorageWork::SnapshotRollback { .. }
                | StorageWork::VmSnapshotRollback { .. }
                // Several volumes are of one moment only while nobody writes them.
                | StorageWork::VmSnapshotCreate { .. }
        ),
        _ => false,
    });
    match unsettled {
        None => Ok(()),
        Some(_) => require_free(state, field, &format!("volume '{}'", volume.name), volume.operation),
    }
}
