//! What a VM's devices are, beyond the volumes that are its disks.

use std::{collections::BTreeMap, fmt, str::FromStr};

use drover_ids::{VmId, VolumeId};
use drover_rate_limit::Limits;

use crate::Name;

/// Most network interfaces of a VM: what its VMM has room for.
pub const NICS_MAX: usize = 8;

/// Most queues of a disk: as many as its VMM takes.
pub const DISK_QUEUES_MAX: u16 = 64;

/// Network interfaces, the limits of disks, and what kind of machine they are in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestDevices {
    /// In order.
    pub nics: Vec<Nic>,
    /// Of those volumes that are limited.
    pub disk_limits: BTreeMap<VolumeId, Limits>,
    /// What kind of machine it is.
    pub hardware: Hardware,
    /// Where volumes are among the machine's places for disks, from 1 on. Of all, or of none: each is where its order says.
    pub disk_places: BTreeMap<VolumeId, u8>,
    /// The same of the seed disk; 0: behind the volumes.
    pub seed_place: u8,
}

/// Places for disks.
pub const DISK_PLACES: u8 = 16;

impl GuestDevices {
    /// Says where everything is that is where its order says, so that nothing moves when something before it goes.
    pub fn pin(&mut self, vm: VmId, volumes: impl IntoIterator<Item = VolumeId>, has_seed: bool) {
        for (n, nic) in self.nics.iter_mut().enumerate() {
            nic.fixed_mac = Some(nic.mac(vm, n));
            if nic.place == 0 {
                nic.place = n as u8 + 1;
            }
        }
        let is_pinned = !self.disk_places.is_empty() || self.seed_place > 0;
        if is_pinned {
            return;
        }
        self.disk_places = volumes.into_iter().zip(1..).collect();
        if has_seed {
            self.seed_place = self.disk_places.len() as u8 + 1;
        }
    }

    /// A place for a disk that nothing is in.
    pub fn free_disk_place(&self) -> Option<u8> {
        (1..=DISK_PLACES)
            .find(|place| *place != self.seed_place && !self.disk_places.values().any(|taken| taken == place))
    }

    /// A place for an interface that nothing is in.
    pub fn free_nic_place(&self) -> Option<u8> {
        (1..=NICS_MAX as u8).find(|place| !self.nics.iter().any(|nic| nic.place == *place))
    }
}

/// What kind of machine a VM is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// Queues of each disk; 0 is one.
    pub disk_queues: u16,
    /// A first file system for the kernel: an image in the boot image's pool.
    pub initrd: Option<Name>,
    /// What its devices are on.
    pub bus: DeviceBus,
    /// What its guest's reset does.
    pub on_reset: OnReset,
    /// Devices beside disks and interfaces.
    pub extras: Extras,
}

/// Devices of which a VM has one or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// A source of entropy.
    pub rng: bool,
    /// A console beside the serial port.
    pub console: bool,
    /// A balloon.
    pub balloon: Option<BalloonSpec>,
    /// Sockets to its host, under this context id.
    pub vsock: Option<Cid>,
}

/// A balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BalloonSpec {
    /// The guest may not take pages back by itself when it runs out of memory.
    pub keep_on_oom: bool,
}

/// A guest's context id for its sockets (virtio 1.2, 5.10.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cid(u32);

impl Cid {
    /// `None` for what is reserved.
    pub fn new(cid: u64) -> Option<Self> {
        u32::try_from(cid).ok().filter(|cid| (3..u32::MAX).contains(cid)).map(Self)
    }

    /// Its number.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// What a VM's devices are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceBus {
    /// PCI where it has an initrd, MMIO otherwise.
    #[default]
    AsNeeded,
    /// Each device in a window of its own.
    Mmio,
    /// A PCI bus.
    Pci,
}

/// What a guest's reset does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReset {
    /// It starts anew.
    #[default]
    Restart,
    /// It ends the VM.
    End,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// `None`: [made up](Self::mac) from the VM's id.
    pub fixed_mac: Option<Mac>,
    /// Of the node's networks, by name. Empty: the only one it has.
    pub network: String,
    /// Pairs of queues; 0 is one.
    pub queue_pairs: u16,
    /// Longest packet without its Ethernet header; 0: the node's business.
    pub mtu: u16,
    /// What it may do.
    pub limits: Limits,
    /// Where it is among the machine's places for interfaces, from 1 on; 0: as its order.
    pub place: u8,
}

impl Nic {
    /// The address of the `n`th interface of a VM: the same wherever and whenever it runs.
    pub fn mac(&self, vm: VmId, n: usize) -> Mac {
        self.fixed_mac.unwrap_or_else(|| {
            // The end of the id is random; the first byte says "administered locally, of one station".
            let [.., a, b, c, d, e] = (vm.as_u128().wrapping_add(n as u128)).to_be_bytes();
            Mac([0x52, a, b, c, d, e])
        })
    }
}

/// A MAC address of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac([u8; 6]);

/// What is no address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a MAC address of one interface: give six bytes in hexadecimal, as 52:54:00:12:34:56")]
pub struct MacError(String);

impl Mac {
    /// `None` for the address of a group, and for zero.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// Its bytes as they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError(text.chars().take(32).collect());
        let byte = |part: &str| {
            let digits = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').take(7).map(byte).collect();
        let bytes: [u8; 6] = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(error)?;
        Self::new(bytes).ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let text = "52:54:00:ab:cd:ef";
        assert_eq!(text.parse::<Mac>().unwrap().to_string(), text);
        for bad in
            ["", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:00", "01:00:00:00:00:00", "00:00:00:00:00:00", "5:4"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_moves_when_something_before_it_goes() {
        let (vm, volume) = (VmId::from_u128(7), VolumeId::from_u128);
        let mut devices = GuestDevices { nics: vec![Nic::default(); 3], ..GuestDevices::default() };
        let macs: Vec<_> = (0..3).map(|n| devices.nics[n].mac(vm, n)).collect();
        devices.pin(vm, [volume(9), volume(8)], true);
        assert_eq!(devices.disk_places, BTreeMap::from([(volume(9), 1), (volume(8), 2)]));
        assert_eq!(
            (devices.seed_place, devices.free_disk_place(), devices.free_nic_place()),
            (3, Some(4), Some(4))
        );
        devices.nics.remove(0);
        devices.disk_places.remove(&volume(9));
        devices.pin(vm, [volume(8)], true);
        assert_eq!((devices.free_disk_place(), devices.free_nic_place()), (Some(1), Some(1)));
        assert_eq!(devices.disk_places[&volume(8)], 2);
        let now: Vec<_> =
            devices.nics.iter().enumerate().map(|(n, nic)| (nic.mac(vm, n), nic.place)).collect();
        assert_eq!(now, [(macs[1], 2), (macs[2], 3)]);
    }

    #[test]
    fn what_is_reserved_is_no_guests_context() {
        assert_eq!([0, 2, u64::from(u32::MAX), 1 << 40].map(Cid::new), [None; 4]);
        assert_eq!(Cid::new(3).map(Cid::get), Some(3));
    }

    #[test]
    fn each_interface_has_an_address_that_stays() {
        let nic = Nic::default();
        let (vm, other) = (VmId::from_u128(0x01ff_ffff_ffff), VmId::from_u128(7));
        assert_eq!(nic.mac(vm, 0), nic.mac(vm, 0));
        assert_eq!(nic.mac(vm, 0).to_string(), "52:ff:ff:ff:ff:ff");
        assert_ne!(nic.mac(vm, 0), nic.mac(vm, 1));
        assert_ne!(nic.mac(vm, 0), nic.mac(other, 0));
        let fixed = Mac::new([2, 0, 0, 0, 0, 1]);
        assert_eq!(Some(Nic { fixed_mac: fixed, ..nic }.mac(vm, 1)), fixed);
    }
}
