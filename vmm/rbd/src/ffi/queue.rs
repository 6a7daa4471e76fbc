//! Asynchronous I/O on an image: completions, and the memory they work on.
//!
//! librbd puts every finished request of an image into one list of its own and writes one eventfd ([`Hub`]). A queue
//! that wakes takes what is there; what belongs to a sibling goes into the sibling's [`Inbox`]. With one queue per image
//! there is no sibling, and nothing but librbd's own lock-free list is between the cluster's answer and the caller.
//!
//! ```text
//! librbd's threads --> librbd's list, image eventfd --> reap --+--> own slot --> caller
//!                                                              +--> sibling's inbox, its eventfd --> its reap
//! ```

use std::{
    ffi::{c_int, c_void},
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        eventfd::{EfdFlags, EventFd},
    },
};

use super::{
    functions::{Functions, Handle},
    image::RawImage,
};
use crate::{Error, QueueOperation, error};

/// Memory that a request reads from or writes to.
///
/// # Safety
/// The pieces that [`iovecs`](Self::iovecs) names stay mapped, and may be read and written by other threads at any
/// time, until the value is dropped, wherever it has been moved meanwhile.
pub unsafe trait Buffers: Send {
    /// Appends the pieces, in order.
    fn iovecs(&self, pieces: &mut Vec<libc::iovec>);
}

/// How many finished requests are taken from librbd at once. At depth 32 three to four come per wake.
const TAKEN_AT_ONCE: usize = 64;
/// How long a dropped queue waits for its requests. A cluster that works answers within milliseconds, one that has lost an OSD
/// within seconds; who drops a queue while the cluster is away wants to end.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);
/// `EVENT_TYPE_EVENTFD`.
const NOTIFY_BY_EVENTFD: c_int = 2;
/// `RBD_WRITE_ZEROES_FLAG_THICK_PROVISION`.
const THICK_PROVISION: c_int = 1;
/// Most requests of one queue. A guest's queue has at most 32768 entries (virtio 1.2, section 2.7).
const DEPTH_MAX: u16 = 32768;

/// Where librbd says that requests of an image have finished, and whose they may be.
#[derive(Debug)]
pub(super) struct Hub {
    event: EventFd,
    /// By queue number. A number is used again when its queue has gone.
    inboxes: RwLock<Vec<Option<Arc<Inbox>>>>,
}

/// What siblings have found for a queue. Bounded by the queue's depth.
#[derive(Debug)]
struct Inbox {
    event: EventFd,
    waiting: AtomicUsize,
    arrived: Mutex<Vec<Finished>>,
}

/// A request that librbd has finished.
#[derive(Clone, Copy, Debug)]
struct Finished {
    slot: u32,
    result: i64,
}

/// One worker's way into an image. Requests are submitted, finish in any order, and are reaped.
///
/// Neither call waits for the cluster. Dropping the queue does, for [`DRAIN_MAX`] at most: librbd holds the addresses of the
/// requests' memory until it has answered, and there is no way to call a request off. What has not been answered by then is
/// left to librbd, with its memory and the open image, for the rest of the process: [`drain`](Self::drain) first where that
/// matters.
pub struct ImageQueue<B: Buffers> {
    image: Arc<RawImage>,
    number: u32,
    inbox: Arc<Inbox>,
    /// Readable when the image's eventfd or the inbox's is.
    event: Epoll,
    slots: Vec<Slot<B>>,
    free: Vec<u32>,
    /// Reused by every reap.
    found: Vec<Finished>,
    /// The caller has asked to be woken.
    woken: bool,
    /// Requests have been waited for in vain.
    given_up: bool,
}

/// A request's place while librbd has it.
struct Slot<B> {
    buffers: Option<B>,
    /// librbd reads this list when the data arrives, so it stays as it is until then.
    pieces: Vec<libc::iovec>,
}

// SAFETY: the addresses in `pieces` are used by librbd only, through `buffers`, which may be sent.
unsafe impl<B: Buffers> Send for Slot<B> {}

impl<B: Buffers> fmt::Debug for ImageQueue<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageQueue")
            .field("number", &self.number)
            .field("depth", &self.slots.len())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Asks librbd to announce what finishes. Once per image, before its first request: what was submitted before is
    /// not announced.
    pub(super) fn new(functions: &Functions, image: Handle) -> Result<Self, Errno> {
        let event = eventfd()?;
        let fd = event.as_raw_fd();
        // SAFETY: the image lives, and closes before the eventfd does: the hub is a field of the image.
        let answer = unsafe { (functions.rbd_set_image_notification)(image, fd, NOTIFY_BY_EVENTFD) };
        if answer < 0 {
            return Err(error::errno(answer.into()));
        }
        Ok(Self { event, inboxes: RwLock::default() })
    }

    /// Gives a queue a number.
    fn join(&self, inbox: &Arc<Inbox>) -> u32 {
        let mut inboxes = self.inboxes.write().unwrap_or_else(PoisonError::into_inner);
        let number = inboxes.iter().position(Option::is_none).unwrap_or_else(|| {
            inboxes.push(None);
            inboxes.len() - 1
        });
        inboxes[number] = Some(Arc::clone(inbox));
        u32::try_from(number).expect("fewer queues than descriptors")
    }

    fn leave(&self, number: u32) {
        self.inboxes.write().unwrap_or_else(PoisonError::into_inner)[number as usize] = None;
    }

    /// Hands over what belongs to a sibling.
    fn deliver(&self, number: u32, finished: Finished) {
        let inboxes = self.inboxes.read().unwrap_or_else(PoisonError::into_inner);
        let inbox = inboxes.get(number as usize).and_then(Option::as_ref);
        // A queue leaves only when all its requests have come back.
        let inbox = inbox.expect("a request's queue is there as long as the request");
        inbox.arrived.lock().unwrap_or_else(PoisonError::into_inner).push(finished);
        inbox.waiting.fetch_add(1, Ordering::Release);
        // Fails only where the counter is full, which is readable.
        let _ = inbox.event.write(1);
    }
}

fn eventfd() -> Result<EventFd, Errno> {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
}

impl<B: Buffers> ImageQueue<B> {
    /// A queue for at most `depth` requests at once.
    pub(crate) fn open(image: &Arc<RawImage>, depth: u16) -> Result<Self, Error> {
        let failed = |attempt| move |errno| Error::Host { attempt, errno };
        let hub = image.hub().map_err(failed("let librbd announce finished requests"))?;
        let inbox = Arc::new(Inbox {
            event: eventfd().map_err(failed("make an eventfd"))?,
            waiting: AtomicUsize::new(0),
            arrived: Mutex::default(),
        });
        let event = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed("make an epoll"))?;
        for source in [&hub.event, &inbox.event] {
            event
                .add(source, EpollEvent::new(EpollFlags::EPOLLIN, 0))
                .map_err(failed("wait for an eventfd"))?;
        }
        let depth = u32::from(depth.clamp(1, DEPTH_MAX));
        Ok(Self {
            image: Arc::clone(image),
            number: hub.join(&inbox),
            inbox,
            event,
            slots: (0..depth).map(|_| Slot { buffers: None, pieces: Vec::new() }).collect(),
            free: (0..depth).rev().collect(),
            found: Vec::with_capacity(TAKEN_AT_ONCE),
            woken: false,
            given_up: false,
        })
    }

    /// Whether another request fits.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// How many requests have been submitted and not yet reaped.
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Readable when [`reap`](Self::reap) may have something to do. Level-triggered: `reap` resets it. May be readable
    /// without need.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.0.as_fd()
    }

    /// Makes [`event`](Self::event) readable until the next `reap`, for a caller with answers of its own.
    pub fn wake(&mut self) {
        self.woken = true;
        // Fails only where the counter is full, which is readable.
        let _ = self.inbox.event.write(1);
    }

    /// Starts a request, and says which slot it has until it is reaped: a number below the depth. librbd's own checks
    /// (the image's size) answer like the cluster does, through `reap`.
    ///
    /// # Errors
    /// The buffers come back where the request has not been started: `EAGAIN` where no room is left, `ENOMEM` or
    /// `EINVAL` where the library refuses it.
    pub fn submit(&mut self, operation: QueueOperation, buffers: B) -> Result<usize, (B, Errno)> {
        let Some(slot) = self.free.pop() else { return Err((buffers, Errno::EAGAIN)) };
        let functions = self.image.functions();
        let mut completion: Handle = std::ptr::null_mut();
        let argument = pack(self.number, slot);
        // SAFETY: `completion` is a place for a pointer. Without a callback the argument is only handed back.
        let made = unsafe { (functions.rbd_aio_create_completion)(argument, None, &mut completion) };
        let place = &mut self.slots[slot as usize];
        place.pieces.clear();
        buffers.iovecs(&mut place.pieces);
        let answer = if made < 0 { made } else { start(&self.image, operation, &place.pieces, completion) };
        if answer >= 0 {
            place.buffers = Some(buffers);
            return Ok(slot as usize);
        }
        if made >= 0 {
            // SAFETY: the library has not taken it.
            unsafe { (functions.rbd_aio_release)(completion) };
        }
        self.free.push(slot);
        Err((buffers, error::errno(answer.into())))
    }

    /// Gives every finished request to `each`, with its slot and how it went, and returns at once. What librbd returns
    /// for success is for a read how many bytes there were, fewer only where the image has shrunk.
    pub fn reap(&mut self, mut each: impl FnMut(usize, B, Result<u64, Errno>)) {
        self.collect();
        // Taken out while `each` runs, so that a panic in it loses answers but frees no memory.
        for finished in self.found.drain(..) {
            let place = &mut self.slots[finished.slot as usize];
            let buffers = place.buffers.take().expect("librbd answers what was submitted, once");
            self.free.push(finished.slot);
            let result = u64::try_from(finished.result).map_err(|_| error::errno(finished.result));
            each(finished.slot as usize, buffers, result);
        }
    }

    /// [Reaps](Self::reap) until nothing is under way, for at most `limit`: whether nothing is. Where something is, dropping the
    /// queue does not wait again.
    #[expect(clippy::disallowed_methods, reason = "a wait for the cluster has a limit")]
    pub fn drain(&mut self, limit: Duration, mut each: impl FnMut(usize, B, Result<u64, Errno>)) -> bool {
        let deadline = if self.given_up { Instant::now() } else { Instant::now() + limit };
        loop {
            self.reap(&mut each);
            if self.in_flight() == 0 {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.given_up = true;
                return false;
            }
            // Rounded up: a wait of no time at all would keep a processor busy until the deadline.
            let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let mut wait = [PollFd::new(self.event(), PollFlags::POLLIN)];
            if let Err(error) = poll(&mut wait, left)
                && error != Errno::EINTR
            {
                tracing::error!(%error, "cannot wait for an image's requests");
                self.given_up = true;
                return false;
            }
        }
    }

    /// Moves what has finished to `found`, and what is a sibling's to its inbox.
    fn collect(&mut self) {
        let hub = self.image.hub().expect("made when the queue was");
        // Reset before looking, so that what finishes meanwhile sets it again. Empty where a sibling was faster.
        let _ = hub.event.read();
        loop {
            let mut completions: [Handle; TAKEN_AT_ONCE] = [std::ptr::null_mut(); TAKEN_AT_ONCE];
            let taken = self.image.poll(&mut completions);
            for completion in &completions[..taken] {
                let (number, finished) = self.image.finish(*completion);
                if number == self.number {
                    self.found.push(finished);
                } else {
                    hub.deliver(number, finished);
                }
            }
            if taken < TAKEN_AT_ONCE {
                break;
            }
        }
        if self.woken || self.inbox.waiting.load(Ordering::Acquire) > 0 {
            self.woken = false;
            let _ = self.inbox.event.read();
            let mut arrived = self.inbox.arrived.lock().unwrap_or_else(PoisonError::into_inner);
            self.inbox.waiting.fetch_sub(arrived.len(), Ordering::AcqRel);
            self.found.append(&mut arrived);
        }
    }
}

impl RawImage {
    /// Takes finished requests off librbd's list. Returns how many.
    fn poll(&self, completions: &mut [Handle; TAKEN_AT_ONCE]) -> usize {
        let room = c_int::try_from(completions.len()).expect("64");
        // SAFETY: there is room for as many pointers as is said. Several threads may take at once: each completion
        // comes once.
        let taken =
            unsafe { (self.functions().rbd_poll_io_events)(self.handle(), completions.as_mut_ptr(), room) };
        usize::try_from(taken).unwrap_or(0)
    }

    /// What a finished request was, and how it went. Frees librbd's side of it.
    fn finish(&self, completion: Handle) -> (u32, Finished) {
        let functions = self.functions();
        // SAFETY: the completion came from `poll`, so it has finished, and nobody has released it.
        let argument = unsafe { (functions.rbd_aio_get_arg)(completion) };
        // SAFETY: as above.
        let result = unsafe { (functions.rbd_aio_get_return_value)(completion) } as i64;
        // SAFETY: as above, and it is used no more.
        unsafe { (functions.rbd_aio_release)(completion) };
        let (number, slot) = unpack(argument);
        (number, Finished { slot, result })
    }
}

/// Hands a request to librbd. A negative answer means that it has not been taken.
fn start(image: &RawImage, operation: QueueOperation, pieces: &[libc::iovec], completion: Handle) -> c_int {
    let (functions, handle) = (image.functions(), image.handle());
    let count = c_int::try_from(pieces.len()).unwrap_or(c_int::MAX);
    match operation {
        // SAFETY: as with the next, the image lives until its last queue has gone. The list of pieces and the
        // memory it names stay in the request's slot until the completion has been taken off librbd's list.
        QueueOperation::Read { offset } => unsafe {
            (functions.rbd_aio_readv)(handle, pieces.as_ptr(), count, offset, completion)
        },
        // SAFETY: as above.
        QueueOperation::Write { offset } => unsafe {
            (functions.rbd_aio_writev)(handle, pieces.as_ptr(), count, offset, completion)
        },
        // SAFETY: the image lives; no memory is involved, here and below.
        QueueOperation::Discard(extent) => unsafe {
            (functions.rbd_aio_discard)(handle, extent.offset, extent.length, completion)
        },
        QueueOperation::WriteZeroes { extent, keep_allocated } => {
            let Ok(length) = usize::try_from(extent.length) else { return -libc::EINVAL };
            let flags = if keep_allocated { THICK_PROVISION } else { 0 };
            // SAFETY: as above.
            unsafe { (functions.rbd_aio_write_zeroes)(handle, extent.offset, length, completion, flags, 0) }
        }
        // SAFETY: as above.
        QueueOperation::Flush => unsafe { (functions.rbd_aio_flush)(handle, completion) },
    }
}

/// A request's name as the argument of its completion: no pointer, so nothing can dangle.
fn pack(number: u32, slot: u32) -> *mut c_void {
    std::ptr::without_provenance_mut((number as usize) << 32 | slot as usize)
}

fn unpack(argument: *mut c_void) -> (u32, u32) {
    let word = argument.addr();
    ((word >> 32) as u32, word as u32)
}

impl<B: Buffers> Drop for ImageQueue<B> {
    fn drop(&mut self) {
        if self.drain(DRAIN_MAX, |_, _, _| {}) {
            if let Ok(hub) = self.image.hub() {
                hub.leave(self.number);
            }
            return;
        }
        tracing::error!(
            requests = self.in_flight(),
            "an image's requests are not answered: their memory and the image go with the process"
        );
        // librbd may still read and write there, and closing an image beside a request aborts the process. The queue's
        // number stays taken, so that late answers find an inbox.
        std::mem::forget(std::mem::take(&mut self.slots));
        std::mem::forget(Arc::clone(&self.image));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_again_by_its_argument() {
        for name in [(0, 0), (1, 2), (u32::MAX, u32::MAX)] {
            assert_eq!(unpack(pack(name.0, name.1)), name);
        }
    }

    #[test]
    fn what_a_sibling_finds_waits_in_the_inbox() {
        let hub = Hub { event: eventfd().unwrap(), inboxes: RwLock::default() };
        let inbox = || {
            let arrived = Mutex::default();
            Arc::new(Inbox { event: eventfd().unwrap(), waiting: AtomicUsize::new(0), arrived })
        };
        let (one, other) = (inbox(), inbox());
        assert_eq!((hub.join(&one), hub.join(&other)), (0, 1));
        hub.deliver(1, Finished { slot: 7, result: -5 });
        assert_eq!(other.arrived.lock().unwrap()[0].slot, 7);
        assert_eq!((other.waiting.load(Ordering::Acquire), other.event.read().unwrap()), (1, 1));
        assert_eq!(one.waiting.load(Ordering::Acquire), 0);
        hub.leave(0);
        assert_eq!(hub.join(&one), 0, "numbers are used again");
    }
}
