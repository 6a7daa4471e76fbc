//! One io_uring per queue.
//!
//! Every request has a slot while it is under way; the slot's number is the ring's `user_data`. A slot keeps the
//! request, and with it the guest RAM, until the kernel has posted its completion, so the kernel never writes to
//! memory that has been given back.
//!
//! ```text
//! batch -> slot -> submission ring -> kernel -> completion ring -> slot -> Completion
//!            ^                                                      |
//!            +---------- short transfer, EAGAIN, EINTR -------------+
//! ```
#![expect(unsafe_code, reason = "submission queue entries carry the addresses of guest RAM")]

use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::Arc,
};

use drover_units::Bytes;
use io_uring::{IoUring, opcode, squeue, types};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};

use super::Volume;
use crate::{
    BackendQueue, BlockError, Completion, Operation, QueueAges, Request, RequestBatch,
    backend::completion_eventfd,
};

/// Most times a request is started again without progress. The kernel says EAGAIN or EINTR under memory pressure or
/// at a signal, a few times in a row at most.
const RETRIES_MAX: u8 = 16;

/// Most times in a row that the kernel may refuse to take entries before the queue gives up. It does so while it is
/// out of memory; each time takes at least a system call, so this is some tens of milliseconds.
const REFUSALS_MAX: u32 = 100_000;

/// Deepest queue: io_uring's own limit (IORING_MAX_ENTRIES, io_uring/io_uring.h).
const DEPTH_MAX: u16 = 32768;

/// Gives a range back; it reads as zeros then.
const UNMAP: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// A way into a raw file.
pub(crate) struct UringQueue {
    ring: IoUring,
    volume: Arc<Volume>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Slots whose entries are in the submission ring and that the kernel has not taken yet, in the ring's order.
    unsubmitted: VecDeque<u16>,
    /// Answers that need no I/O, or have had it; with whether the request had entered the gate.
    answers: Vec<(Completion, bool)>,
    event: EventFd,
    /// How many times in a row the kernel has refused to take entries.
    refusals: u32,
    /// The kernel refuses to take entries at all: nothing is submitted any more.
    broken: Option<i32>,
    ages: Arc<QueueAges>,
}

#[derive(Default)]
struct Slot {
    request: Option<Request>,
    /// Bytes transferred so far.
    done: usize,
    retries: u8,
    zeroing: Zeroing,
    iovecs: Iovecs,
}

/// How a range is made to read as zeros while it stays allocated. Not every file system does that in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Zeroing {
    #[default]
    InOneStep,
    /// Give the range back ...
    Unmap,
    /// ... and allocate it again.
    Allocate,
}

/// Addresses for a vectored call: what is left of a slot's request. Unchanged while the slot is in the kernel.
#[derive(Default)]
struct Iovecs(Vec<libc::iovec>);

// SAFETY: an iovec is an address and a length. Nothing is read or written through it here, and the memory it names is
// kept alive by the request in the same slot, whatever thread that is on.
unsafe impl Send for Iovecs {}

impl fmt::Debug for UringQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringQueue")
            .field("volume", &self.volume)
            .field("depth", &self.slots.len())
            .field("in_flight", &self.in_flight())
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl UringQueue {
    pub(crate) fn new(volume: Arc<Volume>, depth: u16) -> io::Result<Self> {
        let depth = depth.clamp(1, DEPTH_MAX);
        // One entry per slot, so pushing never finds the ring full; the completion ring is twice as long, so it never
        // overflows.
        let ring = IoUring::new(depth.into())?;
        let event = completion_eventfd()?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        let ages = volume.ages().queue(depth.into());
        Ok(Self {
            ring,
            volume,
            ages,
            slots: (0..depth).map(|_| Slot::default()).collect(),
            free: (0..depth).rev().collect(),
            unsubmitted: VecDeque::with_capacity(depth.into()),
            answers: Vec::with_capacity(depth.into()),
            event,
            refusals: 0,
            broken: None,
        })
    }

    /// Checks a request and puts it into the submission ring, or answers it.
    fn start(&mut self, request: Request, slot: u16) {
        let entered = self.volume.gate().enter();
        let inside = entered.is_ok();
        let mut result = entered.and_then(|()| request.check(&self.volume.info()));
        if let (Ok(()), Some(errno)) = (&result, self.broken) {
            result = Err(io_error(&request, errno));
        }
        let nothing_to_do = request.operation() != Operation::Flush && request.length() == Bytes::ZERO;
        if result.is_err() || nothing_to_do {
            self.free.push(slot);
            self.answers.push((request.complete(result), inside));
            return;
        }
        let place = &mut self.slots[usize::from(slot)];
        place.request = Some(request);
        place.done = 0;
        place.retries = 0;
        place.zeroing = Zeroing::default();
        self.ages.begin(slot.into());
        self.push(slot);
    }

    /// Puts what is left of a slot's request into the submission ring.
    fn push(&mut self, slot: u16) {
        let place = &mut self.slots[usize::from(slot)];
        let entry = place.entry(types::Fd(self.volume.file().as_raw_fd())).user_data(slot.into());
        // SAFETY: the descriptor is the volume's, which this queue keeps open. The addresses are guest RAM that the
        // slot's request keeps mapped, or the slot's own iovecs, which stay as they are while the slot is in the
        // kernel; the slot is freed only by its completion, and dropping the queue waits for all completions.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the ring has an entry for every slot, and a slot is in it once");
        self.unsubmitted.push_back(slot);
    }

    /// Tells the kernel about new entries. Where it refuses for a moment, the event stays readable, so that `reap`
    /// tells it again.
    fn tell_kernel(&mut self) {
        while self.broken.is_none() && !self.unsubmitted.is_empty() {
            let errno = match self.ring.submit() {
                Ok(0) => libc::EAGAIN,
                Ok(taken) => {
                    self.unsubmitted.drain(..taken.min(self.unsubmitted.len()));
                    self.refusals = 0;
                    continue;
                }
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            match errno {
                libc::EINTR => {}
                libc::EAGAIN | libc::EBUSY if self.refusals < REFUSALS_MAX => {
                    self.refusals += 1;
                    return self.wake();
                }
                errno => return self.give_up(errno),
            }
        }
    }

    /// The kernel will not take another entry. Those it has not taken are answered; those it has will complete.
    fn give_up(&mut self, errno: i32) {
        tracing::error!(errno, path = %self.volume.path.display(), "io_uring takes no more requests of this disk");
        // The entries stay in the ring, which is never submitted again.
        self.broken = Some(errno);
        while let Some(slot) = self.unsubmitted.pop_front() {
            let request =
                self.slots[usize::from(slot)].request.take().expect("a slot in the ring has a request");
            let result = Err(io_error(&request, errno));
            self.ages.end(slot.into());
            self.free.push(slot);
            self.answers.push((request.complete(result), true));
        }
        self.wake();
    }

    /// Makes the completion event readable.
    fn wake(&self) {
        // Fails only where the counter is full, which is readable.
        let _ = self.event.write(1);
    }

    /// Moves what the kernel has completed to the answers; what is not finished goes round again.
    fn collect(&mut self) {
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return };
            let slot = u16::try_from(entry.user_data()).expect("user_data is a slot's number");
            if self.slots[usize::from(slot)].advance(entry.result()) {
                self.push(slot);
                continue;
            }
            let request =
                self.slots[usize::from(slot)].request.take().expect("a slot in the kernel has a request");
            let result = self.slots[usize::from(slot)].outcome(&request, entry.result());
            self.ages.end(slot.into());
            self.free.push(slot);
            self.answers.push((request.complete(result), true));
        }
    }

    fn under_way(&self) -> usize {
        self.slots.iter().filter(|slot| slot.request.is_some()).count()
    }
}

impl Slot {
    /// The ring entry for what is left of the request.
    fn entry(&mut self, file: types::Fd) -> squeue::Entry {
        let request = self.request.as_ref().expect("only a slot with a request is started");
        let position =
            request.sector().to_bytes().expect("checked against the capacity").get() + self.done as u64;
        self.iovecs.0.clear();
        let mut skip = self.done;
        for segment in request.segments() {
            let mut piece = segment.iovec();
            let skipped = skip.min(piece.iov_len);
            skip -= skipped;
            piece.iov_base = piece.iov_base.wrapping_byte_add(skipped);
            piece.iov_len -= skipped;
            if piece.iov_len > 0 {
                self.iovecs.0.push(piece);
            }
        }
        let range =
            |mode| opcode::Fallocate::new(file, request.length().get()).offset(position).mode(mode).build();
        match (request.operation(), self.iovecs.0.as_slice()) {
            (Operation::Discard | Operation::WriteZeroes { may_unmap: true }, _) => range(UNMAP),
            (Operation::WriteZeroes { may_unmap: false }, _) => range(match self.zeroing {
                Zeroing::InOneStep => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                Zeroing::Unmap => UNMAP,
                Zeroing::Allocate => libc::FALLOC_FL_KEEP_SIZE,
            }),
            (Operation::Flush, _) => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            (Operation::Read, [one]) => {
                opcode::Read::new(file, one.iov_base.cast(), length(one)).offset(position).build()
            }
            (Operation::Write, [one]) => {
                opcode::Write::new(file, one.iov_base.cast(), length(one)).offset(position).build()
            }
            (Operation::Read, many) => {
                opcode::Readv::new(file, many.as_ptr(), count(many)).offset(position).build()
            }
            (Operation::Write, many) => {
                opcode::Writev::new(file, many.as_ptr(), count(many)).offset(position).build()
            }
        }
    }

    /// Takes note of the kernel's answer. Whether the request must go round again.
    fn advance(&mut self, result: i32) -> bool {
        let Some(request) = &self.request else { return false };
        match result {
            result if result == -libc::EAGAIN || result == -libc::EINTR => {
                self.retries += 1;
                self.retries <= RETRIES_MAX
            }
            result if request.operation() == (Operation::WriteZeroes { may_unmap: false }) => {
                self.zeroing = match (self.zeroing, result) {
                    (Zeroing::InOneStep, result) if result == -libc::EOPNOTSUPP => Zeroing::Unmap,
                    (Zeroing::Unmap, 0) => Zeroing::Allocate,
                    _ => return false,
                };
                true
            }
            result if result > 0 && request.operation() != Operation::Flush => {
                self.done += usize::try_from(result).expect("positive");
                self.retries = 0;
                (self.done as u64) < request.length().get()
            }
            _ => false,
        }
    }

    /// How a request that does not go round again has ended.
    fn outcome(&self, request: &Request, result: i32) -> Result<(), BlockError> {
        let whole = self.done as u64 == request.length().get();
        match (request.operation(), result) {
            (_, errno) if errno < 0 => Err(io_error(request, -errno)),
            (Operation::Flush | Operation::Discard | Operation::WriteZeroes { .. }, _) => Ok(()),
            (_, _) if whole => Ok(()),
            // A transfer of nothing: the file has been truncated under us, or the device is full without saying so.
            (operation, _) => Err(BlockError::Io { operation, source: io::ErrorKind::UnexpectedEof.into() }),
        }
    }
}

fn io_error(request: &Request, errno: i32) -> BlockError {
    BlockError::Io { operation: request.operation(), source: io::Error::from_raw_os_error(errno) }
}

/// The kernel transfers at most 2 GiB less a page at a time (MAX_RW_COUNT) and says how much it did, so a longer piece
/// may as well be cut here.
fn length(piece: &libc::iovec) -> u32 {
    u32::try_from(piece.iov_len).unwrap_or(u32::MAX)
}

fn count(pieces: &[libc::iovec]) -> u32 {
    u32::try_from(pieces.len()).expect("checked against segments_max")
}

impl BackendQueue for UringQueue {
    fn submit(&mut self, batch: &mut RequestBatch) {
        while !batch.is_empty()
            && self.in_flight() < self.slots.len()
            && let Some(slot) = self.free.pop()
        {
            let request = batch.pop().expect("not empty");
            self.start(request, slot);
        }
        self.tell_kernel();
        if !self.answers.is_empty() {
            self.wake();
        }
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn has_answers(&mut self) -> bool {
        // What the page cache holds is there when the call that asks for it returns.
        !self.answers.is_empty() || !self.ring.completion().is_empty()
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        // Reset before looking, so that what completes meanwhile sets it again.
        let _ = self.event.read();
        self.collect();
        self.tell_kernel();
        for (completion, inside) in self.answers.drain(..) {
            if inside {
                self.volume.gate().leave();
            }
            completions.push(completion);
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.answers.len()
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        let mut answers = Vec::new();
        loop {
            self.reap(&mut answers);
            for completion in answers.drain(..) {
                tracing::warn!(
                    tag = completion.tag().0,
                    "a block request's answer was dropped with its queue"
                );
            }
            if self.under_way() == 0 {
                return;
            }
            // The kernel holds the addresses of guest RAM until then.
            let mut wait = [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)];
            if let Err(error) = poll(&mut wait, PollTimeout::NONE)
                && error != Errno::EINTR
            {
                tracing::error!(%error, "cannot wait for a disk's requests: their memory is never given back");
                for slot in &mut self.slots {
                    if let Some(request) = slot.request.take() {
                        request.segments().iter().cloned().for_each(std::mem::forget);
                        request.abandon("the kernel does not say when it is done");
                    }
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use drover_guest_memory::GuestMemory;
    use drover_units::{Gpa, Sectors};

    use super::*;
    use crate::{Segments, Tag, Token};

    /// A slot with a write of 512 bytes at guest address 0 and 1024 at 0x1000.
    fn slot() -> Slot {
        let memory = GuestMemory::anonymous(Bytes::kib(64));
        let pieces = [(0, 512), (0x1000, 1024)];
        let segments: Segments =
            pieces.iter().map(|(at, len)| memory.segment(Gpa::new(*at), *len).unwrap()).collect();
        let request = Request::write(Sectors::new(8), segments, Token::new(Tag(0)));
        Slot { request: Some(request), ..Slot::default() }
    }

    /// Address, relative to the first segment, and length of what is left.
    fn left(slot: &mut Slot) -> Vec<(usize, usize)> {
        let base = slot.request.as_ref().unwrap().segments()[0].iovec().iov_base.addr();
        let _ = slot.entry(types::Fd(-1));
        slot.iovecs.0.iter().map(|piece| (piece.iov_base.addr() - base, piece.iov_len)).collect()
    }

    fn end(mut slot: Slot, result: i32) -> Result<(), BlockError> {
        let request = slot.request.take().unwrap();
        let outcome = slot.outcome(&request, result);
        request.abandon("the test is over");
        outcome
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped() {
        let mut slot = slot();
        assert_eq!(left(&mut slot), [(0, 512), (0x1000, 1024)]);
        assert!(slot.advance(100));
        assert_eq!(left(&mut slot), [(100, 412), (0x1000, 1024)]);
        assert!(slot.advance(412));
        assert_eq!(left(&mut slot), [(0x1000, 1024)]);
        assert!(slot.advance(1000));
        assert_eq!(left(&mut slot), [(0x1000 + 1000, 24)]);
        assert!(!slot.advance(24));
        end(slot, 24).unwrap();
    }

    #[test]
    fn a_transfer_of_nothing_is_the_end_and_an_error() {
        let mut slot = slot();
        assert!(slot.advance(512));
        assert!(!slot.advance(0));
        assert!(matches!(end(slot, 0), Err(BlockError::Io { .. })));
    }

    #[test]
    fn a_busy_kernel_is_asked_again_but_not_for_ever() {
        let mut slot = slot();
        for _ in 0..RETRIES_MAX {
            assert!(slot.advance(-libc::EAGAIN));
        }
        assert!(!slot.advance(-libc::EAGAIN));
        let Err(BlockError::Io { source, .. }) = end(slot, -libc::EAGAIN) else {
            panic!("an error of the storage")
        };
        assert_eq!(source.raw_os_error(), Some(libc::EAGAIN));
    }

    #[test]
    fn progress_starts_the_count_of_attempts_anew() {
        let mut slot = slot();
        for _ in 0..3 * RETRIES_MAX {
            assert!(slot.advance(-libc::EINTR));
            assert!(slot.advance(1));
        }
        slot.request.take().unwrap().abandon("the test is over");
    }
}
