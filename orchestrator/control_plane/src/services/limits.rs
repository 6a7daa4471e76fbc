//! Limits of a VM's devices: kept, and passed on to the node that runs it.

use drover_cluster_state::ClusterState;
use drover_ports::Store;
use drover_reconcile::admission::{self, DeviceName};
use drover_wire::{
    control::v1::{self as wire, SetLimitsRequest, set_limits_request::Device},
    node::v1 as node,
};
use tokio::time::timeout;
use tonic::Status;

use super::{
    Api,
    hotplug::turn,
    running::{PASS_ON_WITHIN, Running},
    vms::find,
};
use crate::{
    convert,
    status::{gone, invalid, submit_failed},
};

/// Keeps the limits and tells the node.
pub(super) async fn set<S: Store>(api: &Api<S>, request: SetLimitsRequest) -> Result<wire::Vm, Status> {
    let device = match request.device {
        Some(Device::Volume(volume)) => DeviceName::Volume(volume),
        Some(Device::Mac(mac)) => DeviceName::Nic(mac),
        None => return Err(invalid("device", "it is missing", "a volume or a mac")),
    };
    let limits = convert::limits("limits", request.limits)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    // What is in force is what was said last.
    let _turn = turn(api, request.vm.clone()).await?;
    let (text, wanted) = (request.vm, device.clone());
    let kept = api.cluster.submit(move |view| admission::set_limits(view.state, &text, (&wanted, limits)));
    let vm = kept.await.map_err(submit_failed)?;
    let named = device.clone();
    let look = move |view: drover_driver::View<'_>| {
        Some((Running::find(view.state, vm)?, volume_id(view.state, &named)))
    };
    if let Some((running, volume_id)) = api.cluster.read(look).await.map_err(gone)? {
        let device = match device {
            DeviceName::Volume(_) => node::set_limits_request::Device::VolumeId(volume_id),
            DeviceName::Nic(mac) => node::set_limits_request::Device::Mac(mac),
        };
        let request = node::SetLimitsRequest {
            command: Some(running.command()),
            vm_id: vm.to_string(),
            device: Some(device),
            limits: convert::limits_message(limits),
        };
        let mut agent = api.agents.client(&running.address)?;
        let told = match timeout(PASS_ON_WITHIN, agent.set_limits(request)).await {
            Ok(told) => told.map(drop).map_err(|status| status.message().to_owned()),
            Err(_) => Err("it does not answer".to_owned()),
        };
        told.map_err(|problem| {
            Status::unavailable(format!(
                "the limits are kept, but node '{}' has not put them in force: {problem}",
                running.node_name
            ))
        })?;
    }
    let text = vm.to_string();
    let get =
        move |view: drover_driver::View<'_>| find(view.state, &text).map(|vm| convert::vm(view.state, vm));
    api.cluster.read(get).await.map_err(gone)?
}

/// The volume's id, where the client may have given its name.
fn volume_id(state: &ClusterState, device: &DeviceName) -> String {
    match device {
        DeviceName::Nic(_) => String::new(),
        DeviceName::Volume(text) => {
            state.volume_named(text).map(|volume| volume.id.to_string()).unwrap_or_else(|| text.clone())
        }
    }
}
