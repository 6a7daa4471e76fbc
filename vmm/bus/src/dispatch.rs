//! Which device answers an address.

use std::{collections::BTreeMap, fmt, sync::Arc};

use drover_units::Gpa;

/// A device that answers reads and writes of a range of ports or of guest-physical addresses.
///
/// Called by vCPU threads, several at once: a device locks what it needs, and keeps no lock across I/O, since the
/// calling vCPU stands still meanwhile. `offset` is relative to the start of the range; `data` lies inside the range
/// and is 1, 2, 4 or 8 bytes, little-endian. The numbers come from the guest and are hostile: an access that makes no
/// sense to the device reads as all ones (already in `data`) and writes nothing.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads. It arrives filled with ones.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest wrote.
    fn write(&self, offset: u64, data: &[u8]);
}

/// An I/O port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(pub u16);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {:#x}", self.0)
    }
}

/// An address of one of the two spaces.
pub trait BusAddress: Copy + Ord + fmt::Debug + fmt::Display {
    /// Last address of the space, as a number.
    const LAST: u64;
    /// The address as a number.
    fn number(self) -> u64;
}

impl BusAddress for Port {
    const LAST: u64 = u16::MAX as u64;
    fn number(self) -> u64 {
        u64::from(self.0)
    }
}

impl BusAddress for Gpa {
    const LAST: u64 = u64::MAX;
    fn number(self) -> u64 {
        self.get()
    }
}

/// The space of I/O ports.
pub type PortBus = Bus<Port>;
/// The space of guest-physical addresses that are not RAM.
pub type MmioBus = Bus<Gpa>;

/// A range that a device cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range is empty or runs past the end of the space.
    #[error("{name}: {len:#x} addresses from {start:#x} do not fit the bus")]
    InvalidRange {
        /// Device that asked.
        name: &'static str,
        /// First address.
        start: u64,
        /// How many.
        len: u64,
    },
    /// Another device is there.
    #[error("{name}: the range at {start:#x} is taken by {by}")]
    Taken {
        /// Device that asked.
        name: &'static str,
        /// First address asked for.
        start: u64,
        /// Device that is there.
        by: &'static str,
    },
}

struct Entry {
    name: &'static str,
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// The devices of one address space.
pub struct Bus<A: BusAddress> {
    /// By first address; ranges do not overlap.
    devices: BTreeMap<A, Entry>,
}

impl<A: BusAddress> Default for Bus<A> {
    fn default() -> Self {
        Self { devices: BTreeMap::new() }
    }
}

impl<A: BusAddress> fmt::Debug for Bus<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.devices.iter().map(|(start, entry)| (start, (entry.name, entry.len))))
            .finish()
    }
}

impl<A: BusAddress> Bus<A> {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `device` the `len` addresses from `start`. `name` is for errors.
    ///
    /// # Errors
    /// [`BusError`] if the range is no range or overlaps another device's; the bus is as before.
    pub fn insert(
        &mut self,
        name: &'static str,
        start: A,
        len: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let first = start.number();
        let last = len
            .checked_sub(1)
            .and_then(|more| first.checked_add(more))
            .filter(|&last| last <= A::LAST)
            .ok_or(BusError::InvalidRange { name, start: first, len })?;
        // Ranges do not overlap, so only the device with the highest start up to our last address can reach into ours.
        let below = self.devices.iter().rev().find(|(other, _)| other.number() <= last);
        if let Some((other, entry)) = below
            && other.number() + (entry.len - 1) >= first
        {
            return Err(BusError::Taken { name, start: first, by: entry.name });
        }
        self.devices.insert(start, Entry { name, len, device });
        Ok(())
    }

    /// A guest's read. Where no device answers for all of it, it reads as all ones, like an idle bus.
    pub fn read(&self, address: A, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.read(offset, data);
        }
    }

    /// A guest's write. Where no device answers for all of it, it is lost.
    pub fn write(&self, address: A, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    fn find(&self, address: A, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let (start, entry) = self.devices.range(..=address).next_back()?;
        let offset = address.number() - start.number();
        let end = offset.checked_add(len as u64)?;
        (end <= entry.len).then_some((entry.device.as_ref(), offset))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Answers reads with its id and remembers writes.
    struct Recorder {
        id: u8,
        writes: Mutex<Vec<(u64, Vec<u8>)>>,
    }

    impl Recorder {
        fn new(id: u8) -> Arc<Self> {
            Arc::new(Self { id, writes: Mutex::default() })
        }
    }

    impl BusDevice for Recorder {
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(self.id);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.writes.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn check_read(bus: &PortBus, port: u16, len: usize, expect: u8) {
        let mut data = vec![0; len];
        bus.read(Port(port), &mut data);
        assert_eq!(data, vec![expect; len], "{len} bytes at {port:#x}");
    }

    #[test]
    fn an_access_reaches_the_device_that_covers_all_of_it() {
        let mut bus = PortBus::new();
        let (a, b) = (Recorder::new(1), Recorder::new(2));
        bus.insert("a", Port(0x3f8), 8, a.clone()).unwrap();
        bus.insert("b", Port(0x400), 1, b).unwrap();
        check_read(&bus, 0x3f8, 1, 1);
        check_read(&bus, 0x3fe, 2, 1);
        check_read(&bus, 0x400, 1, 2);
        // Across the end of a device, beside devices, and at the ends of the space.
        check_read(&bus, 0x3ff, 2, 0xff);
        check_read(&bus, 0x401, 1, 0xff);
        check_read(&bus, 0, 4, 0xff);
        check_read(&bus, 0xffff, 4, 0xff);
        bus.write(Port(0x3fb), &[9, 8]);
        bus.write(Port(0x3ff), &[9, 8]);
        assert_eq!(*a.writes.lock().unwrap(), [(3, vec![9, 8])]);
    }

    fn check_insert(start: u64, len: u64, fits: bool) {
        let mut bus = MmioBus::new();
        bus.insert("there", Gpa::new(0x1000), 0x1000, Recorder::new(1)).unwrap();
        let result = bus.insert("new", Gpa::new(start), len, Recorder::new(2));
        assert_eq!(result.is_ok(), fits, "{start:#x}+{len:#x}: {result:?}");
    }

    #[test]
    fn ranges_that_overlap_or_do_not_fit_are_refused() {
        check_insert(0, 0x1000, true);
        check_insert(0x2000, 1, true);
        check_insert(u64::MAX, 1, true);
        check_insert(0, 0x1001, false);
        check_insert(0, 0x4000, false);
        check_insert(0x1800, 1, false);
        check_insert(0x1fff, 2, false);
        check_insert(0x3000, 0, false);
        check_insert(u64::MAX, 2, false);
        let mut ports = PortBus::new();
        assert!(ports.insert("wide", Port(0xfff0), 0x11, Recorder::new(1)).is_err());
        assert!(ports.insert("fits", Port(0xfff0), 0x10, Recorder::new(1)).is_ok());
    }
}
