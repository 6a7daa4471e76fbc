//! What holds of every limit, whoever asks and whenever.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use drover_rate_limit::{Cost, Direction, Limit, Limiter, Limits, Rate, Throttled, Waiting};
use proptest::prelude::*;

/// A limit of bytes alone: one bucket, for costs of any size.
struct Bucket {
    rate: Rate,
    limiter: Limiter,
    waiting: Waiting,
}

fn of_bytes(bytes: Rate) -> Limits {
    Limits { total: Limit { requests: None, bytes: Some(bytes) }, ..Limits::default() }
}

fn cost(bytes: u64) -> Cost {
    Cost { direction: Direction::Outbound, bytes }
}

impl Bucket {
    fn new(rate: Rate, now: Duration) -> Self {
        Self { rate, limiter: Limiter::new(of_bytes(rate), now), waiting: Waiting::default() }
    }

    fn set_rate(&mut self, rate: Rate, now: Duration) {
        self.rate = rate;
        self.limiter.set_limits(of_bytes(rate), now);
    }

    fn check(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        self.limiter.check(cost(bytes), &mut self.waiting, now).map_err(|throttled| throttled.until)
    }

    fn take(&mut self, bytes: u64, now: Duration) -> bool {
        self.limiter.take(cost(bytes), &mut self.waiting, now).is_ok()
    }
}

/// What a bucket is asked, after so many nanoseconds.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Take(u64),
    Set(u64, u64),
}

fn ask() -> impl Strategy<Value = (u64, Ask)> {
    let gap = prop_oneof![Just(0), 1..2_000_u64, 1..300_000_000_u64];
    let ask = prop_oneof![
        8 => prop_oneof![Just(1), 1..100_u64, 1..5_000_000_u64].prop_map(Ask::Take),
        1 => (1..10_000_000_u64, 1..1_000_000_u64).prop_map(|(rate, burst)| Ask::Set(rate, burst)),
    ];
    (gap, ask)
}

proptest! {
    /// Over any history, what passed is at most the largest burst, what accrued, what a late comer kept, and one cost.
    #[test]
    fn nothing_is_invented(
        (rate, burst) in (1..10_000_000_u64, 1..1_000_000_u64),
        asks in prop::collection::vec(ask(), 1..200),
    ) {
        let mut now = Duration::ZERO;
        let mut bucket = Bucket::new(Rate::new(rate, Some(burst)).unwrap(), now);
        // In billionths, as the bucket counts.
        let mut accrued = u128::from(burst) * 1_000_000_000;
        let mut taken = 0_u128;
        for (gap, ask) in asks {
            now += Duration::from_nanos(gap);
            accrued += u128::from(gap) * u128::from(bucket.rate.per_second());
            match ask {
                Ask::Set(rate, burst) => bucket.set_rate(Rate::new(rate, Some(burst)).unwrap(), now),
                Ask::Take(cost) => {
                    if bucket.take(cost, now) {
                        let needed = u128::from(cost.min(bucket.rate.burst())) * 1_000_000_000;
                        prop_assert!(taken + needed <= accrued);
                        taken += u128::from(cost) * 1_000_000_000;
                    }
                }
            }
        }
    }

    /// Whoever is refused passes at exactly the instant it was told, and not a nanosecond before.
    #[test]
    fn the_instant_is_exact(
        (rate, burst) in (1..10_000_000_u64, 1..1_000_000_u64),
        costs in prop::collection::vec(1..2_000_000_u64, 1..50),
    ) {
        let mut now = Duration::ZERO;
        let mut bucket = Bucket::new(Rate::new(rate, Some(burst)).unwrap(), now);
        for cost in costs {
            if let Err(ready) = bucket.check(cost, now) {
                prop_assert!(ready > now);
                prop_assert!(!bucket.take(cost, ready - Duration::from_nanos(1)));
                prop_assert_eq!(bucket.check(cost, ready), Ok(()));
                now = ready;
            }
            prop_assert!(bucket.take(cost, now));
        }
    }

    /// A queue that never runs dry moves exactly the rate, however its limits are changed and however late (up to
    /// 100 ms) it comes: what passed is what accrued, but for the bucket's content and one request.
    #[test]
    fn nothing_is_lost_while_someone_waits(
        rates in prop::collection::vec((1_000..1_000_000_u64, 1..5_000_u64), 1..8),
        late in prop::collection::vec(0..100_000_000_u64, 1..50),
        cost in 1..2_000_u64,
    ) {
        let mut now = Duration::ZERO;
        let first = Rate::new(rates[0].0, Some(rates[0].1)).unwrap();
        let mut bucket = Bucket::new(first, now);
        assert!(bucket.take(first.burst(), now));
        let (mut accrued, mut taken) = (0_u128, 0_u128);
        let mut late = late.into_iter().cycle();
        for (rate, burst) in rates {
            bucket.set_rate(Rate::new(rate, Some(burst)).unwrap(), now);
            for _ in 0..20 {
                match bucket.check(cost, now) {
                    Ok(()) => {
                        assert!(bucket.take(cost, now));
                        taken += u128::from(cost) * 1_000_000_000;
                    }
                    Err(ready) => {
                        let then = ready + Duration::from_nanos(late.next().unwrap());
                        accrued += (then - now).as_nanos() * u128::from(rate);
                        now = then;
                    }
                }
            }
            // Run it dry before the limits change, so that a burst has nothing to cut off.
            while bucket.take(cost, now) {
                taken += u128::from(cost) * 1_000_000_000;
            }
        }
        let most = u128::from(cost.max(5_000)) * 1_000_000_000;
        prop_assert!(accrued <= taken + most && taken <= accrued + most, "{accrued} accrued, {taken} taken");
    }
}

/// A guest that always has another request, served by a thread whose timer is late in some pattern. Returns how many
/// passed in ten seconds of simulated time.
fn passed_in_ten_seconds(limits: Limits, bytes: u64, queues: usize, late: fn(u64) -> Duration) -> u64 {
    let end = Duration::from_secs(10);
    let limiter = Limiter::new(limits, Duration::ZERO);
    let mut waiting: Vec<_> = (0..queues).map(|_| Waiting::default()).collect();
    let mut wakes = vec![Duration::ZERO; queues];
    let (mut passed, mut round) = (0, 0);
    loop {
        let queue = (0..queues).min_by_key(|queue| wakes[*queue]).unwrap();
        let mut now = wakes[queue];
        if now >= end {
            return passed;
        }
        let cost = Cost { direction: Direction::Outbound, bytes };
        loop {
            match limiter.take(cost, &mut waiting[queue], now) {
                Ok(()) => passed += 1,
                Err(Throttled { until }) => {
                    round += 1;
                    wakes[queue] = until + late(round);
                    break;
                }
            }
            // What it costs to take a request from a ring.
            now += Duration::from_micros(2);
        }
    }
}

#[test]
fn ten_seconds_are_exact_within_three_percent_at_every_setting() {
    /// How late the timer is in a round.
    type Late = fn(u64) -> Duration;
    let patterns: [(&str, Late); 4] = [
        ("punctual", |_| Duration::ZERO),
        ("a usual host", |round| Duration::from_micros(20 + round * 37 % 80)),
        ("a busy host", |round| Duration::from_micros(round * 7919 % 20_000)),
        ("a stall now and then", |round| Duration::from_millis(if round % 50 == 0 { 90 } else { 0 })),
    ];
    let check = |what: &str, expect: u64, passed: u64| {
        let off = passed.abs_diff(expect) as f64 / expect as f64 * 100.0;
        assert!(off <= 3.0, "{what}: {passed} of {expect}, off by {off:.2} %");
    };
    for rate in [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000] {
        for (pattern, late) in patterns {
            for burst in [None, Some(1)] {
                for queues in [1, 4] {
                    let what = format!("{rate} IOPS, burst {burst:?}, {queues} queues, {pattern}");
                    let requests = Some(Rate::new(rate, burst).unwrap());
                    let limit = Limit { requests, bytes: None };
                    let limits = Limits { total: limit, ..Limits::default() };
                    check(&what, rate * 10, passed_in_ten_seconds(limits, 4096, queues, late));
                    let bytes = Some(Rate::new(rate * 4096, burst.map(|burst| burst * 4096)).unwrap());
                    let limits = Limits { outbound: Limit { requests: None, bytes }, ..Limits::default() };
                    check(&what, rate * 10, passed_in_ten_seconds(limits, 4096, queues, late));
                }
            }
        }
    }
}
