//! After boot: reads every slot, to go on where the disk ends.

use drover_probe_record::recovery::{Recovered, Recovery};
use drover_probe_record::stamp::Slots;

use super::{Io, Job, RECOVERY_BLOCKS, RETRY_US, Voice};
use crate::serial::report_error;
use crate::virtio::block::{Completion, Operation};

/// Reads in flight: recovery is over soon enough with these, and a failed one is kept for another attempt.
const READS_MAX: usize = 8;

pub(super) struct Recovering {
    voice: Voice,
    recovery: Option<Recovery<'static>>,
    slots: Slots,
    next_slot: u64,
    outstanding: usize,
    failed: [Option<u64>; READS_MAX],
    retry_us: u64,
}

impl Recovering {
    pub(super) fn new(voice: Voice, slots: Slots, table: &'static mut [u64]) -> Self {
        Recovering {
            voice,
            recovery: Some(Recovery::new(slots, table)),
            slots,
            next_slot: 0,
            outstanding: 0,
            failed: [None; READS_MAX],
            retry_us: 0,
        }
    }

    pub(super) fn submit(&mut self, io: &mut Io, now_us: u64) {
        while self.outstanding < READS_MAX {
            let again =
                if now_us >= self.retry_us { self.failed.iter_mut().find_map(Option::take) } else { None };
            // One failed read is one attempt less, so that there is always room to keep it.
            let failed = self.failed.iter().flatten().count();
            let fresh = self.next_slot < self.slots.count && self.outstanding + failed < READS_MAX;
            let Some(slot) = again.or(fresh.then_some(self.next_slot)) else { return };
            let Some(buffer) = io.take_buffer() else {
                self.keep_failed(again);
                return;
            };
            let count = (self.slots.count - slot).min(RECOVERY_BLOCKS as u64) as usize;
            if again.is_none() {
                self.next_slot += count as u64;
            }
            self.outstanding += 1;
            io.device.submit(
                Operation::Read { block: slot, count },
                Some(buffer),
                Job::Recover { slot, count },
            );
        }
    }

    pub(super) fn finished(&mut self, io: &mut Io, mut completion: Completion<Job>, now_us: u64) {
        let Job::Recover { slot, count } = completion.job else { return };
        self.outstanding -= 1;
        match completion.outcome {
            Ok(()) => {
                let blocks = completion.buffer.as_mut().map(|buffer| buffer.blocks());
                for (slot, block) in (slot..).zip(blocks.into_iter().flatten()).take(count) {
                    let content = self.slots.read(slot, block);
                    if let Err(error) = content {
                        report_error(format_args!("disk: slot {slot}: {error}"));
                    }
                    if let Some(recovery) = &mut self.recovery {
                        recovery.note(slot, content);
                    }
                }
            }
            Err(failure) => {
                report_error(format_args!("disk: cannot read slots from {slot}: {failure}"));
                self.keep_failed(Some(slot));
                self.retry_us = now_us + RETRY_US;
            }
        }
        io.give_back(completion.buffer);
    }

    /// What the disk held, once every slot has been read.
    pub(super) fn recovered(&mut self) -> Option<Recovered> {
        let done = self.outstanding == 0 && self.next_slot == self.slots.count && !self.any_failed();
        let recovered = self.recovery.take_if(|_| done)?.finish();
        self.voice.recovered(&recovered);
        Some(recovered)
    }

    /// While reads are outstanding their completions are what wakes.
    pub(super) fn wake_us(&self) -> u64 {
        if self.any_failed() && self.outstanding == 0 { self.retry_us } else { u64::MAX }
    }

    fn any_failed(&self) -> bool {
        self.failed.iter().any(Option::is_some)
    }

    fn keep_failed(&mut self, slot: Option<u64>) {
        if let Some(room) = self.failed.iter_mut().find(|room| room.is_none()) {
            *room = slot;
        }
    }
}
