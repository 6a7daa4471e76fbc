//! Disks on RBD images: [`Backend`](drover_block::Backend) over `drover-rbd`.
//!
//! ```text
//! device worker --submit(batch)--> RbdQueue --aio_readv/writev...--> librbd --> OSDs
//!      ^                              |  ^                              |
//!      +------ reap(completions) -----+  +--- librbd's list, eventfd ---+
//! ```
//!
//! - Data moves between guest RAM and librbd without a copy of ours. librbd's threads put results into a list and write
//!   an eventfd; nothing else of theirs touches what is ours (invariant B4).
//! - Ownership is `drover-rbd-volume`'s: the explicit exclusive lock, the owner record, the epoch floor.
//! - An answer that says that this client has lost its right (`ESHUTDOWN`: blocklisted, `EROFS`: the lock is another's)
//!   is [`BlockError::Fenced`](drover_block::BlockError::Fenced), for it and for every request after it. It is never an
//!   I/O error.
//! - A cluster that does not answer makes requests wait, as many as the queues are deep; librbd tries again by itself
//!   for ever. [`oldest_request`](drover_block::Backend::oldest_request) says for how long. A dropped queue waits for
//!   them too, for [`DRAIN_MAX`](drover_rbd::DRAIN_MAX); what is not answered by then keeps its memory, its image and the
//!   lock for the rest of the process.
//! - The image's size is followed while it is open. Its object size is advertised as the best size of a request.
//!
//! Not here: connecting (one [`Cluster`](drover_rbd::Cluster) per process serves all disks), policies for storage that
//! stalls, caching: librbd's cache is off, since the guest has one.
#![deny(unsafe_code)]

mod backend;
mod buffers;
mod disk;
mod merge;
mod observer;
mod queue;

pub use backend::{OpenError, RbdBackend, RbdDisk};
