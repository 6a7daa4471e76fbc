//! The on-disk protocol of a `dir` pool: raw files, owner records, exclusive locks, fencing.
//!
//! A pool is a directory, local or shared, that every node of the pool can open:
//!
//! ```text
//! <root>/volumes/<volume id>.raw     the disk, sparse, a whole number of sectors
//! <root>/volumes/<volume id>.owner   who may write it: the epoch floor (JSON in one sector, written whole)
//! <root>/images/<name>               boot images, immutable once there
//! <root>/disk-images/<sha256>.raw    disk images, immutable once there
//! <root>/snapshots/<volume id>/<snapshot id>.raw        a volume's content at some moment, immutable
//! <root>/snapshots/<volume id>/<snapshot id>.protected  empty: the snapshot is to be kept
//! ```
//!
//! Two things together keep a second writer out (invariants B6 and B7):
//!
//! - **The lock** says who writes *now*: an exclusive OFD lock on the raw file. The kernel drops it when the last
//!   reference to the open file goes, which for a killed process means after its last I/O in flight has ended. So
//!   whoever obtains the lock knows that nothing of the previous owner can still reach the file.
//! - **The owner record** says who may write *from now on*: one VM, and a floor below which that VM's epochs are
//!   refused. It changes only under the lock, and outlives it.
//!
//! What a record means, and who is admitted by one, is the same for every kind of pool: `drover-volume-owner`.
//!
//! What this crate does not do: read or write disks (the file backend of `drover-block`), or decide who should own
//! a volume (the control plane). Every function blocks on the file system; none waits for a lock.
#![forbid(unsafe_code)]

mod copies;
mod durable;
mod fence;
mod lock;
mod owner;
mod pool;

pub use copies::{HeldVolume, Partial};
pub use drover_volume_owner::{Owner, OwnerRecord, Refusal};
pub use fence::{FenceProof, detach, fence};
pub use lock::{LockError, VolumeLock};
pub use owner::{RecordError, Sidecar, open_record, read_record};
pub use pool::{DirPool, PoolError};
