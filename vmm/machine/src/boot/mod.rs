//! How a guest starts: by the PVH protocol, which puts an ELF kernel into RAM and enters it in 32-bit mode.
//!
//! The protocol is that of Xen (docs/misc/pvh.pandoc), which Linux, the BSDs and our probe speak.

pub(crate) mod acpi;
pub(crate) mod cmdline;
mod image;
mod initrd;
mod pvh;

pub use image::KernelImage;
pub use initrd::Initrd;
pub(crate) use pvh::{Boot, load};
