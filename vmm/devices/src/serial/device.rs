//! Registers by vm-superio; around them a lock, the interrupt line, the sink, and input that waits for room.

use std::{
    collections::VecDeque,
    fmt, io,
    io::Write,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drover_bus::{BusDevice, IrqLine, Port};
use drover_saved_state::{Envelope, SavedState};
use vm_superio::{SerialState, Trigger, serial::NoEvents};

use super::state::SerialPortState;
use crate::{Device, DeviceError, Saved};

/// Where the guest's output goes.
///
/// Called by the vCPU that wrote the byte, so it returns at once: it drops what it cannot take, and says so on its
/// own terms. Usually one byte at a time.
pub trait ConsoleSink: fmt::Debug + Send {
    /// Takes output.
    fn write(&mut self, bytes: &[u8]);
}

/// A serial port.
#[derive(Debug)]
pub struct Serial {
    port: Mutex<SerialPort>,
}

struct SerialPort {
    uart: Uart,
    /// Input that the FIFO had no room for.
    waiting: VecDeque<u8>,
}

type Uart = vm_superio::Serial<Line, NoEvents, Output>;

struct Line(Arc<dyn IrqLine>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.pulse()
    }
}

struct Output(Box<dyn ConsoleSink>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

impl Serial {
    /// COM1.
    pub const PORT: Port = Port(0x3f8);
    /// How many ports it has.
    pub const LEN: u64 = 8;
    /// COM1's interrupt.
    pub const GSI: u32 = 4;
    /// Most input that waits for the guest, bytes. Enough for a pasted line or two; a person sees the rest refused.
    pub const INPUT_BYTES_MAX: usize = 4096;

    /// A port that interrupts by `line` and writes to `sink`.
    pub fn new(line: Arc<dyn IrqLine>, sink: Box<dyn ConsoleSink>) -> Self {
        let uart = Uart::new(Line(line), Output(sink));
        Self { port: Mutex::new(SerialPort { uart, waiting: VecDeque::new() }) }
    }

    /// Types on the console. Returns how many bytes were taken; the guest has not read enough to make room for the
    /// rest. May be called at any time from any thread.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut port = self.port();
        let room = Self::INPUT_BYTES_MAX.saturating_sub(port.waiting.len());
        let taken = &bytes[..bytes.len().min(room)];
        port.waiting.extend(taken);
        port.fill_fifo();
        taken.len()
    }

    fn set_registers(&self, registers: &SerialState) -> Result<(), DeviceError> {
        let mut port = self.port();
        // vm-superio makes a port from a state and cannot change one, so line and sink move over.
        let line = Line(Arc::clone(&port.uart.interrupt_evt().0));
        let sink = mem::replace(&mut port.uart.writer_mut().0, Box::new(Nowhere));
        port.uart = Uart::from_state(registers, line, NoEvents, Output(sink)).map_err(|error| {
            DeviceError::Failed { device: self.name().to_owned(), reason: error.to_string() }
        })?;
        Ok(())
    }

    fn port(&self) -> MutexGuard<'_, SerialPort> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SerialPort {
    /// Moves waiting input to the FIFO as far as it has room.
    fn fill_fifo(&mut self) {
        let (front, _) = self.waiting.as_slices();
        let count = front.len().min(self.uart.fifo_capacity());
        if count == 0 {
            return;
        }
        let taken = match self.uart.enqueue_raw_bytes(&front[..count]) {
            // None in loop-back mode, where the guest talks to itself.
            Ok(taken) => taken,
            // They are in the FIFO all the same: the guest finds them when it next looks.
            Err(error) => {
                tracing::error!(%error, "cannot interrupt the guest for console input");
                count
            }
        };
        self.waiting.drain(..taken);
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            let mut port = self.port();
            *byte = port.uart.read(offset);
            port.fill_fifo();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset))
            && let Err(error) = self.port().uart.write(offset, *byte)
        {
            tracing::debug!(?error, "the serial port could not do all of a write");
        }
    }
}

impl Device for Serial {
    fn name(&self) -> &str {
        "serial"
    }

    fn pause(&self, _: Duration) -> Result<(), DeviceError> {
        // Does nothing on its own: it moves when a vCPU or a person does. Input while paused waits in the FIFO.
        Ok(())
    }

    fn resume(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&self) -> Result<(), DeviceError> {
        self.set_registers(&SerialState::default())
    }

    fn save(&self) -> Saved {
        let port = self.port();
        let state =
            SerialPortState { registers: port.uart.state(), waiting: port.waiting.iter().copied().collect() };
        Saved::State(state.to_envelope(0))
    }

    fn restore(&self, envelope: &Envelope) -> Result<(), DeviceError> {
        let device = || self.name().to_owned();
        let state = SerialPortState::from_envelope(envelope)
            .map_err(|source| DeviceError::State { device: device(), source })?;
        self.set_registers(&state.registers)?;
        self.port().waiting = state.waiting.into();
        Ok(())
    }
}

/// In place of a sink that is on its way to another port.
#[derive(Debug)]
struct Nowhere;

impl ConsoleSink for Nowhere {
    fn write(&mut self, _bytes: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;

    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl ConsoleSink for Screen {
        fn write(&mut self, bytes: &[u8]) {
            self.0.lock().unwrap().extend(bytes);
        }
    }

    #[derive(Debug, Default)]
    struct Pulses(AtomicUsize);

    impl IrqLine for Pulses {
        fn pulse(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    fn serial() -> (Serial, Screen, Arc<Pulses>) {
        let (screen, pulses) = (Screen::default(), Arc::new(Pulses::default()));
        (Serial::new(pulses.clone(), Box::new(screen.clone())), screen, pulses)
    }

    fn read(serial: &Serial, offset: u64) -> u8 {
        let mut byte = [0];
        serial.read(offset, &mut byte);
        byte[0]
    }

    /// What a guest reads until the port has no more.
    fn read_all(serial: &Serial) -> Vec<u8> {
        let mut bytes = Vec::new();
        while read(serial, LINE_STATUS) & 1 != 0 {
            bytes.push(read(serial, DATA));
        }
        bytes
    }

    #[test]
    fn output_reaches_the_sink() {
        let (serial, screen, _) = serial();
        for byte in b"hello" {
            serial.write(DATA, &[*byte]);
        }
        // Neither wider than the register nor outside the port.
        serial.write(DATA, b"xx");
        serial.write(1 << 32, b"x");
        assert_eq!(*screen.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn input_beyond_the_fifo_waits_and_beyond_the_limit_is_refused() {
        let (serial, _, pulses) = serial();
        serial.write(INTERRUPT_ENABLE, &[1]);
        let typed: Vec<u8> = (0..10_000_u32).map(|n| n as u8).collect();
        let taken = serial.input(&typed);
        assert!((Serial::INPUT_BYTES_MAX..typed.len()).contains(&taken), "{taken}");
        assert_eq!(read_all(&serial), typed[..taken]);
        assert!(pulses.0.load(Ordering::Relaxed) > 0);
        assert_eq!(serial.input(b"again"), 5);
    }

    #[test]
    fn a_port_goes_on_elsewhere_with_what_it_had() {
        let (source, _, _) = serial();
        source.write(INTERRUPT_ENABLE, &[1]);
        let typed = [b'k'; 100];
        source.input(&typed);
        let Saved::State(envelope) = source.save() else { panic!("a serial port has state") };
        let (target, screen, _) = serial();
        target.restore(&envelope).unwrap();
        assert_eq!(target.save(), Saved::State(envelope));
        assert_eq!(read_all(&target), typed);
        target.write(DATA, b"!");
        assert_eq!(*screen.0.lock().unwrap(), b"!", "the sink is the target's own");
    }
}
