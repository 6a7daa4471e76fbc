//! How often, and how long apart, a call is repeated.

use std::time::Duration;

/// Repeats of a call whose server could not be reached. Pauses double from `first_pause` up to `longest_pause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all; at least one is made.
    pub attempts_max: u32,
    /// Pause after the first attempt.
    pub first_pause: Duration,
    /// No pause is longer.
    pub longest_pause: Duration,
}

impl Default for Retry {
    /// Six attempts over about three seconds: long enough for a control plane that is being restarted by its
    /// supervisor, short enough for a person at a terminal.
    fn default() -> Self {
        Self {
            attempts_max: 6,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(1),
        }
    }
}

impl Retry {
    /// One attempt, no repeat.
    pub const NEVER: Self =
        Self { attempts_max: 1, first_pause: Duration::ZERO, longest_pause: Duration::ZERO };

    /// The pause after attempt number `attempt` (counted from 1), or `None` when that was the last one.
    #[must_use]
    pub fn pause_after(&self, attempt: u32) -> Option<Duration> {
        if attempt >= self.attempts_max.max(1) {
            return None;
        }
        let doublings = attempt.saturating_sub(1).min(31);
        Some(self.first_pause.saturating_mul(1 << doublings).min(self.longest_pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_then_end() {
        let retry = Retry {
            attempts_max: 5,
            first_pause: Duration::from_millis(10),
            longest_pause: Duration::from_millis(35),
        };
        let pauses: Vec<_> = (1..=6).map(|n| retry.pause_after(n).map(|p| p.as_millis())).collect();
        assert_eq!(pauses, [Some(10), Some(20), Some(35), Some(35), None, None]);
    }

    #[test]
    fn never_means_one_attempt() {
        assert_eq!(Retry::NEVER.pause_after(1), None);
    }

    #[test]
    fn a_large_attempt_number_does_not_overflow() {
        let retry = Retry { attempts_max: u32::MAX, ..Retry::default() };
        assert_eq!(retry.pause_after(u32::MAX - 1), Some(retry.longest_pause));
    }
}
