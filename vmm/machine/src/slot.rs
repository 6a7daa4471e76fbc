//! Which virtio device is in which place.

use std::fmt;

use crate::{
    BuildError, DeviceBus,
    address_map::{MMIO_SLOTS, PCI_SLOTS},
};

/// Most disks of one machine: the slots that are theirs first.
pub const DISKS_MAX: usize = FIRST_OTHER as usize;

/// Where devices that are no disks begin, so that neither adding a disk nor adding another device moves anything.
const FIRST_OTHER: u8 = 16;

/// A virtio device's place in its machine, counted from 0. With the device's kind it is the identity of the device's saved
/// state: a guest moves into a machine that has the same kinds in the same slots.
///
/// On PCI it is the device number less one, on MMIO the number of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u8);

impl Slot {
    /// The slot with this number. Which there are depends on the bus: see [`count`](Self::count).
    pub const fn new(number: u8) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// How many slots a machine has.
    pub const fn count(bus: DeviceBus) -> u8 {
        match bus {
            DeviceBus::VirtioMmio => MMIO_SLOTS,
            DeviceBus::VirtioPci => PCI_SLOTS,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Gives every device its slot: disks those that are theirs, other devices what they ask for or the next free one
/// from 16 on, and when those are taken the last free one before. The same devices always get the same slots.
pub(crate) fn assign(
    bus: DeviceBus,
    disks: impl Iterator<Item = Slot>,
    others: impl Iterator<Item = Option<Slot>>,
) -> Result<Vec<Slot>, BuildError> {
    let count = Slot::count(bus);
    let mut taken = vec![false; usize::from(count)];
    let wishes: Vec<Option<Slot>> = disks.map(Some).chain(others).collect();
    let mut slots = Vec::with_capacity(wishes.len());
    // What is asked for comes first, so that no device without a wish takes it.
    for Slot(number) in wishes.iter().flatten().copied() {
        match taken.get_mut(usize::from(number)) {
            None => return Err(BuildError::NoSuchSlot { asked: Slot(number), count }),
            Some(true) => return Err(BuildError::SlotTaken { asked: Slot(number) }),
            Some(free) => *free = true,
        }
    }
    for wish in &wishes {
        let slot = match wish {
            Some(slot) => *slot,
            None => {
                let mut order = (FIRST_OTHER.min(count)..count).chain((0..FIRST_OTHER.min(count)).rev());
                let free = order.find(|number| !taken[usize::from(*number)]);
                let number = free.ok_or(BuildError::TooManyDevices { asked: wishes.len(), count })?;
                taken[usize::from(number)] = true;
                Slot(number)
            }
        };
        slots.push(slot);
    }
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bus: DeviceBus, disks: usize, others: &[Option<u8>], expect: Result<&[u8], &str>) {
        let others = others.iter().map(|wish| wish.map(Slot));
        let found = assign(bus, (0_u8..).map(Slot).take(disks), others).map_err(|error| error.to_string());
        match (found, expect) {
            (Ok(slots), Ok(expect)) => {
                assert_eq!(slots.iter().map(|slot| slot.0).collect::<Vec<_>>(), expect)
            }
            (Err(error), Err(start)) => assert!(error.starts_with(start), "{error}"),
            (found, expect) => panic!("{found:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn disks_and_other_devices_do_not_move_each_other() {
        use DeviceBus::{VirtioMmio, VirtioPci};
        check(VirtioPci, 0, &[], Ok(&[]));
        check(VirtioPci, 1, &[None, None], Ok(&[0, 16, 17]));
        check(VirtioPci, 3, &[None, None], Ok(&[0, 1, 2, 16, 17]));
        check(VirtioPci, 1, &[None, Some(16), Some(30)], Ok(&[0, 17, 16, 30]));
        check(VirtioMmio, 2, &[None; 4], Ok(&[0, 1, 16, 17, 15, 14]));
    }

    #[test]
    fn a_slot_that_cannot_be_had_is_refused() {
        check(DeviceBus::VirtioPci, 1, &[Some(0)], Err("devices: slot 0 is taken"));
        check(DeviceBus::VirtioPci, 1, &[Some(31)], Err("devices: there is no slot 31"));
        check(DeviceBus::VirtioMmio, 1, &[Some(18)], Err("devices: there is no slot 18"));
        check(DeviceBus::VirtioPci, 16, &[None; 15], Ok(&(0..31).collect::<Vec<u8>>()));
        check(DeviceBus::VirtioPci, 16, &[None; 16], Err("devices: 32 are too many"));
        check(DeviceBus::VirtioMmio, 16, &[None; 3], Err("devices: 19 are too many"));
    }
}
