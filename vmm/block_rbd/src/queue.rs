//! One worker's way into an image.

use std::{io, os::fd::BorrowedFd, sync::Arc};

use drover_block::{
    BackendQueue, BlockError, Completion, Operation, QueueAges, QueueConfig, Request, RequestBatch,
};
use drover_rbd::{DRAIN_MAX, Extent, ImageQueue, QueueOperation};
use drover_units::Bytes;
use nix::errno::Errno;

use crate::{buffers::InFlight, disk::Disk};

/// Requests on their way, and answers that needed no way.
#[derive(Debug)]
pub(crate) struct RbdQueue {
    queue: ImageQueue<InFlight>,
    disk: Arc<Disk>,
    depth: usize,
    /// With whether the request had entered the gate.
    answers: Vec<(Completion, bool)>,
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
            answers: Vec::with_capacity(depth.into()),
            ages: disk.ages.queue(depth.into()),
        })
    }

    /// Checks a request and hands it to librbd, or answers it.
    fn start(&mut self, request: Request) {
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
            return;
        }
        match self.queue.submit(operation(&request), InFlight { request }) {
            Ok(slot) => self.ages.begin(slot),
            Err((InFlight { request }, errno)) => {
                let result = Err(failed(&self.disk, &request, errno));
                self.answers.push((request.complete(result), inside));
            }
        }
    }

    fn under_way(&self) -> usize {
        self.queue.in_flight()
    }
}

/// What librbd is asked for.
fn operation(request: &Request) -> QueueOperation {
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
            self.start(request);
        }
        if !self.answers.is_empty() {
            self.queue.wake();
        }
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        self.queue.event()
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let Self { queue, disk, ages, .. } = self;
        queue.reap(|slot, InFlight { request }, result| {
            ages.end(slot);
            let result = outcome(disk, &request, result);
            disk.gate.leave();
            completions.push(request.complete(result));
        });
        for (completion, inside) in self.answers.drain(..) {
            if inside {
                self.disk.gate.leave();
            }
            completions.push(completion);
        }
    }

    fn in_flight(&self) -> usize {
        self.under_way() + self.answers.len()
    }
}

impl Drop for RbdQueue {
    fn drop(&mut self) {
        let Self { queue, disk, answers, .. } = self;
        let mut dropped = Vec::new();
        queue.drain(DRAIN_MAX, |_, InFlight { request }, result| {
            let result = outcome(disk, &request, result);
            disk.gate.leave();
            dropped.push(request.complete(result));
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
