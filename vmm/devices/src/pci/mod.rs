//! The PCI bus of a machine: one bus, whose functions are its devices. Section numbers are of PCI Local Bus 3.0 unless
//! they say otherwise.

pub(crate) mod config_space;
mod function;
pub(crate) mod msix;
mod root;

pub(crate) use config_space::{BarKind, ConfigSpace, Identity};
pub use function::{Address, PciFunction};
pub use root::{PciError, PciRoot};
