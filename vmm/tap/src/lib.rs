//! Tap interfaces of Linux: a network interface whose other end is a file descriptor.
//!
//! ```text
//! Interface --create, up, join--> a persistent interface in a bridge     whoever sets the host up, with CAP_NET_ADMIN
//! Tap::open, Tap::from_fd -> one queue each: a packet per read and write  whoever moves packets
//! ```
//!
//! Every packet has a `virtio_net_hdr_v1` in front (virtio 1.2, 5.1.6), as long as [`HEADER_LEN`]: the kernel takes
//! checksums and segmentation from it that the guest has left to the host, and leaves to the guest what
//! [`Tap::set_offloads`] says that it takes.
//!
//! A leaf: it depends on none of our crates, so that both sides of the project may use it. It knows neither guest RAM
//! (`drover-guest-memory` moves packets from and to it) nor virtqueues (`drover-devices`).
#![deny(unsafe_code)]

mod ffi;
mod interface;
mod name;
mod tap;

pub use interface::Interface;
pub use name::{NameError, TapName};
pub use tap::{HEADER_LEN, Offloads, QUEUES_MAX, Tap, TapError};
