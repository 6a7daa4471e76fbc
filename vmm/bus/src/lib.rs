//! How devices meet the machine: the two address spaces they answer in, the line they interrupt by, and the doorbell
//! that wakes them without an exit.
//!
//! Devices see these traits and never KVM (invariant B1). The machine puts [`BusDevice`]s on a [`PortBus`] and an
//! [`MmioBus`]; its vCPU threads dispatch exits through them.
#![forbid(unsafe_code)]

mod dispatch;
mod doorbell;
mod irq;
mod msi;

pub use dispatch::{Bus, BusAddress, BusDevice, BusError, MmioBus, Port, PortBus};
pub use doorbell::{Doorbell, DoorbellAddress, Doorbells};
pub use irq::IrqLine;
pub use msi::{MsiLine, MsiLines, MsiMessage};
