//! One line every so often, with the TSC: whoever reads them sees for how long the guest did not run.

use drover_probe_record::Event;

use crate::clock::Clock;
use crate::serial::report;

/// Between two reports of the longest gap.
const SUMMARY_US: u64 = 1_000_000;

/// Beats at a period.
pub(crate) struct Heartbeat {
    period_us: u64,
    next_us: u64,
    count: u64,
    last_tsc: u64,
    longest_ticks: u64,
    summary_us: u64,
}

impl Heartbeat {
    /// Begins at once.
    pub(crate) fn new(period_ms: u64, now_us: u64) -> Self {
        let period_us = period_ms * 1000;
        Heartbeat {
            period_us,
            next_us: now_us,
            count: 0,
            last_tsc: 0,
            longest_ticks: 0,
            summary_us: now_us + SUMMARY_US,
        }
    }

    /// Beats if it is time. What was missed is not made up for: a gap stays one gap.
    pub(crate) fn poll(&mut self, now_us: u64, clock: &Clock) {
        if now_us < self.next_us {
            return;
        }
        let tsc = clock.last_tsc();
        if self.count > 0 {
            self.longest_ticks = self.longest_ticks.max(tsc.saturating_sub(self.last_tsc));
        }
        self.count += 1;
        self.last_tsc = tsc;
        report(&Event::Hb { n: self.count, tsc });
        let missed = (now_us - self.next_us) / self.period_us;
        self.next_us += (missed + 1) * self.period_us;
        if now_us >= self.summary_us {
            self.summary_us = now_us + SUMMARY_US;
            report(&Event::HbMax { gap_us: clock.to_us(self.longest_ticks) });
        }
    }

    /// When to poll next.
    pub(crate) fn wake_us(&self) -> u64 {
        self.next_us
    }
}
