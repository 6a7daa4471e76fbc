//! Disks as the VMM sees them: requests, backends that carry them out, and the suite every backend passes.
//!
//! ```text
//! device worker --submit(batch)--> BackendQueue ----> storage
//!      ^                              |   |
//!      +---- reap(completions) <------+   +-- completion_event: readable when there is something to reap
//! ```
//!
//! - [`Request`]: what to do, on which sectors, with which [segments](drover_guest_memory::Segment) of guest RAM. Data
//!   moves between storage and guest RAM directly.
//! - [`Token`]: the obligation to answer a request, exactly once (invariant B4). It cannot be cloned, and dropping it
//!   unanswered is a caught bug.
//! - [`Backend`]: an opened image, which must be [acquired](Backend::acquire) before I/O; [`BackendQueue`]: one worker's
//!   way into it.
//! - [`MemoryImage`] for tests, [`FileBackend`] for raw files over io_uring; [`decorators`] that delay and fail on purpose.
//! - [`Gate`], [`Capacity`], [`RequestAges`]: what backends are built from.
//! - [`conformance`]: the contract as tests.
//!
//! Not here: virtio (drover-devices), image formats other than raw, Ceph (`drover-block-rbd`), throttling.
#![deny(unsafe_code)]

mod ages;
mod backend;
mod capacity;
pub mod conformance;
pub mod decorators;
mod error;
mod file;
mod gate;
mod memory;
mod request;

pub use ages::{QueueAges, RequestAges};
pub use backend::{Backend, BackendInfo, BackendQueue, QueueConfig, RangeLimits, ResizeListener};
pub use capacity::Capacity;
pub use drover_dir_volume::{Owner, Sidecar};
pub use error::{BlockError, OpenError, OwnershipError};
pub use file::{Access, FileBackend};
pub use gate::Gate;
pub use memory::{MemoryBackend, MemoryImage};
pub use request::{Completion, Operation, Request, RequestBatch, Segments, Tag, Token};
