//! Virtio devices beside the disks: what a machine is given to make and attach them.
//!
//! # How a kind of device is added
//!
//! 1. The device itself goes into drover-devices, in a folder of its own beside `virtio/blk`, and implements
//!    [`VirtioDevice`]: what it offers, its queues, activation, pause (drained), save and restore. It knows neither its bus
//!    nor its slot. A kind that is not in [`VirtioKind`] yet is added there, which gives it a name and a PCI class.
//! 2. Its state is a `SavedState` of its own kind (`"virtio-net"`) with a golden file. The transport puts it into its own
//!    envelope, whose instance is the slot; kind and slot together are the device's identity.
//! 3. Whoever builds a machine puts a [`NewDevice`] into the list that
//!    [`VolumesOpen::with_devices`](crate::VolumesOpen::with_devices) takes. Handles to the device that live on outside
//!    (counters, a balloon's target) are `Arc`s that its maker keeps a clone of.
//!
//! Nothing in drover-machine changes: slot, window or BAR, interrupts, doorbells, ACPI, pause order, state and the shape
//! that a migration compares ([`Machine::virtio_devices`](crate::Machine::virtio_devices)) follow from the list.

use std::{error::Error, fmt, sync::Arc};

use drover_devices::{DeviceEvents, VirtioDevice, VirtioKind};

use crate::Slot;

/// Why a device could not be made.
pub type MakeError = Box<dyn Error + Send + Sync>;

/// What a device is made with.
#[derive(Debug)]
pub struct DeviceContext {
    /// What people call it in this machine: its kind's name and its number among its kind, `net0`.
    pub name: String,
    /// Where it tells that the machine must end.
    pub events: Arc<dyn DeviceEvents>,
}

type Make = dyn FnOnce(DeviceContext) -> Result<Box<dyn VirtioDevice>, MakeError> + Send;

/// A virtio device that is to be made and attached.
pub struct NewDevice {
    pub(crate) kind: VirtioKind,
    pub(crate) slot: Option<Slot>,
    pub(crate) identity: String,
    pub(crate) make: Box<Make>,
}

impl NewDevice {
    /// A device of this kind, made when its machine is.
    pub fn new<D: VirtioDevice + 'static>(
        kind: VirtioKind,
        make: impl FnOnce(DeviceContext) -> Result<D, MakeError> + Send + 'static,
    ) -> Self {
        let make: Box<Make> = Box::new(|context| make(context).map(|device| Box::new(device) as _));
        Self { kind, slot: None, identity: String::new(), make }
    }

    /// The same, in this slot and no other.
    #[must_use]
    pub fn in_slot(self, slot: Slot) -> Self {
        Self { slot: Some(slot), ..self }
    }

    /// The same, with a name for what it stands for beyond this machine: a volume's id, a MAC address. A guest moves only
    /// to a machine whose device in that slot has the same.
    #[must_use]
    pub fn with_identity(self, identity: impl Into<String>) -> Self {
        Self { identity: identity.into(), ..self }
    }
}

impl fmt::Debug for NewDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewDevice")
            .field("kind", &self.kind)
            .field("slot", &self.slot)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// A virtio device of a machine, by what a machine that its guest moves to must have in the same place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioShape {
    /// Its kind.
    pub kind: VirtioKind,
    /// Where it is.
    pub slot: Slot,
    /// What it stands for: a disk's id, or [`NewDevice::with_identity`].
    pub identity: String,
    /// The kind of its saved state.
    pub state: String,
    /// The version in which it saves that state, and the newest that it reads.
    pub state_version: u16,
}
