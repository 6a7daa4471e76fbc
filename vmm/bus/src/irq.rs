//! The line by which a device interrupts the guest.

use std::{fmt, io};

/// An edge-triggered interrupt line. Clones of the `Arc` around it go to every thread of a device that interrupts.
///
/// A pulse that comes while an earlier one is pending joins it, as on hardware: the guest looks at the device's status
/// for what happened. Level-triggered lines need the guest's end-of-interrupt and are another trait, when a device
/// needs one.
pub trait IrqLine: fmt::Debug + Send + Sync {
    /// Raises and lowers the line.
    ///
    /// # Errors
    /// Where the host refuses; the guest has not been interrupted, and the device should say so in the log.
    fn pulse(&self) -> io::Result<()>;
}
