//! All buckets of one device, and what they have held back.

use std::time::Duration;

use crate::{Bucket, Limit, Limits, Rate};

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

/// One queue's place before the limiter: whether its next request has been refused, and when first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    since: Option<Duration>,
}

impl Waiting {
    /// The request at the head has gone away: its queue was reset.
    pub fn forget(&mut self) {
        self.since = None;
    }
}

/// The buckets of one device, shared by its queues.
#[derive(Clone, Debug)]
pub struct Limiter {
    limits: Limits,
    total: Pair,
    inbound: Pair,
    outbound: Pair,
    counters: Counters,
}

#[derive(Clone, Debug)]
struct Pair {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limiter {
    /// Full buckets.
    pub fn new(limits: Limits, now: Duration) -> Self {
        Self {
            limits,
            total: Pair::new(limits.total, now),
            inbound: Pair::new(limits.inbound, now),
            outbound: Pair::new(limits.outbound, now),
            counters: Counters::default(),
        }
    }

    /// What is set.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What has been held back.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Changes the limits from `now` on. A bucket that stays keeps what is in it, one that is new starts full. Whoever
    /// waits asks again after this: the instants they were told are those of the old limits.
    pub fn set_limits(&mut self, limits: Limits, now: Duration) {
        self.limits = limits;
        self.total.set(limits.total, now);
        self.inbound.set(limits.inbound, now);
        self.outbound.set(limits.outbound, now);
    }

    /// Lets one request pass and takes its cost, or takes nothing. `waiting` is its queue's, whose requests come in
    /// order.
    ///
    /// # Errors
    /// [`Throttled`] with the instant at which to ask again.
    pub fn take(&mut self, cost: Cost, waiting: &mut Waiting, now: Duration) -> Result<(), Throttled> {
        self.check(cost, waiting, now)?;
        self.charge(cost, waiting, now);
        Ok(())
    }

    /// Says whether a request could pass, and takes nothing. For what shows its size only when it is there: a packet
    /// that is to be received. Its whole cost is [charged](Self::charge) then, and what was too much is paid by the next.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn check(&mut self, cost: Cost, waiting: &mut Waiting, now: Duration) -> Result<(), Throttled> {
        let pairs = self.pairs(cost.direction);
        // Every bucket is asked, so that each that refuses knows that someone waits for it.
        match pairs.into_iter().filter_map(|pair| pair.check(cost.bytes, now)).max() {
            None => Ok(()),
            Some(until) => {
                waiting.since.get_or_insert(now);
                Err(Throttled { until })
            }
        }
    }

    /// Takes the cost of a request that passes, into debt where it is not there.
    pub fn charge(&mut self, cost: Cost, waiting: &mut Waiting, now: Duration) {
        for pair in self.pairs(cost.direction) {
            pair.take(cost.bytes);
        }
        if let Some(since) = waiting.since.take() {
            self.counters.requests += 1;
            self.counters.bytes = self.counters.bytes.saturating_add(cost.bytes);
            self.counters.time = self.counters.time.saturating_add(now.saturating_sub(since));
        }
    }

    fn pairs(&mut self, direction: Direction) -> [&mut Pair; 2] {
        let own = match direction {
            Direction::Inbound => &mut self.inbound,
            Direction::Outbound => &mut self.outbound,
        };
        [&mut self.total, own]
    }
}

impl Pair {
    fn new(limit: Limit, now: Duration) -> Self {
        let bucket = |rate: Option<Rate>| rate.map(|rate| Bucket::new(rate, now));
        Self { requests: bucket(limit.requests), bytes: bucket(limit.bytes) }
    }

    fn set(&mut self, limit: Limit, now: Duration) {
        for (bucket, rate) in [(&mut self.requests, limit.requests), (&mut self.bytes, limit.bytes)] {
            match (bucket.as_mut(), rate) {
                (Some(bucket), Some(rate)) => bucket.set_rate(rate, now),
                (_, rate) => *bucket = rate.map(|rate| Bucket::new(rate, now)),
            }
        }
    }

    /// When both would admit it; nothing where that is now.
    fn check(&mut self, bytes: u64, now: Duration) -> Option<Duration> {
        let requests = self.requests.as_mut().and_then(|bucket| bucket.check(1, now).err());
        let bytes = self.bytes.as_mut().and_then(|bucket| bucket.check(bytes, now).err());
        requests.max(bytes)
    }

    fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.requests {
            bucket.take(1);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
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
        let mut limiter = Limiter::new(Limits::default(), ms(0));
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
        let mut limiter = Limiter::new(limits, ms(0));
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
        let mut limiter = Limiter::new(limits, ms(0));
        limiter.take(WRITE, &mut Waiting::default(), ms(0)).unwrap();
        let flush = Cost { bytes: 0, ..WRITE };
        assert_eq!(limiter.take(flush, &mut Waiting::default(), ms(0)), Err(Throttled { until: ms(10) }));
        assert_eq!(limiter.take(WRITE, &mut Waiting::default(), ms(0)), Err(Throttled { until: ms(500) }));
    }

    #[test]
    fn a_request_that_waited_is_counted_once_with_its_time() {
        let limits = Limits { total: Limit { requests: rate(1000, 1), bytes: None }, ..Limits::default() };
        let mut limiter = Limiter::new(limits, ms(0));
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
        let mut limiter = Limiter::new(limits, ms(0));
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
        let mut limiter = Limiter::new(limits, ms(0));
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
}
