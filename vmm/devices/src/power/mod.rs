//! The registers by which a guest with ACPI turns itself off or starts again.

mod device;

pub use device::Power;
