//! A disk that fails when a test says so.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use drover_units::Sectors;
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
    eventfd::EventFd,
};

use crate::{
    Backend, BackendInfo, BackendQueue, BlockError, Completion, Owner, OwnershipError, QueueConfig, Request,
    RequestBatch, ResizeListener, backend::completion_eventfd, gate::Gate,
};

/// How a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The storage answers with this error number.
    Io(i32),
    /// The owner has been fenced: this request and all that follow are refused, for ever.
    Fenced,
}

type Plan = dyn Fn(&Request) -> Option<Fault> + Send + Sync;

/// Asks a plan for every request whether it fails, and passes the others on.
pub struct Faulty {
    inner: Arc<dyn Backend>,
    plan: Arc<Plan>,
    fenced: Arc<Gate>,
}

impl Faulty {
    /// Fails the requests for which `plan` returns a fault. They do not reach `inner`.
    pub fn new(
        inner: Arc<dyn Backend>,
        plan: impl Fn(&Request) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let fenced = Gate::default();
        fenced.open();
        Self { inner, plan: Arc::new(plan), fenced: Arc::new(fenced) }
    }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Backend for Faulty {
    fn info(&self) -> BackendInfo {
        self.inner.info()
    }
    fn refresh(&self) -> io::Result<Sectors> {
        self.inner.refresh()
    }
    fn set_resize_listener(&self, listener: ResizeListener) {
        self.inner.set_resize_listener(listener);
    }
    fn oldest_request(&self) -> Option<Duration> {
        self.inner.oldest_request()
    }
    fn acquire(&self, owner: &Owner) -> Result<(), OwnershipError> {
        self.inner.acquire(owner)
    }
    fn release(&self) -> Result<(), OwnershipError> {
        self.inner.release()
    }
    fn last_owner(&self) -> Result<Option<Owner>, OwnershipError> {
        self.inner.last_owner()
    }
    fn owner(&self) -> Option<Owner> {
        self.inner.owner()
    }
    fn queue(&self, config: QueueConfig) -> io::Result<Box<dyn BackendQueue>> {
        let inner = self.inner.queue(config)?;
        let failed_event = completion_eventfd()?;
        let event = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        event.add(inner.completion_event(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        event.add(&failed_event, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        Ok(Box::new(FaultyQueue {
            inner,
            plan: Arc::clone(&self.plan),
            fenced: Arc::clone(&self.fenced),
            depth: config.depth.max(1).into(),
            passed: RequestBatch::default(),
            failed: Vec::new(),
            failed_event,
            event,
        }))
    }
}

struct FaultyQueue {
    inner: Box<dyn BackendQueue>,
    plan: Arc<Plan>,
    fenced: Arc<Gate>,
    depth: usize,
    passed: RequestBatch,
    failed: Vec<Completion>,
    failed_event: EventFd,
    event: Epoll,
}

impl fmt::Debug for FaultyQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyQueue").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl FaultyQueue {
    fn fault(&self, request: &Request) -> Option<BlockError> {
        let fault = (self.plan)(request);
        if fault == Some(Fault::Fenced) {
            self.fenced.fence();
        }
        if let Err(error) = self.fenced.enter() {
            return Some(error);
        }
        self.fenced.leave();
        match fault {
            Some(Fault::Io(errno)) => Some(BlockError::Io {
                operation: request.operation(),
                source: io::Error::from_raw_os_error(errno),
            }),
            Some(Fault::Fenced) | None => None,
        }
    }
}

impl BackendQueue for FaultyQueue {
    fn submit(&mut self, batch: &mut RequestBatch) {
        while self.in_flight() < self.depth
            && let Some(request) = batch.pop()
        {
            match self.fault(&request) {
                Some(error) => self.failed.push(request.complete(Err(error))),
                None => self.passed.push(request),
            }
        }
        self.inner.submit(&mut self.passed);
        if !self.failed.is_empty() {
            self.failed_event.write(1).expect("a counter that is reset by every reap does not overflow");
        }
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        self.event.0.as_fd()
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let _ = self.failed_event.read();
        completions.append(&mut self.failed);
        self.inner.reap(completions);
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.passed.len() + self.failed.len()
    }
}
