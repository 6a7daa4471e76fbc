//! Devices that come to VMs and go from them: kept, and done by the node that runs the VM.
//!
//! One change of a VM at a time: two that cross on their way to a node would leave it with what the store does not have. What a
//! control plane leaves half done its successor goes on with ([`device_keeper`](crate::device_keeper)).

use std::time::Duration;

use drover_cluster_state::ClusterState;
use drover_driver::View;
use drover_ids::{OwnerEpoch, VmId, VolumeId};
use drover_ports::Store;
use drover_reconcile::admission::{self, AdmissionError, DeviceChange, DeviceName, GuestDevice};
use drover_wire::{
    control::v1::{self as wire, AttachNicRequest, AttachVolumeRequest},
    node::v1::{self as node, attach_device_request, detach_device_request},
};
use tokio::time::timeout;
use tonic::{Code, Status};

use super::{Api, running::Running, to_the_end, turns::Turn, vms::find};
use crate::{
    convert,
    pools::blocking,
    status::{describe, gone, invalid, submit_failed},
};

/// A node opens a volume and attaches it: seconds at most, or its storage does not answer.
const ATTACH_WITHIN: Duration = Duration::from_secs(15);
/// A volume's storage tells that a claim has ended: milliseconds, or it does not answer.
const CLAIM_WITHIN: Duration = Duration::from_secs(10);
/// How long a guest has to let go, where nobody says.
const WAIT_MS: u32 = 10_000;
/// Longest wait that may be asked for: clients wait for half a minute.
const WAIT_MS_MAX: u32 = 20_000;

/// Attaches a volume.
pub(super) async fn attach_volume<S: Store>(
    api: &Api<S>,
    request: AttachVolumeRequest,
) -> Result<wire::Vm, Status> {
    let AttachVolumeRequest { vm, volume, read_only } = request;
    api.detach_from_deleted_vms(vec![volume.clone()]).await?;
    let named = vm.clone();
    attach(api, vm, move |state| admission::attach_volume(state, &named, (&volume, read_only))).await
}

/// Attaches an interface.
pub(super) async fn attach_nic<S: Store>(
    api: &Api<S>,
    request: AttachNicRequest,
) -> Result<wire::Vm, Status> {
    let AttachNicRequest { vm, nic } = request;
    let nic = nic.ok_or_else(|| invalid("nic", "it is missing", "a Nic"))?;
    let named = vm.clone();
    attach(api, vm, move |state| admission::attach_nic(state, &named, &convert::nic(nic.clone())?)).await
}

async fn attach<S: Store>(
    api: &Api<S>,
    vm: String,
    admit: impl Fn(&ClusterState) -> Result<DeviceChange, AdmissionError> + Clone + Send + 'static,
) -> Result<wire::Vm, Status> {
    let api = api.clone();
    to_the_end(async move {
        let _turn = turn(&api, vm).await?;
        let admitted = api.cluster.submit(move |view| {
            admit(view.state).map(|(vm, device, txn)| {
                let is_new = txn.is_some();
                ((vm, device, is_new, admission::newest_right(view.state, vm)), txn)
            })
        });
        let (vm, device, is_new, seen) = admitted.await.map_err(submit_failed)?;
        match told(&api, vm, device).await? {
            Told::Done => {}
            Told::Refused { node, problem } => {
                // Nothing has come of it: the device is not the VM's. One that was before stays.
                if is_new {
                    take_from(&api, (vm, seen), device).await?;
                }
                let text = format!("node '{node}' cannot attach it: {problem}");
                return Err(Status::failed_precondition(text));
            }
            Told::Unsettled { node, problem } => {
                let text = format!(
                    "it is kept, and node '{node}' has not done it yet: {problem}; it will be tried again"
                );
                return Err(Status::unavailable(text));
            }
        }
        shown(&api, vm).await
    })
    .await
}

/// What has become of a device that was to come.
pub(crate) enum Told {
    /// The VM has it, or will have it when it starts.
    Done,
    /// The VM's node says that nothing has come of it.
    Refused { node: String, problem: String },
    /// Nobody knows.
    Unsettled { node: String, problem: String },
}

/// Tells the node that runs a VM of one of its devices. Telling it again changes nothing.
pub(crate) async fn told<S: Store>(api: &Api<S>, vm: VmId, device: GuestDevice) -> Result<Told, Status> {
    let look =
        move |view: View<'_>| Some((Running::find(view.state, vm)?, agents_device(view.state, vm, device)?));
    let Some((running, message)) = api.cluster.read(look).await.map_err(gone)? else {
        return Ok(Told::Done);
    };
    let request = node::AttachDeviceRequest {
        command: Some(running.command()),
        vm_id: vm.to_string(),
        device: Some(message),
    };
    let mut agent = api.agents.client(&running.address)?;
    let node = running.node_name;
    Ok(match timeout(ATTACH_WITHIN, agent.attach_device(request)).await {
        Ok(Ok(_)) => Told::Done,
        Ok(Err(status)) if is_refusal(&status) => {
            Told::Refused { node, problem: status.message().to_owned() }
        }
        Ok(Err(status)) => Told::Unsettled { node, problem: status.message().to_owned() },
        Err(_) => Told::Unsettled { node, problem: "it does not answer".to_owned() },
    })
}

/// The VM does not have this device any more.
async fn take_from<S: Store>(
    api: &Api<S>,
    vm: (VmId, OwnerEpoch),
    device: GuestDevice,
) -> Result<(), Status> {
    let gone_from = move |view: View<'_>| admission::detached(view.state, vm, device).map(|txn| ((), txn));
    api.cluster.submit(gone_from).await.map_err(submit_failed)
}

/// Waits until no other change of this VM's devices is under way.
pub(super) async fn turn<S: Store>(api: &Api<S>, vm: String) -> Result<Turn, Status> {
    let named = move |view: View<'_>| find(view.state, &vm).map(|vm| vm.id);
    let vm = api.cluster.read(named).await.map_err(gone)??;
    Ok(api.turns.take(vm).await)
}

/// Takes a device away.
pub(super) async fn detach<S: Store>(
    api: &Api<S>,
    vm: String,
    (device, force, wait_ms): (DeviceName, bool, u32),
) -> Result<wire::Vm, Status> {
    if wait_ms > WAIT_MS_MAX {
        return Err(invalid("wait_ms", format!("it is {wait_ms}"), "at most 20000, or 0 for 10000"));
    }
    let wait_ms = if wait_ms == 0 { WAIT_MS } else { wait_ms };
    let api = api.clone();
    to_the_end(async move {
        let _turn = turn(&api, vm.clone()).await?;
        detach_now(&api, vm, (device, force, wait_ms)).await
    })
    .await
}

async fn detach_now<S: Store>(
    api: &Api<S>,
    vm: String,
    (device, force, wait_ms): (DeviceName, bool, u32),
) -> Result<wire::Vm, Status> {
    let admitted = api.cluster.submit(move |view| {
        let (vm, device) = admission::may_detach(view.state, &vm, &device)?;
        Ok::<_, AdmissionError>(((vm, device, admission::newest_right(view.state, vm)), None))
    });
    let (vm, device, seen) = admitted.await.map_err(submit_failed)?;
    let Some(device) = device else { return shown(api, vm).await };
    let running = api.cluster.read(move |view| Running::find(view.state, vm)).await.map_err(gone)?;
    if let Some(running) = running {
        let request = node::DetachDeviceRequest {
            command: Some(running.command()),
            vm_id: vm.to_string(),
            device: Some(match device {
                GuestDevice::Volume(id) => detach_device_request::Device::VolumeId(id.to_string()),
                GuestDevice::Nic(mac) => detach_device_request::Device::Mac(mac.to_string()),
            }),
            force,
            wait_ms,
        };
        let limit = Duration::from_millis(wait_ms.into()) + ATTACH_WITHIN;
        let mut agent = api.agents.client(&running.address)?;
        match timeout(limit, agent.detach_device(request)).await {
            Ok(detached) => drop(detached?),
            Err(_) => {
                let text = format!("node '{}' does not answer: try again", running.node_name);
                return Err(Status::unavailable(text));
            }
        }
    }
    if let GuestDevice::Volume(volume) = device {
        give_up_claim(api, vm, volume).await?;
    }
    take_from(api, (vm, seen), device).await?;
    shown(api, vm).await
}

/// On disk a volume stays with its last VM until it is told otherwise. Refused while anybody writes it.
async fn give_up_claim<S: Store>(api: &Api<S>, vm: VmId, volume: VolumeId) -> Result<(), Status> {
    let look = move |view: View<'_>| view.state.volumes.get(&volume).map(|volume| volume.pool.clone());
    let Some(pool) = api.cluster.read(look).await.map_err(gone)? else { return Ok(()) };
    let ended = async {
        if let Some(pool) = api.pools.get(&pool).cloned() {
            blocking(move || match drover_dir_volume::detach(&pool, volume, vm) {
                Ok(()) | Err(drover_dir_volume::LockError::OtherVm { .. }) => Ok(()),
                Err(error) => Err(describe(&error)),
            })
            .await
        } else if let Some(rbd) = api.pools.made(&pool) {
            let ceph = api.pools.ceph().clone();
            blocking(move || {
                let pool = ceph.open(&rbd).map_err(|error| describe(&error))?;
                drover_rbd_volume::detach(&pool, &format!("volume-{volume}"), vm)
                    .map_err(|error| describe(&error))
            })
            .await
        } else {
            Ok(())
        }
    };
    let late = || Err("it does not answer".to_owned());
    let ended = timeout(CLAIM_WITHIN, ended).await.unwrap_or_else(|_| late());
    ended.map_err(|problem| {
        Status::unavailable(format!(
            "volume {volume} is still with the VM on its storage: {problem}; try again"
        ))
    })
}

/// The device as the VM's node has to know it.
fn agents_device(
    state: &ClusterState,
    vm: VmId,
    device: GuestDevice,
) -> Option<attach_device_request::Device> {
    let spec = &state.vms.get(&vm)?.spec;
    let mut sent = convert::vm_spec(vm, spec, &state.pool_access(spec));
    Some(match device {
        GuestDevice::Volume(id) => {
            let n = sent.volumes.iter().position(|volume| volume.volume_id == id.to_string())?;
            attach_device_request::Device::Volume(sent.volumes.swap_remove(n))
        }
        GuestDevice::Nic(mac) => {
            let n = sent.nics.iter().position(|nic| nic.mac == mac.to_string())?;
            attach_device_request::Device::Nic(sent.nics.swap_remove(n))
        }
    })
}

/// Whether nothing has come of it, for sure.
pub(super) fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::NotFound
            | Code::Unimplemented
            | Code::Aborted
    )
}

async fn shown<S: Store>(api: &Api<S>, vm: VmId) -> Result<wire::Vm, Status> {
    let text = vm.to_string();
    let get = move |view: View<'_>| find(view.state, &text).map(|vm| convert::vm(view.state, vm));
    api.cluster.read(get).await.map_err(gone)?
}
