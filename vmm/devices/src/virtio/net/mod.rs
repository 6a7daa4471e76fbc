//! Virtio network device (section 5.1): a thread per pair of queues between the rings and a queue of a tap.
//!
//! ```text
//! driver --transmit ring, doorbell--> worker --writev--> tap ---> the host's network
//! driver <--receive ring, interrupt-- worker <--readv--- tap <---
//! driver --control ring-----> worker 0: receive filter, MAC address, pairs in use, offloads
//! ```
//!
//! Packets are not copied: the kernel reads and writes them where the driver has put them, virtio header included, and
//! does what the driver or the host's network has left undone of checksums and segmentation. Where the driver takes
//! packets in several buffers, buffers are taken from the ring ahead of the packets; those that no packet has come for
//! go back when the device is paused. So a packet is either in the tap, or in the guest.
//!
//! The tap is full while a limit holds packets back, or while the driver posts no buffers: the host's network sees that
//! and loses packets as on any wire. A packet that the driver sends waits in its ring.

mod config;
mod device;
mod filter;
mod metrics;
mod offloads;
mod port;
mod request;
mod shared;
mod state;
mod worker;

pub use device::{NetConfig, VirtioNet};
pub use filter::MacAddress;
pub use metrics::{NetMetrics, NetMetricsSnapshot};
pub use port::NetPort;
