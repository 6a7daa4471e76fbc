//! One token bucket, from which several queues take at once without a lock.
//!
//! A bucket does not keep what is in it, but how much has ever been taken: one number, which only a compare-and-swap
//! changes. What has accrued follows from the clock alone. So a bucket that nobody asks is never touched, and two that
//! take at the same time cannot both have the last token.
//!
//! ```text
//! level(now) = base + rate × (now − start) − taken        at most the burst, unless someone waits
//! ```
//!
//! A bucket's rate never changes. Another rate is another bucket, which starts with what is in this one; this one is
//! closed, and whoever still asks it is told so.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::Rate;

/// Tokens are counted in billionths: `per_second` of these accrue in a nanosecond.
const UNITS: i128 = 1_000_000_000;

/// How much later than allowed whoever was refused may come back without losing what accrued meanwhile. Timers and
/// threads are late by tens of microseconds, on a busy host by tens of milliseconds, and with a small burst each such
/// delay would cost throughput. No gift: what has been taken since a refusal is never more than the rate allows.
const LATENESS: Duration = Duration::from_millis(100);

/// How long one bucket serves, until [another](Bucket::successor) takes its place: 2^12 seconds. In that time no rate
/// gives more than 2^63 of what `taken` counts, and the lock that a change takes once an hour is in nobody's way.
const SERVICE: Duration = Duration::from_secs(1 << SERVICE_BITS);
const SERVICE_BITS: u32 = 12;

/// What `taken` is instead of a number when the bucket is closed ...
const CLOSED: u64 = u64::MAX;
/// ... and when so much is owed that nobody lives to see it paid.
const HOPELESS: u64 = u64::MAX - 1;

/// A bucket of tokens.
///
/// A cost above the burst is taken from a full bucket and leaves it in debt, so that a request of any size passes at
/// some time and the rate still holds.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    start: Duration,
    /// What was there at the start, in billionths of tokens; below zero is a debt.
    base: i128,
    /// `taken` counts tokens times two to this: fine enough that what a full bucket spills is not rounded visibly.
    fraction_bits: u32,
    /// What has been taken since the start, or has run over.
    taken: AtomicU64,
    /// Until then the burst does not cap the level: someone waits. Nanoseconds.
    uncapped_until: AtomicU64,
}

/// Why nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The first instant at which the bucket, if nothing else is taken from it, admits the cost. Until then and a
    /// little longer what accrues is kept whatever the burst.
    Until(Duration),
    /// The bucket has a successor, or needs one.
    Replaced,
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(rate: Rate, now: Duration) -> Self {
        Self::with(rate, now, units(rate.burst()), 0)
    }

    fn with(rate: Rate, start: Duration, base: i128, uncapped_until: u64) -> Self {
        let bits = |number: u64| u64::BITS - number.leading_zeros();
        // What accrues in the time of service stays below 2^63, and what a burst takes below 2^62. Twenty bits are
        // enough for anybody, and leave room for requests that are larger than the burst.
        let fraction_bits =
            (63 - SERVICE_BITS - bits(rate.per_second())).min(62 - bits(rate.burst())).min(20);
        let (taken, uncapped_until) = (AtomicU64::new(0), AtomicU64::new(uncapped_until));
        Self { rate, start, base, fraction_bits, taken, uncapped_until }
    }

    /// Closes this bucket and makes one of another rate, which has what is in this one, up to its burst; a debt stays.
    pub(crate) fn successor(&self, rate: Rate, now: Duration) -> Self {
        let taken = self.taken.swap(CLOSED, Relaxed);
        let level = self.level(taken, now);
        let uncapped = self.uncapped_until.load(Relaxed);
        let base = if nanoseconds(now) > uncapped { level.min(units(rate.burst())) } else { level };
        let successor = Self::with(rate, now, base, uncapped);
        if taken == HOPELESS {
            successor.taken.store(HOPELESS, Relaxed);
        }
        successor
    }

    /// Closes this bucket for good.
    pub(crate) fn close(&self) {
        self.taken.store(CLOSED, Relaxed);
    }

    /// Whether `cost` may be taken. Takes nothing.
    pub(crate) fn check(&self, cost: u64, now: Duration) -> Result<(), Refusal> {
        self.admits(self.taken.load(Relaxed), cost, now)
    }

    /// Takes `cost` where that is admitted.
    pub(crate) fn take(&self, cost: u64, now: Duration) -> Result<(), Refusal> {
        let mut taken = self.taken.load(Relaxed);
        loop {
            self.admits(taken, cost, now)?;
            let then = self.after(taken, cost, now);
            match self.taken.compare_exchange_weak(taken, then, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => taken = other,
            }
        }
    }

    /// Takes `cost`, into debt where it is not there.
    ///
    /// # Errors
    /// [`Refusal::Replaced`].
    pub(crate) fn charge(&self, cost: u64, now: Duration) -> Result<(), Refusal> {
        let charge = |taken| self.serves(taken, now).then(|| self.after(taken, cost, now));
        self.taken.fetch_update(Relaxed, Relaxed, charge).map(drop).map_err(|_| Refusal::Replaced)
    }

    /// Undoes a [`take`](Self::take): another bucket has refused. What a successor has already taken over stays taken.
    pub(crate) fn put_back(&self, cost: u64) {
        let cost = self.counted(cost);
        let put_back = |taken: u64| (taken < HOPELESS).then(|| taken.saturating_sub(cost));
        let _ = self.taken.fetch_update(Relaxed, Relaxed, put_back);
    }

    fn serves(&self, taken: u64, now: Duration) -> bool {
        taken != CLOSED && now.saturating_sub(self.start) <= SERVICE
    }

    fn admits(&self, taken: u64, cost: u64, now: Duration) -> Result<(), Refusal> {
        if !self.serves(taken, now) {
            return Err(Refusal::Replaced);
        }
        if taken == HOPELESS {
            return Err(Refusal::Until(Duration::MAX));
        }
        let missing = units(cost.min(self.rate.burst())) - self.level(taken, now);
        if missing <= 0 {
            return Ok(());
        }
        let per_nanosecond = i128::from(self.rate.per_second());
        let wait = duration((missing + per_nanosecond - 1) / per_nanosecond);
        let ready = now.max(self.start).saturating_add(wait);
        self.uncapped_until.fetch_max(nanoseconds(ready.saturating_add(LATENESS)), Relaxed);
        Err(Refusal::Until(ready))
    }

    /// What is there, in billionths, with the burst's cap where nobody waits. A clock that goes back adds nothing.
    fn level(&self, taken: u64, now: Duration) -> i128 {
        // Rounded up: what is there is never more than there is. The product is below 2^94.
        let taken = (i128::from(taken) * UNITS + (1 << self.fraction_bits) - 1) >> self.fraction_bits;
        let level = self.accrued(now).saturating_sub(taken);
        if self.is_capped(now) { level.min(units(self.rate.burst())) } else { level }
    }

    /// What would be there if nothing had been taken, in billionths.
    fn accrued(&self, now: Duration) -> i128 {
        let passed = i128::try_from(now.saturating_sub(self.start).as_nanos()).unwrap_or(i128::MAX);
        self.base.saturating_add(passed.saturating_mul(i128::from(self.rate.per_second())))
    }

    fn is_capped(&self, now: Duration) -> bool {
        nanoseconds(now) > self.uncapped_until.load(Relaxed)
    }

    /// What `taken` becomes when `cost` is taken: what the bucket has spilled counts too.
    fn after(&self, taken: u64, cost: u64, now: Duration) -> u64 {
        let mut base = taken;
        if taken != HOPELESS && self.is_capped(now) {
            let spilled = self.accrued(now).saturating_sub(units(self.rate.burst()));
            if spilled > 0 {
                let spilled = spilled.saturating_mul(1 << self.fraction_bits) / UNITS;
                base = base.max(u64::try_from(spilled).unwrap_or(HOPELESS));
            }
        }
        base.saturating_add(self.counted(cost)).min(HOPELESS)
    }

    /// A cost as `taken` counts.
    fn counted(&self, cost: u64) -> u64 {
        cost.saturating_mul(1 << self.fraction_bits)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// So many nanoseconds; more than 64 bits hold where the burst is huge and the rate low.
fn duration(nanoseconds: i128) -> Duration {
    let rest = u32::try_from(nanoseconds % UNITS).expect("below a billion, and not negative");
    u64::try_from(nanoseconds / UNITS).map_or(Duration::MAX, |seconds| Duration::new(seconds, rest))
}

fn units(tokens: u64) -> i128 {
    i128::from(tokens) * UNITS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bucket with its successors, and when it was asked last.
    struct Tested {
        bucket: Bucket,
        at: Duration,
    }

    impl Tested {
        fn check(&mut self, cost: u64, now: Duration) -> Result<(), Refusal> {
            self.at = now;
            self.bucket.check(cost, now).or_else(|refusal| {
                if refusal == Refusal::Replaced {
                    self.set_rate(self.bucket.rate, now);
                }
                self.bucket.check(cost, now)
            })
        }

        fn take(&self, cost: u64) {
            self.bucket.charge(cost, self.at).unwrap();
        }

        fn set_rate(&mut self, rate: Rate, now: Duration) {
            let successor = self.bucket.successor(rate, now);
            let closed = std::mem::replace(&mut self.bucket, successor);
            assert_eq!(closed.take(1, now), Err(Refusal::Replaced));
            assert_eq!(closed.charge(1, now), Err(Refusal::Replaced));
            closed.put_back(1);
            assert_eq!(closed.check(1, now), Err(Refusal::Replaced), "closed for ever");
        }
    }

    fn bucket(per_second: u64, burst: u64) -> Tested {
        let bucket = Bucket::new(Rate::new(per_second, Some(burst)).unwrap(), Duration::ZERO);
        Tested { bucket, at: Duration::ZERO }
    }

    /// `cost` is refused until then.
    fn until<T>(then: Duration) -> Result<T, Refusal> {
        Err(Refusal::Until(then))
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
        assert_eq!(bucket.check(1, ms(5)), until(ms(6)));
        assert_eq!(bucket.check(1, ms(6) - Duration::from_nanos(1)), until(ms(6)));
        assert_eq!(bucket.check(1, ms(6)), Ok(()));
    }

    #[test]
    fn an_instant_between_two_nanoseconds_is_the_later_one() {
        let mut bucket = bucket(3, 1);
        bucket.take(1);
        assert_eq!(bucket.check(1, Duration::ZERO), until(Duration::from_nanos(333_333_334)));
        assert_eq!(bucket.check(1, Duration::from_nanos(333_333_334)), Ok(()));
        bucket.take(1);
        // The two thirds of a billionth that were too many are there for the next.
        assert_eq!(
            bucket.check(1, Duration::from_nanos(333_333_334)),
            until(Duration::from_nanos(666_666_667))
        );
    }

    #[test]
    fn an_instant_centuries_ahead_is_as_exact() {
        let mut bucket = bucket(1, 1 << 50);
        bucket.take(1 << 50);
        let full = Duration::from_secs(1 << 50);
        assert_eq!(bucket.check(1 << 50, Duration::ZERO), until(full));
        assert_eq!(bucket.check(1 << 50, full), Ok(()));
        for _ in 0..2 {
            bucket.take(u64::MAX);
        }
        assert_eq!(bucket.check(1, full), until(Duration::MAX), "a debt that nobody lives to see paid");
    }

    #[test]
    fn a_debt_without_hope_is_none_for_a_successor_either() {
        let mut bucket = bucket(1, 1);
        bucket.take(u64::MAX);
        bucket.set_rate(Rate::new(1 << 50, None).unwrap(), ms(5));
        assert_eq!(bucket.check(1, Duration::MAX), until(Duration::MAX));
    }

    #[test]
    fn what_is_put_back_is_there_again() {
        let tested = bucket(10, 3);
        tested.bucket.take(3, ms(0)).unwrap();
        tested.bucket.put_back(2);
        tested.bucket.take(2, ms(0)).unwrap();
        assert_eq!(tested.bucket.take(1, ms(0)), until(ms(100)));
    }

    #[test]
    fn what_is_larger_than_the_burst_goes_into_debt() {
        let mut bucket = bucket(100, 10);
        assert_eq!(bucket.check(110, ms(0)), Ok(()));
        bucket.take(110);
        assert_eq!(bucket.check(1, ms(0)), until(ms(1010)));
        assert_eq!(bucket.check(110, ms(0)), until(ms(1100)), "full again");
    }

    #[test]
    fn idle_time_saves_up_no_more_than_the_burst() {
        let mut bucket = bucket(1000, 2);
        bucket.take(2);
        assert_eq!(bucket.check(1, ms(10_000)), Ok(()));
        bucket.take(2);
        assert_eq!(bucket.check(1, ms(10_000)), until(ms(10_001)));
    }

    #[test]
    fn who_comes_late_after_a_refusal_loses_nothing() {
        let mut bucket = bucket(1000, 1);
        bucket.take(1);
        assert_eq!(bucket.check(1, ms(0)), until(ms(1)));
        for _ in 0..40 {
            assert_eq!(bucket.check(1, ms(40)), Ok(()));
            bucket.take(1);
        }
        assert_eq!(bucket.check(1, ms(40)), until(ms(41)), "and gains nothing");
        assert_eq!(bucket.check(1, ms(500)), Ok(()), "much later counts as idle");
        bucket.take(1);
        assert_eq!(bucket.check(1, ms(500)), until(ms(501)));
    }

    #[test]
    fn a_new_rate_neither_loses_nor_invents_tokens() {
        let mut bucket = bucket(1000, 10);
        bucket.take(10);
        bucket.set_rate(Rate::new(10, Some(10)).unwrap(), ms(4));
        assert_eq!(bucket.check(5, ms(4)), until(ms(104)), "four have accrued at the old rate");
        bucket.set_rate(Rate::new(10, Some(100)).unwrap(), ms(4));
        assert_eq!(bucket.check(5, ms(4)), until(ms(104)), "a larger burst is room, not tokens");
        bucket.take(14);
        bucket.set_rate(Rate::new(1000, Some(1)).unwrap(), ms(4));
        assert_eq!(bucket.check(1, ms(4)), until(ms(15)), "a debt stays");
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_twice() {
        let mut bucket = bucket(1000, 1);
        bucket.take(1);
        assert_eq!(bucket.check(1, ms(1)), Ok(()));
        bucket.take(1);
        assert_eq!(bucket.check(1, ms(0)), until(ms(2)));
        assert_eq!(bucket.check(1, ms(1)), until(ms(2)));
    }
}
