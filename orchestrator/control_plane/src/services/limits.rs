//! Limits of a VM's devices: kept, and passed on to the node that runs it. Where that has not come of it, the node is told again
//! ([`device_keeper`](crate::device_keeper)).

use drover_cluster_state::{ClusterState, Limits, Vm};
use drover_ids::VmId;
use drover_ports::Store;
use drover_reconcile::admission::{self, DeviceName, GuestDevice};
use drover_wire::{
    control::v1::{self as wire, SetLimitsRequest, set_limits_request::Device},
    node::v1 as node,
};
use tokio::time::timeout;
use tonic::Status;

use super::{
    Api,
    hotplug::{Told, is_refusal, turn},
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
    let device = api.cluster.read(move |view| named(view.state, &device)).await.map_err(gone)?;
    if let Some(device) = device {
        match told(api, vm, device).await? {
            Told::Done => {}
            Told::Refused { node, problem } | Told::Unsettled { node, problem } => {
                let text =
                    format!("the limits are kept, but node '{node}' has not put them in force: {problem}");
                return Err(Status::unavailable(text));
            }
        }
    }
    let text = vm.to_string();
    let get =
        move |view: drover_driver::View<'_>| find(view.state, &text).map(|vm| convert::vm(view.state, vm));
    api.cluster.read(get).await.map_err(gone)?
}

/// Tells the node that runs a VM what limits one of its devices has. Telling it again changes nothing.
pub(crate) async fn told<S: Store>(api: &Api<S>, vm: VmId, device: GuestDevice) -> Result<Told, Status> {
    let look = move |view: drover_driver::View<'_>| {
        Some((Running::find(view.state, vm)?, limits_of(&view.state.vms.get(&vm)?.value, device)?))
    };
    let Some((running, limits)) = api.cluster.read(look).await.map_err(gone)? else {
        return Ok(Told::Done);
    };
    let request = node::SetLimitsRequest {
        command: Some(running.command()),
        vm_id: vm.to_string(),
        device: Some(match device {
            GuestDevice::Volume(volume) => node::set_limits_request::Device::VolumeId(volume.to_string()),
            GuestDevice::Nic(mac) => node::set_limits_request::Device::Mac(mac.to_string()),
        }),
        limits: convert::limits_message(limits),
    };
    let mut agent = api.agents.client(&running.address)?;
    let node = running.node_name;
    Ok(match timeout(PASS_ON_WITHIN, agent.set_limits(request)).await {
        Ok(Ok(_)) => Told::Done,
        Ok(Err(status)) if is_refusal(&status) => {
            Told::Refused { node, problem: status.message().to_owned() }
        }
        Ok(Err(status)) => Told::Unsettled { node, problem: status.message().to_owned() },
        Err(_) => Told::Unsettled { node, problem: "it does not answer".to_owned() },
    })
}

/// `None`: it has no such device any more.
fn limits_of(vm: &Vm, device: GuestDevice) -> Option<Limits> {
    let devices = &vm.spec.devices;
    match device {
        GuestDevice::Volume(volume) => {
            let is_attached = vm.spec.volumes.iter().any(|attachment| attachment.volume == volume);
            is_attached.then(|| devices.disk_limits.get(&volume).copied().unwrap_or_default())
        }
        GuestDevice::Nic(mac) => {
            let mut nics = devices.nics.iter().enumerate();
            nics.find(|(n, nic)| nic.mac(vm.id, *n) == mac).map(|(_, nic)| nic.limits)
        }
    }
}

/// The device, where the client may have given a volume's name.
fn named(state: &ClusterState, device: &DeviceName) -> Option<GuestDevice> {
    match device {
        DeviceName::Nic(text) => text.parse().ok().map(GuestDevice::Nic),
        DeviceName::Volume(text) => {
            let id = state.volume_named(text).map(|volume| volume.id).or_else(|| text.parse().ok());
            id.map(GuestDevice::Volume)
        }
    }
}
