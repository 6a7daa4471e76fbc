//! Guest writes that wake a thread without an exit to user space.

use std::{fmt, io};

use drover_units::Gpa;
use vmm_sys_util::eventfd::EventFd;

use crate::Port;

/// Where a doorbell is rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorbellAddress {
    /// A guest-physical address.
    Mmio(Gpa),
    /// An I/O port.
    Port(Port),
}

/// A guest write that rings: this address, and this value where one is given.
///
/// A virtio-mmio queue's doorbell is a 4-byte write of the queue's number to `QueueNotify` (virtio 1.2, 4.2.2). With a
/// value the write is 4 bytes wide; without, it is of any width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Where.
    pub address: DoorbellAddress,
    /// Which value; `None` rings for any.
    pub value: Option<u32>,
}

/// Connects doorbells to events. The machine gives devices one; behind it are ioeventfds.
pub trait Doorbells: fmt::Debug + Send + Sync {
    /// From now on such a write adds 1 to `event` and does not reach the bus.
    ///
    /// # Errors
    /// Where the same doorbell is connected already, or the host has no more.
    fn connect(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()>;

    /// Ends what [`connect`](Self::connect) began, with the same arguments. Such writes reach the bus again.
    ///
    /// # Errors
    /// Where it was not connected.
    fn disconnect(&self, doorbell: Doorbell, event: &EventFd) -> io::Result<()>;
}
