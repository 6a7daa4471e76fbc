//! Guest RAM: its layout, its mapping into this process, and which of its pages have changed.
//!
//! ```text
//!            0                3 GiB      4 GiB
//! guest      |---- low RAM ----|  devices  |---- high RAM ---- …
//!            |                 |           |
//! process    |--- mapping ---| |          |---- mapping ----- …   private, anonymous, in huge pages where they are to be had
//! ```
//!
//! [`GuestMemory`] is a handle that clones cheaply; the mapping lives until the last handle, [`Segment`] or clone of
//! the vm-memory view is gone. Nothing here hands out a reference into guest RAM: the guest changes it at any time, so
//! access is by copy or by address.
//!
//! Every write of the VMM marks the pages it touched (invariant B5): through [`GuestMemory::write`], through
//! [`GuestMemory::as_vm_memory`], and through [`Segment::write`] on its own; after I/O that the kernel did into a
//! segment's address, by the caller's [`Segment::mark_dirty`]. [`DirtyTracker`] joins those marks with KVM's log, which
//! sees the guest's own writes only.
//!
//! Not here: KVM slots (drover-hypervisor registers [`GuestMemory::regions`]), rounds and convergence
//! (drover-migration), hot-plug.
#![deny(unsafe_code)]

mod dirty;
mod layout;
mod lazy;
mod mapping;
mod memory;
mod packet;
mod pages;
mod residency;
mod segment;

pub use dirty::DirtyTracker;
pub use layout::{HIGH_RAM_START, LOW_RAM_END, MAX_RAM, RamLayout, RamRange};
pub use lazy::{FaultSource, Loader};
pub use memory::{GuestMemory, GuestRam, HostRegion, MemoryError};
pub use packet::{Received, receive, send};
pub use pages::{DirtyPages, PageRun, is_zero};
pub use residency::prepare;
pub use segment::Segment;
