//! What a disk image can do, whatever stores it.

use std::{fmt, io, os::fd::BorrowedFd, time::Duration};

use drover_units::{Bytes, SECTOR_SIZE, Sectors};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{Completion, Owner, OwnershipError, RequestBatch};

/// What is known of an opened image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendInfo {
    /// Its size.
    pub capacity: Sectors,
    /// Requests are whole multiples of this; itself a multiple of a sector.
    pub block_size: Bytes,
    /// Opened for reading only.
    pub read_only: bool,
    /// Most segments of one request.
    pub segments_max: u16,
    /// Best size and alignment of large requests, where the storage has one: the objects of an RBD image.
    pub optimal_io: Option<Bytes>,
    /// What the storage takes as a discard; `None` where it takes none.
    pub discard: Option<RangeLimits>,
    /// What it takes as a write of zeros; `None` where it takes none.
    pub write_zeroes: Option<RangeLimits>,
}

/// Limits of a request that names a range of sectors and moves no data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLimits {
    /// Longest range of one request.
    pub sectors_max: Sectors,
    /// Ranges that begin and end at multiples of this have the most effect. Others are allowed.
    pub alignment: Sectors,
}

impl RangeLimits {
    /// One request may cover a gibibyte: some hundreds of objects, or one call to a file system, which is bounded work
    /// that a pause may have to wait for.
    pub const SECTORS_MAX: Sectors = Sectors::new((1 << 30) / SECTOR_SIZE);
}

/// Who is told of an image's new size. Called on a thread of the backend's, which waits for it.
pub type ResizeListener = Box<dyn Fn(Sectors) + Send + Sync>;

/// How a queue is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Most requests under way at once (submitted and not yet reaped); at least 1.
    pub depth: u16,
}

/// An opened image: one handle of one process.
///
/// Opening takes nothing from anyone: the target of a migration opens its images while the source still writes them.
/// The owner's life on a handle is
///
/// ```text
/// open --acquire--> owned --release--> open          owned --(replaced by the storage)--> fenced
/// ```
///
/// Called from the machine's control thread; `info` and `owner` from any. A handle may be owned, released and owned
/// again any number of times, its queues live through that. Dropping the last of handle and queues gives the image
/// up as a release does, without the final flush.
pub trait Backend: fmt::Debug + Send + Sync {
    /// What is known of the image. Only the capacity changes while it is open: see
    /// [`set_resize_listener`](Self::set_resize_listener).
    fn info(&self) -> BackendInfo;

    /// Looks at the image's size again. Where it has changed, [`info`](Self::info) has the new one when this returns,
    /// and the listener has been told. Storage that announces a change by itself is followed without this. May wait for
    /// the storage.
    ///
    /// # Errors
    /// What the storage says; the size is as before.
    fn refresh(&self) -> io::Result<Sectors>;

    /// Sets who is told after the capacity has changed. There is one: the device.
    fn set_resize_listener(&self, listener: ResizeListener);

    /// How long the oldest request of all queues has been under way; `None` where none is. To within some milliseconds:
    /// it is for noticing storage that does not answer, which makes requests wait and never fail.
    fn oldest_request(&self) -> Option<Duration>;

    /// Takes the exclusive right to write the image. Never waits for another owner.
    ///
    /// Acquiring what this handle already holds for the same owner succeeds and does nothing. An image opened for
    /// reading takes nothing from anyone, and may be read beside an owner.
    ///
    /// # Errors
    /// [`OwnershipError::Held`] names the owner; [`OwnershipError::StaleEpoch`] where `owner` has been replaced: such
    /// an owner must never try again.
    fn acquire(&self, owner: &Owner) -> Result<(), OwnershipError>;

    /// Flushes, then gives the right up. All requests must have been reaped. Releasing what is not owned does nothing.
    ///
    /// # Errors
    /// [`OwnershipError::InFlight`], [`OwnershipError::Flush`]; the image is still owned then.
    fn release(&self) -> Result<(), OwnershipError>;

    /// Who last acquired the image through any handle anywhere, whether or not they still have it: whose writes are the
    /// last in it. `None` where nobody ever has, or it has changed hands since. May wait for the storage.
    ///
    /// # Errors
    /// Where the record cannot be read.
    fn last_owner(&self) -> Result<Option<Owner>, OwnershipError>;

    /// For whom this handle owns the image at the moment.
    fn owner(&self) -> Option<Owner>;

    /// A new way in, for one worker. Queues are independent: no lock is shared between them, and nothing is ordered
    /// across them but a flush, which covers completed writes of all of them.
    ///
    /// # Errors
    /// Where the host lacks what the backend needs for a queue (descriptors, memory, io_uring).
    fn queue(&self, config: QueueConfig) -> io::Result<Box<dyn BackendQueue>>;
}

/// One worker's way into an image. Moves to that worker's thread and stays there.
///
/// The worker puts requests into a batch, [`submit`](Self::submit)s it, waits until
/// [`completion_event`](Self::completion_event) is readable, and [`reap`](Self::reap)s. Every request that was taken
/// from a batch comes back from `reap` exactly once, in any order; a request that fails a check, or that comes while
/// the image is not owned ([`BlockError::NotOwner`](crate::BlockError::NotOwner)), comes back that way too.
///
/// No call waits for the storage. Dropping a queue waits for what is under way, since the storage still uses guest
/// RAM, and abandons its tokens: a worker drains first.
pub trait BackendQueue: fmt::Debug + Send {
    /// Takes requests off the front of the batch and starts them, until the batch is empty or the queue is full
    /// ([`QueueConfig::depth`]). What is left is for another `submit` after the next `reap`.
    fn submit(&mut self, batch: &mut RequestBatch);

    /// Readable when `reap` has something to do. Level-triggered: `reap` resets it. May be readable without need.
    fn completion_event(&self) -> BorrowedFd<'_>;

    /// Whether `reap` is known to have something to do, so that who has just submitted need not wait for the event to find
    /// out. `false` says nothing: the event does.
    fn has_answers(&mut self) -> bool {
        false
    }

    /// Appends every answer that is there, and returns at once.
    fn reap(&mut self, completions: &mut Vec<Completion>);

    /// How many requests have been submitted and not yet reaped.
    fn in_flight(&self) -> usize;
}

/// An eventfd as [`BackendQueue::completion_event`] wants one: reading it never waits.
pub(crate) fn completion_eventfd() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}
