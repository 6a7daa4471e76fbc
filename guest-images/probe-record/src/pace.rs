//! Holding a rate of work that comes in whole units.

/// Says how many units are due. Time is an argument.
#[derive(Clone, Debug)]
pub struct Pace {
    per_s: u64,
    burst: u64,
    /// Up to when units have been given out, µs.
    accounted_us: u64,
    /// The fraction of a unit that is left over, in millionths.
    rest: u64,
}

impl Pace {
    /// So many units a second from `now_us` on. What a stalled machine misses beyond `burst` units is not made up for.
    pub fn new(per_s: u64, burst: u64, now_us: u64) -> Self {
        Pace { per_s, burst, accounted_us: now_us, rest: 0 }
    }

    /// Units that have become due since the last call, at most the burst.
    pub fn due(&mut self, now_us: u64) -> u64 {
        let elapsed = now_us.saturating_sub(self.accounted_us);
        self.accounted_us = self.accounted_us.max(now_us);
        // Within 64 bits for rates up to a terabyte and stalls of months; beyond that the burst decides anyway.
        let earned = elapsed.saturating_mul(self.per_s).saturating_add(self.rest);
        let units = earned / 1_000_000;
        self.rest = earned % 1_000_000;
        units.min(self.burst)
    }

    /// When the next unit becomes due, always after the last call of [`due`](Self::due); never at a rate of 0.
    pub fn next_us(&self) -> u64 {
        if self.per_s == 0 {
            return u64::MAX;
        }
        self.accounted_us.saturating_add((1_000_000 - self.rest).div_ceil(self.per_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fractions_add_up() {
        let mut pace = Pace::new(300, 10, 0);
        let due: Vec<u64> = (1..=10).map(|ms| pace.due(ms * 1000)).collect();
        assert_eq!(due, [0, 0, 0, 1, 0, 0, 1, 0, 0, 1]);
    }

    #[test]
    fn a_stall_is_made_up_for_only_up_to_the_burst() {
        let mut pace = Pace::new(1000, 10, 0);
        assert_eq!(pace.due(3_000_000), 10);
        assert_eq!(pace.due(3_001_000), 1);
    }

    #[test]
    fn time_that_goes_back_gives_nothing() {
        let mut pace = Pace::new(1000, 10, 5000);
        assert_eq!([pace.due(4000), pace.due(5000), pace.due(6000)], [0, 0, 1]);
    }

    proptest! {
        #[test]
        fn the_next_unit_comes_when_it_was_announced(per_s in 1u64..100_000, now in 0u64..1_000_000) {
            let mut pace = Pace::new(per_s, u64::MAX, 0);
            pace.due(now);
            let next = pace.next_us();
            prop_assert!(next > now);
            prop_assert_eq!(pace.clone().due(next - 1), 0);
            prop_assert_eq!(pace.due(next), 1.max(per_s / 1_000_000));
        }

        #[test]
        fn the_rate_is_exact_however_often_it_is_asked(per_s in 0u64..100_000, steps in prop::collection::vec(0u64..5000, 1..100)) {
            let mut pace = Pace::new(per_s, u64::MAX, 0);
            let mut now = 0;
            let mut given = 0;
            for step in steps {
                now += step;
                given += pace.due(now);
                prop_assert_eq!(given, now * per_s / 1_000_000);
            }
        }
    }
}
