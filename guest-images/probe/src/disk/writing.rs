//! After recovery: writes in sequence, acknowledges what is durable, reads recent blocks back.

use drover_probe_record::pace::Pace;
use drover_probe_record::recovery::Recovered;
use drover_probe_record::stamp::{Life, Slots, Stamp};
use drover_probe_record::window::WriteWindow;

use super::{Io, Job, RETRY_US, Settings, Voice};
use crate::serial::report_error;
use crate::virtio::block::{Completion, Failure, Operation};

/// Between two flushes, so that there are at most 50 acknowledgement lines a second: each byte of them is an exit.
const FLUSH_US: u64 = 20_000;
/// Between two blocks that are read back.
const READ_BACK_US: u64 = 50_000;
const SUMMARY_US: u64 = 1_000_000;
/// A fraction of a second's writes that a late turn makes up for.
const MADE_UP: u64 = 10;

pub(super) struct Writing {
    voice: Voice,
    slots: Slots,
    queue_depth: u64,
    life: Life,
    window: WriteWindow,
    /// The lowest number that this life writes.
    first_seq: u64,
    /// `None` for as fast as the device allows.
    pace: Option<Pace>,
    /// Writes that are due and not issued.
    due: u64,
    due_max: u64,
    flush_us: u64,
    /// Something failed: when to write anew all that was not acknowledged.
    setback_us: Option<u64>,
    reading_back: Option<u64>,
    read_back_us: u64,
    random: u64,
    reads: u64,
    bad: u64,
    summary_us: u64,
    stopping: bool,
}

impl Writing {
    pub(super) fn new(settings: &Settings, recovered: &Recovered, now_us: u64) -> Self {
        let Settings { voice, slots, iops, queue_depth, incarnation } = *settings;
        let due_max = if iops == 0 { u64::MAX } else { (iops / MADE_UP).max(1) };
        Writing {
            voice,
            slots,
            queue_depth,
            life: recovered.life(incarnation),
            window: WriteWindow::new(recovered.next_seq, slots.count, queue_depth),
            first_seq: recovered.next_seq,
            pace: (iops > 0).then(|| Pace::new(iops, due_max, now_us)),
            due: if iops == 0 { u64::MAX } else { 0 },
            due_max,
            flush_us: now_us,
            setback_us: None,
            reading_back: None,
            read_back_us: now_us + READ_BACK_US,
            random: incarnation | 1,
            reads: 0,
            bad: 0,
            summary_us: now_us + SUMMARY_US,
            stopping: false,
        }
    }

    pub(super) fn submit(&mut self, io: &mut Io, now_us: u64, stopping: bool) {
        self.stopping = stopping;
        if let Some(pace) = &mut self.pace {
            self.due = self.due.saturating_add(pace.due(now_us)).min(self.due_max);
        }
        self.recover_from_setback(now_us);
        if self.setback_us.is_none() {
            if !self.stopping {
                self.write(io);
                self.read_back(io, now_us);
            }
            self.flush(io, now_us);
        }
        if now_us >= self.summary_us {
            self.summary_us = now_us + SUMMARY_US;
            self.voice.verified(self.reads, self.bad);
        }
    }

    pub(super) fn finished(&mut self, io: &mut Io, mut completion: Completion<Job>, now_us: u64) {
        match (completion.job, completion.outcome) {
            (Job::Write { seq }, Ok(())) => self.window.complete(seq),
            (Job::Write { seq }, Err(failure)) => {
                self.window.complete_failed(seq);
                self.set_back(now_us, format_args!("cannot write sequence {seq}"), failure);
            }
            (Job::Flush, Ok(())) => self.acknowledge(),
            (Job::Flush, Err(failure)) => {
                self.window.flush_failed();
                self.set_back(now_us, format_args!("cannot flush"), failure);
            }
            (Job::ReadBack { seq }, Ok(())) => {
                self.reading_back = None;
                if let Some(buffer) = &mut completion.buffer {
                    self.check(seq, &buffer.blocks()[0]);
                }
            }
            (Job::ReadBack { seq }, Err(failure)) => {
                self.reading_back = None;
                report_error(format_args!("disk: cannot read sequence {seq} back: {failure}"));
            }
            (Job::Recover { .. }, _) => {}
        }
        io.give_back(completion.buffer);
    }

    /// Nothing is under way and nothing waits for a flush.
    pub(super) fn is_settled(&self) -> bool {
        self.window.is_idle() && (self.setback_us.is_some() || !self.window.wants_flush())
    }

    /// Never a time that has passed and that polling does not move: that would be a busy loop.
    pub(super) fn wake_us(&self) -> u64 {
        let mut wake_us = self.summary_us;
        if let Some(setback_us) = self.setback_us {
            return if self.window.is_idle() { wake_us.min(setback_us) } else { wake_us };
        }
        if self.window.wants_flush() {
            wake_us = wake_us.min(self.flush_us);
        }
        if self.stopping {
            return wake_us;
        }
        if self.reading_back.is_none() {
            wake_us = wake_us.min(self.read_back_us);
        }
        match &self.pace {
            Some(pace) if self.window.issuable().is_some() => wake_us.min(pace.next_us()),
            _ => wake_us,
        }
    }

    fn write(&mut self, io: &mut Io) {
        while self.due > 0
            && let Some(seq) = self.window.issuable()
        {
            let slot = self.slots.slot_of(seq);
            // What is being read back must stay as it is until it has been.
            let read = self.reading_back.is_some_and(|reading| self.slots.slot_of(reading) == slot);
            if read {
                return;
            }
            let Some(mut buffer) = io.take_buffer() else { return };
            Stamp { seq, slot, life: self.life }.write(self.slots.seed, &mut buffer.blocks()[0]);
            self.window.issue();
            io.device.submit(Operation::Write { block: slot, count: 1 }, Some(buffer), Job::Write { seq });
            self.due -= u64::from(self.pace.is_some());
        }
    }

    fn flush(&mut self, io: &mut Io, now_us: u64) {
        let last = self.stopping && self.window.in_flight() == 0;
        if self.window.wants_flush() && (now_us >= self.flush_us || last) {
            self.flush_us = now_us + FLUSH_US;
            self.window.flush_submitted();
            if io.device.flushes() {
                io.device.submit(Operation::Flush, None, Job::Flush);
            } else {
                self.acknowledge();
            }
        }
    }

    fn acknowledge(&mut self) {
        if let Some(seq) = self.window.flush_done() {
            self.voice.acknowledged(seq, self.bad);
        }
    }

    /// A failed flush may have lost any write that it was to cover, so all of them are written anew.
    fn set_back(&mut self, now_us: u64, what: core::fmt::Arguments<'_>, failure: Failure) {
        self.setback_us = Some(now_us + RETRY_US);
        report_error(format_args!("disk: {what}: {failure}"));
    }

    fn recover_from_setback(&mut self, now_us: u64) {
        if self.setback_us.is_some_and(|setback_us| now_us >= setback_us) && self.window.is_idle() {
            self.setback_us = None;
            let next_seq = self.window.acknowledged() + 1;
            self.window = WriteWindow::new(next_seq, self.slots.count, self.queue_depth);
        }
    }

    /// Reads a random block whose last write is acknowledged.
    fn read_back(&mut self, io: &mut Io, now_us: u64) {
        if now_us < self.read_back_us || self.reading_back.is_some() {
            return;
        }
        self.read_back_us = now_us + READ_BACK_US;
        let oldest = self.window.next_seq().saturating_sub(self.slots.count).max(1);
        let newest = self.window.acknowledged();
        if oldest > newest {
            return;
        }
        let seq = oldest + self.next_random() % (newest - oldest + 1);
        let Some(buffer) = io.take_buffer() else { return };
        self.reading_back = Some(seq);
        let read = Operation::Read { block: self.slots.slot_of(seq), count: 1 };
        io.device.submit(read, Some(buffer), Job::ReadBack { seq });
    }

    fn check(&mut self, seq: u64, block: &drover_probe_record::Block) {
        self.reads += 1;
        let slot = self.slots.slot_of(seq);
        match self.slots.read(slot, block) {
            Ok(Some(stamp)) if stamp.seq == seq && (seq < self.first_seq || stamp.life == self.life) => {
                return;
            }
            Ok(Some(stamp)) => report_error(format_args!(
                "disk: slot {slot} holds sequence {} of incarnation {:#x} (life {}) instead of {seq}",
                stamp.seq, stamp.life.incarnation, stamp.life.number
            )),
            Ok(None) => {
                report_error(format_args!("disk: slot {slot} is empty, sequence {seq} was acknowledged"))
            }
            Err(error) => report_error(format_args!("disk: slot {slot}, which held sequence {seq}: {error}")),
        }
        self.bad += 1;
    }

    /// Xorshift (Marsaglia, Journal of Statistical Software 8, 2003): which blocks are read need not be unpredictable.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
