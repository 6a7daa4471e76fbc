//! Who may write a volume that is an RBD image: exclusive locks, owner records, fencing.
//!
//! Three things together keep a second writer out (invariants B6 and B7):
//!
//! - **The lock** says who writes *now*: librbd's exclusive lock, acquired explicitly. Its holder does not pass it on,
//!   and another client's write fails.
//! - **The owner record** says who may write *from now on*: one VM, a floor below which that VM's epochs are refused,
//!   and under which client addresses the last owner was known. It is an attribute of the image's header object,
//!   changed by compare-and-swap: it lives and dies with the image, is not copied to clones, costs one round trip, and
//!   does not pass through the lock's holder, who may be the one to be fenced.
//! - **The blocklist** stops an owner that does not answer: its requests, those on their way included, fail from then
//!   on. Only the control plane's key may add to it.
//!
//! ```text
//! acquire:  lock --> read record, admit --> (after a fence: newest map) --> swap record for ours
//! fence:    raise the floor --> who holds the lock, who watches, who registered --> blocklist all --> newest map
//! ```
//!
//! The floor comes first in a fence: whoever acquires after it is refused by the record, and whoever acquired before it
//! is found as the lock's owner.
//!
//! What this crate does not do: I/O (`drover-block-rbd`), keep the entries of a fence until their processes are known to
//! be gone (the control plane, with [`renew`] and [`unfence`]), or try again. Every function blocks on the network.
#![forbid(unsafe_code)]

mod fence;
mod lock;
mod record;

pub use drover_volume_owner::{Owner, OwnerRecord, Refusal};
pub use fence::{Fence, FenceProof, detach, fence, renew, unfence};
pub use lock::{ImageLock, LockError, last_owner};
pub use record::{ImageRecord, RecordError, read_record};
