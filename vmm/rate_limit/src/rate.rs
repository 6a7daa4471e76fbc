//! Limits as they are configured.

/// Largest rate and burst: far beyond any device, and small enough that their products with nanoseconds are exact.
const MOST: u64 = 1 << 50;

/// Part of a second's tokens that a bucket holds where nobody said how many: 50 ms of them. Short enough that a full
/// bucket changes a measurement of ten seconds by half a percent, long enough for a guest's usual batches.
const DEFAULT_BURST_PART: u64 = 20;

/// Tokens in a second, and how many may be saved up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    per_second: u64,
    burst: u64,
}

/// Why numbers are not a rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// Nothing would ever pass, or the arithmetic would not be exact.
    #[error("a rate of {0} in a second is not possible: give 1 to 2^50")]
    PerSecond(u64),
    /// The same of the burst.
    #[error("a burst of {0} is not possible: give 1 to 2^50")]
    Burst(u64),
}

impl Rate {
    /// `per_second` tokens accrue in a second and at most `burst` are saved up; without a word about that, those of
    /// 50 ms and at least one.
    ///
    /// # Errors
    /// [`RateError`] where a number is 0 or above 2^50.
    pub fn new(per_second: u64, burst: Option<u64>) -> Result<Self, RateError> {
        if !(1..=MOST).contains(&per_second) {
            return Err(RateError::PerSecond(per_second));
        }
        let burst = burst.unwrap_or((per_second / DEFAULT_BURST_PART).max(1));
        if !(1..=MOST).contains(&burst) {
            return Err(RateError::Burst(burst));
        }
        Ok(Self { per_second, burst })
    }

    /// Tokens that accrue in a second.
    pub fn per_second(self) -> u64 {
        self.per_second
    }

    /// Tokens that are saved up while nothing is asked for.
    pub fn burst(self) -> u64 {
        self.burst
    }
}

/// Limits of one direction, or of both together. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Requests, or packets.
    pub requests: Option<Rate>,
    /// Bytes of data that they move.
    pub bytes: Option<Rate>,
}

/// All limits of a device. A request must pass those of its direction and those of the total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Both directions together.
    pub total: Limit,
    /// Towards the guest: reads, received packets.
    pub inbound: Limit,
    /// From the guest: writes and what else changes a disk, sent packets.
    pub outbound: Limit,
}

impl Limits {
    /// Whether there is no limit at all.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}
