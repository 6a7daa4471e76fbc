//! The contract of [`Backend`] and [`BackendQueue`] as tests, for every implementation, real or fake.
//!
//! A backend's test calls [`run`] with a way to make images. A check that fails panics and names itself on stderr.
#![allow(clippy::unwrap_used, reason = "this is a test suite: a failed unwrap is a failed check")]
#![allow(clippy::disallowed_methods, reason = "waits for completions with a deadline")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use drover_guest_memory::{DirtyTracker, GuestMemory};
use drover_ids::{NodeId, OwnerEpoch, VmId};
use drover_units::{Bytes, Gpa, SECTOR_SIZE, Sectors};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    Access, Backend, BackendQueue, BlockError, Completion, Operation, Owner, OwnershipError, QueueConfig,
    Request, RequestBatch, Segments, Tag, Token,
};

/// An image that a check may do anything to. Every check gets a new one that reads as zeros.
pub trait TestImage {
    /// Opens another handle, as another process would.
    fn open(&self, access: Access) -> Arc<dyn Backend>;

    /// What a power failure at this moment would leave, where the backend can tell.
    fn durable(&self) -> Option<Vec<u8>>;

    /// Makes the image longer, as whoever manages the storage would. Handles that are open are not told by this.
    fn grow(&self, size: Bytes);
}

/// Makes an image of a size.
pub type CreateImage<'a> = dyn Fn(Bytes) -> Box<dyn TestImage> + 'a;

/// Runs every check on an image of its own.
///
/// # Panics
/// Where the backend breaks its contract.
pub fn run(create: &CreateImage<'_>) {
    for (name, check) in CHECKS {
        let _named = NameOnPanic(name);
        check(create(IMAGE_SIZE).as_ref());
    }
}

type Check = fn(&dyn TestImage);

const CHECKS: &[(&str, Check)] = &[
    ("what is written is read back", what_is_written_is_read_back),
    ("what was never written reads as zeros", what_was_never_written_reads_as_zeros),
    ("an empty request succeeds", an_empty_request_succeeds),
    ("requests that cannot be are refused", requests_that_cannot_be_are_refused),
    ("a zeroed range reads as zeros, its neighbours as before", a_zeroed_range_reads_as_zeros),
    ("a discard leaves its neighbours alone", a_discard_leaves_its_neighbours_alone),
    ("ranges that cannot be are refused", ranges_that_cannot_be_are_refused),
    ("a grown image is used to its new end", a_grown_image_is_used_to_its_new_end),
    ("nothing is under way at rest", nothing_is_under_way_at_rest),
    ("a reader cannot write, and reads beside an owner", a_reader_cannot_write),
    ("I/O needs ownership", io_needs_ownership),
    ("every request is answered exactly once", every_request_is_answered_exactly_once),
    ("a flush makes completed writes of all queues durable", a_flush_makes_completed_writes_durable),
    ("reads mark guest RAM, writes do not", reads_mark_guest_ram),
    ("a second owner is refused and told who owns the image", a_second_owner_is_refused),
    ("an old epoch is refused for ever", an_old_epoch_is_refused),
    ("an image is handed over and back", an_image_is_handed_over),
    ("acquiring twice is one acquisition", acquiring_twice),
    ("a release waits for no request, it is refused", a_release_is_refused_while_requests_are_under_way),
    ("a dropped queue leaves nothing under way", a_dropped_queue_leaves_nothing_under_way),
    ("a dropped handle gives the image up", a_dropped_handle_gives_the_image_up),
];

const IMAGE_SIZE: Bytes = Bytes::mib(4);
/// Longer than any healthy storage takes, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

struct NameOnPanic(&'static str);

impl Drop for NameOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("backend conformance: '{}' does not hold", self.0);
        }
    }
}

fn owner(node: u128, epoch: u64) -> Owner {
    Owner {
        vm: VmId::from_u128(1),
        node: NodeId::from_u128(node),
        epoch: OwnerEpoch::new(epoch),
        pid: std::process::id(),
    }
}

/// A worker with guest RAM of its own.
struct Worker {
    queue: Box<dyn BackendQueue>,
    memory: GuestMemory,
    next_tag: u64,
}

impl Worker {
    fn new(backend: &dyn Backend) -> Self {
        Self::with_depth(backend, 32)
    }

    fn with_depth(backend: &dyn Backend, depth: u16) -> Self {
        let queue = backend.queue(QueueConfig { depth }).unwrap();
        Self { queue, memory: GuestMemory::anonymous(Bytes::mib(2)), next_tag: 0 }
    }

    fn token(&mut self) -> Token {
        self.next_tag += 1;
        Token::new(Tag(self.next_tag))
    }

    fn segments(&self, pieces: &[(u64, usize)]) -> Segments {
        pieces.iter().map(|(at, length)| self.memory.segment(Gpa::new(*at), *length).unwrap()).collect()
    }

    /// Submits all and waits for all.
    fn run(&mut self, requests: Vec<Request>) -> BTreeMap<Tag, Result<(), BlockError>> {
        let mut batch = RequestBatch::default();
        let mut answers = BTreeMap::new();
        for request in requests {
            batch.push(request);
        }
        while !batch.is_empty() || self.queue.in_flight() > 0 {
            self.queue.submit(&mut batch);
            for completion in wait(self.queue.as_mut()) {
                let tag = completion.tag();
                assert!(answers.insert(tag, completion.into_result()).is_none(), "{tag:?} answered twice");
            }
        }
        answers
    }

    fn run_one(&mut self, request: Request) -> Result<(), BlockError> {
        let tag = request.tag();
        let mut answers = self.run(vec![request]);
        let answer = answers.remove(&tag).expect("an answer to the request");
        assert!(answers.is_empty(), "answers nobody asked for: {answers:?}");
        answer
    }

    /// Writes `bytes` at `sector` through the start of guest RAM.
    fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), BlockError> {
        self.memory.write(Gpa::ZERO, bytes).unwrap();
        let segments = self.segments(&[(0, bytes.len())]);
        let token = self.token();
        self.run_one(Request::write(Sectors::new(sector), segments, token))
    }

    fn read(&mut self, sector: u64, length: usize) -> Result<Vec<u8>, BlockError> {
        let segments = self.segments(&[(0, length)]);
        let token = self.token();
        self.run_one(Request::read(Sectors::new(sector), segments, token))?;
        let mut bytes = vec![0; length];
        self.memory.read(Gpa::ZERO, &mut bytes).unwrap();
        Ok(bytes)
    }

    fn flush(&mut self) -> Result<(), BlockError> {
        let token = self.token();
        self.run_one(Request::flush(token))
    }
}

/// Waits until the queue has answers.
fn wait(queue: &mut dyn BackendQueue) -> Vec<Completion> {
    let started = Instant::now();
    let mut completions = Vec::new();
    loop {
        queue.reap(&mut completions);
        if !completions.is_empty() {
            return completions;
        }
        let left = DEADLINE.checked_sub(started.elapsed()).expect("an answer within the deadline");
        let timeout = PollTimeout::try_from(left).unwrap();
        poll(&mut [PollFd::new(queue.completion_event(), PollFlags::POLLIN)], timeout).unwrap();
    }
}

/// Bytes that differ by position and seed.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|at| (at.wrapping_mul(131).wrapping_add(seed * 7919) >> 3) as u8 ^ at as u8)
        .collect()
}

fn owned(image: &dyn TestImage) -> Arc<dyn Backend> {
    let backend = image.open(Access::ReadWrite);
    backend.acquire(&owner(1, 1)).unwrap();
    backend
}

fn what_is_written_is_read_back(image: &dyn TestImage) {
    let backend = owned(image);
    let mut worker = Worker::new(backend.as_ref());
    let last = backend.info().capacity.get() - 8;
    for (seed, sector) in [(1, 0), (2, 9), (3, last)] {
        worker.write(sector, &pattern(seed, 4096)).unwrap();
    }
    for (seed, sector) in [(1, 0), (2, 9), (3, last)] {
        assert_eq!(worker.read(sector, 4096).unwrap(), pattern(seed, 4096), "sector {sector}");
    }
    // Many pieces of odd sizes and in no order of guest addresses, in a whole number of sectors.
    let pieces =
        [(0x9001, 700), (0x3000, 1), (0x20000, 4000), (0x5003, 931), (0x7fff, 512), (0x10000, 12288)];
    let length = pieces.iter().map(|piece| piece.1).sum::<usize>();
    let bytes = pattern(4, length);
    let mut at = 0;
    for (gpa, length) in pieces {
        worker.memory.write(Gpa::new(gpa), &bytes[at..at + length]).unwrap();
        at += length;
    }
    let (segments, token) = (worker.segments(&pieces), worker.token());
    worker.run_one(Request::write(Sectors::new(100), segments, token)).unwrap();
    assert_eq!(worker.read(100, length).unwrap(), bytes, "gathered");
    let (segments, token) = (worker.segments(&pieces), worker.token());
    worker.memory.write(Gpa::ZERO, &vec![0xee; 0x30000]).unwrap();
    worker.run_one(Request::read(Sectors::new(100), segments, token)).unwrap();
    let mut scattered = Vec::new();
    for (gpa, length) in pieces {
        let mut piece = vec![0; length];
        worker.memory.read(Gpa::new(gpa), &mut piece).unwrap();
        scattered.extend(piece);
    }
    assert_eq!(scattered, bytes, "scattered");
    worker.write(200, &pattern(5, 1 << 20)).unwrap();
    assert_eq!(worker.read(200, 1 << 20).unwrap(), pattern(5, 1 << 20), "1 MiB");
}

fn what_was_never_written_reads_as_zeros(image: &dyn TestImage) {
    let backend = owned(image);
    let mut worker = Worker::new(backend.as_ref());
    worker.memory.write(Gpa::ZERO, &[0xff; 4096]).unwrap();
    assert_eq!(worker.read(16, 4096).unwrap(), [0; 4096]);
}

fn an_empty_request_succeeds(image: &dyn TestImage) {
    let backend = owned(image);
    let mut worker = Worker::new(backend.as_ref());
    let token = worker.token();
    worker.run_one(Request::read(Sectors::ZERO, Segments::new(), token)).unwrap();
    let token = worker.token();
    worker.run_one(Request::write(backend.info().capacity, Segments::new(), token)).unwrap();
    worker.flush().unwrap();
}

fn requests_that_cannot_be_are_refused(image: &dyn TestImage) {
    let backend = owned(image);
    let info = backend.info();
    let mut worker = Worker::new(backend.as_ref());
    let end = info.capacity.get();
    for (sector, length) in [(end, 512), (end - 1, 1024), (u64::MAX, 512), (u64::MAX / 512, 4096)] {
        for operation in [Operation::Read, Operation::Write] {
            let (segments, token) = (worker.segments(&[(0, length)]), worker.token());
            let request = match operation {
                Operation::Read => Request::read(Sectors::new(sector), segments, token),
                _ => Request::write(Sectors::new(sector), segments, token),
            };
            let error = worker.run_one(request).unwrap_err();
            assert!(matches!(error, BlockError::OutOfRange { .. }), "{operation:?} at {sector}: {error:?}");
        }
    }
    for length in [1, 511, 513] {
        let error = worker.write(0, &vec![1; length]).unwrap_err();
        assert!(matches!(error, BlockError::Unaligned { .. }), "{length} bytes: {error:?}");
    }
    let too_many = vec![(0, 512); usize::from(info.segments_max) + 1];
    let (segments, token) = (worker.segments(&too_many), worker.token());
    let error = worker.run_one(Request::read(Sectors::ZERO, segments, token)).unwrap_err();
    assert!(matches!(error, BlockError::TooManySegments { .. }), "{error:?}");
    assert_eq!(worker.read(0, 4096).unwrap(), [0; 4096], "what was refused has changed nothing");
}

fn a_zeroed_range_reads_as_zeros(image: &dyn TestImage) {
    let backend = owned(image);
    let Some(limits) = backend.info().write_zeroes else { return };
    assert!(limits.sectors_max >= Sectors::new(2048), "too little to be of use: {limits:?}");
    let mut worker = Worker::new(backend.as_ref());
    for may_unmap in [true, false] {
        worker.write(0, &pattern(1, 1 << 20)).unwrap();
        // Neither end is at a multiple of anything larger than a sector.
        for (sector, sectors) in [(3, 1), (17, 301), (1024, 0)] {
            let (range, token) = ((Sectors::new(sector), Sectors::new(sectors)), worker.token());
            worker.run_one(Request::write_zeroes(range, may_unmap, token)).unwrap();
        }
        let mut expected = pattern(1, 1 << 20);
        expected[3 * 512..4 * 512].fill(0);
        expected[17 * 512..318 * 512].fill(0);
        let read = worker.read(0, 1 << 20).unwrap();
        let wrong = read.iter().zip(&expected).position(|(read, expected)| read != expected);
        assert_eq!(wrong, None, "may_unmap: {may_unmap}");
    }
    worker.flush().unwrap();
    if let Some(durable) = image.durable() {
        assert_eq!(durable[17 * 512..318 * 512], [0; 301 * 512], "a flush covers zeros too");
    }
}

fn a_discard_leaves_its_neighbours_alone(image: &dyn TestImage) {
    let backend = owned(image);
    let Some(limits) = backend.info().discard else { return };
    assert!(limits.alignment >= Sectors::new(1), "{limits:?}");
    let mut worker = Worker::new(backend.as_ref());
    worker.write(0, &pattern(1, 1 << 20)).unwrap();
    for (sector, sectors) in [(9, 700), (1000, 1), (1024, 0)] {
        let (range, token) = ((Sectors::new(sector), Sectors::new(sectors)), worker.token());
        worker.run_one(Request::discard(range, token)).unwrap();
    }
    let (read, written) = (worker.read(0, 1 << 20).unwrap(), pattern(1, 1 << 20));
    for (at, (read, written)) in read.iter().zip(&written).enumerate() {
        let sector = at / 512;
        let discarded = (9..709).contains(&sector) || sector == 1000;
        assert!(read == written || (discarded && *read == 0), "byte {at}: {read}, was {written}");
    }
    worker.write(9, &pattern(2, 4096)).unwrap();
    assert_eq!(worker.read(9, 4096).unwrap(), pattern(2, 4096), "what was discarded can be written again");
}

fn ranges_that_cannot_be_are_refused(image: &dyn TestImage) {
    let backend = owned(image);
    let info = backend.info();
    let mut worker = Worker::new(backend.as_ref());
    worker.write(0, &pattern(1, 4096)).unwrap();
    let range = |sector, sectors| (Sectors::new(sector), Sectors::new(sectors));
    let end = info.capacity.get();
    for (limits, make) in [
        (info.discard, Request::discard as fn(_, _) -> _),
        (info.write_zeroes, |range, token| Request::write_zeroes(range, true, token)),
        (info.write_zeroes, |range, token| Request::write_zeroes(range, false, token)),
    ] {
        let mut refused = |range, expect: fn(&BlockError) -> bool| {
            let token = worker.token();
            let error = worker.run_one(make(range, token)).unwrap_err();
            assert!(expect(&error), "{range:?}: {error:?}");
        };
        let Some(limits) = limits else {
            refused(range(0, 1), |error| matches!(error, BlockError::NotOffered { .. }));
            continue;
        };
        for beyond in [range(end, 1), range(end - 1, 2), range(u64::MAX, 1)] {
            refused(beyond, |error| matches!(error, BlockError::OutOfRange { .. }));
        }
        for long in [limits.sectors_max.get() + 1, u64::MAX] {
            refused(range(0, long), |error| matches!(error, BlockError::TooLong { .. }));
        }
    }
    assert_eq!(worker.read(0, 4096).unwrap(), pattern(1, 4096), "what was refused has changed nothing");
    let reader = image.open(Access::ReadOnly);
    reader.acquire(&owner(2, 1)).unwrap();
    let mut worker = Worker::new(reader.as_ref());
    let token = worker.token();
    let error = worker.run_one(Request::discard(range(0, 1), token)).unwrap_err();
    assert!(matches!(error, BlockError::ReadOnly), "{error:?}");
}

fn a_grown_image_is_used_to_its_new_end(image: &dyn TestImage) {
    let backend = owned(image);
    let mut worker = Worker::new(backend.as_ref());
    let (told, listen) = mpsc::channel();
    let told = Mutex::new(told);
    backend.set_resize_listener(Box::new(move |capacity| told.lock().unwrap().send(capacity).unwrap()));
    let (old, new) = (IMAGE_SIZE.to_sectors().unwrap(), Bytes::mib(6).to_sectors().unwrap());
    assert!(matches!(worker.write(old.get(), &[1; 512]), Err(BlockError::OutOfRange { .. })));
    image.grow(Bytes::mib(6));
    assert_eq!(backend.refresh().unwrap(), new);
    assert_eq!(listen.recv_timeout(DEADLINE).expect("the listener is told"), new);
    assert_eq!(backend.info().capacity, new);
    worker.write(new.get() - 8, &pattern(1, 4096)).unwrap();
    assert_eq!(worker.read(new.get() - 8, 4096).unwrap(), pattern(1, 4096));
    assert_eq!(worker.read(old.get(), 4096).unwrap(), [0; 4096], "what was added reads as zeros");
    assert_eq!(backend.refresh().unwrap(), new);
    assert!(listen.try_recv().is_err(), "no change, nothing told");
}

fn nothing_is_under_way_at_rest(image: &dyn TestImage) {
    let backend = owned(image);
    let mut worker = Worker::new(backend.as_ref());
    assert_eq!(backend.oldest_request(), None);
    let requests = (0..50)
        .map(|n| {
            let (segments, token) = (worker.segments(&[(n * 4096, 4096)]), worker.token());
            Request::write(Sectors::new(n * 8), segments, token)
        })
        .collect();
    assert!(worker.run(requests).values().all(Result::is_ok));
    assert_eq!(backend.oldest_request(), None, "all have been reaped");
}

fn a_reader_cannot_write(image: &dyn TestImage) {
    let backend = owned(image);
    let mut writer = Worker::new(backend.as_ref());
    writer.write(3, &pattern(1, 512)).unwrap();
    let read_only = image.open(Access::ReadOnly);
    assert!(read_only.info().read_only);
    read_only.acquire(&owner(2, 1)).expect("a reader takes nothing from the owner");
    let mut reader = Worker::new(read_only.as_ref());
    assert!(matches!(reader.write(3, &[0; 512]), Err(BlockError::ReadOnly)));
    assert_eq!(reader.read(3, 512).unwrap(), pattern(1, 512));
    reader.flush().expect("there is nothing to flush");
    read_only.release().unwrap();
    assert!(matches!(reader.read(3, 512), Err(BlockError::NotOwner)));
    writer.write(3, &pattern(2, 512)).unwrap();
}

fn io_needs_ownership(image: &dyn TestImage) {
    let backend = image.open(Access::ReadWrite);
    let mut worker = Worker::new(backend.as_ref());
    let refused = |worker: &mut Worker| {
        assert!(matches!(worker.write(0, &[1; 512]), Err(BlockError::NotOwner)));
        assert!(matches!(worker.read(0, 512), Err(BlockError::NotOwner)));
        assert!(matches!(worker.flush(), Err(BlockError::NotOwner)));
    };
    assert_eq!(backend.owner(), None);
    refused(&mut worker);
    backend.acquire(&owner(1, 1)).unwrap();
    assert_eq!(backend.owner(), Some(owner(1, 1)));
    assert_eq!(worker.read(0, 512).unwrap(), [0; 512], "what was refused has changed nothing");
    backend.release().unwrap();
    backend.release().expect("releasing what is not owned does nothing");
    assert_eq!(backend.owner(), None);
    refused(&mut worker);
}

fn every_request_is_answered_exactly_once(image: &dyn TestImage) {
    const DEPTH: u16 = 8;
    let backend = owned(image);
    let mut worker = Worker::with_depth(backend.as_ref(), DEPTH);
    let mut batch = RequestBatch::default();
    let mut expected = BTreeMap::new();
    for n in 0..100_u64 {
        // Every seventh is refused, every fifth is a flush.
        let sector = if n % 7 == 0 { u64::MAX } else { n };
        let (segments, token) = (worker.segments(&[(n * 512, 512)]), worker.token());
        let request = match n % 5 {
            0 => Request::flush(token),
            1 | 2 => Request::read(Sectors::new(sector), segments, token),
            _ => Request::write(Sectors::new(sector), segments, token),
        };
        let refused = request.operation() != Operation::Flush && sector == u64::MAX;
        expected.insert(request.tag(), refused);
        batch.push(request);
    }
    while !expected.is_empty() {
        worker.queue.submit(&mut batch);
        assert!(worker.queue.in_flight() <= usize::from(DEPTH), "{}", worker.queue.in_flight());
        for completion in wait(worker.queue.as_mut()) {
            let refused = expected.remove(&completion.tag()).expect("a tag that is owed an answer");
            assert_eq!(completion.result().is_err(), refused, "{completion:?}");
        }
    }
    assert_eq!((worker.queue.in_flight(), batch.len()), (0, 0));
}

fn a_flush_makes_completed_writes_durable(image: &dyn TestImage) {
    let backend = owned(image);
    let (mut one, mut other) = (Worker::new(backend.as_ref()), Worker::new(backend.as_ref()));
    one.write(0, &pattern(1, 4096)).unwrap();
    other.write(8, &pattern(2, 4096)).unwrap();
    assert_eq!(other.read(0, 4096).unwrap(), pattern(1, 4096), "queues see each other's writes");
    one.flush().unwrap();
    if let Some(durable) = image.durable() {
        assert_eq!(durable[..4096], pattern(1, 4096));
        assert_eq!(durable[4096..8192], pattern(2, 4096), "written through the other queue");
    }
    one.write(0, &pattern(3, 512)).unwrap();
    backend.release().unwrap();
    if let Some(durable) = image.durable() {
        assert_eq!(durable[..512], pattern(3, 512), "a release flushes");
    }
}

fn reads_mark_guest_ram(image: &dyn TestImage) {
    let backend = owned(image);
    let mut worker = Worker::new(backend.as_ref());
    let mut tracker = DirtyTracker::new(&worker.memory);
    let (segments, token) = (worker.segments(&[(0x3000, 512), (0x6800, 4096)]), worker.token());
    worker.run_one(Request::read(Sectors::ZERO, segments, token)).unwrap();
    let dirty: Vec<_> = tracker.take().iter().map(Gpa::get).collect();
    assert_eq!(dirty, [0x3000, 0x6000, 0x7000]);
    let (segments, token) = (worker.segments(&[(0x3000, 512)]), worker.token());
    worker.run_one(Request::write(Sectors::ZERO, segments, token)).unwrap();
    assert!(tracker.take().is_empty());
}

fn a_second_owner_is_refused(image: &dyn TestImage) {
    let first = owned(image);
    let second = image.open(Access::ReadWrite);
    let error = second.acquire(&owner(2, 2)).unwrap_err();
    assert!(
        matches!(error, OwnershipError::Held { owner: Some(holder) } if holder == owner(1, 1)),
        "{error:?}"
    );
    let text = error.to_string();
    let holder = owner(1, 1);
    let parts =
        [holder.vm.to_string(), holder.node.to_string(), "epoch 1".to_owned(), holder.pid.to_string()];
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    assert!(matches!(Worker::new(second.as_ref()).write(0, &[1; 512]), Err(BlockError::NotOwner)));
    Worker::new(first.as_ref()).write(0, &[1; 512]).expect("the owner is untouched");
}

fn an_old_epoch_is_refused(image: &dyn TestImage) {
    let newer = image.open(Access::ReadWrite);
    newer.acquire(&owner(2, 2)).unwrap();
    newer.release().unwrap();
    let older = image.open(Access::ReadWrite);
    let error = older.acquire(&owner(1, 1)).unwrap_err();
    assert!(
        matches!(error, OwnershipError::StaleEpoch { recorded, .. } if recorded == OwnerEpoch::new(2)),
        "{error:?}"
    );
    newer.acquire(&owner(2, 2)).expect("the refused one holds nothing");
}

fn an_image_is_handed_over(image: &dyn TestImage) {
    let source = owned(image);
    // Opened before the hand-over, as the target of a migration does.
    let target = image.open(Access::ReadWrite);
    let (mut from, mut to) = (Worker::new(source.as_ref()), Worker::new(target.as_ref()));
    from.write(0, &pattern(1, 4096)).unwrap();
    source.release().unwrap();
    assert_eq!(
        target.last_owner().unwrap(),
        Some(owner(1, 1)),
        "whoever looks sees whose the last writes are"
    );
    // The target declines; the source goes on with the epoch it has.
    source.acquire(&owner(1, 1)).unwrap();
    from.write(0, &pattern(2, 4096)).unwrap();
    source.release().unwrap();
    target.acquire(&owner(2, 2)).unwrap();
    assert_eq!(to.read(0, 4096).unwrap(), pattern(2, 4096));
    assert!(matches!(from.write(0, &[9; 4096]), Err(BlockError::NotOwner)));
    assert!(source.acquire(&owner(1, 1)).is_err());
    to.write(0, &pattern(3, 4096)).unwrap();
    target.release().unwrap();
    assert_eq!(source.last_owner().unwrap(), Some(owner(2, 2)));
    source.acquire(&owner(1, 3)).unwrap();
    assert_eq!(from.read(0, 4096).unwrap(), pattern(3, 4096));
}

fn acquiring_twice(image: &dyn TestImage) {
    let backend = owned(image);
    backend.acquire(&owner(1, 1)).unwrap();
    let error = backend.acquire(&owner(1, 2)).unwrap_err();
    assert!(
        matches!(error, OwnershipError::AlreadyOwned { owner: current } if current == owner(1, 1)),
        "{error:?}"
    );
    backend.release().unwrap();
    assert_eq!(backend.owner(), None, "one release is enough");
    image.open(Access::ReadWrite).acquire(&owner(2, 2)).unwrap();
}

fn a_release_is_refused_while_requests_are_under_way(image: &dyn TestImage) {
    let backend = owned(image);
    let mut worker = Worker::new(backend.as_ref());
    let mut batch = RequestBatch::default();
    let (segments, token) = (worker.segments(&[(0, 4096)]), worker.token());
    batch.push(Request::write(Sectors::ZERO, segments, token));
    worker.queue.submit(&mut batch);
    // Even a request that the storage has finished counts until it is reaped.
    let error = backend.release().unwrap_err();
    assert!(matches!(error, OwnershipError::InFlight(1)), "{error:?}");
    assert_eq!(backend.owner(), Some(owner(1, 1)));
    for completion in wait(worker.queue.as_mut()) {
        completion.into_result().unwrap();
    }
    worker.write(0, &[1; 512]).expect("still owned");
    backend.release().unwrap();
}

fn a_dropped_queue_leaves_nothing_under_way(image: &dyn TestImage) {
    let backend = owned(image);
    let mut worker = Worker::new(backend.as_ref());
    let mut batch = RequestBatch::default();
    for n in 0..16 {
        let (segments, token) = (worker.segments(&[(0, 65536)]), worker.token());
        batch.push(Request::write(Sectors::new(n * 65536 / SECTOR_SIZE), segments, token));
    }
    worker.queue.submit(&mut batch);
    assert!(batch.is_empty());
    drop(worker);
    backend.release().unwrap();
}

fn a_dropped_handle_gives_the_image_up(image: &dyn TestImage) {
    let first = owned(image);
    let queue = first.queue(QueueConfig { depth: 1 }).unwrap();
    drop(first);
    let second = image.open(Access::ReadWrite);
    let error = second.acquire(&owner(2, 2)).unwrap_err();
    assert!(matches!(error, OwnershipError::Held { .. }), "its queue may still write: {error:?}");
    drop(queue);
    second.acquire(&owner(2, 2)).unwrap();
}
