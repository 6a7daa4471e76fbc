//! Devices that come to a VM and go from it.
//!
//! What is to come is the VM's before its node hears of it: whoever fences the VM fences the volume too. What is to go is the
//! VM's until its node says that it has gone.

use drover_cluster_state::{
    ClusterState, Desired, Mac, NICS_MAX, Nic, Record, Right, Stored, Txn, Vm, Volume, VolumeAttachment,
    VolumeState,
};
use drover_ids::{OwnerEpoch, VmId, VolumeId};

use super::{
    AdmissionError, DeviceName, find_vm, require_idle,
    storage::require_settled,
    vm::{VOLUMES_MAX, find_volume, parse_name, require_not_suspended},
};

/// One of a VM's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestDevice {
    /// The disk of this volume.
    Volume(VolumeId),
    /// The interface with this address.
    Nic(Mac),
}

/// A change of a VM's devices. `None`: they are as wanted.
pub type DeviceChange = (VmId, GuestDevice, Option<Txn>);

/// Admits a volume as a disk of a VM. Again, if it is one already.
pub fn attach_volume(
    state: &ClusterState,
    vm: &str,
    (volume, read_only): (&str, bool),
) -> Result<DeviceChange, AdmissionError> {
    let vm = steady(state, vm)?;
    let volume = find_volume(state, "volume", volume)?;
    let device = GuestDevice::Volume(volume.id);
    if vm.spec.volumes.iter().any(|other| other.volume == volume.id && other.read_only == read_only) {
        return Ok((vm.id, device, None));
    }
    if let Some(holder) = volume.attached {
        let holder = state.vms.get(&holder).map_or_else(|| holder.to_string(), |vm| vm.spec.name.to_string());
        return Err(AdmissionError::VolumeAttached {
            field: "volume",
            volume: volume.name.clone(),
            vm: holder,
        });
    }
    if volume.state != VolumeState::Ready {
        let problem = format!("volume '{}' is not ready ({:?})", volume.name, volume.state);
        return Err(AdmissionError::wrong_state("volume", problem, "a volume that is ready"));
    }
    require_settled(state, "volume", volume)?;
    let disks = vm.spec.volumes.len() + usize::from(vm.spec.cloud_init.is_some());
    let mut changed = pinned(vm);
    let place = changed.spec.devices.free_disk_place().filter(|_| disks < VOLUMES_MAX);
    let Some(place) = place else {
        let problem = format!("VM '{}' has {disks} disks", vm.spec.name);
        return Err(AdmissionError::wrong_state("vm", problem, format!("less than {VOLUMES_MAX}")));
    };
    changed.spec.devices.disk_places.insert(volume.id, place);
    changed.spec.volumes.push(VolumeAttachment { volume: volume.id, pool: volume.pool.clone(), read_only });
    let mut txn = Txn::new();
    txn.update(volume.revision, Record::Volume(Volume { attached: Some(vm.id), ..volume.value.clone() }));
    txn.update(vm.revision, Record::Vm(changed));
    Ok((vm.id, device, Some(txn)))
}

/// Admits one more interface of a VM. Again, if it has one of that address.
pub fn attach_nic(state: &ClusterState, vm: &str, nic: &Nic) -> Result<DeviceChange, AdmissionError> {
    let vm = steady(state, vm)?;
    if !nic.network.is_empty() {
        parse_name("nic.network", &nic.network)?;
    }
    let mut changed = pinned(vm);
    let devices = &mut changed.spec.devices;
    if let Some(mac) = nic.fixed_mac
        && devices.nics.iter().any(|other| other.fixed_mac == Some(mac))
    {
        return Ok((vm.id, GuestDevice::Nic(mac), None));
    }
    let Some(place) = devices.free_nic_place() else {
        let problem = format!("VM '{}' has {NICS_MAX} interfaces", vm.spec.name);
        return Err(AdmissionError::wrong_state("vm", problem, format!("less than {NICS_MAX}")));
    };
    // By its place, so that no two of one VM are alike, whatever has come and gone.
    let mac = nic.mac(vm.id, usize::from(place) - 1);
    devices.nics.push(Nic { fixed_mac: Some(mac), place, ..nic.clone() });
    let mut txn = Txn::new();
    txn.update(vm.revision, Record::Vm(changed));
    Ok((vm.id, GuestDevice::Nic(mac), Some(txn)))
}

/// Whether this device of a VM may go. `None`: it is not the VM's.
pub fn may_detach(
    state: &ClusterState,
    vm: &str,
    device: &DeviceName,
) -> Result<(VmId, Option<GuestDevice>), AdmissionError> {
    let vm = steady(state, vm)?;
    let device = match device {
        DeviceName::Volume(text) => {
            let volume = find_volume(state, "volume", text)?;
            require_settled(state, "volume", volume)?;
            let is_its = vm.spec.volumes.iter().any(|other| other.volume == volume.id);
            is_its.then_some(GuestDevice::Volume(volume.id))
        }
        DeviceName::Nic(text) => {
            let mac: Mac = text.parse().map_err(|error| {
                AdmissionError::invalid("mac", format!("{error}"), "the address of one of its interfaces")
            })?;
            let mut nics = vm.spec.devices.nics.iter().enumerate();
            nics.any(|(n, nic)| nic.mac(vm.id, n) == mac).then_some(GuestDevice::Nic(mac))
        }
    };
    Ok((vm.id, device))
}

/// Takes a device from a VM that does not have it any more. `None`: it is not the VM's.
///
/// `seen` is the newest right to run that the VM had when its node was asked. A VM that has been granted another since may have
/// been started, with the device.
pub fn detached(
    state: &ClusterState,
    (vm, seen): (VmId, OwnerEpoch),
    device: GuestDevice,
) -> Result<Option<Txn>, AdmissionError> {
    let Some(vm) = state.vms.get(&vm) else { return Ok(None) };
    if vm.ownership.highest() != seen {
        let problem = format!("VM '{}' has been started or moved meanwhile", vm.spec.name);
        return Err(AdmissionError::wrong_state(
            "vm",
            problem,
            "a VM that stays what and where it is: try again",
        ));
    }
    let mut changed = pinned(vm);
    let mut txn = Txn::new();
    match device {
        GuestDevice::Volume(id) => {
            changed.spec.volumes.retain(|other| other.volume != id);
            changed.spec.devices.disk_places.remove(&id);
            changed.spec.devices.disk_limits.remove(&id);
            if let Some(volume) = state.volumes.get(&id).filter(|volume| volume.attached == Some(vm.id)) {
                let free = Volume { attached: None, ..volume.value.clone() };
                txn.update(volume.revision, Record::Volume(free));
            }
        }
        GuestDevice::Nic(mac) => changed.spec.devices.nics.retain(|nic| nic.fixed_mac != Some(mac)),
    }
    let devices = |vm: &Vm| (vm.spec.volumes.len(), vm.spec.devices.nics.len());
    if devices(&changed) == devices(&vm.value) {
        return Ok(None);
    }
    txn.update(vm.revision, Record::Vm(changed));
    Ok(Some(txn))
}

/// The newest right to run that a VM has had.
pub fn newest_right(state: &ClusterState, vm: VmId) -> OwnerEpoch {
    state.vms.get(&vm).map(|vm| vm.ownership.highest()).unwrap_or_default()
}

/// The VM, if it stays what and where it is for a moment.
fn steady<'a>(state: &'a ClusterState, vm: &str) -> Result<&'a Stored<Vm>, AdmissionError> {
    let vm = find_vm(state, "vm", vm)?;
    require_idle(state, vm)?;
    if vm.desired == Desired::Deleted {
        let problem = format!("VM '{}' is being deleted", vm.spec.name);
        return Err(AdmissionError::wrong_state("vm", problem, "a VM that is to stay"));
    }
    if matches!(vm.ownership.right(), Right::Migrating { .. }) {
        let problem = format!("VM '{}' is being moved", vm.spec.name);
        return Err(AdmissionError::wrong_state("vm", problem, "a VM that stays where it is: try again"));
    }
    // Its memory knows the devices that it has.
    require_not_suspended(vm)?;
    Ok(vm)
}

fn pinned(vm: &Vm) -> Vm {
    let mut changed = vm.clone();
    let volumes = vm.spec.volumes.iter().map(|attachment| attachment.volume);
    changed.spec.devices.pin(vm.id, volumes, vm.spec.cloud_init.is_some());
    changed.generation = changed.generation.next();
    changed
}
