//! The saved state of a serial port.

use drover_saved_state::{PayloadReader, PayloadWriter, SavedState, StateError};
use vm_superio::SerialState;

use super::Serial;

/// Size of the receive FIFO, bytes (16550A; vm-superio refuses more).
const FIFO_BYTES_MAX: usize = 64;

/// Registers, and input that waits for room in the FIFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SerialPortState {
    pub(super) registers: SerialState,
    pub(super) waiting: Vec<u8>,
}

impl SavedState for SerialPortState {
    const KIND: &'static str = "serial";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        let SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer,
        } = &self.registers;
        payload.u8(*baud_divisor_low);
        payload.u8(*baud_divisor_high);
        payload.u8(*interrupt_enable);
        payload.u8(*interrupt_identification);
        payload.u8(*line_control);
        payload.u8(*line_status);
        payload.u8(*modem_control);
        payload.u8(*modem_status);
        payload.u8(*scratch);
        payload.bytes(in_buffer);
        payload.bytes(&self.waiting);
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        let registers = SerialState {
            baud_divisor_low: payload.u8("baud_divisor_low")?,
            baud_divisor_high: payload.u8("baud_divisor_high")?,
            interrupt_enable: payload.u8("interrupt_enable")?,
            interrupt_identification: payload.u8("interrupt_identification")?,
            line_control: payload.u8("line_control")?,
            line_status: payload.u8("line_status")?,
            modem_control: payload.u8("modem_control")?,
            modem_status: payload.u8("modem_status")?,
            scratch: payload.u8("scratch")?,
            in_buffer: bounded(payload, "in_buffer", FIFO_BYTES_MAX)?,
        };
        Ok(Self { registers, waiting: bounded(payload, "waiting", Serial::INPUT_BYTES_MAX)? })
    }
}

fn bounded(payload: &mut PayloadReader<'_>, field: &'static str, max: usize) -> Result<Vec<u8>, StateError> {
    let bytes = payload.bytes(field)?;
    if bytes.len() > max {
        return Err(StateError::field(field, "fewer bytes"));
    }
    Ok(bytes.to_vec())
}
