//! Devices that come and go while the VM runs.

use std::time::Duration;

use drover_lifecycle::Command;
use drover_wire::vm::v1 as wire;

use super::{
    LimitedDevice,
    fields::{InvalidField, invalid, parsed},
    nic::{NicConfig, nic},
    vm_config::{DiskConfig, disk},
};

/// How long a guest has to let go of a device, where nobody says: Linux takes less than a second when it is idle.
const WAIT: Duration = Duration::from_secs(10);
/// Longest wait that may be asked for: the connection that waits may not live longer.
const WAIT_MS_MAX: u32 = 600_000;

/// A device that is to come.
#[derive(Clone, Debug)]
pub(crate) enum NewPart {
    Disk(DiskConfig),
    Nic(NicConfig),
}

/// What is to become of the machine.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Attach(Box<NewPart>),
    /// Whether or not the guest has let go of it.
    Detach(LimitedDevice),
}

/// A device is to come.
#[derive(Clone, Debug)]
pub(crate) struct AttachOrder {
    pub(crate) command: Command,
    pub(crate) part: NewPart,
}

/// A device is to go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DetachOrder {
    pub(crate) command: Command,
    pub(crate) device: LimitedDevice,
    /// How long the guest has to let go; `None`: it is not asked.
    pub(crate) wait: Option<Duration>,
}

impl TryFrom<wire::AttachDeviceRequest> for AttachOrder {
    type Error = InvalidField;

    fn try_from(message: wire::AttachDeviceRequest) -> Result<Self, InvalidField> {
        use wire::attach_device_request::Device;
        // A place of its own it must say: the order in which devices came tells nothing here.
        let unsaid = |field: &str| invalid(field, 0, "a place of its own");
        let part = match message.device {
            Some(Device::Disk(message)) if message.place == 0 => return Err(unsaid("disk.place")),
            Some(Device::Nic(message)) if message.place == 0 => return Err(unsaid("nic.place")),
            Some(Device::Disk(message)) => NewPart::Disk(disk("disk", message, 0)?),
            Some(Device::Nic(message)) => NewPart::Nic(nic("nic", message, 0)?),
            None => return Err(invalid("device", "is missing", "a disk or a nic")),
        };
        Ok(Self { command: super::command(message.command)?, part })
    }
}

impl TryFrom<wire::DetachDeviceRequest> for DetachOrder {
    type Error = InvalidField;

    fn try_from(message: wire::DetachDeviceRequest) -> Result<Self, InvalidField> {
        use wire::detach_device_request::Device;
        let device = match message.device {
            Some(Device::VolumeId(id)) => LimitedDevice::Disk(parsed("volume_id", &id)?),
            Some(Device::Mac(mac)) => LimitedDevice::Nic(parsed("mac", &mac)?),
            None => return Err(invalid("device", "is missing", "a volume_id or a mac")),
        };
        let wait = match message.wait_ms {
            0 => WAIT,
            ms if ms <= WAIT_MS_MAX => Duration::from_millis(ms.into()),
            ms => return Err(invalid("wait_ms", ms, &format!("at most {WAIT_MS_MAX}, or 0"))),
        };
        let wait = (!message.force).then_some(wait);
        Ok(Self { command: super::command(message.command)?, device, wait })
    }
}
