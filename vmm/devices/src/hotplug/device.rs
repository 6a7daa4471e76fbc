//! The register block behind ACPI's methods for slots (ACPI 6.5, 6.3: `_EJ0`, and 5.6.6: notifications).
//!
//! ```text
//!           write                                            what the guest's ACPI does with it
//! 0  changed  1s are taken note of   devices to look at      Notify(slot, 1): device check
//! 4  asked    1s are taken note of   devices asked back      Notify(slot, 3): ejection request
//! 8  eject    1s are let go                                  _EJ0
//! ```
//!
//! Registers of four bytes, a bit for each device number of the bus; an interrupt line says that there is something in the
//! first two. A device that comes is on the bus before the guest hears of it. One that is asked back goes from the bus when
//! the guest ejects it, and only then: an ejection that nobody has asked for is not obeyed, since whoever owns the device
//! would have to be asked first.
#![allow(clippy::disallowed_methods, reason = "a wait with an end")]

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use drover_bus::{BusDevice, IrqLine, Port};
use drover_saved_state::{Envelope, SavedState};

use super::state::HotplugState;
use crate::{Device, DeviceError, PciAddress, PciRoot, Saved};

/// Slots of a PCI bus that devices come to and go from.
#[derive(Debug)]
pub struct Hotplug {
    bus: Arc<PciRoot>,
    line: Arc<dyn IrqLine>,
    slots: Mutex<Slots>,
    let_go: Condvar,
}

/// A bit for each device number.
#[derive(Clone, Copy, Debug, Default)]
struct Slots {
    /// What the guest's registers show.
    shown: HotplugState,
    /// Asked back, and not let go yet.
    wanted_back: u32,
    /// The guest has let go, and nobody has taken note yet.
    ejected: u32,
}

impl Hotplug {
    /// Where the registers are.
    pub const PORT: Port = Port(0x610);
    /// How many ports they take.
    pub const LEN: u64 = 12;
    /// Where the register of changed slots is, from [`PORT`](Self::PORT) on.
    pub const CHANGED: u64 = 0;
    /// The register of slots that are asked back.
    pub const ASKED: u64 = 4;
    /// The register of slots that are let go.
    pub const EJECT: u64 = 8;

    /// The slots of `bus`; `line` tells the guest to look at them.
    pub fn new(bus: Arc<PciRoot>, line: Arc<dyn IrqLine>) -> Self {
        Self { bus, line, slots: Mutex::default(), let_go: Condvar::new() }
    }

    /// Tells the guest that there is something else in this slot than there was: a device, or none.
    pub fn announce(&self, at: PciAddress) {
        let mut slots = self.slots();
        slots.forget(bit(at));
        slots.shown.changed |= bit(at);
        drop(slots);
        self.ring();
    }

    /// Asks the guest for the device in this slot. Asking again reminds it.
    pub fn ask_back(&self, at: PciAddress) {
        let mut slots = self.slots();
        if slots.ejected & bit(at) == 0 {
            slots.shown.asked |= bit(at);
            slots.wanted_back |= bit(at);
        }
        drop(slots);
        self.ring();
    }

    /// Leaves the device with the guest. False: the guest has let it go already.
    pub fn withdraw(&self, at: PciAddress) -> bool {
        let mut slots = self.slots();
        slots.shown.asked &= !bit(at);
        slots.wanted_back &= !bit(at);
        slots.ejected & bit(at) == 0
    }

    /// Takes note that the device in this slot is gone.
    pub fn forget(&self, at: PciAddress) {
        self.slots().forget(bit(at));
    }

    /// Waits until the guest has let go of a device that was asked back. False: it has not, in this time.
    pub fn wait_let_go(&self, at: PciAddress, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut slots = self.slots();
        loop {
            if slots.ejected & bit(at) != 0 {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            slots = self.let_go.wait_timeout(slots, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails only where the counter is full, and then it rings already.
    fn ring(&self) {
        let _ = self.line.pulse();
    }

    fn eject(&self, bits: u32) {
        let mut slots = self.slots();
        let bits = bits & slots.wanted_back;
        slots.forget(bits);
        slots.ejected |= bits;
        drop(slots);
        for number in 0..PciAddress::DEVICES {
            if bits & 1 << number != 0
                && let Some(at) = PciAddress::device(number)
            {
                self.bus.remove(at);
            }
        }
        self.let_go.notify_all();
    }
}

impl Slots {
    fn forget(&mut self, bits: u32) {
        self.shown.changed &= !bits;
        self.shown.asked &= !bits;
        self.wanted_back &= !bits;
        self.ejected &= !bits;
    }
}

fn bit(at: PciAddress) -> u32 {
    1 << at.number()
}

impl BusDevice for Hotplug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if data.len() != 4 {
            return;
        }
        let shown = self.slots().shown;
        match offset {
            Self::CHANGED => data.copy_from_slice(&shown.changed.to_le_bytes()),
            Self::ASKED => data.copy_from_slice(&shown.asked.to_le_bytes()),
            _ => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(bits) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else { return };
        match offset {
            Self::CHANGED => self.slots().shown.changed &= !bits,
            Self::ASKED => self.slots().shown.asked &= !bits,
            Self::EJECT => self.eject(bits),
            _ => {}
        }
    }
}

impl Device for Hotplug {
    fn name(&self) -> &str {
        "hot-plug registers"
    }

    fn pause(&self, _limit: Duration) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&self) -> Result<(), DeviceError> {
        // An interrupt may have been lost with the machine that this one stands in for.
        if self.slots().shown != HotplugState::default() {
            self.ring();
        }
        Ok(())
    }

    /// A guest that starts anew looks at every slot by itself.
    fn reset(&self) -> Result<(), DeviceError> {
        self.slots().shown = HotplugState::default();
        Ok(())
    }

    /// Whoever waits for a device waits here: where the guest goes, nobody does.
    fn save(&self) -> Saved {
        Saved::State(self.slots().shown.to_envelope(0))
    }

    fn restore(&self, envelope: &Envelope) -> Result<(), DeviceError> {
        let shown = HotplugState::from_envelope(envelope)
            .map_err(|source| DeviceError::State { device: self.name().to_owned(), source })?;
        *self.slots() = Slots { shown, ..Slots::default() };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::atomic::{AtomicU32, Ordering},
    };

    use drover_units::Gpa;

    use super::*;
    use crate::PciFunction;

    #[derive(Debug, Default)]
    struct Line(AtomicU32);

    impl IrqLine for Line {
        fn pulse(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    #[derive(Debug)]
    struct Function;

    impl PciFunction for Function {
        fn read_config(&self, _offset: u8, data: &mut [u8]) {
            data.fill(0x5a);
        }
        fn write_config(&self, _offset: u8, _data: &[u8]) {}
        fn read_memory(&self, _address: Gpa, _data: &mut [u8]) -> bool {
            false
        }
        fn write_memory(&self, _address: Gpa, _data: &[u8]) -> bool {
            false
        }
    }

    struct Subject {
        line: Arc<Line>,
        bus: Arc<PciRoot>,
        hotplug: Hotplug,
    }

    const NOW: Duration = Duration::ZERO;

    fn subject() -> Subject {
        let (line, bus) = (Arc::new(Line::default()), Arc::new(PciRoot::new()));
        let hotplug = Hotplug::new(Arc::clone(&bus), line.clone());
        Subject { line, bus, hotplug }
    }

    fn at(number: u8) -> PciAddress {
        PciAddress::device(number).unwrap()
    }

    impl Subject {
        fn with_device(number: u8) -> Self {
            let subject = subject();
            subject.bus.insert(at(number), Arc::new(Function)).unwrap();
            subject.hotplug.announce(at(number));
            subject
        }

        fn registers(&self) -> [u32; 3] {
            [0, 4, 8].map(|offset| {
                let mut data = [0xff; 4];
                self.hotplug.read(offset, &mut data);
                u32::from_le_bytes(data)
            })
        }

        fn write(&self, offset: u64, bits: u32) {
            self.hotplug.write(offset, &bits.to_le_bytes());
        }

        fn is_on_the_bus(&self, number: u8) -> bool {
            let mut data = [0xff; 4];
            self.bus.ecam().read(u64::from(number) << 15, &mut data);
            data != [0xff; 4]
        }
    }

    #[test]
    fn a_device_that_comes_is_told_once() {
        let subject = Subject::with_device(3);
        assert_eq!(subject.registers(), [1 << 3, 0, 0]);
        assert_eq!(subject.line.0.load(Ordering::SeqCst), 1);
        assert!(subject.is_on_the_bus(3));
        subject.write(0, 1 << 3);
        assert_eq!(subject.registers(), [0; 3]);
    }

    #[test]
    fn a_device_that_is_asked_back_goes_when_the_guest_lets_go() {
        let subject = Subject::with_device(3);
        subject.hotplug.ask_back(at(3));
        assert_eq!(subject.registers(), [1 << 3, 1 << 3, 0]);
        subject.write(4, 1 << 3);
        assert!(!subject.hotplug.wait_let_go(at(3), NOW));
        assert!(subject.is_on_the_bus(3));
        subject.write(8, 1 << 3);
        assert!(!subject.is_on_the_bus(3));
        assert!(subject.hotplug.wait_let_go(at(3), NOW));
        assert!(!subject.hotplug.withdraw(at(3)), "it is late");
        assert_eq!(subject.registers(), [0; 3]);
    }

    #[test]
    fn an_ejection_that_nobody_asked_for_changes_nothing() {
        let subject = Subject::with_device(3);
        subject.write(8, u32::MAX);
        assert!(subject.is_on_the_bus(3) && subject.is_on_the_bus(0));
        subject.hotplug.ask_back(at(3));
        assert!(subject.hotplug.withdraw(at(3)));
        subject.write(8, u32::MAX);
        assert!(subject.is_on_the_bus(3));
        assert!(!subject.hotplug.wait_let_go(at(3), NOW));
    }

    #[test]
    fn accesses_of_other_widths_and_places_change_nothing() {
        let subject = Subject::with_device(3);
        subject.hotplug.ask_back(at(3));
        for (offset, data) in [(8, &[8][..]), (8, &[8, 0]), (9, &[8, 0, 0, 0]), (8, &[8; 8]), (12, &[8; 4])] {
            subject.hotplug.write(offset, data);
        }
        assert!(subject.is_on_the_bus(3));
        let mut byte = [0xff];
        subject.hotplug.read(0, &mut byte);
        assert_eq!(byte, [0xff]);
    }

    #[test]
    fn what_the_guest_has_not_noted_moves_with_it_and_rings_again() {
        let subject = Subject::with_device(3);
        subject.hotplug.ask_back(at(5));
        let Saved::State(state) = subject.hotplug.save() else { panic!("it has state") };
        let other = Subject::with_device(5);
        other.hotplug.restore(&state).unwrap();
        assert_eq!(other.registers(), [1 << 3, 1 << 5, 0]);
        other.hotplug.resume().unwrap();
        assert_eq!(other.line.0.load(Ordering::SeqCst), 2);
        // Nobody here waits for it.
        other.write(8, 1 << 5);
        assert!(other.is_on_the_bus(5));
        other.hotplug.reset().unwrap();
        assert_eq!(other.registers(), [0; 3]);
    }
}
