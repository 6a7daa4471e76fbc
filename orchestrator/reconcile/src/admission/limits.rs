//! What a VM's devices may do.

use drover_cluster_state::{
    ClusterState, DeviceBus, Extras, GuestDevices, Hardware, Key, Limits, Mac, NICS_MAX, Name, Nic, OnReset,
    Record, Right, Txn, Vm,
};
use drover_ids::VmId;

use super::{
    AdmissionError, find_vm,
    vm::{find_image, parse_name},
};

/// The devices of a new VM, as the client sent them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceRequest {
    /// Network interfaces.
    pub nics: Vec<Nic>,
    /// Limits of volumes, by name or id.
    pub volume_limits: Vec<(String, Limits)>,
    /// What kind of machine it is.
    pub hardware: HardwareRequest,
}

/// What kind of machine a new VM is, as the client sent it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HardwareRequest {
    /// Queues of each disk; 0 is one.
    pub disk_queues: u16,
    /// Name of an image; empty: none.
    pub initrd: String,
    /// What its devices are on.
    pub bus: DeviceBus,
    /// What its guest's reset does.
    pub on_reset: OnReset,
    /// Devices beside disks and interfaces.
    pub extras: Extras,
}

/// What a request's names mean. The initrd is where the boot image is, since a node has both from one folder.
pub(super) fn resolve_hardware(
    state: &ClusterState,
    request: &HardwareRequest,
    image_pool: &Name,
    txn: &mut Txn,
) -> Result<Hardware, AdmissionError> {
    let HardwareRequest { disk_queues, initrd, bus, on_reset, extras } = request;
    let initrd = match initrd.as_str() {
        "" => None,
        text => {
            let image = find_image(state, "spec.initrd", text)?;
            if image.pool != *image_pool {
                let problem = format!("image '{}' is in pool '{}'", image.name, image.pool);
                let valid = format!("an image in the boot image's pool, '{image_pool}'");
                return Err(AdmissionError::invalid("spec.initrd", problem, valid));
            }
            txn.require(Key::Image(image.name.clone()), image);
            Some(image.name.clone())
        }
    };
    Ok(Hardware { disk_queues: *disk_queues, initrd, bus: *bus, on_reset: *on_reset, extras: *extras })
}

/// One of a VM's devices, as a client names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceName {
    /// A disk, by its volume's name or id.
    Volume(String),
    /// A network interface, by its address.
    Nic(String),
}

/// What a request's names mean. `attached` are the volumes of the VM.
pub(super) fn resolve_devices(
    request: &DeviceRequest,
    attached: &[(drover_ids::VolumeId, &str)],
) -> Result<GuestDevices, AdmissionError> {
    if request.nics.len() > NICS_MAX {
        let problem = format!("there are {}", request.nics.len());
        return Err(AdmissionError::invalid("spec.nics", problem, format!("at most {NICS_MAX}")));
    }
    for nic in request.nics.iter().filter(|nic| !nic.network.is_empty()) {
        parse_name("spec.nics.network", &nic.network)?;
    }
    let mut devices = GuestDevices { nics: request.nics.clone(), ..GuestDevices::default() };
    for (volume, limits) in &request.volume_limits {
        let named = attached.iter().find(|(id, name)| *name == volume || id.to_string() == *volume);
        let Some((id, _)) = named else {
            let problem = format!("'{}' is no volume of this VM", shown(volume));
            return Err(AdmissionError::invalid("spec.volume_limits", problem, "names in spec.volumes"));
        };
        devices.disk_limits.insert(*id, *limits);
    }
    Ok(devices)
}

/// Admits new limits of one of a VM's devices. `None`: they are as wanted.
pub fn set_limits(
    state: &ClusterState,
    vm: &str,
    (device, limits): (&DeviceName, Limits),
) -> Result<(VmId, Option<Txn>), AdmissionError> {
    let vm = find_vm(state, "vm", vm)?;
    if matches!(vm.ownership.right(), Right::Migrating { .. }) {
        let problem =
            format!("VM '{}' is being moved, and its next node has been told the old ones", vm.spec.name);
        return Err(AdmissionError::invalid("vm", problem, "a VM that stays where it is: try again"));
    }
    let mut devices = vm.spec.devices.clone();
    match device {
        DeviceName::Volume(text) => {
            let mut attached = vm.spec.volumes.iter().map(|attachment| attachment.volume);
            let is_named = |id: &drover_ids::VolumeId| {
                state.volumes.get(id).is_some_and(|volume| volume.name.as_str() == text)
                    || id.to_string() == *text
            };
            let Some(volume) = attached.find(is_named) else {
                let problem = format!("'{}' is no volume of this VM", shown(text));
                return Err(AdmissionError::invalid("volume", problem, "a volume that is attached to it"));
            };
            if limits.is_unlimited() {
                devices.disk_limits.remove(&volume);
            } else {
                devices.disk_limits.insert(volume, limits);
            }
        }
        DeviceName::Nic(text) => {
            let mac = text.parse::<Mac>().ok();
            let mut nics = devices.nics.iter_mut().enumerate();
            let Some((_, nic)) = nics.find(|(n, nic)| Some(nic.mac(vm.id, *n)) == mac) else {
                let problem = format!("'{}' is no interface of this VM", shown(text));
                return Err(AdmissionError::invalid("mac", problem, "the address of one of its interfaces"));
            };
            nic.limits = limits;
        }
    }
    if devices == vm.spec.devices {
        return Ok((vm.id, None));
    }
    let mut changed: Vm = vm.value.clone();
    changed.spec.devices = devices;
    changed.generation = changed.generation.next();
    let mut txn = Txn::new();
    txn.update(vm.revision, Record::Vm(changed));
    Ok((vm.id, Some(txn)))
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}
