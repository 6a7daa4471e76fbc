//! Requests of clients and agents, checked against the present state.
//!
//! Each function is pure and returns one guarded transaction that does all of it, or an [`AdmissionError`] that names
//! the field and what would be valid; then nothing has changed. The caller commits the transaction; if the store
//! refuses it because something moved, the caller asks again with the fresh state.
//!
//! A `request_id` makes a request idempotent: the ids of what it creates are derived from it, so that a repetition
//! finds the first one's operation, even when both run at the same time (the second one's guard fails).

mod cancel;
mod error;
mod hotplug;
mod limits;
mod migrate;
mod moves;
mod node;
mod node_settings;
mod project;
mod storage;
mod vm;
mod vm_group;
mod volume;

use drover_cluster_state::{ClusterState, Operation, OperationKind, Stored, Subject, Txn, Vm};
use drover_ids::{OperationId, VmId};

pub use cancel::cancel_operation;
pub use error::{AdmissionError, Category};
pub use hotplug::{DeviceChange, GuestDevice, attach_nic, attach_volume, detached, may_detach, newest_right};
pub use limits::{DeviceName, DeviceRequest, HardwareRequest, set_limits};
pub use migrate::{MigrateVm, migrate_vm};
pub use moves::{
    AdmittedMoves, DrainTarget, PARALLEL_DEFAULT, defragment, drain, question_of, rebalance, undrain,
};
pub(crate) use moves::{parallelism, stored_plan};
pub use node::{Registration, register_node};
pub use node_settings::{UpdateNode, update_node};
pub use project::{
    UpdateSettings, check_project, delete_policy, delete_project, policy_users, set_policy, set_project,
    update_settings,
};
pub use storage::{
    Checkpoint, CloneOf, CloneVolume, CopyDiskImage, CreatePool, ImportDiskImage, ImportFrom, SnapshotName,
    StorageFailure, StorageOutcome, VmSnapshotName, VmSnapshotPart, checkpoint_disk_image, clone_volume,
    copy_disk_image, create_pool, create_snapshot, create_vm_snapshot, delete_disk_image, delete_pool,
    delete_snapshot, delete_vm_snapshot, delete_volume, finish_storage, flatten_volume, import_disk_image,
    progress_storage, protect_snapshot, resize_volume, rollback_snapshot, rollback_vm_snapshot,
    same_object_as, usable_pools, vm_snapshot_parts,
};
pub use vm::{CreateVm, create_vm, delete_vm, start_vm, stop_vm};
pub use vm_group::create_vm_group;
pub use volume::{
    AdmittedVolume, CreateVolume, NewImage, add_image, create_volume, delete_image, forget_disk_image,
    forget_snapshot, forget_volume, ready_volume,
};

use crate::ident;

/// Longest request id, bytes: room for a UUID and a prefix.
pub const REQUEST_ID_LEN_MAX: usize = 128;

/// A request that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The operation to follow.
    pub operation: OperationId,
    /// What to commit. `None`: the request has been admitted before.
    pub txn: Option<Txn>,
}

/// How a request wants to be recognised: by the client's request id, or else by ids that the caller drew at random.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestIdentity {
    /// From the client; empty if it does not care.
    pub request_id: String,
    /// Random bits for an id.
    pub random: u128,
}

impl RequestIdentity {
    fn check(&self) -> Result<(), AdmissionError> {
        if self.request_id.len() <= REQUEST_ID_LEN_MAX {
            return Ok(());
        }
        Err(AdmissionError::Invalid {
            field: "request_id",
            problem: format!("it has {} bytes", self.request_id.len()),
            valid: format!("at most {REQUEST_ID_LEN_MAX} bytes"),
        })
    }

    fn operation(&self) -> OperationId {
        if self.request_id.is_empty() {
            OperationId::from_u128(self.random)
        } else {
            ident::operation_of_request(&self.request_id)
        }
    }

    fn vm(&self) -> VmId {
        if self.request_id.is_empty() {
            VmId::from_u128(self.random)
        } else {
            ident::vm_of_request(&self.request_id)
        }
    }
}

/// The operation that this request has already got, if it has.
fn repeated(
    state: &ClusterState,
    identity: &RequestIdentity,
    is_same: impl FnOnce(&Operation) -> bool,
) -> Result<Option<Admitted>, AdmissionError> {
    identity.check()?;
    let id = identity.operation();
    match state.operations.get(&id) {
        None => Ok(None),
        Some(operation) if is_same(operation) => Ok(Some(Admitted { operation: id, txn: None })),
        Some(operation) => Err(AdmissionError::RequestIdReused {
            kind: operation.kind.name(),
            name: operation.subject_name.to_string(),
        }),
    }
}

/// The VM a client means, by id or name.
fn find_vm<'a>(
    state: &'a ClusterState,
    field: &'static str,
    text: &str,
) -> Result<&'a Stored<Vm>, AdmissionError> {
    let by_id = text.parse::<VmId>().ok().and_then(|id| state.vms.get(&id));
    by_id.or_else(|| state.vm_named(text)).ok_or_else(|| {
        AdmissionError::not_found(field, "VM", text, state.vms.values().map(|vm| vm.spec.name.as_str()))
    })
}

/// The operation that works on a VM now.
fn running_operation<'a>(state: &'a ClusterState, vm: &Vm) -> Option<&'a Stored<Operation>> {
    state.operations.get(&vm.operation?).filter(|operation| operation.is_running())
}

/// One operation at a time works on a VM.
fn require_idle(state: &ClusterState, vm: &Vm) -> Result<(), AdmissionError> {
    match running_operation(state, vm) {
        None => Ok(()),
        Some(operation) => Err(AdmissionError::Busy {
            vm: vm.spec.name.clone(),
            operation: operation.id,
            kind: operation.kind.name(),
        }),
    }
}

/// Whether an operation is of this kind (details aside) and about this VM.
fn is_about(operation: &Operation, kind: &OperationKind, vm: VmId) -> bool {
    operation.kind.name() == kind.name() && operation.subject == Subject::Vm(vm)
}
