//! The thread of one queue.
//!
//! It waits for four things: the doorbell (the driver has something), the backend's event (the storage has), its orders,
//! and the timer of its limits; how is in waiting.rs. All work happens between two waits and is bounded by the queue's size, so that a driver
//! which never stops asking cannot keep the worker from its orders.

use std::{
    fmt, io, iter,
    os::fd::AsRawFd,
    sync::{
        Arc, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use drover_block::{BackendQueue, BlockError, Completion, Request, RequestBatch, Segments, Tag, Token};
use drover_guest_memory::GuestMemory;
use drover_units::Gpa;
use virtio_bindings::{
    virtio_blk::{VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP},
    virtio_ring::VRING_AVAIL_F_NO_INTERRUPT,
};
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

mod waiting;

use self::waiting::Patience;
use super::{
    metrics::{self, BlkMetrics},
    ranges::{Range, SEGMENTS_MAX},
    request::{self, Action, Limits, Malformed, Parsed, Scratch},
};
use crate::{
    ActiveQueue, DeviceEvent, DeviceEvents, VirtioInterrupt,
    virtio::{
        control::{Control, Doing, Order},
        throttle::Gate,
    },
};

/// How many failed requests are logged one by one. A broken disk fails every request of every guest for days; the
/// counter goes on.
const ERRORS_LOGGED: u64 = 32;

/// Length of a disk's id as GET_ID answers it.
pub(super) const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;

/// What a worker needs of its device.
pub(super) struct Setup {
    pub(super) name: String,
    pub(super) id: [u8; ID_LEN],
    /// A write is answered when it is durable (5.2.6.2): the driver knows no flush, or has turned the cache off.
    pub(super) write_through: Arc<AtomicBool>,
    /// The driver negotiated SIZE_MAX: no piece of data is longer.
    pub(super) piece_bytes_max: Option<u32>,
    /// The driver negotiated DISCARD.
    pub(super) discard: bool,
    /// The driver negotiated WRITE_ZEROES.
    pub(super) write_zeroes: bool,
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Arc<dyn VirtioInterrupt>,
    pub(super) metrics: Arc<BlkMetrics>,
    pub(super) events: Arc<dyn DeviceEvents>,
    pub(super) gate: Gate,
    pub(super) control: Arc<Control>,
}

/// One queue's rings, its way into the backend, and what is between them.
pub(super) struct Worker {
    setup: Setup,
    queue: ActiveQueue,
    backend: Box<dyn BackendQueue>,
    /// Requests that the backend has, or that wait in the batch; a request's tag is its index.
    pending: Vec<Option<Pending>>,
    free: Vec<u16>,
    batch: RequestBatch,
    completions: Vec<Completion>,
    answers: Vec<Answer>,
    scratch: Scratch,
    order: Order,
    /// The avail ring may hold chains that were left there for lack of room.
    starved: bool,
    /// The driver need not ring: the worker looks at the ring before it sleeps.
    unannounced: bool,
    patience: Patience,
    /// How often in a row something has been found by looking.
    finds: u32,
    halted: Option<Halt>,
    finished: bool,
}

/// What a worker waits for.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The driver has rung.
    Doorbell,
    /// The storage has answers.
    Backend,
    /// The timer of the disk's limits.
    Limits,
    /// The device has an order. The first comes with the start.
    Orders,
}

impl Source {
    const ALL: [Self; 4] = [Self::Doorbell, Self::Backend, Self::Limits, Self::Orders];
}

/// Why a worker takes no more requests, whatever its orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Halt {
    /// The driver broke the rules; its reset will end this worker.
    NeedsReset,
    /// This process has lost the disk.
    Fenced,
}

/// What is remembered of a request while the backend has it.
#[derive(Clone, Copy, Debug)]
struct Pending {
    head: u16,
    status: Gpa,
    operation: Pended,
    length: u32,
    /// Requests to the backend that have not been answered: a request of several ranges has one for each.
    parts: u16,
    /// One of them has failed.
    failed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pended {
    Read,
    Write,
    /// The second half of a write that is answered when it is durable.
    WriteFlush,
    Flush,
    Discard,
    WriteZeroes,
}

/// What the driver is told about one chain.
#[derive(Clone, Copy, Debug)]
struct Answer {
    head: u16,
    status: Gpa,
    code: u32,
    /// Bytes written before the status byte.
    written: u32,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("disk", &self.setup.name)
            .field("queue", &self.queue.index)
            .field("under_way", &self.under_way())
            .field("halted", &self.halted)
            .finish_non_exhaustive()
    }
}

impl Worker {
    pub(super) fn new(setup: Setup, queue: ActiveQueue, backend: Box<dyn BackendQueue>) -> Self {
        let size = queue.queue.lock().unwrap_or_else(PoisonError::into_inner).size();
        Self {
            setup,
            queue,
            backend,
            pending: vec![None; size.into()],
            free: (0..size).rev().collect(),
            batch: RequestBatch::with_capacity(size.into()),
            completions: Vec::with_capacity(size.into()),
            answers: Vec::with_capacity(size.into()),
            scratch: Scratch::for_queue(size),
            // Until the first order has been seen.
            order: Order::Pause,
            starved: false,
            unannounced: false,
            patience: Patience::default(),
            finds: 0,
            halted: None,
            finished: false,
        }
    }

    /// Serves the queue until it is told to stop. The thread's main function.
    pub(super) fn run(mut self, waiting: &Epoll) {
        let control = Arc::clone(&self.setup.control);
        let _died =
            ReportDeath { control, name: self.setup.name.clone(), events: Arc::clone(&self.setup.events) };
        while !self.finished {
            self.wait(waiting);
            self.advance();
        }
    }

    /// Everything the thread waits for.
    ///
    /// The doorbell is edge-triggered: each ring wakes the worker, and nobody has to read the counter.
    pub(super) fn waiting(&self) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        for source in Source::ALL {
            let (fd, mode) = match source {
                Source::Doorbell => (self.queue.doorbell.as_raw_fd(), EventSet::EDGE_TRIGGERED),
                Source::Backend => (self.backend.completion_event().as_raw_fd(), EventSet::empty()),
                Source::Limits => (self.setup.gate.timer(), EventSet::empty()),
                Source::Orders => (self.setup.control.wake().as_raw_fd(), EventSet::empty()),
            };
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN | mode, source as u64))?;
        }
        Ok(epoll)
    }

    /// Takes note of one thing that happened. [`advance`](Self::advance) follows, once for all.
    fn note(&mut self, source: u64) {
        match source {
            source if source == Source::Doorbell as u64 => self.starved = true,
            source if source == Source::Backend as u64 => self.reap(),
            // A request that was held back may pass, or the limits are others.
            source if source == Source::Limits as u64 => self.setup.gate.on_timer(),
            _ => {
                self.order = self.setup.control.order();
                self.setup.gate.open();
                if self.order != Order::Run {
                    self.setup.gate.forget();
                }
                // Notifications may have come while nobody looked, or to another process before a restore.
                self.starved = true;
            }
        }
    }

    /// The storage has something to say.
    fn reap(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        self.backend.reap(&mut completions);
        for completion in completions.drain(..) {
            self.finish(completion);
        }
        self.completions = completions;
    }

    /// Takes answers that came with the submission itself, which saves a round through the kernel. Once: orders are looked
    /// at between any two batches.
    fn reap_at_once(&mut self) {
        self.reap();
        // Durable writes have their flushes now.
        self.backend.submit(&mut self.batch);
        if self.starved && self.setup.gate.is_open() {
            // There is room again for what the ring still holds, and the event that would have said so is reset.
            let _ = self.queue.doorbell.write(1);
        }
    }

    /// Moves everything on as far as it goes without waiting.
    fn advance(&mut self) {
        if self.starved && self.order == Order::Run && self.halted.is_none() && self.setup.gate.is_open() {
            self.take();
        }
        self.backend.submit(&mut self.batch);
        if self.backend.has_answers() {
            self.reap_at_once();
        }
        self.publish();
        if self.order != Order::Run && self.under_way() == 0 && self.halted != Some(Halt::Fenced) {
            self.finished = self.order == Order::Stop;
            let doing = if self.finished { Doing::Stopped } else { Doing::Paused };
            self.setup.control.report(self.order, doing);
        }
        if self.order == Order::Stop && self.halted == Some(Halt::Fenced) && self.backend.in_flight() == 0 {
            self.finished = true;
            self.setup.control.report(self.order, Doing::Stopped);
        }
    }

    /// Requests taken from the ring and not answered.
    fn under_way(&self) -> usize {
        self.pending.len() - self.free.len()
    }

    /// Takes chains from the avail ring until it is empty, or there is no room, or a queue's worth has been taken.
    fn take(&mut self) {
        match self.try_take() {
            Ok(()) => {}
            Err(error) => self.give_up(&error),
        }
    }

    fn try_take(&mut self) -> Result<(), RingError> {
        let shared = Arc::clone(&self.queue.queue);
        let mut queue = lock(&shared);
        let memory = self.setup.memory.clone();
        let ram = memory.as_vm_memory();
        let mut budget = queue.size();
        let limits =
            Limits { descriptors_max: queue.max_size(), piece_bytes_max: self.setup.piece_bytes_max };
        loop {
            queue.disable_notification(ram)?;
            while budget > 0
                && !self.free.is_empty()
                && let Some(chain) = queue.iter(ram)?.next()
            {
                budget -= 1;
                let head = chain.head_index();
                let parsed = request::parse(chain, limits, &memory, &mut self.scratch)?;
                if let Some(cost) = parsed.action.cost()
                    && !self.setup.gate.admit(cost)
                {
                    // It stays at the head of the ring, to be parsed again when it may pass.
                    queue.go_to_previous_position();
                    self.scratch.reclaim(parsed.action);
                    return Ok(());
                }
                self.begin(head, parsed);
            }
            if budget == 0 {
                // The worker rings for itself, after looking for orders.
                let _ = self.queue.doorbell.write(1);
                return Ok(());
            }
            if self.free.is_empty() {
                // Completions make room.
                return Ok(());
            }
            if !self.patience.is_none() {
                self.starved = false;
                self.unannounced = true;
                return Ok(());
            }
            if !queue.enable_notification(ram)? {
                self.starved = false;
                return Ok(());
            }
        }
    }

    /// Starts one request: into the batch, or straight to the answers.
    fn begin(&mut self, head: u16, Parsed { status, action }: Parsed) {
        let answer = |code, written| Answer { head, status, code, written };
        let pending =
            |operation, length| Pending { head, status, operation, length, parts: 1, failed: false };
        match action {
            Action::Read(sector, segments) => {
                let token = self.pend(pending(Pended::Read, request::length(&segments)));
                self.batch.push(Request::read(sector, segments, token));
            }
            Action::Write(sector, segments) => {
                let token = self.pend(pending(Pended::Write, request::length(&segments)));
                self.batch.push(Request::write(sector, segments, token));
            }
            Action::Flush => {
                let token = self.pend(pending(Pended::Flush, 0));
                self.batch.push(Request::flush(token));
            }
            Action::GetId(segments) => {
                let written = write_id(&self.setup.id, &segments);
                self.answers.push(answer(VIRTIO_BLK_S_OK, written));
                self.give_back(segments);
            }
            Action::Discard(ranges) if self.setup.discard => {
                self.begin_ranges(pending(Pended::Discard, 0), &ranges, Request::discard);
                self.scratch.give_back_ranges(ranges);
            }
            Action::WriteZeroes(ranges, may_unmap) if self.setup.write_zeroes => {
                let make = |range, token| Request::write_zeroes(range, may_unmap, token);
                self.begin_ranges(pending(Pended::WriteZeroes, 0), &ranges, make);
                self.scratch.give_back_ranges(ranges);
            }
            Action::Discard(_) | Action::WriteZeroes(..) => {
                self.note_error(&"the driver has not asked for this type of request");
                self.answers.push(answer(VIRTIO_BLK_S_UNSUPP, 0));
            }
            Action::Unsupported(kind) => {
                self.note_error(&format_args!("request type {kind} is not supported"));
                self.answers.push(answer(VIRTIO_BLK_S_UNSUPP, 0));
            }
            Action::UnsupportedFlags => {
                self.note_error(&"a range has flags that are not supported");
                self.answers.push(answer(VIRTIO_BLK_S_UNSUPP, 0));
            }
            Action::NotRanges(length) => {
                self.note_error(&format_args!("{length} bytes are not 1 to {SEGMENTS_MAX} ranges"));
                self.answers.push(answer(VIRTIO_BLK_S_IOERR, 0));
            }
            Action::TooLongPiece(length) => {
                self.note_error(&format_args!(
                    "a piece of {length} bytes is longer than the driver was told"
                ));
                self.answers.push(answer(VIRTIO_BLK_S_IOERR, 0));
            }
            Action::NotRam(error) => {
                self.note_error(&error);
                self.answers.push(answer(VIRTIO_BLK_S_IOERR, 0));
            }
        }
    }

    /// Starts a request to the backend for each range, all under the slot of the one that the driver has sent.
    fn begin_ranges(&mut self, pending: Pending, ranges: &[Range], make: impl Fn(Range, Token) -> Request) {
        let parts = u16::try_from(ranges.len()).expect("parsed as at most 16");
        let first = self.pend(Pending { parts, ..pending });
        let tag = first.tag();
        let tokens = iter::once(first).chain(iter::repeat_with(|| Token::new(tag)));
        for (range, token) in ranges.iter().zip(tokens) {
            self.batch.push(make(*range, token));
        }
    }

    fn give_back(&mut self, mut segments: Segments) {
        segments.clear();
        self.scratch.give_back(segments);
    }

    fn pend(&mut self, pending: Pending) -> Token {
        let slot = self.free.pop().expect("a chain is taken only where there is room");
        self.pending[usize::from(slot)] = Some(pending);
        Token::new(Tag(slot.into()))
    }

    /// The storage has answered.
    fn finish(&mut self, completion: Completion) {
        let slot = u16::try_from(completion.tag().0).expect("a tag is a slot's number");
        let pending = self.pending[usize::from(slot)].expect("an answer is to a request that is under way");
        let (result, room) = completion.into_result_and_room();
        self.scratch.give_back(room);
        let failed = match result {
            Ok(()) => pending.failed,
            Err(error) if error.is_loss_of_ownership() => return self.fence(&error),
            Err(error) => {
                self.note_error(&error);
                true
            }
        };
        if pending.parts > 1 {
            self.pending[usize::from(slot)] = Some(Pending { parts: pending.parts - 1, failed, ..pending });
            return;
        }
        let writes = matches!(pending.operation, Pended::Write | Pended::WriteZeroes);
        if !failed && writes && self.setup.write_through.load(Ordering::Relaxed) {
            self.count(pending);
            self.pending[usize::from(slot)] = Some(Pending { operation: Pended::WriteFlush, ..pending });
            self.batch.push(Request::flush(Token::new(Tag(slot.into()))));
            return;
        }
        let code = if failed { VIRTIO_BLK_S_IOERR } else { VIRTIO_BLK_S_OK };
        if !failed {
            self.count(pending);
        }
        let read = pending.operation == Pended::Read && code == VIRTIO_BLK_S_OK;
        let written = if read { pending.length } else { 0 };
        self.answers.push(Answer { head: pending.head, status: pending.status, code, written });
        self.pending[usize::from(slot)] = None;
        self.free.push(slot);
    }

    fn count(&self, pending: Pending) {
        let metrics = &self.setup.metrics;
        match pending.operation {
            Pended::Read => {
                metrics::add(&metrics.reads, 1);
                metrics::add(&metrics.bytes_read, pending.length.into());
            }
            Pended::Write => {
                metrics::add(&metrics.writes, 1);
                metrics::add(&metrics.bytes_written, pending.length.into());
            }
            // Counted as the write that it makes durable.
            Pended::WriteFlush => {}
            Pended::Flush => metrics::add(&metrics.flushes, 1),
            Pended::Discard => metrics::add(&metrics.discards, 1),
            Pended::WriteZeroes => metrics::add(&metrics.zeroings, 1),
        }
    }

    fn note_error(&self, error: &dyn fmt::Display) {
        let before = self.setup.metrics.errors.fetch_add(1, Ordering::Relaxed);
        if before < ERRORS_LOGGED {
            tracing::warn!(disk = self.setup.name, %error, "a disk request failed");
        }
    }

    /// The disk is not ours any more. What the driver has asked for stays unanswered: the VM must stop.
    fn fence(&mut self, error: &BlockError) {
        if self.halted == Some(Halt::Fenced) {
            return;
        }
        tracing::error!(disk = self.setup.name, %error, "the disk has been lost to another owner");
        self.halted = Some(Halt::Fenced);
        while let Some(request) = self.batch.pop() {
            request.abandon("the disk has been lost to another owner");
        }
        self.setup.control.report(self.order, Doing::Fenced);
        self.setup.events.notify(DeviceEvent::Fenced { device: self.setup.name.clone() });
    }

    /// The driver has broken the rules of the ring.
    fn give_up(&mut self, error: &RingError) {
        tracing::warn!(disk = self.setup.name, %error, "the driver broke the rules: the disk needs a reset");
        self.halted = Some(Halt::NeedsReset);
        self.setup.interrupt.needs_reset();
    }

    /// Writes the answers to the used ring and interrupts the driver where it wants that.
    fn publish(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        match self.try_publish() {
            Ok(true) => self.setup.interrupt.queue_used(self.queue.index),
            Ok(false) => {}
            Err(error) => self.give_up(&error),
        }
    }

    fn try_publish(&mut self) -> Result<bool, RingError> {
        let ram = self.setup.memory.as_vm_memory();
        let mut queue = lock(&self.queue.queue);
        for answer in self.answers.drain(..) {
            let code = u8::try_from(answer.code).expect("status codes are bytes");
            self.setup.memory.write(answer.status, &[code]).expect("checked when the request was parsed");
            queue.add_used(ram, answer.head, answer.written.saturating_add(1))?;
        }
        let wanted = queue.needs_notification(ram)?;
        // virtio-queue looks at the event index only.
        if queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags: u16 = ram
            .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
            .map(u16::from_le)
            .map_err(QueueError::GuestMemory)?;
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}

/// Why the rings cannot be served any more.
#[derive(Debug, thiserror::Error)]
enum RingError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Chain(#[from] Malformed),
}

fn lock(queue: &std::sync::Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spreads the id over the segments as far as they go. Returns how many bytes that was.
fn write_id(id: &[u8], segments: &Segments) -> u32 {
    let mut rest = id;
    for segment in segments {
        let (now, later) = rest.split_at(rest.len().min(segment.len()));
        if now.is_empty() {
            break;
        }
        segment.write(0, now).expect("cut to the segment's length");
        rest = later;
    }
    (id.len() - rest.len()) as u32
}

/// Tells the machine when the thread ends by a panic.
struct ReportDeath {
    control: Arc<Control>,
    name: String,
    events: Arc<dyn DeviceEvents>,
}

impl Drop for ReportDeath {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.control.report(Order::Run, Doing::Died);
            let reason = "the thread of its queue has died".to_owned();
            self.events.notify(DeviceEvent::Failed { device: self.name.clone(), reason });
        }
    }
}
