//! What clients say of nodes and of VMs' places.

use super::devices;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use drover_cloud_init::{Seed, Unchecked};
use drover_cluster_state::{Capacity, ClusterState, Name, Ratio, StallAction, StallPolicy};
use drover_ids::VmId;
use drover_placement_messages::{MessageError, constraints_from, taint_from};
use drover_reconcile::admission::{AdmissionError, CreateVm, UpdateNode};
use drover_units::{Bytes, VcpuCount};
use drover_wire::control::v1 as wire;

use super::WireError;

/// The VM that this text names, by id or name.
fn find_vm(state: &ClusterState, text: &str) -> Option<VmId> {
    let by_id = text.parse::<VmId>().ok().filter(|id| state.vms.contains_key(id));
    by_id.or_else(|| state.vm_named(text).map(|vm| vm.id))
}

/// The error of a placement message inside of a request's field.
pub(crate) fn within(field: &'static str) -> impl FnOnce(MessageError) -> AdmissionError {
    move |error| AdmissionError::Invalid {
        field,
        problem: format!("{}: {}", error.field, error.problem),
        valid: error.valid,
    }
}

/// What a client wants created. VMs that its rules name are looked up.
pub(crate) fn create_vm(state: &ClusterState, spec: wire::VmSpec) -> Result<CreateVm, AdmissionError> {
    let hardware = devices::hardware_request(&spec)?;
    let mut constraints = constraints_from(spec.constraints.unwrap_or_default(), |text| find_vm(state, text))
        .map_err(within("spec.constraints"))?;
    // The server's to say.
    constraints.set = None;
    let cloud_init = spec.cloud_init.map(seed).transpose()?.map(Arc::new);
    let devices = devices::request(spec.nics, spec.volume_limits, hardware)?;
    Ok(CreateVm {
        devices,
        name: spec.name,
        vcpus: spec.vcpus,
        memory_bytes: spec.memory_bytes,
        image: spec.image,
        cmdline: spec.cmdline,
        volumes: spec.volumes,
        anti_affinity_group: spec.anti_affinity_group,
        priority: spec.priority,
        cloud_init,
        constraints,
        stall: spec.stall.map(|stall| stall_from("spec.stall.action", stall)).transpose()?,
        start: true,
    })
}

/// What cloud-init in a guest is to be told.
fn seed(message: wire::CloudInit) -> Result<Seed, AdmissionError> {
    let wire::CloudInit { hostname, ssh_keys, user_data, network_config } = message;
    Seed::try_from(Unchecked { hostname, ssh_keys, user_data, network_config }).map_err(|error| {
        let problem = format!("{}: {}", error.field, error.problem);
        AdmissionError::Invalid { field: "spec.cloud_init", problem, valid: error.valid }
    })
}

/// What becomes of a VM whose storage does not answer, as a client wants it.
pub(crate) fn stall_from(
    field: &'static str,
    stall: drover_wire::vm::v1::StallPolicy,
) -> Result<StallPolicy, AdmissionError> {
    use drover_wire::vm::v1::StallAction as Wire;
    let action = match Wire::try_from(stall.action) {
        Ok(Wire::Unspecified) => StallAction::Wait,
        Ok(Wire::Pause) => StallAction::Pause,
        Ok(Wire::Stop) => StallAction::Stop,
        Err(_) => {
            return Err(AdmissionError::Invalid {
                field,
                problem: format!("it is {}", stall.action),
                valid: "an action of StallAction".to_owned(),
            });
        }
    };
    let ms = u64::from(stall.deadline_ms);
    Ok(StallPolicy { deadline: (ms > 0).then(|| Duration::from_millis(ms)), action })
}

/// The same for clients and agents.
pub(crate) fn stall(stall: StallPolicy) -> drover_wire::vm::v1::StallPolicy {
    use drover_wire::vm::v1::StallAction as Wire;
    let action = match stall.action {
        StallAction::Wait => Wire::Unspecified,
        StallAction::Pause => Wire::Pause,
        StallAction::Stop => Wire::Stop,
    };
    let deadline_ms = stall.deadline.map_or(0, |deadline| deadline.as_millis());
    drover_wire::vm::v1::StallPolicy {
        deadline_ms: u32::try_from(deadline_ms).unwrap_or(u32::MAX),
        action: action.into(),
    }
}

/// What an operator wants of a node.
pub(crate) fn update_node(request: wire::UpdateNodeRequest) -> Result<UpdateNode, WireError> {
    let name = |field: &str, text: &str| Name::new(text).map_err(|error| WireError::new(field, error));
    let names = |field: &str, texts: &[String]| -> Result<BTreeSet<Name>, WireError> {
        texts.iter().map(|text| name(field, text)).collect()
    };
    let mut set_labels = BTreeMap::new();
    for label in &request.set_labels {
        set_labels.insert(name("set_labels.key", &label.key)?, name("set_labels.value", &label.value)?);
    }
    let taint = |taint| taint_from("add_taints", taint).map_err(|error| WireError::new("add_taints", error));
    let capacity = |reserve: drover_wire::placement::v1::Reserve| Capacity {
        vcpus: VcpuCount::new(reserve.vcpus),
        memory: Bytes::new(reserve.memory_bytes),
    };
    Ok(UpdateNode {
        set_labels,
        remove_labels: names("remove_labels", &request.remove_labels)?,
        add_taints: request.add_taints.iter().map(taint).collect::<Result<_, _>>()?,
        remove_taints: names("remove_taints", &request.remove_taints)?,
        cordoned: request.cordoned,
        vcpu_overcommit: ratio("vcpu_overcommit_percent", request.vcpu_overcommit_percent)?,
        memory_overcommit: ratio("memory_overcommit_percent", request.memory_overcommit_percent)?,
        reserved: request.reserved.map(capacity),
        node: request.node,
    })
}

/// Absent: stays. 0: as the agent reports it.
fn ratio(field: &str, percent: Option<u32>) -> Result<Option<Option<Ratio>>, WireError> {
    match percent {
        None => Ok(None),
        Some(0) => Ok(Some(None)),
        Some(percent) => match Ratio::from_percent(percent) {
            Some(ratio) => Ok(Some(Some(ratio))),
            None => {
                let (min, max) = (Ratio::MIN.percent(), Ratio::MAX.percent());
                Err(WireError::new(
                    field,
                    format!("it is {percent}; valid: {min} to {max}, or 0 for the agent's"),
                ))
            }
        },
    }
}
