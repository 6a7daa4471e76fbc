//! The command port: writing 0xFE pulses the reset line; reading says that the controller is idle.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use drover_bus::{BusDevice, Port};
use drover_saved_state::{Envelope, StateError};
use vm_superio::{I8042Device, Trigger};

use crate::{Device, DeviceError, DeviceEvent, DeviceEvents, Saved};

/// vm-superio counts registers from the data port, 0x60; the command port is the fifth.
const COMMAND_OFFSET: u8 = 4;

/// The keyboard controller's command port.
#[derive(Debug)]
pub struct I8042 {
    controller: Mutex<Controller>,
}

struct Controller(I8042Device<ResetLine>);

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("I8042Device")
    }
}

struct ResetLine(Arc<dyn DeviceEvents>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.notify(DeviceEvent::ResetRequested);
        Ok(())
    }
}

impl I8042 {
    /// Where the device belongs on the port bus. Port 0x61 beside it is the interrupt controller's (PIT speaker).
    pub const PORT: Port = Port(0x64);
    /// How many ports it has.
    pub const LEN: u64 = 1;

    /// A controller that tells `events` when the guest asks for a reset.
    pub fn new(events: Arc<dyn DeviceEvents>) -> Self {
        Self { controller: Mutex::new(Controller(I8042Device::new(ResetLine(events)))) }
    }
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            let mut controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
            *byte = controller.0.read(COMMAND_OFFSET);
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let [byte] = data {
            let mut controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(()) = controller.0.write(COMMAND_OFFSET, *byte);
        }
    }
}

impl Device for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }
    fn pause(&self, _: Duration) -> Result<(), DeviceError> {
        Ok(())
    }
    fn resume(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn save(&self) -> Saved {
        // Each command is complete in itself: there is nothing between two of them to remember.
        Saved::Stateless
    }
    fn restore(&self, envelope: &Envelope) -> Result<(), DeviceError> {
        let source = StateError::Kind { expected: "nothing", found: envelope.kind().clone() };
        Err(DeviceError::State { device: self.name().to_owned(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<DeviceEvent>>);

    impl DeviceEvents for Recorder {
        fn notify(&self, event: DeviceEvent) {
            self.0.lock().unwrap().push(event);
        }
    }

    #[test]
    fn only_the_reset_command_resets() {
        let events = Arc::new(Recorder::default());
        let device = I8042::new(events.clone());
        for command in [0x00, 0x60, 0xff, 0xd1] {
            device.write(0, &[command]);
        }
        device.write(0, &[0xfe, 0xfe]);
        assert_eq!(*events.0.lock().unwrap(), []);
        device.write(0, &[0xfe]);
        assert_eq!(*events.0.lock().unwrap(), [DeviceEvent::ResetRequested]);
    }

    #[test]
    fn the_controller_reads_as_idle() {
        let mut status = [0xff];
        I8042::new(Arc::new(Recorder::default())).read(0, &mut status);
        assert_eq!(status[0] & 0b11, 0, "bit 1 set would make a guest wait before its reset command");
    }
}
