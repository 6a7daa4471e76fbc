//! Limits of one device in force: the clock and the timers around a [`Limiter`].
//!
//! A request that may not pass yet stays in its avail ring, at the head; its worker takes nothing from that queue until
//! the gate's timer fires, which is at the very instant that the limiter named. So a pause has nothing to wait for,
//! the request moves with guest RAM, and whoever has it then asks again.
#![allow(clippy::disallowed_methods, reason = "the clock of the limits, which are pure")]

use std::{
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use drover_rate_limit::{Cost, Counters, Direction, Limiter, Limits, Throttled, Waiting};
use vmm_sys_util::timerfd::TimerFd;

/// The limits of one device, shared by its queues and by whoever changes and watches them.
///
/// Where nothing is limited no queue takes a lock.
#[derive(Debug)]
pub struct Throttle {
    started: Instant,
    limited: AtomicBool,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    limiter: Limiter,
    /// Of the gates there are. Set only under the lock: a change of the limits is never overtaken by a timer that was
    /// set by what they were before.
    timers: Vec<Option<TimerFd>>,
}

impl Default for Throttle {
    fn default() -> Self {
        let shared = Shared { limiter: Limiter::new(Limits::default(), Duration::ZERO), timers: Vec::new() };
        Self { started: Instant::now(), limited: AtomicBool::new(false), shared: Mutex::new(shared) }
    }
}

impl Throttle {
    /// Changes the limits. Takes effect at once, also for what waits.
    pub fn set_limits(&self, limits: Limits) {
        let mut shared = self.lock();
        shared.limiter.set_limits(limits, self.started.elapsed());
        self.limited.store(!limits.is_unlimited(), Ordering::Relaxed);
        for timer in shared.timers.iter_mut().flatten() {
            set(timer, Duration::ZERO);
        }
    }

    /// What is in force.
    pub fn limits(&self) -> Limits {
        self.lock().limiter.limits()
    }

    /// What has been held back since the device was made.
    pub fn counters(&self) -> Counters {
        self.lock().limiter.counters()
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sets a timer off after `wait`, or at once.
fn set(timer: &mut TimerFd, wait: Duration) {
    // Zero would stop it.
    let wait = wait.max(Duration::from_nanos(1));
    timer.reset(wait, None).expect("a timer of our own takes every time that a Duration holds");
}

/// One queue's way past the limits.
#[derive(Debug)]
pub(crate) struct Gate {
    throttle: Arc<Throttle>,
    timer: usize,
    descriptor: RawFd,
    waiting: Waiting,
    open: bool,
}

impl Gate {
    /// An open gate.
    pub(crate) fn new(throttle: Arc<Throttle>) -> std::io::Result<Self> {
        let timer = TimerFd::new().map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
        let descriptor = timer.as_raw_fd();
        let mut shared = throttle.lock();
        let free = shared.timers.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            shared.timers.push(None);
            shared.timers.len() - 1
        });
        shared.timers[index] = Some(timer);
        drop(shared);
        Ok(Self { throttle, timer: index, descriptor, waiting: Waiting::default(), open: true })
    }

    /// Readable when the gate should be [tried again](Self::open). Valid while the gate lives.
    pub(crate) fn timer(&self) -> RawFd {
        self.descriptor
    }

    /// Whether there is any use in asking.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether the queue's next request may pass now. Where not, the gate is closed until its timer says otherwise.
    pub(crate) fn admit(&mut self, cost: Cost) -> bool {
        self.ask(|limiter, waiting, now| limiter.take(cost, waiting, now))
    }

    /// The same for a packet of which nothing is known yet. Takes nothing: that is left to [`charge`](Self::charge).
    pub(crate) fn admit_unknown(&mut self, direction: Direction) -> bool {
        let cost = Cost { direction, bytes: 1 };
        self.ask(|limiter, waiting, now| limiter.check(cost, waiting, now))
    }

    /// Takes what a packet costs that was admitted before it was known.
    pub(crate) fn charge(&mut self, cost: Cost) {
        if self.is_limited() {
            let now = self.throttle.started.elapsed();
            self.throttle.lock().limiter.charge(cost, &mut self.waiting, now);
        }
    }

    fn is_limited(&self) -> bool {
        self.throttle.limited.load(Ordering::Relaxed) || self.waiting != Waiting::default()
    }

    fn ask(
        &mut self,
        ask: impl FnOnce(&mut Limiter, &mut Waiting, Duration) -> Result<(), Throttled>,
    ) -> bool {
        if !self.is_limited() {
            return true;
        }
        let mut shared = self.throttle.lock();
        let now = self.throttle.started.elapsed();
        match ask(&mut shared.limiter, &mut self.waiting, now) {
            Ok(()) => true,
            Err(Throttled { until }) => {
                let timer = shared.timers[self.timer].as_mut().expect("there while the gate is");
                set(timer, until.saturating_sub(now));
                self.open = false;
                false
            }
        }
    }

    /// The timer has fired, or there is another reason to ask again.
    pub(crate) fn open(&mut self) {
        if !self.open {
            let mut shared = self.throttle.lock();
            let timer = shared.timers[self.timer].as_mut().expect("there while the gate is");
            timer.clear().expect("a timer of our own stops");
            self.open = true;
        }
    }

    /// The timer has fired, perhaps of an open gate: the limits were changed.
    pub(crate) fn on_timer(&mut self) {
        self.open = false;
        self.open();
    }

    /// The queue stands still for another reason.
    pub(crate) fn forget(&mut self) {
        self.waiting.forget();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.throttle.lock().timers[self.timer] = None;
    }
}
