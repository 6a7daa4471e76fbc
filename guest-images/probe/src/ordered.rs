//! Writes in an order that spans two disks, as `probe.ordered` asks: number `n` goes to the first disk, and when that is
//! finished to the second; only then comes `n + 1`. So at any moment, the first disk is at most one number ahead of the
//! second, which is never ahead.

use drover_probe_record::pace::Pace;
use drover_probe_record::stamp::{Life, Slots, Stamp};
use drover_probe_record::{Event, MmioDevice, OrderedWork};

use crate::first::Identity;
use crate::gate::device_interrupts;
use crate::instructions::tsc;
use crate::ram::Ram;
use crate::serial::{report, report_error};
use crate::virtio::block::{BlockDevice, Buffer, Operation};

/// The vCPU that serves the disks.
const VCPU: usize = 0;
/// Between two acknowledgements: each byte of them is an exit.
const REPORT_US: u64 = 20_000;

/// A write that is under way.
struct Written;

/// The worker.
pub(crate) struct Ordered {
    disks: [BlockDevice<Written>; 2],
    buffer: Option<Buffer>,
    slots: Slots,
    life: Life,
    /// The next write: its number, and to which disk.
    next: (u64, usize),
    /// `None` for as fast as the disks allow.
    pace: Option<Pace>,
    due: u64,
    /// Something failed: nothing is written any more, since the order would be lost.
    failed: bool,
    stopping: bool,
    interrupts: u32,
    reported: u64,
    report_us: u64,
}

impl Ordered {
    /// Starts the disks; the first [`poll`](Self::poll) writes.
    ///
    /// # Errors
    /// Why nothing will be written.
    pub(crate) fn start(
        places: &[MmioDevice],
        work: &OrderedWork,
        ram: &mut Ram,
        identity: Identity,
        now_us: u64,
    ) -> Result<Ordered, &'static str> {
        let disks = [BlockDevice::start(places, 1)?, BlockDevice::start_second(places)?];
        if disks.iter().any(|disk| disk.blocks() < work.slots) {
            return Err("one has fewer blocks of 4 KiB than probe.ordered asks for");
        }
        let buffer = Buffer::take(ram, 1, 1).map_err(|_| "there is too little RAM for its buffer")?.next();
        Ok(Ordered {
            disks,
            buffer,
            slots: Slots { seed: identity.seed, count: work.slots },
            life: Life { number: 1, incarnation: identity.incarnation, adopted_max: 0 },
            next: (1, 0),
            pace: (work.iops > 0).then(|| Pace::new(work.iops, 1, now_us)),
            due: 0,
            failed: false,
            stopping: false,
            interrupts: 0,
            reported: 0,
            report_us: now_us,
        })
    }

    /// Takes what has finished and writes what comes next.
    pub(crate) fn poll(&mut self, now_us: u64) {
        let interrupts = device_interrupts(VCPU);
        if interrupts != self.interrupts {
            self.interrupts = interrupts;
            let given_up = self.disks.iter().filter(|disk| disk.acknowledge_interrupt()).count();
            if given_up > 0 {
                report_error(format_args!("ordered: {given_up} devices have failed and want a reset"));
            }
        }
        let mut finished = false;
        for disk in &mut self.disks {
            disk.decline_interrupts();
            while let Some(completion) = disk.reap() {
                self.buffer = completion.buffer;
                match completion.outcome {
                    Ok(()) => finished = true,
                    Err(failure) => {
                        self.failed = true;
                        report_error(format_args!("ordered: a write failed: {failure}"));
                    }
                }
            }
        }
        if finished {
            self.next = match self.next {
                (seq, 0) => (seq, 1),
                (seq, _) => (seq + 1, 0),
            };
        }
        self.acknowledge(now_us);
        self.write(now_us);
    }

    fn acknowledge(&mut self, now_us: u64) {
        let done = self.next.0 - 1;
        if done > self.reported && now_us >= self.report_us {
            (self.reported, self.report_us) = (done, now_us + REPORT_US);
            report(&Event::Ack { seq: done, tsc: tsc() });
        }
    }

    fn write(&mut self, now_us: u64) {
        if self.failed || self.stopping {
            return;
        }
        let (seq, disk) = self.next;
        if let Some(pace) = &mut self.pace {
            self.due = (self.due + pace.due(now_us)).min(1);
        }
        // What the first disk has, the second gets at once.
        if disk == 0 && self.pace.is_some() && self.due == 0 {
            return;
        }
        let Some(mut buffer) = self.buffer.take() else { return };
        let slot = self.slots.slot_of(seq);
        Stamp { seq, slot, life: self.life }.write(self.slots.seed, &mut buffer.blocks()[0]);
        if disk == 0 {
            self.due = 0;
        }
        self.disks[disk].submit(Operation::Write { block: slot, count: 1 }, Some(buffer), Written);
        self.disks[disk].notify();
    }

    /// Submits nothing new from now on.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether nothing is under way after [`stop`](Self::stop).
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopping && self.buffer.is_some()
    }

    /// When to poll next, if no interrupt comes first.
    pub(crate) fn wake_us(&self) -> u64 {
        if self.failed || self.stopping || self.buffer.is_none() {
            return u64::MAX;
        }
        // Nothing is under way: the next number is not due yet.
        self.pace.as_ref().map_or(0, Pace::next_us)
    }

    /// Asks for an interrupt with the next completion; `false` if there is one to take already.
    pub(crate) fn may_sleep(&mut self) -> bool {
        let [first, second] = &mut self.disks;
        first.expect_interrupt() & second.expect_interrupt()
    }
}
