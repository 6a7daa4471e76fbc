//! Time from the TSC.

use crate::apic::{self, Timer};
use crate::gate;
use crate::instructions::{cpuid, tsc};
use crate::serial::report_error;

/// How long the TSC is measured when nobody tells its frequency. A reading is good to a few µs, so the result to 0.1%.
const CALIBRATION_US: u64 = 5_000;

/// Microseconds since the probe's entry, as one vCPU sees them.
#[derive(Clone)]
pub(crate) struct Clock {
    khz: u64,
    origin: u64,
    last: u64,
}

impl Clock {
    /// A clock that starts at a TSC value.
    pub(crate) fn new(khz: u64, origin: u64) -> Self {
        Clock { khz, origin, last: origin }
    }

    /// Now. Where the TSC has gone back, which is reported, time goes on from where it was.
    pub(crate) fn now_us(&mut self) -> u64 {
        let now = tsc();
        if now < self.last {
            let back = self.last - now;
            report_error(format_args!("the TSC went back by {back} ticks, from {}", self.last));
            self.origin = self.origin.wrapping_sub(back);
        }
        self.last = now;
        self.to_us(now.wrapping_sub(self.origin))
    }

    /// The TSC as it was read last.
    pub(crate) fn last_tsc(&self) -> u64 {
        self.last
    }

    /// The TSC's frequency.
    pub(crate) fn khz(&self) -> u64 {
        self.khz
    }

    /// Converts ticks; in two steps, because ticks times a thousand overflow after three months.
    pub(crate) fn to_us(&self, ticks: u64) -> u64 {
        ticks / self.khz * 1000 + ticks % self.khz * 1000 / self.khz
    }
}

/// The TSC's frequency as CPUID tells it, kHz: the crystal's ratio (leaf 0x15) or the hypervisor's word (0x40000010).
pub(crate) fn khz_from_cpuid() -> Option<u64> {
    let ratio = (cpuid(0, 0).eax >= 0x15).then(|| cpuid(0x15, 0));
    if let Some(leaf) = ratio.filter(|leaf| leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0) {
        return Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax) / 1000);
    }
    let hypervisor_leaf_max = cpuid(0x4000_0000, 0).eax;
    let timing = (0x4000_0010..0x4000_0100).contains(&hypervisor_leaf_max).then(|| cpuid(0x4000_0010, 0).eax);
    timing.filter(|&khz| khz != 0).map(u64::from)
}

/// Measures the TSC against the local APIC's timer, kHz. It spins for 5 ms: only under VMMs that do not tell the frequency,
/// and before there is any work.
pub(crate) fn khz_from_timer() -> u64 {
    apic::set_timer(Timer::OneShot(u32::MAX));
    let (start, first_count) = timer_sample();
    loop {
        core::hint::spin_loop();
        let (now, count) = timer_sample();
        let counted = u64::from(first_count - count);
        if counted >= CALIBRATION_US * apic::TIMER_KHZ / 1000 {
            apic::set_timer(Timer::Off);
            return (now - start) * apic::TIMER_KHZ / counted;
        }
    }
}

/// The TSC and the timer's count at one moment: the closest of a few readings, in case one was interrupted.
fn timer_sample() -> (u64, u32) {
    let readings = [(); 4].map(|()| {
        let before = tsc();
        let count = apic::timer_count();
        let took = tsc() - before;
        (took, before + took / 2, count)
    });
    let (_, at, count) = readings.into_iter().min().unwrap_or_default();
    (at, count)
}

/// A vCPU's local timer as an alarm clock.
pub(crate) struct Alarm {
    vcpu: usize,
    /// What it is set for, and how often the timer had rung before that.
    set: Option<(u64, u32)>,
}

impl Alarm {
    /// Takes this vCPU's timer.
    pub(crate) fn new(vcpu: usize) -> Self {
        apic::set_timer(Timer::OneShot(0));
        Alarm { vcpu, set: None }
    }

    /// Makes the timer ring at `wake_us`, unless it is going to anyway: setting it is an exit.
    pub(crate) fn set(&mut self, now_us: u64, wake_us: u64) {
        let wanted = Some((wake_us, gate::timer_interrupts(self.vcpu)));
        if self.set != wanted {
            self.set = wanted;
            apic::restart_timer(apic::timer_counts(wake_us.saturating_sub(now_us)));
        }
    }
}
