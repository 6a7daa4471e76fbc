//! All buckets of one device, and what they have held back.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    Limit, Limits, Rate,
    bucket::{Bucket, Refusal},
};

/// Which way data moves, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Towards the guest: a read, a received packet.
    Inbound,
    /// From the guest: a write, a flush, a discard, a sent packet.
    Outbound,
}

/// What a request takes from the buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Whose buckets, besides those of the total.
    pub direction: Direction,
    /// Bytes of data. Every request takes one token of requests.
    pub bytes: u64,
}

/// A request may not pass yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttled {
    /// The first instant at which it may, if nothing else passes before.
    pub until: Duration,
}

/// What has been held back since the limiter was made. Grows when a request passes that was refused before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests that had to wait, each counted once.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long they stood at the head of their queue.
    pub time: Duration,
}

/// One queue's place before a limiter: the buckets it asks, and whether its next request has been refused.
#[derive(Debug, Default)]
pub struct Waiting {
    /// Those of the last time. Whoever changes the limits closes them, so that there is no need to look for others as
    /// long as they answer.
    buckets: Option<Arc<Buckets>>,
    since: Option<Duration>,
}

impl Waiting {
    /// The request at the head has gone away: its queue was reset.
    pub fn forget(&mut self) {
        self.since = None;
    }

    /// Whether the request at the head has been refused, and has not passed since.
    pub fn is_refused(&self) -> bool {
        self.since.is_some()
    }

    /// Whether the limits are still those by which it was answered last.
    pub fn is_current(&self) -> bool {
        self.buckets.as_ref().is_some_and(|buckets| !buckets.replaced.load(Ordering::SeqCst))
    }
}

/// The limits of one device, shared by its queues, which take no lock for a request.
#[derive(Debug)]
pub struct Limiter {
    limited: AtomicBool,
    /// Taken to change the limits, and by each queue once after that.
    current: Mutex<Arc<Buckets>>,
    held_back: HeldBack,
}

/// What is set, and the buckets that keep it.
#[derive(Debug)]
struct Buckets {
    limits: Limits,
    /// There are others.
    replaced: AtomicBool,
    total: Pair,
    inbound: Pair,
    outbound: Pair,
}

#[derive(Debug)]
struct Pair {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limiter {
    /// Full buckets.
    pub fn new(limits: Limits, now: Duration) -> Self {
        let limited = AtomicBool::new(!limits.is_unlimited());
        let current = Mutex::new(Arc::new(Buckets::new(limits, now)));
        Self { limited, current, held_back: HeldBack::default() }
    }

    /// Whether anything is limited.
    pub fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    /// What is set.
    pub fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// What has been held back.
    pub fn counters(&self) -> Counters {
        self.held_back.counters()
    }

    /// Changes the limits from `now` on. A bucket that stays keeps what is in it, one that is new starts full. Whoever
    /// waits asks again after this: the instants they were told are those of the old limits.
    pub fn set_limits(&self, limits: Limits, now: Duration) {
        let mut current = self.lock();
        *current = Arc::new(current.successor(limits, now));
        self.limited.store(!limits.is_unlimited(), Ordering::Relaxed);
    }

    /// Lets one request pass and takes its cost, or takes nothing. `waiting` is its queue's, whose requests come in
    /// order; it asks no other limiter.
    ///
    /// # Errors
    /// [`Throttled`] with the instant at which to ask again.
    pub fn take(&self, cost: Cost, waiting: &mut Waiting, now: Duration) -> Result<(), Throttled> {
        self.ask(waiting, now, |buckets| buckets.take(cost, now))?;
        self.pass(cost, waiting, now);
        Ok(())
    }

    /// Says whether a request could pass, and takes nothing. For what shows its size only when it is there: a packet
    /// that is to be received. Its whole cost is [charged](Self::charge) then, and what was too much is paid by the next.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn check(&self, cost: Cost, waiting: &mut Waiting, now: Duration) -> Result<(), Throttled> {
        self.ask(waiting, now, |buckets| buckets.check(cost, now))
    }

    /// Takes the cost of a request that passes, into debt where it is not there.
    pub fn charge(&self, cost: Cost, waiting: &mut Waiting, now: Duration) {
        // One after the other: what a bucket has taken before it was replaced its successor knows.
        for at in 0..BUCKETS_EACH {
            let charged = self.ask(waiting, now, |buckets| match buckets.of(cost)[at] {
                Some((bucket, cost)) => bucket.charge(cost, now),
                None => Ok(()),
            });
            charged.expect("a charge is never told to wait");
        }
        self.pass(cost, waiting, now);
    }

    fn ask(
        &self,
        waiting: &mut Waiting,
        now: Duration,
        ask: impl Fn(&Buckets) -> Result<(), Refusal>,
    ) -> Result<(), Throttled> {
        loop {
            let buckets = waiting.buckets.get_or_insert_with(|| Arc::clone(&self.lock()));
            let answer =
                if buckets.replaced.load(Ordering::Relaxed) { Err(Refusal::Replaced) } else { ask(buckets) };
            match answer {
                Ok(()) => return Ok(()),
                Err(Refusal::Until(until)) => {
                    waiting.since.get_or_insert(now);
                    return Err(Throttled { until });
                }
                Err(Refusal::Replaced) => *buckets = self.newer(buckets, now),
            }
        }
    }

    /// The buckets that have replaced these; they are replaced now where they have served their time.
    #[cold]
    fn newer(&self, than: &Arc<Buckets>, now: Duration) -> Arc<Buckets> {
        let mut current = self.lock();
        if Arc::ptr_eq(&current, than) {
            *current = Arc::new(current.successor(current.limits, now));
        }
        Arc::clone(&current)
    }

    /// A request passes: is it one that had to wait?
    fn pass(&self, cost: Cost, waiting: &mut Waiting, now: Duration) {
        if let Some(since) = waiting.since.take() {
            self.held_back.add(cost.bytes, now.saturating_sub(since));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Buckets>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So many buckets may have a say in a request.
const BUCKETS_EACH: usize = 4;

impl Buckets {
    fn new(limits: Limits, now: Duration) -> Self {
        let pair = |limit| Pair::new(limit, now);
        Self {
            limits,
            replaced: AtomicBool::new(false),
            total: pair(limits.total),
            inbound: pair(limits.inbound),
            outbound: pair(limits.outbound),
        }
    }

    /// Closes these and makes others of what is in them.
    fn successor(&self, limits: Limits, now: Duration) -> Self {
        self.replaced.store(true, Ordering::SeqCst);
        Self {
            limits,
            replaced: AtomicBool::new(false),
            total: self.total.successor(limits.total, now),
            inbound: self.inbound.successor(limits.inbound, now),
            outbound: self.outbound.successor(limits.outbound, now),
        }
    }

    fn check(&self, cost: Cost, now: Duration) -> Result<(), Refusal> {
        let mut ready = None;
        // Every bucket is asked, so that each that refuses knows that someone waits for it.
        for (bucket, cost) in self.of(cost).into_iter().flatten() {
            match bucket.check(cost, now) {
                Ok(()) => {}
                Err(Refusal::Until(until)) => ready = ready.max(Some(until)),
                Err(Refusal::Replaced) => return Err(Refusal::Replaced),
            }
        }
        ready.map_or(Ok(()), |ready| Err(Refusal::Until(ready)))
    }

    fn take(&self, cost: Cost, now: Duration) -> Result<(), Refusal> {
        // A look first: what is taken and put back is for a moment missing to others.
        self.check(cost, now)?;
        let buckets = self.of(cost);
        for (at, (bucket, cost)) in buckets.iter().enumerate().filter_map(|(at, asked)| Some((at, (*asked)?)))
        {
            if let Err(refusal) = bucket.take(cost, now) {
                // Another queue was faster.
                for (bucket, cost) in buckets[..at].iter().flatten() {
                    bucket.put_back(*cost);
                }
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// The buckets that have a say, and what each is asked for.
    fn of(&self, cost: Cost) -> [Option<(&Bucket, u64)>; BUCKETS_EACH] {
        let own = match cost.direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        };
        let [requests, bytes] = self.total.of(cost.bytes);
        let [own_requests, own_bytes] = own.of(cost.bytes);
        [requests, bytes, own_requests, own_bytes]
    }
}

impl Pair {
    fn new(limit: Limit, now: Duration) -> Self {
        let bucket = |rate: Option<Rate>| rate.map(|rate| Bucket::new(rate, now));
        Self { requests: bucket(limit.requests), bytes: bucket(limit.bytes) }
    }

    fn successor(&self, limit: Limit, now: Duration) -> Self {
        let successor = |bucket: &Option<Bucket>, rate: Option<Rate>| match (bucket, rate) {
            (Some(bucket), Some(rate)) => Some(bucket.successor(rate, now)),
            (Some(bucket), None) => {
                bucket.close();
                None
            }
            (None, rate) => rate.map(|rate| Bucket::new(rate, now)),
        };
        Self {
            requests: successor(&self.requests, limit.requests),
            bytes: successor(&self.bytes, limit.bytes),
        }
    }

    fn of(&self, bytes: u64) -> [Option<(&Bucket, u64)>; 2] {
        [self.requests.as_ref().map(|bucket| (bucket, 1)), self.bytes.as_ref().map(|bucket| (bucket, bytes))]
    }
}

/// [`Counters`] that many queues add to.
#[derive(Debug, Default)]
struct HeldBack {
    requests: AtomicU64,
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
}

impl HeldBack {
    fn add(&self, bytes: u64, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        for (counter, more) in [(&self.requests, 1), (&self.bytes, bytes), (&self.nanoseconds, nanoseconds)] {
            let add = |count: u64| Some(count.saturating_add(more));
            let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }

    fn counters(&self) -> Counters {
        Counters {
            requests: self.requests.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            time: Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(per_second: u64, burst: u64) -> Option<Rate> {
        Some(Rate::new(per_second, Some(burst)).unwrap())
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    const READ: Cost = Cost { direction: Direction::Inbound, bytes: 4096 };
    const WRITE: Cost = Cost { direction: Direction::Outbound, bytes: 4096 };

    #[test]
    fn without_limits_everything_passes_and_nothing_is_counted() {
        let limiter = Limiter::new(Limits::default(), ms(0));
        for _ in 0..1000 {
            limiter.take(WRITE, &mut Waiting::default(), ms(0)).unwrap();
        }
        assert_eq!(limiter.counters(), Counters::default());
    }

    #[test]
    fn directions_have_their_own_buckets_and_share_the_total() {
        let limits = Limits {
            inbound: Limit { requests: rate(10, 2), bytes: None },
            total: Limit { requests: rate(100, 3), bytes: None },
            ..Limits::default()
        };
        let limiter = Limiter::new(limits, ms(0));
        let mut waiting = Waiting::default();
        limiter.take(READ, &mut waiting, ms(0)).unwrap();
        limiter.take(READ, &mut waiting, ms(0)).unwrap();
        assert_eq!(limiter.take(READ, &mut waiting, ms(0)), Err(Throttled { until: ms(100) }));
        limiter.take(WRITE, &mut Waiting::default(), ms(0)).unwrap();
        assert_eq!(
            limiter.take(WRITE, &mut Waiting::default(), ms(0)),
            Err(Throttled { until: ms(10) }),
            "a refused read has taken nothing from the total"
        );
    }

    #[test]
    fn the_later_of_two_limits_decides() {
        let both = Limit { requests: rate(100, 1), bytes: rate(8192, 4096) };
        let limits = Limits { outbound: both, ..Limits::default() };
        let limiter = Limiter::new(limits, ms(0));
        limiter.take(WRITE, &mut Waiting::default(), ms(0)).unwrap();
        let flush = Cost { bytes: 0, ..WRITE };
        assert_eq!(limiter.take(flush, &mut Waiting::default(), ms(0)), Err(Throttled { until: ms(10) }));
        assert_eq!(limiter.take(WRITE, &mut Waiting::default(), ms(0)), Err(Throttled { until: ms(500) }));
    }

    #[test]
    fn a_request_that_waited_is_counted_once_with_its_time() {
        let limits = Limits { total: Limit { requests: rate(1000, 1), bytes: None }, ..Limits::default() };
        let limiter = Limiter::new(limits, ms(0));
        let mut waiting = Waiting::default();
        limiter.take(READ, &mut waiting, ms(0)).unwrap();
        for _ in 0..3 {
            limiter.take(READ, &mut waiting, ms(0)).unwrap_err();
        }
        assert_eq!(limiter.counters(), Counters::default());
        limiter.take(READ, &mut waiting, ms(7)).unwrap();
        limiter.take(READ, &mut waiting, ms(7)).unwrap();
        assert_eq!(limiter.counters(), Counters { requests: 1, bytes: 4096, time: ms(7) });
    }

    #[test]
    fn a_limit_that_is_lifted_lets_the_next_one_pass() {
        let limits = Limits { total: Limit { requests: rate(1, 1), bytes: None }, ..Limits::default() };
        let limiter = Limiter::new(limits, ms(0));
        let mut waiting = Waiting::default();
        limiter.take(READ, &mut waiting, ms(0)).unwrap();
        limiter.take(READ, &mut waiting, ms(0)).unwrap_err();
        limiter.set_limits(Limits::default(), ms(1));
        limiter.take(READ, &mut waiting, ms(1)).unwrap();
        assert_eq!(limiter.counters().requests, 1);
    }

    #[test]
    fn bytes_known_afterwards_are_paid_by_the_next() {
        let limits =
            Limits { inbound: Limit { requests: None, bytes: rate(1000, 100) }, ..Limits::default() };
        let limiter = Limiter::new(limits, ms(0));
        let packet = |bytes| Cost { direction: Direction::Inbound, bytes };
        let mut waiting = Waiting::default();
        limiter.check(packet(1), &mut waiting, ms(0)).unwrap();
        limiter.check(packet(1), &mut waiting, ms(0)).expect("a look takes nothing");
        limiter.charge(packet(1100), &mut waiting, ms(0));
        assert_eq!(limiter.check(packet(1), &mut waiting, ms(0)), Err(Throttled { until: ms(1001) }));
        limiter.check(packet(1), &mut waiting, ms(1001)).unwrap();
        limiter.charge(packet(60), &mut waiting, ms(1001));
        assert_eq!(limiter.counters(), Counters { requests: 1, bytes: 60, time: ms(1001) });
    }

    /// Queues on threads of their own, an artificial clock, and the lock that changes take held by somebody else.
    fn hammer(limits: Limits, threads: u64, end: Duration) -> (Arc<Limiter>, u64) {
        let limiter = Arc::new(Limiter::new(limits, Duration::ZERO));
        let (clock, passed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (ready, started) = std::sync::mpsc::channel();
        let (go, gone): (Vec<_>, Vec<_>) = (0..threads).map(|_| std::sync::mpsc::channel::<()>()).unzip();
        let queues: Vec<_> = gone
            .into_iter()
            .map(|gone| {
                let (limiter, clock, passed) =
                    (Arc::clone(&limiter), Arc::clone(&clock), Arc::clone(&passed));
                let ready = ready.clone();
                std::thread::spawn(move || {
                    let mut waiting = Waiting::default();
                    limiter.check(READ, &mut waiting, Duration::ZERO).unwrap();
                    ready.send(()).unwrap();
                    gone.recv().unwrap();
                    loop {
                        let now = Duration::from_nanos(clock.load(Ordering::SeqCst));
                        match limiter.take(READ, &mut waiting, now) {
                            Ok(()) => drop(passed.fetch_add(1, Ordering::SeqCst)),
                            Err(Throttled { until }) if until <= end => {
                                let until = u64::try_from(until.as_nanos()).unwrap();
                                clock.fetch_max(until, Ordering::SeqCst);
                            }
                            Err(_) => return,
                        }
                    }
                })
            })
            .collect();
        (0..threads).for_each(|_| started.recv().unwrap());
        let changing = limiter.lock();
        go.iter().for_each(|go| go.send(()).unwrap());
        queues.into_iter().for_each(|queue| queue.join().unwrap());
        drop(changing);
        let passed = passed.load(Ordering::SeqCst);
        (limiter, passed)
    }

    #[test]
    fn queues_that_share_limits_share_no_lock_and_together_get_the_rate() {
        let both = Limit { requests: rate(100_000, 7), bytes: rate(100_000 * 4096, 7 * 4096) };
        let limits = Limits { total: both, inbound: both, ..Limits::default() };
        // Each of them would wait for ever for a lock: the test holds it.
        let (limiter, passed) = hammer(limits, 4, ms(200));
        assert!(limiter.counters().requests > 0);
        // What was put back when another queue was faster may have been what the last one waited for in vain.
        assert!((20_003..=20_007).contains(&passed), "{passed} passed instead of 20,007");
    }

    #[test]
    fn a_bucket_that_has_served_its_time_goes_on_as_another() {
        let limits = Limits { total: Limit { requests: rate(10, 3), bytes: None }, ..Limits::default() };
        let limiter = Limiter::new(limits, ms(0));
        let (mut early, mut late) = (Waiting::default(), Waiting::default());
        limiter.take(READ, &mut early, ms(0)).unwrap();
        let day = Duration::from_secs(86_400);
        for _ in 0..3 {
            limiter.take(READ, &mut late, day).unwrap();
        }
        assert!(!early.is_current() && late.is_current());
        assert_eq!(limiter.take(READ, &mut early, day), Err(Throttled { until: day + ms(100) }));
    }
}
