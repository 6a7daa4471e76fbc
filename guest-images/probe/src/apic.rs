//! Interrupt controllers: each vCPU's local APIC, and the I/O APIC that devices reach it by (Intel SDM volume 3, chapter 12;
//! 82093AA data sheet).

use crate::gate::{CALL_VECTOR, SPURIOUS_VECTOR, TIMER_VECTOR};
use crate::instructions::{read_register, write_register};

const LOCAL_APIC: usize = 0xfee0_0000;
const ID: usize = LOCAL_APIC + 0x20;
const SPURIOUS: usize = LOCAL_APIC + 0xf0;
const COMMAND: usize = LOCAL_APIC + 0x300;
const COMMAND_DESTINATION: usize = LOCAL_APIC + 0x310;
const TIMER_ENTRY: usize = LOCAL_APIC + 0x320;
const LINT0_ENTRY: usize = LOCAL_APIC + 0x350;
const TIMER_INITIAL: usize = LOCAL_APIC + 0x380;
const TIMER_CURRENT: usize = LOCAL_APIC + 0x390;
const TIMER_DIVIDE: usize = LOCAL_APIC + 0x3e0;

const ENABLED: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0b1011;
const TO_ALL_OTHERS: u32 = 0b11 << 18;
const ASSERT: u32 = 1 << 14;
const INIT: u32 = 0b101 << 8;
const START_UP: u32 = 0b110 << 8;

const IO_APIC: usize = 0xfec0_0000;
const IO_APIC_WINDOW: usize = IO_APIC + 0x10;
const IO_APIC_VERSION: u32 = 1;
const IO_APIC_TABLE: u32 = 0x10;

/// The timer's frequency: KVM's and QEMU's local APICs count nanoseconds.
pub(crate) const TIMER_KHZ: u64 = 1_000_000;

/// How a local timer runs.
pub(crate) enum Timer {
    /// Not at all.
    Off,
    /// Until it has counted down; 0 leaves it stopped.
    OneShot(u32),
}

/// Lets this vCPU take interrupts.
pub(crate) fn prepare() {
    write_register(LINT0_ENTRY, MASKED);
    write_register(SPURIOUS, ENABLED | u32::from(SPURIOUS_VECTOR));
    write_register(TIMER_DIVIDE, DIVIDE_BY_1);
    set_timer(Timer::Off);
}

/// Sets this vCPU's timer.
pub(crate) fn set_timer(timer: Timer) {
    let (entry, initial) = match timer {
        Timer::Off => (MASKED, 0),
        Timer::OneShot(counts) => (0, counts),
    };
    write_register(TIMER_ENTRY, entry | u32::from(TIMER_VECTOR));
    write_register(TIMER_INITIAL, initial);
}

/// Sets this vCPU's one-shot timer again, which is one register: each is an exit.
pub(crate) fn restart_timer(counts: u32) {
    write_register(TIMER_INITIAL, counts);
}

/// What this vCPU's timer has still to count.
pub(crate) fn timer_count() -> u32 {
    read_register(TIMER_CURRENT)
}

/// A time as counts, at least one; as long as the timer can where it is longer than that (4 s).
pub(crate) fn timer_counts(us: u64) -> u32 {
    u32::try_from(us.saturating_mul(TIMER_KHZ / 1000)).unwrap_or(u32::MAX).max(1)
}

/// Starts all other vCPUs at the page with this number, in real mode.
pub(crate) fn start_others(page: u8) {
    write_register(COMMAND, TO_ALL_OTHERS | ASSERT | INIT);
    write_register(COMMAND, TO_ALL_OTHERS | ASSERT | START_UP | u32::from(page));
}

/// Wakes all other vCPUs.
pub(crate) fn call_others() {
    write_register(COMMAND, TO_ALL_OTHERS | ASSERT | u32::from(CALL_VECTOR));
}

/// Wakes the first vCPU.
pub(crate) fn call_first() {
    write_register(COMMAND_DESTINATION, 0);
    write_register(COMMAND, ASSERT | u32::from(CALL_VECTOR));
}

/// Routes a global system interrupt to this vCPU, edge-triggered: ring 0 ends interrupts without knowing the device, and a
/// level that stays would come back at once.
///
/// # Errors
/// The I/O APIC has fewer inputs.
pub(crate) fn route(interrupt: u32, vector: u8) -> Result<(), &'static str> {
    let inputs = (read_io_apic(IO_APIC_VERSION) >> 16 & 0xff) + 1;
    if interrupt >= inputs {
        return Err("its interrupt is beyond the I/O APIC's inputs");
    }
    let entry = IO_APIC_TABLE + 2 * interrupt;
    write_io_apic(entry, MASKED);
    write_io_apic(entry + 1, read_register(ID));
    write_io_apic(entry, u32::from(vector));
    Ok(())
}

/// The address and the data of a message that interrupts this vCPU (Intel SDM volume 3, section 12.11).
pub(crate) fn message_to_here(vector: u8) -> (u32, u32) {
    let id = read_register(ID) >> 24;
    (LOCAL_APIC as u32 | id << 12, u32::from(vector))
}

fn read_io_apic(register: u32) -> u32 {
    write_register(IO_APIC, register);
    read_register(IO_APIC_WINDOW)
}

fn write_io_apic(register: u32, value: u32) {
    write_register(IO_APIC, register);
    write_register(IO_APIC_WINDOW, value);
}
