//! What a device is to the bus it is on.

use std::fmt;

use drover_units::Gpa;

/// A function's place on the bus: device 0 to 31; we have one function per device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(u8);

impl Address {
    /// Devices of a bus (3.2.2.3).
    pub const DEVICES: u8 = 32;

    /// The device with this number, if a bus has one.
    pub fn device(number: u8) -> Option<Self> {
        (number < Self::DEVICES).then_some(Self(number))
    }

    /// Its number.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.0", self.0)
    }
}

/// A function on the bus. Called by vCPU threads, several at once, with numbers of the guest's choosing.
pub trait PciFunction: fmt::Debug + Send + Sync {
    /// Fills `data` from the configuration space: 1, 2 or 4 bytes that lie in one aligned word below 256.
    fn read_config(&self, offset: u8, data: &mut [u8]);

    /// Writes there.
    fn write_config(&self, offset: u8, data: &[u8]);

    /// Fills `data` from the memory behind its base address registers. `false` where none of them covers the access.
    fn read_memory(&self, address: Gpa, data: &mut [u8]) -> bool;

    /// Writes there.
    fn write_memory(&self, address: Gpa, data: &[u8]) -> bool;
}
