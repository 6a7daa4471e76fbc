//! The VM's virtio devices beside its disks: from its configuration to what the machine is given.

use drover_machine::NewDevice;

use crate::{order::VmConfig, refused::Refused};

/// Every device that the configuration asks for, in an order that depends on nothing else: the slots of those without a
/// wish follow from it. One line per kind; what a kind needs from the host is opened where its line points.
pub(crate) fn from_config(_config: &VmConfig) -> Result<Vec<NewDevice>, Refused> {
    Ok(Vec::new())
}
