//! Watches the device for what no single request shows: completions without interrupts, and requests that never complete.

use super::Job;
use crate::gate::device_interrupts;
use crate::serial::report_error;
use crate::virtio::block::BlockDevice;

/// The vCPU that serves the disk.
const VCPU: usize = 0;
/// Sleeps in a row that a timer ended though a completion was there. A single one is a race that the specification allows.
const SILENT_SLEEPS: u32 = 16;
const TICK_US: u64 = 1_000_000;
/// Ticks without a completion while requests are in flight. Ticks, not time: a guest that was paused has not waited.
const STALLED_TICKS: u32 = 5;

#[derive(Default)]
pub(super) struct Watch {
    interrupts: u32,
    asleep: bool,
    interrupted: bool,
    silent_sleeps: u32,
    tick_us: u64,
    progress: bool,
    idle_ticks: u32,
}

impl Watch {
    /// Takes note of an interrupt.
    pub(super) fn before_reaping(&mut self, device: &BlockDevice<Job>) {
        let interrupts = device_interrupts(VCPU);
        self.interrupted = interrupts != self.interrupts;
        self.interrupts = interrupts;
        if self.interrupted && device.acknowledge_interrupt() {
            report_error(format_args!("disk: the device has failed and wants a reset"));
        }
    }

    /// Takes note of completions.
    pub(super) fn after_reaping(&mut self, reaped: bool, in_flight: usize, now_us: u64) {
        if self.interrupted {
            self.silent_sleeps = 0;
        } else if reaped && self.asleep {
            self.silent_sleeps += 1;
            if self.silent_sleeps == SILENT_SLEEPS {
                report_error(format_args!("disk: requests complete without interrupts"));
            }
        }
        self.asleep = false;
        self.progress |= reaped || in_flight == 0;
        if now_us >= self.tick_us {
            self.tick_us = now_us + TICK_US;
            self.idle_ticks = if self.progress { 0 } else { self.idle_ticks + 1 };
            self.progress = false;
            if self.idle_ticks == STALLED_TICKS {
                report_error(format_args!(
                    "disk: {in_flight} requests have not completed for {STALLED_TICKS} s"
                ));
            }
        }
    }

    /// An interrupt has been asked for, and now the vCPU sleeps.
    pub(super) fn sleeping(&mut self, asleep: bool) {
        self.asleep = asleep;
    }

    pub(super) fn wake_us(&self) -> u64 {
        self.tick_us
    }
}
