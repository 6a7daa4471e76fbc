//! Interrupts by message: a write of a value to an address, without a pin (PCI 3.0, 6.8).

use std::{fmt, io, sync::Arc};

/// What a message-signalled interrupt is: this value, written to this address. On x86 the address names the processor
/// and the value the vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where to.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// One message-signalled interrupt of a device.
pub trait MsiLine: fmt::Debug + Send + Sync {
    /// From now on the interrupt is this message. Setting what is set costs nothing.
    ///
    /// # Errors
    /// Where the host refuses; the interrupt is as before.
    fn route(&self, message: MsiMessage) -> io::Result<()>;

    /// Sends the message. Before the first [`route`](Self::route) nothing happens. Never waits.
    ///
    /// # Errors
    /// Where the host refuses; the guest has not been interrupted.
    fn pulse(&self) -> io::Result<()>;
}

/// Where devices get their lines. The machine gives them one; behind it are irqfds.
pub trait MsiLines: fmt::Debug + Send + Sync {
    /// A line that goes nowhere yet.
    ///
    /// # Errors
    /// Where the host has no more.
    fn line(&self) -> io::Result<Arc<dyn MsiLine>>;
}
