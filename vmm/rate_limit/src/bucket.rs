//! One token bucket.

use std::time::Duration;

use crate::Rate;

/// Tokens are counted in billionths: `per_second` of these accrue in a nanosecond.
const UNITS: i128 = 1_000_000_000;

/// How much later than allowed whoever was refused may come back without losing what accrued meanwhile. Timers and
/// threads are late by tens of microseconds, on a busy host by tens of milliseconds, and with a small burst each such
/// delay would cost throughput. No gift: what has been taken since a refusal is never more than the rate allows.
const LATENESS: Duration = Duration::from_millis(100);

/// A bucket of tokens.
///
/// A cost above the burst is taken from a full bucket and leaves it in debt, so that a request of any size passes at
/// some time and the rate still holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    rate: Rate,
    /// Billionths of tokens; below zero is a debt.
    level: i128,
    /// Up to when `level` counts what has accrued.
    at: Duration,
    /// Until then the burst does not cap the level: someone waits.
    uncapped_until: Duration,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Duration) -> Self {
        Self { rate, level: units(rate.burst()), at: now, uncapped_until: Duration::ZERO }
    }

    /// What it is set to.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Changes the rate from `now` on. What has accrued stays, up to the new burst; a debt stays too.
    pub fn set_rate(&mut self, rate: Rate, now: Duration) {
        self.refill(now);
        self.rate = rate;
        self.cap(now);
    }

    /// Whether `cost` may be taken, or from when on.
    ///
    /// # Errors
    /// The first instant at which this bucket, if nothing else is taken from it, admits the cost. Until then and a
    /// little longer what accrues is kept whatever the burst.
    pub fn check(&mut self, cost: u64, now: Duration) -> Result<(), Duration> {
        self.refill(now);
        let missing = units(cost.min(self.rate.burst())) - self.level;
        if missing <= 0 {
            return Ok(());
        }
        let per_nanosecond = i128::from(self.rate.per_second());
        let ready = self.at.saturating_add(nanoseconds((missing + per_nanosecond - 1) / per_nanosecond));
        self.uncapped_until = self.uncapped_until.max(ready.saturating_add(LATENESS));
        Err(ready)
    }

    /// Takes `cost`, into debt where it is not there.
    pub fn take(&mut self, cost: u64) {
        // 2^64 billionths per call: an i128 has room for 2^33 of the largest.
        self.level = self.level.saturating_sub(units(cost));
    }

    /// Adds what has accrued. A clock that goes back adds nothing.
    fn refill(&mut self, now: Duration) {
        let Some(passed) = now.checked_sub(self.at) else { return };
        let nanoseconds = i128::try_from(passed.as_nanos()).unwrap_or(i128::MAX);
        let accrued = nanoseconds.saturating_mul(i128::from(self.rate.per_second()));
        self.level = self.level.saturating_add(accrued);
        self.at = now;
        self.cap(now);
    }

    fn cap(&mut self, now: Duration) {
        if now > self.uncapped_until {
            self.level = self.level.min(units(self.rate.burst()));
        }
    }
}

/// So many; more than 64 bits hold where the burst is huge and the rate low.
fn nanoseconds(count: i128) -> Duration {
    let rest = u32::try_from(count % UNITS).expect("below a billion, and not negative");
    u64::try_from(count / UNITS).map_or(Duration::MAX, |seconds| Duration::new(seconds, rest))
}

fn units(tokens: u64) -> i128 {
    i128::from(tokens) * UNITS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(per_second: u64, burst: u64) -> Bucket {
        Bucket::new(Rate::new(per_second, Some(burst)).unwrap(), Duration::ZERO)
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_the_exact_instant() {
        let mut bucket = bucket(1000, 3);
        for _ in 0..3 {
            assert_eq!(bucket.check(1, ms(5)), Ok(()));
            bucket.take(1);
        }
        assert_eq!(bucket.check(1, ms(5)), Err(ms(6)));
        assert_eq!(bucket.check(1, ms(6) - Duration::from_nanos(1)), Err(ms(6)));
        assert_eq!(bucket.check(1, ms(6)), Ok(()));
    }

    #[test]
    fn an_instant_between_two_nanoseconds_is_the_later_one() {
        let mut bucket = bucket(3, 1);
        bucket.take(1);
        assert_eq!(bucket.check(1, Duration::ZERO), Err(Duration::from_nanos(333_333_334)));
        assert_eq!(bucket.check(1, Duration::from_nanos(333_333_334)), Ok(()));
        bucket.take(1);
        // The two thirds of a billionth that were too many are there for the next.
        assert_eq!(
            bucket.check(1, Duration::from_nanos(333_333_334)),
            Err(Duration::from_nanos(666_666_667))
        );
    }

    #[test]
    fn an_instant_centuries_ahead_is_as_exact() {
        let mut bucket = bucket(1, 1 << 50);
        bucket.take(1 << 50);
        let full = Duration::from_secs(1 << 50);
        assert_eq!(bucket.check(1 << 50, Duration::ZERO), Err(full));
        assert_eq!(bucket.check(1 << 50, full), Ok(()));
        for _ in 0..2 {
            bucket.take(u64::MAX);
        }
        assert_eq!(bucket.check(1, full), Err(Duration::MAX), "a debt that nobody lives to see paid");
    }

    #[test]
    fn what_is_larger_than_the_burst_goes_into_debt() {
        let mut bucket = bucket(100, 10);
        assert_eq!(bucket.check(110, ms(0)), Ok(()));
        bucket.take(110);
        assert_eq!(bucket.check(1, ms(0)), Err(ms(1010)));
        assert_eq!(bucket.check(110, ms(0)), Err(ms(1100)), "full again");
    }

    #[test]
    fn idle_time_saves_up_no_more_than_the_burst() {
        let mut bucket = bucket(1000, 2);
        bucket.take(2);
        assert_eq!(bucket.check(1, ms(10_000)), Ok(()));
        bucket.take(2);
        assert_eq!(bucket.check(1, ms(10_000)), Err(ms(10_001)));
    }

    #[test]
    fn who_comes_late_after_a_refusal_loses_nothing() {
        let mut bucket = bucket(1000, 1);
        bucket.take(1);
        assert_eq!(bucket.check(1, ms(0)), Err(ms(1)));
        for _ in 0..40 {
            assert_eq!(bucket.check(1, ms(40)), Ok(()));
            bucket.take(1);
        }
        assert_eq!(bucket.check(1, ms(40)), Err(ms(41)), "and gains nothing");
        assert_eq!(bucket.check(1, ms(500)), Ok(()), "much later counts as idle");
        bucket.take(1);
        assert_eq!(bucket.check(1, ms(500)), Err(ms(501)));
    }

    #[test]
    fn a_new_rate_neither_loses_nor_invents_tokens() {
        let mut bucket = bucket(1000, 10);
        bucket.take(10);
        bucket.set_rate(Rate::new(10, Some(10)).unwrap(), ms(4));
        assert_eq!(bucket.check(5, ms(4)), Err(ms(104)), "four have accrued at the old rate");
        bucket.set_rate(Rate::new(10, Some(100)).unwrap(), ms(4));
        assert_eq!(bucket.check(5, ms(4)), Err(ms(104)), "a larger burst is room, not tokens");
        bucket.take(14);
        bucket.set_rate(Rate::new(1000, Some(1)).unwrap(), ms(4));
        assert_eq!(bucket.check(1, ms(4)), Err(ms(15)), "a debt stays");
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_twice() {
        let mut bucket = bucket(1000, 1);
        bucket.take(1);
        assert_eq!(bucket.check(1, ms(1)), Ok(()));
        bucket.take(1);
        assert_eq!(bucket.check(1, ms(0)), Err(ms(2)));
        assert_eq!(bucket.check(1, ms(1)), Err(ms(2)));
    }
}
