//! Take an operation back.

use drover_cluster_state::{ClusterState, Operation, OperationKind, Record, Txn};
use drover_ids::OperationId;

use super::{AdmissionError, Admitted};

/// Asks for the end of an operation. It ends as cancelled, or as done if it was quicker. Asking again, or for one that
/// has ended, changes nothing.
pub fn cancel_operation(state: &ClusterState, id: &str) -> Result<Admitted, AdmissionError> {
    let found = id.parse::<OperationId>().ok().and_then(|id| state.operations.get(&id));
    let Some(operation) = found else {
        return Err(AdmissionError::NotFound {
            field: "id",
            kind: "operation",
            name: id.chars().take(80).collect(),
            known: "`drover operation list` shows them".to_owned(),
        });
    };
    let same = Admitted { operation: operation.id, txn: None };
    if !operation.is_running() || operation.cancel_requested {
        return Ok(same);
    }
    match operation.kind {
        OperationKind::VmCreate
        | OperationKind::VmStart
        | OperationKind::VmMigrate { .. }
        | OperationKind::VmSetCreate { .. }
        | OperationKind::Moves(_) => {}
        OperationKind::Storage(ref work) if work.can_be_cancelled() => {}
        OperationKind::VmStop { .. }
        | OperationKind::VmDelete
        | OperationKind::VolumeImport
        | OperationKind::ImageImport
        | OperationKind::Storage(_) => {
            return Err(AdmissionError::WrongState {
                field: "id",
                problem: format!("a {} cannot be taken back", operation.kind),
                valid: "a creation, start, migration, drain, rebalancing, volume.clone, volume.flatten, \
                        disk-image.import or disk-image.copy that has not ended"
                    .to_owned(),
            });
        }
    }
    let mut txn = Txn::new();
    let cancelled = Operation { cancel_requested: true, ..operation.value.clone() };
    txn.update(operation.revision, Record::Operation(cancelled));
    Ok(Admitted { txn: Some(txn), ..same })
}
