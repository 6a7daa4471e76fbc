//! Create several VMs of one kind at once: each of them gets a place, or none is created.

use drover_cluster_state::{
    ClusterState, Desired, Name, Operation, OperationKind, Record, Subject, Txn, VmSpec, WallTime,
};

use super::{
    AdmissionError, Admitted, CreateVm, RequestIdentity,
    project::admit_to_project,
    repeated,
    vm::{create_records, require_name_free, resolve_spec},
};
use crate::ident;

/// Most VMs of one group. All of them are stored in one transaction, and placed in another; each VM takes two records,
/// with a guard each, and a line of the event log, and a transaction has room for 512 of these.
const GROUP_VMS_MAX: u32 = 100;

/// Admits `count` VMs, named after the request's name with a number.
pub fn create_vm_group(
    state: &ClusterState,
    request: &CreateVm,
    count: u32,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let same = |operation: &Operation| {
        matches!(operation.kind, OperationKind::VmSetCreate { .. })
            && operation.subject_name.as_str() == request.name
    };
    if let Some(earlier) = repeated(state, identity, same)? {
        return Ok(earlier);
    }
    if count == 0 || count > GROUP_VMS_MAX {
        return Err(AdmissionError::invalid(
            "count",
            format!("it is {count}"),
            format!("1 to {GROUP_VMS_MAX}"),
        ));
    }
    if !request.volumes.is_empty() {
        let problem = format!("there are {} for {count} VMs", request.volumes.len());
        return Err(AdmissionError::invalid("spec.volumes", problem, "none: volumes cannot be shared"));
    }
    if count > 1 && request.devices.nics.iter().any(|nic| nic.fixed_mac.is_some()) {
        let problem = format!("an interface has a fixed address, for {count} VMs");
        return Err(AdmissionError::invalid("spec.nics", problem, "none: each VM gets one of its own"));
    }
    let mut txn = Txn::new();
    let mut spec = resolve_spec(state, request, &mut txn)?;
    let set = spec.name.clone();
    spec.constraints.set = Some(set.clone());
    admit_to_project(state, &mut txn, &spec, count)?;
    let operation = identity.operation();
    let kind = OperationKind::VmSetCreate { count };
    txn.create(Record::Operation(Operation::new(
        operation,
        kind,
        Subject::VmSet(set.clone()),
        set.clone(),
        now,
    )));
    for number in 1..=count {
        let text = format!("{set}-{number}");
        let name = Name::new(&text).map_err(|error| {
            AdmissionError::invalid("spec.name", error.to_string(), "a shorter name: a number is added to it")
        })?;
        require_name_free(state, &name)?;
        let member = VmSpec { name, ..spec.clone() };
        let id = ident::vm_of_group(operation, number);
        create_records(&mut txn, id, member, Desired::Running, operation, now);
    }
    Ok(Admitted { operation, txn: Some(txn) })
}
