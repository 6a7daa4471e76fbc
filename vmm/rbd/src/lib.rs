//! Ceph's librados and librbd, made safe: clusters, pools, images, locks, and I/O that completes by eventfd.
//!
//! ```text
//! Library --connect--> Cluster --open--> Pool --open--> Image --queue--> ImageQueue
//! (once per process)   (one rados_t:     (ioctx)        (rbd_image_t)    (one worker's I/O)
//!                       13 threads)
//! ```
//!
//! The libraries are loaded when the first caller asks for them ([`Library::load`]), so one binary runs where Ceph is
//! installed and where it is not. Each value keeps what it came from alive, and closes itself when it is dropped, in
//! the order that librbd demands: I/O first, then the image, the pool, the cluster.
//!
//! - [`Cluster`]: connecting, own [addresses](Cluster::addresses), the [blocklist](Cluster::blocklist_add), the map of
//!   OSDs, commands to the monitors. Cheap to clone; share one per process.
//! - [`Pool`]: images by name: list, create, clone, remove; namespaces; [attributes](Pool::compare_and_set_attribute)
//!   of single objects.
//! - [`Image`]: size, snapshots, exclusive lock, watchers, metadata, encryption, blocking reads and writes.
//! - [`ImageQueue`]: reads, writes, discards and flushes that move data between the cluster and the caller's own
//!   memory; their completions come in batches, announced by one eventfd.
//!
//! Every call but those of [`ImageQueue`] blocks on the network. Lengths and offsets are bytes.
//!
//! What this crate does not do: decide who may write an image (`drover-rbd-volume`), know virtio (`drover-block-rbd`),
//! or retry: librbd does that by itself, for ever unless [`Timeouts`] say otherwise.
#![deny(unsafe_code)]

mod address;
mod blocklist;
mod cluster;
mod connect;
mod error;
mod ffi;
mod image;
mod load;
mod open_images;
mod pool;
mod queue;
mod secret;

pub use address::{AddressError, ClientAddress};
pub use blocklist::BlocklistEntry;
pub use cluster::{Cluster, ClusterUsage, OsdMapEpoch};
pub use connect::{ConnectConfig, DISCARD_GRANULARITY, Source, Timeouts};
pub use error::Error;
pub use ffi::queue::{Buffers, DRAIN_MAX};
pub use image::{
    Access, EncryptionFormat, Extent, Image, ImageShape, LinkedImage, LockMode, LockOwner, Snapshot,
    UpdateWatch, Watcher,
};
pub use load::{Library, LoadError, Version};
pub use open_images::wait_until_closed;
pub use pool::{Attribute, CreateOptions, Pool};
pub use queue::{ImageQueue, QueueOperation};
pub use secret::Secret;

/// What long work says about itself: how much is done of how much, in the operation's own unit (objects or bytes).
/// Answer `false` to stop it: it then fails with [`Error::is_cancelled`].
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;
