//! When to stop copying and switch over: a pure decision from what the rounds so far have shown.
//!
//! A pre-copy migration sends all of RAM while the guest runs, then what the guest dirtied meanwhile, and so on.
//! Each round is shorter than the one before for as long as the link is faster than the guest dirties. After every
//! round [`decide`] answers with one of three: go on, switch over, or give up.
//!
//! ```text
//!  expected downtime = remaining / bandwidth + switchover overhead
//!
//!  rounds < min                      -> another round
//!  does not fit  and  rounds = max   -> give up   (also when the total deadline has passed)
//!  does not fit                      -> another round
//!  fits, but rounds still shrink fast-> another round (cheap: it takes less than the downtime target)
//!  fits                              -> switch over
//! ```
//!
//! What it does not do: slow the guest down. A guest that dirties faster than the link sends makes the migration
//! give up and run on where it is.

use std::{fmt, time::Duration};

use drover_units::{Bytes, BytesPerSec};

/// What bounds a migration's copying. The defaults are those of the product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Switch over once the expected downtime is at most this.
    pub downtime_target: Duration,
    /// Part of the downtime that no round shortens: stopping the guest, saving and restoring device and vCPU state,
    /// four messages one way, the volume hand-over.
    pub switchover_overhead: Duration,
    /// Rounds that are always made. The first sends all of RAM, so that only the second measures the dirty rate.
    pub rounds_min: u32,
    /// Rounds after which a guest that still does not fit is left where it is.
    pub rounds_max: u32,
    /// Time that copying may take in all.
    pub copying_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A guest's TCP peers and watchdogs do not notice 30 ms; the product promises less than 50.
            downtime_target: Duration::from_millis(30),
            // Measured here at 3-6 ms on a busy machine, most of it scheduling and the owner record's fsync.
            switchover_overhead: Duration::from_millis(6),
            rounds_min: 2,
            // A guest whose dirty rate is 80 % of the bandwidth shrinks a round to 1/800 in thirty.
            rounds_max: 30,
            // A terabyte over a 10 Gbit/s link takes 15 minutes once.
            copying_max: Duration::from_secs(3600),
        }
    }
}

/// What has been seen when a round has been acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    /// Rounds that the target has acknowledged, the first included.
    pub rounds: u32,
    /// Guest RAM that the last round sent, page contents only.
    pub last_round: Bytes,
    /// Guest RAM that has been dirtied since and would be sent next.
    pub remaining: Bytes,
    /// Guest RAM moved per second, from the acknowledged rounds. Zero: not known.
    pub bandwidth: BytesPerSec,
    /// Since copying began.
    pub elapsed: Duration,
}

impl Observation {
    /// How long the guest would stand still if it were stopped now. `Duration::MAX` without a bandwidth.
    pub fn expected_downtime(&self, limits: &Limits) -> Duration {
        if self.remaining == Bytes::ZERO {
            return limits.switchover_overhead;
        }
        transfer_time(self.remaining, self.bandwidth).saturating_add(limits.switchover_overhead)
    }
}

/// Why copying was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// As many rounds as allowed, and the guest still dirties too much.
    TooManyRounds {
        /// Rounds made.
        rounds: u32,
        /// The downtime that switching over would have cost.
        expected: Duration,
        /// The downtime that was allowed.
        target: Duration,
    },
    /// Copying took longer than allowed.
    TooSlow {
        /// Time spent.
        elapsed: Duration,
        /// Guest RAM still to be sent.
        remaining: Bytes,
    },
}

impl fmt::Display for GiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRounds { rounds, expected: Duration::MAX, .. } => {
                write!(
                    f,
                    "the guest still dirties memory after {rounds} rounds and nothing could be measured"
                )
            }
            Self::TooManyRounds { rounds, expected, target } => write!(
                f,
                "the guest dirties memory faster than it can be sent: after {rounds} rounds switching over would \
                 stop it for {} ms, {} ms are allowed",
                expected.as_millis(),
                target.as_millis()
            ),
            Self::TooSlow { elapsed, remaining } => {
                write!(f, "copying took {} s and {remaining} are still to be sent", elapsed.as_secs())
            }
        }
    }
}

/// What to do after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Send what is dirty while the guest runs.
    AnotherRound,
    /// Stop the guest, send the rest, hand over.
    Switchover {
        /// The downtime to expect.
        expected: Duration,
    },
    /// Leave the guest where it is.
    GiveUp(GiveUp),
}

/// A round that shrank to less than this share of the one before promises that the next will shrink too.
const SHRINKS_FAST: u64 = 2;
/// Below this share of the downtime target another round gains nothing that a guest would notice.
const GOOD_ENOUGH: u32 = 3;

/// Decides what follows a round. See the module's table.
pub fn decide(seen: &Observation, limits: &Limits) -> Decision {
    let expected = seen.expected_downtime(limits);
    let fits = expected <= limits.downtime_target;
    let last = seen.rounds >= limits.rounds_max || seen.elapsed >= limits.copying_max;
    if fits && (last || (seen.rounds >= limits.rounds_min && !is_worth_another_round(seen, limits))) {
        return Decision::Switchover { expected };
    }
    if seen.elapsed >= limits.copying_max {
        return Decision::GiveUp(GiveUp::TooSlow { elapsed: seen.elapsed, remaining: seen.remaining });
    }
    if seen.rounds >= limits.rounds_max {
        let target = limits.downtime_target;
        return Decision::GiveUp(GiveUp::TooManyRounds { rounds: seen.rounds, expected, target });
    }
    Decision::AnotherRound
}

/// The rest already fits; the guest would still see a shorter stop after one more round that is itself short.
fn is_worth_another_round(seen: &Observation, limits: &Limits) -> bool {
    let transfer = transfer_time(seen.remaining, seen.bandwidth);
    let shrinks = seen.remaining.get().saturating_mul(SHRINKS_FAST) < seen.last_round.get();
    seen.remaining != Bytes::ZERO && shrinks && transfer > limits.downtime_target / GOOD_ENOUGH
}

/// `Duration::MAX` where the bandwidth is not known or the time does not fit.
fn transfer_time(amount: Bytes, bandwidth: BytesPerSec) -> Duration {
    let nanos = u128::from(amount.get()) * 1_000_000_000;
    match nanos.checked_div(u128::from(bandwidth.get())) {
        Some(nanos) => u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos),
        None => Duration::MAX,
    }
}

/// What the link carries, as far as rounds have shown. Cautious: it follows a drop at once and a rise by half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BandwidthEstimate {
    rate: Option<BytesPerSec>,
    from_small_sample: bool,
}

/// A round below this size measures the latency of its acknowledgement, not the link.
const SAMPLE_MIN: Bytes = Bytes::mib(1);

impl BandwidthEstimate {
    /// A round of `wire` bytes was acknowledged `elapsed` after it began.
    pub fn sample(&mut self, wire: Bytes, elapsed: Duration) {
        let small = wire < SAMPLE_MIN;
        if small && self.rate.is_some() && !self.from_small_sample {
            return;
        }
        let nanos = elapsed.as_nanos().max(1);
        let rate = u128::from(wire.get()) * 1_000_000_000 / nanos;
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        let rate = match self.rate {
            Some(known) if !self.from_small_sample && known.get() < rate => known.get().midpoint(rate),
            _ => rate,
        };
        *self = Self { rate: Some(BytesPerSec::new(rate)), from_small_sample: small };
    }

    /// Bytes per second; zero where nothing has been measured.
    pub fn get(&self) -> BytesPerSec {
        self.rate.unwrap_or(BytesPerSec::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(rounds: u32, last_mib: u64, left_mib: u64, mib_per_s: u64, elapsed_s: u64) -> Observation {
        Observation {
            rounds,
            last_round: Bytes::mib(last_mib),
            remaining: Bytes::mib(left_mib),
            bandwidth: BytesPerSec::new(Bytes::mib(mib_per_s).get()),
            elapsed: Duration::from_secs(elapsed_s),
        }
    }

    fn check(seen: Observation, expect: &str) {
        let limits = Limits { copying_max: Duration::from_secs(60), ..Limits::default() };
        let decision = match decide(&seen, &limits) {
            Decision::AnotherRound => "another".to_owned(),
            Decision::Switchover { expected } => format!("switch, {} ms", expected.as_millis()),
            Decision::GiveUp(reason) => reason.to_string(),
        };
        assert_eq!(decision, expect, "{seen:?}");
    }

    /// The default limits: 30 ms of which 6 are fixed, 2 to 30 rounds; here a minute in all.
    #[test]
    fn the_table_of_decisions() {
        // The first round measures nothing about the guest.
        check(seen(1, 256, 0, 1000, 1), "another");
        // Fits well.
        check(seen(2, 32, 4, 1000, 1), "switch, 10 ms");
        check(seen(2, 32, 0, 1000, 1), "switch, 6 ms");
        // Fits, but one more short round shortens the stop.
        check(seen(2, 256, 20, 1000, 1), "another");
        // Fits, and more rounds do not shrink it.
        check(seen(3, 22, 20, 1000, 1), "switch, 26 ms");
        // Does not fit.
        check(seen(3, 64, 32, 1000, 1), "another");
        check(seen(29, 64, 64, 1000, 59), "another");
        // The last round decides.
        check(seen(30, 256, 20, 1000, 59), "switch, 26 ms");
        check(
            seen(30, 64, 64, 1000, 59),
            "the guest dirties memory faster than it can be sent: after 30 rounds switching over would stop it for \
             70 ms, 30 ms are allowed",
        );
        check(seen(5, 64, 64, 10, 60), "copying took 60 s and 64 MiB are still to be sent");
        check(seen(1, 64, 2, 1000, 60), "switch, 8 ms");
        // Without a bandwidth only an empty rest fits.
        check(seen(2, 64, 1, 0, 1), "another");
        check(seen(2, 64, 0, 0, 1), "switch, 6 ms");
        check(
            seen(30, 64, 1, 0, 1),
            "the guest still dirties memory after 30 rounds and nothing could be measured",
        );
    }

    fn check_bandwidth(samples: &[(u64, u64)], expect_mib: u64) {
        let mut estimate = BandwidthEstimate::default();
        for (kib, millis) in samples {
            estimate.sample(Bytes::kib(*kib), Duration::from_millis(*millis));
        }
        assert_eq!(Bytes::new(estimate.get().get()), Bytes::mib(expect_mib), "{samples:?}");
    }

    #[test]
    fn bandwidth_falls_at_once_rises_by_half_and_ignores_small_rounds() {
        check_bandwidth(&[], 0);
        check_bandwidth(&[(100 << 10, 100)], 1000);
        check_bandwidth(&[(100 << 10, 100), (100 << 10, 200)], 500);
        check_bandwidth(&[(100 << 10, 200), (100 << 10, 100)], 750);
        check_bandwidth(&[(100 << 10, 100), (4, 100)], 1000);
        check_bandwidth(&[(512, 10), (100 << 10, 100)], 1000);
    }

    proptest! {
        #[test]
        fn every_decision_keeps_the_limits(
            rounds in 0u32..50,
            last: u32,
            remaining: u32,
            bandwidth: u64,
            elapsed in 0u64..100,
            target_ms in 0u64..200,
        ) {
            let limits = Limits {
                downtime_target: Duration::from_millis(target_ms),
                copying_max: Duration::from_secs(60),
                ..Limits::default()
            };
            let seen = Observation {
                rounds,
                last_round: Bytes::new(last.into()),
                remaining: Bytes::new(remaining.into()),
                bandwidth: BytesPerSec::new(bandwidth),
                elapsed: Duration::from_secs(elapsed),
            };
            match decide(&seen, &limits) {
                Decision::Switchover { expected } => prop_assert!(expected <= limits.downtime_target),
                Decision::AnotherRound => {
                    prop_assert!(rounds < limits.rounds_max && seen.elapsed < limits.copying_max);
                }
                Decision::GiveUp(_) => {
                    prop_assert!(seen.expected_downtime(&limits) > limits.downtime_target);
                    prop_assert!(rounds >= limits.rounds_max || seen.elapsed >= limits.copying_max);
                }
            }
        }

        #[test]
        fn a_guest_slower_than_the_link_always_ends_in_a_switchover(
            ram_mib in 1u64..65_536,
            mib_per_s in 100u64..10_000,
            // The largest guest over the slowest link fits after thirty rounds up to 71 %.
            dirty_percent in 0u64..71,
        ) {
            let limits = Limits::default();
            let (mut last, mut remaining) = (Bytes::mib(ram_mib), Bytes::mib(ram_mib));
            let bandwidth = BytesPerSec::new(Bytes::mib(mib_per_s).get());
            let mut elapsed = Duration::ZERO;
            for rounds in 1.. {
                elapsed += transfer_time(remaining, bandwidth);
                (last, remaining) = (remaining, Bytes::new(remaining.get() * dirty_percent / 100));
                match decide(&Observation { rounds, last_round: last, remaining, bandwidth, elapsed }, &limits) {
                    Decision::AnotherRound => {}
                    Decision::Switchover { .. } => break,
                    Decision::GiveUp(reason) => prop_assert!(false, "{}", reason),
                }
            }
            prop_assert!(last >= remaining);
        }
    }
}
