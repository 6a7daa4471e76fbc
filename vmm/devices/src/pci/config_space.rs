//! The configuration space of one function: 256 bytes, some of which the guest may change (6.1).

use drover_units::Gpa;

/// Length of a function's configuration space. Of the 4096 bytes that PCI Express has, ours end here: the extended
/// capabilities beyond it are empty.
pub(crate) const LEN: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const FIRST_BAR: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Capabilities begin after the header.
const FIRST_CAPABILITY: usize = 0x40;
/// BARs of an ordinary function (6.2.5).
const BARS: usize = 6;

/// Command register (6.2.2): memory accesses are answered.
const COMMAND_MEMORY: u16 = 1 << 1;
/// Memory accesses, bus mastering, interrupt disable; there are no I/O ports and no error signals to turn on.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 10;
/// Status register (6.2.3): there are capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// A memory BAR's type bits (6.2.5.1): 64 bits wide, not prefetchable.
const BAR_MEMORY_64: u32 = 0b100;
const BAR_TYPE_BITS: u64 = 0xf;

/// What a function is (6.2.1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) revision: u8,
    /// Base class, sub-class and interface, from high to low.
    pub(crate) class: u32,
    pub(crate) subsystem_vendor: u16,
    pub(crate) subsystem: u16,
}

/// What lies behind a base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarKind {
    /// Memory anywhere in 64 bits. Takes two registers.
    Memory64,
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    register: usize,
    len: u64,
}

/// The bytes, and which of them the guest may change.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    bars: Vec<Bar>,
    next_capability: usize,
    /// Where the offset of the next capability goes.
    capability_link: usize,
}

impl ConfigSpace {
    /// A function without memory and capabilities.
    pub(crate) fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            bars: Vec::new(),
            next_capability: FIRST_CAPABILITY,
            capability_link: CAPABILITIES,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        // Firmware and drivers keep a note there; no pin is connected.
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a base address register and what it points to at first. `len` is a power of two of at least 4096, `start` a
    /// multiple of it.
    pub(crate) fn add_bar(&mut self, index: usize, kind: BarKind, len: u64, start: Gpa) {
        let BarKind::Memory64 = kind;
        debug_assert!(len.is_power_of_two() && len >= 0x1000 && start.get().is_multiple_of(len));
        debug_assert!(index + 1 < BARS);
        let register = FIRST_BAR + 4 * index;
        self.put(register, &(start.get() | u64::from(BAR_MEMORY_64)).to_le_bytes());
        self.allow(register, &(!(len - 1)).to_le_bytes());
        self.bars.push(Bar { register, len });
    }

    /// Adds a capability: its id, then `body`, of which the bits set in `writable` are the guest's. Returns its offset.
    pub(crate) fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u8 {
        let at = self.next_capability;
        let end = at + 2 + body.len();
        assert!(end <= LEN && writable.len() <= body.len(), "a function's capabilities are few and known");
        let offset = u8::try_from(at).expect("below 256");
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.bytes[self.capability_link] = offset;
        self.capability_link = at + 1;
        // Each begins at a multiple of four (6.7).
        self.next_capability = end.next_multiple_of(4);
        self.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        offset
    }

    /// Fills `data` from `offset` on; beyond the end with zeros.
    pub(crate) fn read(&self, offset: u8, data: &mut [u8]) {
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(usize::from(offset) + at).copied().unwrap_or(0);
        }
    }

    /// Changes what may be changed.
    pub(crate) fn write(&mut self, offset: u8, data: &[u8]) {
        for (at, byte) in data.iter().enumerate() {
            let at = usize::from(offset) + at;
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = *old & !mask | byte & mask;
            }
        }
    }

    /// A little-endian register.
    pub(crate) fn u16(&self, offset: u8) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// A little-endian register.
    pub(crate) fn u32(&self, offset: u8) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Where the `index`-th BAR that was added is at the moment; `None` while memory accesses are turned off, or where it
    /// would run past the end of the address space.
    pub(crate) fn bar(&self, index: usize) -> Option<(Gpa, u64)> {
        if self.u16(COMMAND as u8) & COMMAND_MEMORY == 0 {
            return None;
        }
        let bar = self.bars.get(index)?;
        let mut bytes = [0; 8];
        self.read(bar.register as u8, &mut bytes);
        let start = u64::from_le_bytes(bytes) & !BAR_TYPE_BITS;
        start.checked_add(bar.len)?;
        Some((Gpa::new(start), bar.len))
    }

    /// What the guest has made of it. Everything else follows from the device.
    pub(crate) fn changed(&self) -> [u8; LEN] {
        let mut bytes = self.bytes;
        for (byte, mask) in bytes.iter_mut().zip(&self.writable) {
            *byte &= mask;
        }
        bytes
    }

    /// Puts back what [`changed`](Self::changed) told of an equal function.
    pub(crate) fn restore(&mut self, changed: &[u8; LEN]) {
        self.write(0, changed);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Gpa = Gpa::new(0xe000_0000);

    fn function() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_8000,
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        };
        let mut space = ConfigSpace::new(identity);
        space.add_bar(0, BarKind::Memory64, 0x1_0000, START);
        space
    }

    #[test]
    fn a_function_says_what_it_is_and_that_does_not_change() {
        let mut space = function();
        for offset in (0..=255).step_by(4) {
            space.write(offset, &[0xff; 4]);
        }
        assert_eq!(space.u32(0), 0x1042_1af4);
        assert_eq!(space.u32(8), 0x0180_0001);
        assert_eq!(space.u32(0x2c), 0x0040_1af4);
        assert_eq!(space.u16(4), COMMAND_WRITABLE);
    }

    #[test]
    fn a_bar_tells_its_length_and_moves() {
        let mut space = function();
        assert_eq!(space.bar(0), None, "memory accesses are off at first");
        space.write(4, &[2, 0]);
        assert_eq!(space.bar(0), Some((START, 0x1_0000)));
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!((space.u32(0x10), space.u32(0x14)), (0xffff_0004, 0xffff_ffff));
        assert_eq!(space.bar(0), None, "its end would lie beyond the address space");
        space.write(0x10, &0xd003_1234_u32.to_le_bytes());
        space.write(0x14, &1_u32.to_le_bytes());
        assert_eq!(space.bar(0), Some((Gpa::new(0x1_d003_0000), 0x1_0000)));
        let mut other = function();
        other.restore(&space.changed());
        assert_eq!(other.bar(0), space.bar(0));
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = function();
        assert_eq!(space.u16(6) & STATUS_CAPABILITIES, 0);
        let first = space.add_capability(0x09, &[1, 2, 3], &[]);
        let second = space.add_capability(0x11, &[4, 5], &[0, 0x0f]);
        assert_eq!(space.u16(6) & STATUS_CAPABILITIES, STATUS_CAPABILITIES);
        assert_eq!((space.u16(0x34), first, second), (0x40, 0x40, 0x48));
        assert_eq!(space.u32(first), 0x0201_4809);
        assert_eq!(space.u32(second), 0x0504_0011);
        space.write(second, &[0xff; 4]);
        assert_eq!(space.u32(second), 0x0f04_0011);
    }
}
