//! A disk that takes its time.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
    time::{TimeSpec, TimeValLike},
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};

use crate::{
    Backend, BackendInfo, BackendQueue, Completion, Owner, OwnershipError, QueueConfig, RequestBatch,
    ResizeListener,
};
use drover_units::Sectors;

/// Answers what the inner backend has finished, but not before `delay` has passed.
///
/// The inner storage is untouched by the delay: data is on it, or in guest RAM, before the answer comes. That is the
/// order a real disk shows, and the one that catches a device which reports an answer it has not had.
#[derive(Debug)]
pub struct Delayed {
    inner: Arc<dyn Backend>,
    delay: Duration,
    held_back: Arc<AtomicU64>,
}

impl Delayed {
    /// Delays every answer of `inner`, by up to twice `delay`: answers are given in bunches.
    pub fn new(inner: Arc<dyn Backend>, delay: Duration) -> Self {
        Self { inner, delay, held_back: Arc::default() }
    }
}

impl Backend for Delayed {
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
        // For the inner backend these are over.
        match self.held_back.load(Ordering::Acquire) {
            0 => self.inner.release(),
            count => Err(OwnershipError::InFlight(count)),
        }
    }
    fn last_owner(&self) -> Result<Option<Owner>, OwnershipError> {
        self.inner.last_owner()
    }
    fn owner(&self) -> Option<Owner> {
        self.inner.owner()
    }
    fn queue(&self, config: QueueConfig) -> io::Result<Box<dyn BackendQueue>> {
        let inner = self.inner.queue(config)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // Readable when one of the two is, as the contract of `completion_event` wants it.
        let event = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        event.add(inner.completion_event(), EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        event.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
        Ok(Box::new(DelayedQueue {
            inner,
            timer,
            event,
            delay: self.delay,
            held_back: Arc::clone(&self.held_back),
            armed: false,
            waiting: VecDeque::new(),
            due: VecDeque::new(),
            fresh: Vec::new(),
        }))
    }
}

#[derive(Debug)]
struct DelayedQueue {
    inner: Box<dyn BackendQueue>,
    timer: TimerFd,
    event: Epoll,
    delay: Duration,
    /// How many answers all queues of the backend hold back.
    held_back: Arc<AtomicU64>,
    armed: bool,
    /// Finished since the timer was armed.
    waiting: VecDeque<Completion>,
    /// Answered when the timer expires.
    due: VecDeque<Completion>,
    fresh: Vec<Completion>,
}

impl BackendQueue for DelayedQueue {
    fn submit(&mut self, batch: &mut RequestBatch) {
        self.inner.submit(batch);
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        self.event.0.as_fd()
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.inner.reap(&mut self.fresh);
        self.held_back.fetch_add(self.fresh.len() as u64, Ordering::AcqRel);
        self.waiting.extend(self.fresh.drain(..));
        // A timer that has not expired reads as EAGAIN.
        if self.armed && self.timer.wait().is_ok() {
            self.held_back.fetch_sub(self.due.len() as u64, Ordering::AcqRel);
            completions.extend(self.due.drain(..));
            self.armed = false;
        }
        if !self.armed && !self.waiting.is_empty() {
            self.due.append(&mut self.waiting);
            // Zero would disarm the timer.
            let nanoseconds = i64::try_from(self.delay.as_nanos()).unwrap_or(i64::MAX).max(1);
            let expiration = Expiration::OneShot(TimeSpec::nanoseconds(nanoseconds));
            self.timer
                .set(expiration, TimerSetTimeFlags::empty())
                .expect("a one-shot timer of a positive time can be set");
            self.armed = true;
        }
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.waiting.len() + self.due.len()
    }
}

impl Drop for DelayedQueue {
    fn drop(&mut self) {
        let lost = self.waiting.len() + self.due.len();
        self.held_back.fetch_sub(lost as u64, Ordering::AcqRel);
    }
}
