//! Goes on with devices that were to come to VMs, where whoever began it has gone.
//!
//! A device is the VM's in the store before its node hears of it, and until its node has let it go. A control plane that dies in
//! between, or a node that does not answer, leaves a VM without a device that is its own: it would have it after its next start,
//! and could not be moved until then. So nodes are told again, once for each change of a VM and of its right to run, of every
//! VM whose devices have changed while it ran; what is there already they leave alone. A detachment that was not finished is so
//! taken back. Nothing waits for this.

use std::{collections::BTreeMap, time::Duration};

use drover_cluster_state::{ClusterState, Desired, Right, RunState, Vm};
use drover_ids::{Generation, OwnerEpoch, VmId};
use drover_ports::Store;
use drover_reconcile::admission::GuestDevice;

use crate::services::{
    Api,
    hotplug::{Told, told},
};

/// How often it looks: a guest misses a disk for about so long.
const LOOK: Duration = Duration::from_secs(1);

/// What a VM's devices were when they were looked at.
type Mark = (Generation, OwnerEpoch);

/// Runs until the driver has gone.
pub(crate) async fn keep<S: Store>(api: Api<S>) {
    let mut settled: BTreeMap<VmId, Mark> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(found) = api.cluster.read(|view| look(view.state)).await else { return };
        settled.retain(|vm, _| found.contains_key(vm));
        for (vm, (mark, devices)) in found {
            if settled.get(&vm) == Some(&mark) {
                continue;
            }
            let Some(_turn) = api.turns.try_take(vm) else { continue };
            if settle(&api, vm, devices).await {
                settled.insert(vm, mark);
            }
        }
    }
}

/// Whether nothing is left to be done.
async fn settle<S: Store>(api: &Api<S>, vm: VmId, devices: Vec<GuestDevice>) -> bool {
    for device in devices {
        match told(api, vm, device).await {
            Ok(Told::Done) => {}
            // Whoever owns it sees that it is not there, and takes it away.
            Ok(Told::Refused { node, problem }) => {
                tracing::warn!(%vm, ?device, node, problem, "a device cannot be attached");
            }
            Ok(Told::Unsettled { node, problem }) => {
                tracing::debug!(%vm, ?device, node, problem, "a device is not attached yet");
                return false;
            }
            Err(status) => {
                tracing::debug!(%vm, ?device, problem = status.message(), "a device is not attached yet");
                return false;
            }
        }
    }
    true
}

/// Those that run, and whose devices have changed since they were made.
fn look(state: &ClusterState) -> BTreeMap<VmId, (Mark, Vec<GuestDevice>)> {
    let changed = |vm: &&Vm| {
        !vm.spec.devices.disk_places.is_empty() || vm.spec.devices.nics.iter().any(|nic| nic.place > 0)
    };
    let runs = |vm: &&Vm| match vm.ownership.right() {
        Right::Owned { node, epoch, .. } => state
            .report(vm.id, node)
            .is_some_and(|report| report.epoch == epoch && report.state == RunState::Running),
        Right::Unowned | Right::Migrating { .. } => false,
    };
    let steady = state.vms.values().map(|vm| &vm.value).filter(|vm| vm.desired == Desired::Running);
    let due = steady.filter(changed).filter(runs);
    due.map(|vm| (vm.id, ((vm.generation, vm.ownership.highest()), devices(vm)))).collect()
}

fn devices(vm: &Vm) -> Vec<GuestDevice> {
    let volumes = vm.spec.volumes.iter().map(|attachment| GuestDevice::Volume(attachment.volume));
    let nics = vm.spec.devices.nics.iter().enumerate();
    volumes.chain(nics.map(|(n, nic)| GuestDevice::Nic(nic.mac(vm.id, n)))).collect()
}
