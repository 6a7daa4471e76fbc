//! Sleep control, sleep status and reset register of hardware-reduced ACPI (ACPI 6.5, 4.8.3.6 and 4.8.3.7).

use std::{sync::Arc, time::Duration};

use drover_bus::{BusDevice, Port};
use drover_saved_state::{Envelope, StateError};

use crate::{Device, DeviceError, DeviceEvent, DeviceEvents, Saved};

/// Sleep control: enter the sleep state now.
const SLEEP_ENABLE: u8 = 1 << 5;
/// Sleep control: which state.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// Three registers of one byte each. Without state: a machine that has acted on one does not run any more.
#[derive(Debug)]
pub struct Power {
    events: Arc<dyn DeviceEvents>,
}

impl Power {
    /// Where the registers are: sleep control, sleep status, reset.
    pub const PORT: Port = Port(0x600);
    /// How many ports they take.
    pub const LEN: u64 = 3;
    /// The sleep control register.
    pub const SLEEP_CONTROL: Port = Port(0x600);
    /// The sleep status register.
    pub const SLEEP_STATUS: Port = Port(0x601);
    /// The reset register.
    pub const RESET: Port = Port(0x602);
    /// The sleep type that turns the machine off, for the `_S5` object.
    pub const SLEEP_TYPE_OFF: u8 = 5;
    /// The value that resets.
    pub const RESET_VALUE: u8 = 1;

    /// Registers that tell `events` what the guest asks for.
    pub fn new(events: Arc<dyn DeviceEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for Power {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // No state that anything could wake from has been entered.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [value] = data else { return };
        match offset {
            0 if value & SLEEP_ENABLE != 0
                && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == Self::SLEEP_TYPE_OFF =>
            {
                self.events.notify(DeviceEvent::ShutdownRequested);
            }
            2 if *value == Self::RESET_VALUE => self.events.notify(DeviceEvent::ResetRequested),
            _ => {}
        }
    }
}

impl Device for Power {
    fn name(&self) -> &str {
        "power"
    }
    fn pause(&self, _limit: Duration) -> Result<(), DeviceError> {
        Ok(())
    }
    fn resume(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn save(&self) -> Saved {
        Saved::Stateless
    }
    fn restore(&self, envelope: &Envelope) -> Result<(), DeviceError> {
        let source = StateError::Kind { expected: "nothing", found: envelope.kind().clone() };
        Err(DeviceError::State { device: self.name().to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Events(Mutex<Vec<DeviceEvent>>);

    impl DeviceEvents for Events {
        fn notify(&self, event: DeviceEvent) {
            self.0.lock().unwrap().push(event);
        }
    }

    fn check(writes: &[(u64, &[u8])], expect: &[DeviceEvent]) {
        let events = Arc::new(Events::default());
        let power = Power::new(events.clone());
        writes.iter().for_each(|(offset, data)| power.write(*offset, data));
        assert_eq!(*events.0.lock().unwrap(), expect, "{writes:?}");
    }

    #[test]
    fn off_and_reset_are_told_and_nothing_else() {
        check(&[(0, &[0x34])], &[DeviceEvent::ShutdownRequested]);
        check(&[(2, &[1])], &[DeviceEvent::ResetRequested]);
        // Enable without the type, the type without enable, another type, another value, other widths, the status.
        check(&[(0, &[0x20]), (0, &[0x14]), (0, &[0x24]), (2, &[2]), (0, &[0x34, 0]), (1, &[0x34])], &[]);
    }
}
