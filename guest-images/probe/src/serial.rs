//! COM1: one line at a time, whichever vCPU writes it.

use core::fmt::{self, Display, Write};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use drover_probe_record::Event;

use crate::instructions::{in_byte, out_byte};

/// The first serial port of a PC (16550A).
const COM1: u16 = 0x3f8;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_STATUS: u16 = COM1 + 5;
const FIFO_ENABLE: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// Bytes that the transmitter takes between two looks at its status.
const FIFO_BYTES: usize = 16;
/// Looks at a transmitter that stays busy before its line is written all the same: a backend that does not drain must
/// not stop the guest.
const STATUS_LOOKS_MAX: u32 = 10_000;
/// Turns at the lock after which a dying vCPU writes without it: about a second.
const LOCK_TURNS_MAX: u32 = 20_000_000;
/// Error lines that are always written. Beyond these every error whose number is a power of two is: a broken device must
/// not flood the log.
const ERRORS_IN_FULL: u32 = 64;

static LOCKED: AtomicBool = AtomicBool::new(false);
static ERRORS: AtomicU32 = AtomicU32::new(0);

/// The right to write a line.
pub(crate) struct Line {
    fifo_room: usize,
}

/// Makes the port ready. The boot line is begun before the rest of the machine is known, so this does no more than it must.
pub(crate) fn prepare() {
    out_byte(FIFO_CONTROL, FIFO_ENABLE);
}

/// Writes a report.
pub(crate) fn report(event: &Event<fmt::Arguments<'_>>) {
    let mut line = Line::begin(u32::MAX);
    line.write(event);
    line.end();
}

/// Writes the last report: it keeps the line, so no other vCPU writes after it.
pub(crate) fn report_last(event: &Event<fmt::Arguments<'_>>) {
    let mut line = Line::begin(LOCK_TURNS_MAX);
    line.write(event);
    line.write(&"\n");
}

/// Reports an error. Floods are thinned out.
pub(crate) fn report_error(what: fmt::Arguments<'_>) {
    let number = ERRORS.fetch_add(1, Ordering::Relaxed).saturating_add(1);
    if number <= ERRORS_IN_FULL || number.is_power_of_two() {
        report(&Event::Error { what });
    }
}

/// Reports an error from a vCPU that may have died with the line in its hand.
pub(crate) fn report_at_any_cost(what: fmt::Arguments<'_>) {
    let mut line = Line::begin(LOCK_TURNS_MAX);
    line.write(&"\n");
    line.write(&Event::Error { what });
    line.end();
}

impl Line {
    /// Waits for the line, though not for ever: `turns`.
    ///
    /// Spinning is right here: a line takes less than a millisecond, and few are written at the same time.
    pub(crate) fn begin(mut turns: u32) -> Line {
        while LOCKED.swap(true, Ordering::Acquire) && turns > 0 {
            core::hint::spin_loop();
            turns -= u32::from(turns != u32::MAX);
        }
        Line { fifo_room: 0 }
    }

    /// Writes part of the line.
    pub(crate) fn write(&mut self, text: &dyn Display) {
        // The only error would be one of the text's own, and none of ours has any.
        let _written = write!(self, "{text}");
    }

    /// Ends the line and lets go of it.
    pub(crate) fn end(mut self) {
        self.write(&"\n");
        LOCKED.store(false, Ordering::Release);
    }

    fn put(&mut self, byte: u8) {
        if self.fifo_room == 0 {
            let busy = || in_byte(LINE_STATUS) & TRANSMITTER_EMPTY == 0;
            let _looks = (0..STATUS_LOOKS_MAX).take_while(|_| busy()).count();
            self.fifo_room = FIFO_BYTES;
        }
        self.fifo_room -= 1;
        out_byte(COM1, byte);
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.put(byte));
        Ok(())
    }
}
