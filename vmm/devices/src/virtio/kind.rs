//! Which kinds of virtio devices there are.

use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_NET, VIRTIO_ID_RNG, VIRTIO_ID_VSOCK,
};

/// A kind of virtio device (section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VirtioKind {
    /// A disk.
    Block,
    /// A network interface.
    Net,
    /// A console with ports.
    Console,
    /// A source of entropy.
    Rng,
    /// A memory balloon.
    Balloon,
    /// Sockets between guest and host.
    Vsock,
}

impl VirtioKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Block, Self::Net, Self::Console, Self::Rng, Self::Balloon, Self::Vsock];

    /// The number by which drivers know it: what [`VirtioDevice::device_id`](crate::VirtioDevice::device_id) says.
    pub fn id(self) -> u32 {
        match self {
            Self::Net => VIRTIO_ID_NET,
            Self::Block => VIRTIO_ID_BLOCK,
            Self::Console => VIRTIO_ID_CONSOLE,
            Self::Rng => VIRTIO_ID_RNG,
            Self::Balloon => VIRTIO_ID_BALLOON,
            Self::Vsock => VIRTIO_ID_VSOCK,
        }
    }

    /// What people call one, before its number: `disk0`, `net1`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "disk",
            Self::Net => "net",
            Self::Console => "console",
            Self::Rng => "rng",
            Self::Balloon => "balloon",
            Self::Vsock => "vsock",
        }
    }

    /// Base class, sub-class and interface as a PCI function, from high to low. Drivers go by the device number; tools
    /// show these.
    pub fn pci_class(self) -> u32 {
        match self {
            // Mass storage of a kind that the class codes do not know.
            Self::Block => 0x01_8000,
            // Ethernet.
            Self::Net => 0x02_0000,
            // Another network controller, another communication device.
            Self::Vsock => 0x02_8000,
            Self::Console => 0x07_8000,
            // None of the classes.
            Self::Rng | Self::Balloon => 0x00_ff00,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn kinds_can_be_told_apart_by_number_and_by_name() {
        let count = VirtioKind::ALL.len();
        assert_eq!(VirtioKind::ALL.map(VirtioKind::id).into_iter().collect::<BTreeSet<_>>().len(), count);
        assert_eq!(VirtioKind::ALL.map(VirtioKind::name).into_iter().collect::<BTreeSet<_>>().len(), count);
    }
}
