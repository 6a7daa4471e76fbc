//! Registers of the clock, by the datasheet of the MC146818A.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drover_bus::{BusDevice, Port};
use drover_saved_state::{Envelope, SavedState};

use super::{
    calendar::Date,
    state::{LEN, RtcState},
};
use crate::{Device, DeviceError, Saved};

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REGISTER_A: u8 = 0x0a;
const REGISTER_B: u8 = 0x0b;
const REGISTER_C: u8 = 0x0c;
const REGISTER_D: u8 = 0x0d;
/// Where PCs keep the century, and what the FADT says so.
const CENTURY: u8 = 0x32;

/// Register A: the usual divider and rate, and never an update in progress.
const DIVIDER: u8 = 0x26;
/// Register B: the guest sets the date, which holds the clock.
const SET: u8 = 1 << 7;
/// Register B: numbers are binary, not decimal digits.
const BINARY: u8 = 1 << 2;
/// Register B: hours from 0 to 23, the only way that this clock knows.
const HOURS_24: u8 = 1 << 1;
/// Register B: what the guest may change.
const B_WRITABLE: u8 = SET | BINARY;
/// Register D: the battery is good.
const VALID: u8 = 1 << 7;
/// The address port's highest bit masks NMIs on a PC; here it means nothing.
const INDEX_MASK: u8 = 0x7f;

/// The host's clock: seconds since 1970, UTC. Called by vCPU threads; never waits.
pub struct WallClock(Box<dyn Fn() -> i64 + Send + Sync>);

impl WallClock {
    /// The clock that this function reads.
    pub fn new(read: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Box::new(read))
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}

/// A real-time clock.
#[derive(Debug)]
pub struct Rtc {
    clock: WallClock,
    chip: Mutex<RtcState>,
}

impl Rtc {
    /// The first of the two ports: which byte, and the byte.
    pub const PORT: Port = Port(0x70);
    /// How many ports it has.
    pub const LEN: u64 = 2;
    /// The number of the byte with the century, for ACPI's tables.
    pub const CENTURY: u8 = CENTURY;

    /// A clock that shows the same as the host's.
    pub fn new(clock: WallClock) -> Self {
        Self { clock, chip: Mutex::new(new_chip()) }
    }

    fn chip(&self) -> MutexGuard<'_, RtcState> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn date(&self, chip: &RtcState) -> Date {
        chip.held.unwrap_or_else(|| Date::at((self.clock.0)().saturating_add(chip.ahead)))
    }

    fn set_date(&self, chip: &mut RtcState, date: Date) {
        match &mut chip.held {
            Some(held) => *held = date,
            None => chip.ahead = date.seconds().saturating_sub((self.clock.0)()),
        }
    }

    fn read_byte(&self, chip: &RtcState) -> u8 {
        let index = chip.index;
        match index {
            REGISTER_A => DIVIDER,
            REGISTER_B => chip.bytes[usize::from(REGISTER_B)] | HOURS_24,
            // Nothing ever interrupts.
            REGISTER_C => 0,
            REGISTER_D => VALID,
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                let date = self.date(chip);
                let part = match index {
                    SECONDS => date.second,
                    MINUTES => date.minute,
                    HOURS => date.hour,
                    WEEKDAY => date.weekday(),
                    DAY => date.day,
                    MONTH => date.month,
                    YEAR => (date.year % 100) as u8,
                    _ => (date.year / 100) as u8,
                };
                if is_binary(chip) { part } else { ((part / 10) << 4) | (part % 10) }
            }
            _ => chip.bytes[usize::from(index)],
        }
    }

    fn write_byte(&self, chip: &mut RtcState, value: u8) {
        let index = chip.index;
        match index {
            REGISTER_A | REGISTER_C | REGISTER_D => {}
            REGISTER_B => {
                let date = self.date(chip);
                chip.bytes[usize::from(REGISTER_B)] = value & B_WRITABLE;
                let held = chip.held.take();
                if value & SET != 0 {
                    chip.held = Some(held.unwrap_or(date));
                } else if let Some(date) = held {
                    self.set_date(chip, date);
                }
            }
            SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY => {
                let part = if is_binary(chip) { value } else { (value >> 4) * 10 + (value & 0xf) };
                let mut date = self.date(chip);
                match index {
                    SECONDS => date.second = part,
                    MINUTES => date.minute = part,
                    HOURS => date.hour = part,
                    DAY => date.day = part,
                    MONTH => date.month = part,
                    YEAR => date.year = date.year / 100 * 100 + u16::from(part) % 100,
                    CENTURY => date.year = u16::from(part) % 100 * 100 + date.year % 100,
                    // The day of the week follows from the date.
                    _ => {}
                }
                self.set_date(chip, date);
            }
            _ => chip.bytes[usize::from(index)] = value,
        }
    }
}

fn new_chip() -> RtcState {
    RtcState { index: 0, ahead: 0, held: None, bytes: [0; LEN] }
}

fn is_binary(chip: &RtcState) -> bool {
    chip.bytes[usize::from(REGISTER_B)] & BINARY != 0
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The address port cannot be read.
        if let (1, [byte]) = (offset, data) {
            *byte = self.read_byte(&self.chip());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [index]) => self.chip().index = index & INDEX_MASK,
            (1, [value]) => self.write_byte(&mut self.chip(), *value),
            _ => {}
        }
    }
}

impl Device for Rtc {
    fn name(&self) -> &str {
        "rtc"
    }
    fn pause(&self, _: Duration) -> Result<(), DeviceError> {
        // It counts on, as a clock with a battery does.
        Ok(())
    }
    fn resume(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&self) -> Result<(), DeviceError> {
        // Its date and memory outlive a reset; only an unfinished setting of the date does not.
        let mut chip = self.chip();
        chip.held = None;
        chip.bytes[usize::from(REGISTER_B)] = 0;
        Ok(())
    }
    fn save(&self) -> Saved {
        Saved::State(self.chip().to_envelope(0))
    }
    fn restore(&self, envelope: &Envelope) -> Result<(), DeviceError> {
        let mut state = RtcState::from_envelope(envelope)
            .map_err(|source| DeviceError::State { device: self.name().to_owned(), source })?;
        state.index &= INDEX_MASK;
        *self.chip() = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    };

    use super::*;

    /// 2026-11-22 19:21:07, a Sunday.
    const NOW: i64 = 1_795_375_267;

    fn clock() -> (Rtc, Arc<AtomicI64>) {
        let now = Arc::new(AtomicI64::new(NOW));
        let hand = Arc::clone(&now);
        (Rtc::new(WallClock::new(move || hand.load(Ordering::Relaxed))), now)
    }

    fn get(rtc: &Rtc, index: u8) -> u8 {
        let mut byte = [0xff];
        rtc.write(0, &[index]);
        rtc.read(1, &mut byte);
        byte[0]
    }

    fn set(rtc: &Rtc, index: u8, value: u8) {
        rtc.write(0, &[index]);
        rtc.write(1, &[value]);
    }

    const DATE: [u8; 8] = [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS];

    fn date(rtc: &Rtc) -> [u8; 8] {
        DATE.map(|index| get(rtc, index))
    }

    #[test]
    fn it_shows_the_hosts_time_in_both_notations() {
        let (rtc, now) = clock();
        assert_eq!(date(&rtc), [0x20, 0x26, 0x11, 0x22, 1, 0x19, 0x21, 0x07]);
        set(&rtc, REGISTER_B, BINARY);
        now.fetch_add(1, Ordering::Relaxed);
        assert_eq!(date(&rtc), [20, 26, 11, 22, 1, 19, 21, 8]);
        assert_eq!([0x0a, 0x0b, 0x0c, 0x0d].map(|index| get(&rtc, index)), [0x26, 0x06, 0, 0x80]);
    }

    #[test]
    fn a_guest_that_sets_it_keeps_its_difference() {
        let (rtc, now) = clock();
        set(&rtc, REGISTER_B, SET);
        now.fetch_add(100, Ordering::Relaxed);
        for (index, value) in DATE.into_iter().zip([0x19, 0x99, 0x12, 0x31, 9, 0x23, 0x59, 0x58]) {
            set(&rtc, index, value);
        }
        assert_eq!(date(&rtc), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x58], "it stands while it is set");
        set(&rtc, REGISTER_B, 0);
        now.fetch_add(3, Ordering::Relaxed);
        assert_eq!(date(&rtc), [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 1]);
    }

    #[test]
    fn what_is_kept_in_it_moves_and_outlives_a_reset() {
        let (rtc, now) = clock();
        set(&rtc, 0x40, 0x5a);
        set(&rtc, SECONDS, 0x30);
        set(&rtc, REGISTER_B, SET | BINARY);
        let (other, _) = clock();
        let Saved::State(envelope) = rtc.save() else { panic!("it has state") };
        other.restore(&envelope).unwrap();
        assert_eq!(other.save(), rtc.save());
        assert_eq!((get(&other, 0x40), get(&other, SECONDS)), (0x5a, 30));
        now.fetch_add(5, Ordering::Relaxed);
        rtc.reset().unwrap();
        assert_eq!((get(&rtc, 0x40), get(&rtc, SECONDS), get(&rtc, REGISTER_B)), (0x5a, 0x35, HOURS_24));
    }

    #[test]
    fn no_byte_and_no_width_upsets_it() {
        let (rtc, _) = clock();
        for index in 0..=255 {
            for value in [0, 0x7f, 0xff] {
                set(&rtc, index, value);
                get(&rtc, index);
                date(&rtc);
            }
        }
        let mut word = [0; 4];
        rtc.read(0, &mut word);
        rtc.write(0, &[1, 2]);
        rtc.write(u64::MAX, &[1]);
    }
}
