//! Goes on with devices that were to come to VMs, where whoever began it has gone.
//!
//! A device is the VM's in the store before its node hears of it, and until its node has let it go. A control plane that dies in
//! between, or a node that does not answer, leaves a VM without a device that is its own: it would have it after its next start,
//! and could not be moved until then. So nodes are told again, once for each change of a VM and of its right to run, of every
//! VM whose devices have changed while it ran; what is there already they leave alone. A detachment that was not finished is so
//! taken back. Nothing waits for this.
//!
//! Of a VM whose devices are those that it was made with, they are told the limits again, once for each change of the VM:
//! those may have been changed while nobody passed them on.

use std::{collections::BTreeMap, time::Duration};

use drover_cluster_state::{ClusterState, Desired, Right, RunState, Vm};
use drover_ids::{Generation, OwnerEpoch, VmId};
use drover_ports::Store;
use drover_reconcile::admission::GuestDevice;

use crate::services::{
    Api,
    hotplug::{self, Told},
    limits,
};

/// How often it looks: a guest misses a disk for about so long.
const LOOK: Duration = Duration::from_secs(1);

/// What a VM's devices were when they were looked at.
type Mark = (Generation, OwnerEpoch);

/// What a node may not have heard of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
enum News {
    /// Devices, which come with their limits.
    Devices(Vec<GuestDevice>),
    /// Limits of devices.
    Limits(Vec<GuestDevice>),
}

/// The generation of a VM that nobody has changed: what its process was started with is what it is.
const UNCHANGED: Generation = Generation::new(1);

/// Runs until the driver has gone.
pub(crate) async fn keep<S: Store>(api: Api<S>) {
    let mut settled: BTreeMap<VmId, Mark> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(found) = api.cluster.read(|view| look(view.state)).await else { return };
        settled.retain(|vm, _| found.contains_key(vm));
        for (vm, (mark, news)) in found {
            if settled.get(&vm) == Some(&mark) {
                continue;
            }
            let Some(_turn) = api.turns.try_take(vm) else { continue };
            if settle(&api, vm, news).await {
                settled.insert(vm, mark);
            }
        }
    }
}

/// Whether nothing is left to be done.
async fn settle<S: Store>(api: &Api<S>, vm: VmId, news: News) -> bool {
    let (News::Devices(devices) | News::Limits(devices)) = &news;
    for device in devices {
        let told = match &news {
            News::Devices(_) => hotplug::told(api, vm, *device).await,
            News::Limits(_) => limits::told(api, vm, *device).await,
        };
        match told {
            Ok(Told::Done) => {}
            // Whoever owns it sees that it is not there, and takes it away.
            Ok(Told::Refused { node, problem }) => {
                tracing::warn!(%vm, ?device, node, problem, "a device cannot be attached, or limited");
            }
            Ok(Told::Unsettled { node, problem }) => {
                tracing::debug!(%vm, ?device, node, problem, "a device is not as it should be yet");
                return false;
            }
            Err(status) => {
                tracing::debug!(%vm, ?device, problem = status.message(), "a device is not as it should be yet");
                return false;
            }
        }
    }
    true
}

/// Those that run and have changed since they were made.
fn look(state: &ClusterState) -> BTreeMap<VmId, (Mark, News)> {
    let runs = |vm: &&Vm| match vm.ownership.right() {
        Right::Owned { node, epoch, .. } => state
            .report(vm.id, node)
            .is_some_and(|report| report.epoch == epoch && report.state == RunState::Running),
        Right::Unowned | Right::Migrating { .. } => false,
    };
    let steady = state.vms.values().map(|vm| &vm.value).filter(|vm| vm.desired == Desired::Running);
    let due = steady.filter(|vm| vm.generation != UNCHANGED).filter(runs);
    due.map(|vm| (vm.id, ((vm.generation, vm.ownership.highest()), news(vm)))).collect()
}

fn news(vm: &Vm) -> News {
    let have_changed =
        !vm.spec.devices.disk_places.is_empty() || vm.spec.devices.nics.iter().any(|nic| nic.place > 0);
    if have_changed { News::Devices(devices(vm)) } else { News::Limits(devices(vm)) }
}

fn devices(vm: &Vm) -> Vec<GuestDevice> {
    let volumes = vm.spec.volumes.iter().map(|attachment| GuestDevice::Volume(attachment.volume));
    let nics = vm.spec.devices.nics.iter().enumerate();
    volumes.chain(nics.map(|(n, nic)| GuestDevice::Nic(nic.mac(vm.id, n)))).collect()
}
