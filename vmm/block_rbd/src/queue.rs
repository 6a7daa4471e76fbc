//! One worker's way into an image.

use std::{io, os::fd::BorrowedFd, sync::Arc};

use drover_block::{
    BackendQueue, BlockError, Completion, Operation, QueueAges, QueueConfig, Request, RequestBatch,
};
use drover_rbd::{DRAIN_MAX, Extent, ImageQueue, QueueOperation};
use drover_units::Bytes;
use nix::errno::Errno;

use crate::{buffers::InFlight, disk::Disk, merge::Merge};

/// Requests on their way, and answers that needed no way.
#[derive(Debug)]
pub(crate) struct RbdQueue {
    queue: ImageQueue<InFlight>,
    disk: Arc<Disk>,
    depth: usize,
    /// Requests that librbd has, some of them as one.
    under_way: usize,
    /// With whether the request had entered the gate.
    answers: Vec<(Completion, bool)>,
    /// Empty lists that have been used, for the next requests that become one.
    lists: Vec<Vec<Request>>,
    ages: Arc<QueueAges>,
}

impl RbdQueue {
    pub(crate) fn open(disk: &Arc<Disk>, config: QueueConfig) -> io::Result<Self> {
        let depth = config.depth.max(1);
        let queue = disk.image.queue(depth).map_err(|error| disk.io_error(error))?;
        Ok(Self {
            queue,
            disk: Arc::clone(disk),
            depth: depth.into(),
            under_way: 0,
            answers: Vec::with_capacity(depth.into()),
            lists: Vec::with_capacity(depth.into()),
            ages: disk.ages.queue(depth.into()),
        })
    }

    /// Checks a request. It comes back if librbd is to have it; otherwise it has been answered.
    fn admit(&mut self, request: Request) -> Option<Request> {
        let entered = self.disk.gate.enter();
        let inside = entered.is_ok();
        let checked = entered.and_then(|()| request.check(&self.disk.info()));
        // A reader has written nothing that could be flushed.
        let nothing_to_do = match request.operation() {
            Operation::Flush => self.disk.info.read_only,
            _ => request.length() == Bytes::ZERO,
        };
        if checked.is_err() || nothing_to_do {
            self.answers.push((request.complete(checked), inside));
            return None;
        }
        Some(request)
    }

    /// Puts the requests behind `first` that go on where it ends to it, as far as that is good.
    fn gather(&mut self, first: Request, batch: &mut RequestBatch) -> InFlight {
        let mut merge = Merge::of(&first);
        let mut gathered = InFlight { first, more: self.lists.pop().unwrap_or_default() };
        while self.in_flight() + 1 + gathered.more.len() < self.depth
            && batch.front().is_some_and(|next| merge.take(next))
            && let Some(next) = batch.pop()
        {
            match self.admit(next) {
                Some(next) => gathered.more.push(next),
                None => break,
            }
        }
        gathered
    }

    /// Hands requests to librbd, or answers them.
    fn start(&mut self, requests: InFlight) {
        let count = 1 + requests.more.len();
        match self.queue.submit(operation(&requests), requests) {
            Ok(slot) => {
                self.under_way += count;
                self.ages.begin(slot);
            }
            Err((InFlight { first, mut more }, errno)) => {
                for request in std::iter::once(first).chain(more.drain(..)) {
                    let result = Err(failed(&self.disk, &request, errno));
                    self.answers.push((request.complete(result), true));
                }
                self.lists.push(more);
            }
        }
    }
}

/// What librbd is asked for.
fn operation(requests: &InFlight) -> QueueOperation {
    let request = &requests.first;
    let offset = request.sector().to_bytes().expect("checked against the capacity").get();
    let extent = Extent { offset, length: request.length().get() };
    match request.operation() {
        Operation::Read => QueueOperation::Read { offset },
        Operation::Write => QueueOperation::Write { offset },
        Operation::Flush => QueueOperation::Flush,
        Operation::Discard => QueueOperation::Discard(extent),
        Operation::WriteZeroes { may_unmap } => {
            QueueOperation::WriteZeroes { extent, keep_allocated: !may_unmap }
        }
    }
}

/// Answers what librbd has had as one. Returns the list, empty.
fn answer(
    disk: &Disk,
    requests: InFlight,
    result: Result<u64, Errno>,
    mut each: impl FnMut(Completion),
) -> Vec<Request> {
    let InFlight { first, mut more } = requests;
    // Where bytes are missing, they are those at the end.
    let mut left = result;
    for request in std::iter::once(first).chain(more.drain(..)) {
        let outcome = outcome(disk, &request, left);
        left = left.map(|bytes| bytes.saturating_sub(request.length().get()));
        disk.gate.leave();
        each(request.complete(outcome));
    }
    more
}

/// What a failed request's owner is told.
fn failed(disk: &Disk, request: &Request, errno: Errno) -> BlockError {
    // Blocklisted, or without the lock: whoever took it has been told that we write no more.
    if matches!(errno, Errno::ESHUTDOWN | Errno::EROFS) {
        if !disk.gate.is_fenced() {
            tracing::error!(image = disk.image.name(), %errno, "the cluster refuses this client: it has been fenced");
        }
        disk.gate.fence();
        return BlockError::Fenced;
    }
    BlockError::Io { operation: request.operation(), source: errno.into() }
}

fn outcome(disk: &Disk, request: &Request, result: Result<u64, Errno>) -> Result<(), BlockError> {
    match result {
        Ok(count) if request.operation() == Operation::Read && count < request.length().get() => {
            // The image has shrunk under us.
            Err(BlockError::Io { operation: Operation::Read, source: io::ErrorKind::UnexpectedEof.into() })
        }
        Ok(_) => Ok(()),
        Err(errno) => Err(failed(disk, request, errno)),
    }
}

impl BackendQueue for RbdQueue {
    fn submit(&mut self, batch: &mut RequestBatch) {
        while self.in_flight() < self.depth
            && let Some(request) = batch.pop()
        {
            let Some(first) = self.admit(request) else { continue };
            let requests = self.gather(first, batch);
            self.start(requests);
        }
        if !self.answers.is_empty() {
            self.queue.wake();
        }
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        self.queue.event()
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let Self { queue, disk, ages, under_way, lists, .. } = self;
        queue.reap(|slot, requests, result| {
            ages.end(slot);
            *under_way -= 1 + requests.more.len();
            lists.push(answer(disk, requests, result, |completion| completions.push(completion)));
        });
        for (completion, inside) in self.answers.drain(..) {
            if inside {
                self.disk.gate.leave();
            }
            completions.push(completion);
        }
    }

    fn in_flight(&self) -> usize {
        self.under_way + self.answers.len()
    }
}

impl Drop for RbdQueue {
    fn drop(&mut self) {
        let Self { queue, disk, answers, .. } = self;
        let mut dropped = Vec::new();
        queue.drain(DRAIN_MAX, |_, requests, result| {
            answer(disk, requests, result, |completion| dropped.push(completion));
        });
        for (completion, inside) in answers.drain(..) {
            if inside {
                disk.gate.leave();
            }
            dropped.push(completion);
        }
        for completion in dropped {
            tracing::warn!(tag = completion.tag().0, "a block request's answer was dropped with its queue");
        }
    }
}
