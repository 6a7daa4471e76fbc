//! Limits of one device in force: the clock and the timers around a [`Limiter`].
//!
//! A request that may not pass yet stays in its avail ring, at the head; its worker takes nothing from that queue until
//! the gate's timer fires, which is at the very instant that the limiter named. So a pause has nothing to wait for,
//! the request moves with guest RAM, and whoever has it then asks again.
#![allow(clippy::disallowed_methods, reason = "the clock of the limits, which are pure")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use drover_rate_limit::{Cost, Counters, Direction, Limiter, Limits, Throttled, Waiting};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// The limits of one device, shared by its queues and by whoever changes and watches them.
///
/// No queue takes a lock for a request, and none waits for another.
#[derive(Debug)]
pub struct Throttle {
    started: Instant,
    limiter: Limiter,
    /// Of the gates there are: whoever changes the limits has them all asked again.
    timers: Mutex<Vec<Option<Arc<Timer>>>>,
}

impl Default for Throttle {
    fn default() -> Self {
        let limiter = Limiter::new(Limits::default(), Duration::ZERO);
        Self { started: Instant::now(), limiter, timers: Mutex::default() }
    }
}

impl Throttle {
    /// Changes the limits. Takes effect at once, also for what waits.
    pub fn set_limits(&self, limits: Limits) {
        let timers = self.timers();
        self.limiter.set_limits(limits, self.started.elapsed());
        // A gate that sets its timer after this sees that the limits are others.
        timers.iter().flatten().for_each(|timer| timer.set(Duration::ZERO));
    }

    /// What is in force.
    pub fn limits(&self) -> Limits {
        self.limiter.limits()
    }

    /// What has been held back since the device was made.
    pub fn counters(&self) -> Counters {
        self.limiter.counters()
    }

    fn timers(&self) -> MutexGuard<'_, Vec<Option<Arc<Timer>>>> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A timer that its gate sets and that fires too when the limits are changed.
#[derive(Debug)]
struct Timer(OwnedFd);

impl Timer {
    /// Longer than a timer waits. Whoever waits so long is woken in between, and asks again.
    const LONGEST: Duration = Duration::from_secs(86_400);

    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Fires after `wait`, or at once.
    fn set(&self, wait: Duration) {
        // Zero would stop it.
        self.set_to(wait.clamp(Duration::from_nanos(1), Self::LONGEST));
    }

    /// Has not fired, and does not.
    fn stop(&self) {
        self.set_to(Duration::ZERO);
    }

    fn set_to(&self, wait: Duration) {
        let it_value = Timespec::try_from(wait).expect("at most a day");
        let once = Itimerspec { it_interval: Timespec::default(), it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)
            .expect("a timer of our own takes every time up to a day");
    }
}

/// One queue's way past the limits.
#[derive(Debug)]
pub(crate) struct Gate {
    throttle: Arc<Throttle>,
    timer: Arc<Timer>,
    /// Its place among all timers.
    index: usize,
    waiting: Waiting,
    open: bool,
}

impl Gate {
    /// An open gate.
    pub(crate) fn new(throttle: Arc<Throttle>) -> io::Result<Self> {
        let timer = Arc::new(Timer::new()?);
        let mut timers = throttle.timers();
        let free = timers.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            timers.push(None);
            timers.len() - 1
        });
        timers[index] = Some(Arc::clone(&timer));
        drop(timers);
        Ok(Self { throttle, timer, index, waiting: Waiting::default(), open: true })
    }

    /// Readable when the gate should be [tried again](Self::open). Valid while the gate lives.
    pub(crate) fn timer(&self) -> RawFd {
        self.timer.0.as_raw_fd()
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
            self.throttle.limiter.charge(cost, &mut self.waiting, now);
        }
    }

    fn is_limited(&self) -> bool {
        self.throttle.limiter.is_limited() || self.waiting.is_refused()
    }

    fn ask(&mut self, ask: impl Fn(&Limiter, &mut Waiting, Duration) -> Result<(), Throttled>) -> bool {
        if !self.is_limited() {
            return true;
        }
        loop {
            let now = self.throttle.started.elapsed();
            let Err(Throttled { until }) = ask(&self.throttle.limiter, &mut self.waiting, now) else {
                return true;
            };
            self.timer.set(until.saturating_sub(now));
            // The limits may have been changed before the timer was set, which then waits for the wrong instant. Were
            // they changed after that, it has been set anew.
            if self.waiting.is_current() {
                self.open = false;
                return false;
            }
        }
    }

    /// The timer has fired, or there is another reason to ask again.
    pub(crate) fn open(&mut self) {
        if !self.open {
            self.timer.stop();
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
        self.throttle.timers()[self.index] = None;
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use drover_rate_limit::{Limit, Rate};

    use super::*;

    const READ: Cost = Cost { direction: Direction::Inbound, bytes: 512 };

    fn limits(per_second: u64, burst: u64) -> Limits {
        let requests = Some(Rate::new(per_second, Some(burst)).unwrap());
        Limits { total: Limit { requests, bytes: None }, ..Limits::default() }
    }

    /// Waits for the gate's timer.
    fn wait(gate: &mut Gate) {
        let mut poll = [rustix::event::PollFd::new(&gate.timer.0, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).unwrap();
        gate.on_timer();
    }

    #[test]
    fn queues_pass_and_wait_while_somebody_holds_the_lock_of_changes() {
        let throttle = Arc::<Throttle>::default();
        throttle.set_limits(limits(2_000, 5));
        let gates: Vec<_> = (0..4).map(|_| Gate::new(Arc::clone(&throttle)).unwrap()).collect();
        let lock = throttle.timers();
        let queues = gates.into_iter().map(|mut gate| {
            thread::spawn(move || {
                for _ in 0..50 {
                    while !gate.admit(READ) {
                        wait(&mut gate);
                    }
                }
                gate
            })
        });
        // All at once, and none before the other.
        let queues: Vec<_> = queues.collect();
        // Dropping a gate takes the lock: it is given back here.
        let gates: Vec<_> = queues.into_iter().map(|queue| queue.join().unwrap()).collect();
        drop((lock, gates));
        assert!(throttle.counters().requests > 0);
    }

    #[test]
    fn whoever_waits_hears_of_a_change_whenever_it_comes() {
        let throttle = Arc::<Throttle>::default();
        // A request, and then none in any test's time.
        let tight = limits(1, 1 << 50);
        for _ in 0..200 {
            throttle.set_limits(limits(1, 1));
            let mut gate = Gate::new(Arc::clone(&throttle)).unwrap();
            while gate.admit(READ) {}
            gate.on_timer();
            let queue = thread::spawn(move || {
                while !gate.admit(READ) {
                    wait(&mut gate);
                }
            });
            throttle.set_limits(tight);
            throttle.set_limits(Limits::default());
            queue.join().unwrap();
        }
    }
}
