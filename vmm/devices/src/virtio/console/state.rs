//! The saved state of a console: what the guest has not read yet, and what it believes of its terminal.

use drover_saved_state::{PayloadReader, PayloadWriter, SavedState, StateError};

use super::{ConsoleSize, device::ConsolePort};

/// What is not in the queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConsoleState {
    pub(super) size: ConsoleSize,
    /// The guest's last word came by this console.
    pub(super) spoke: bool,
    /// Input that the guest has no room for.
    pub(super) waiting: Vec<u8>,
}

impl SavedState for ConsoleState {
    const KIND: &'static str = "virtio-console";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.u16(self.size.columns);
        payload.u16(self.size.rows);
        payload.bool(self.spoke);
        payload.bytes(&self.waiting);
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        let size = ConsoleSize { columns: payload.u16("columns")?, rows: payload.u16("rows")? };
        let spoke = payload.bool("spoke")?;
        let waiting = payload.bytes("waiting")?;
        if waiting.len() > ConsolePort::INPUT_BYTES_MAX {
            return Err(StateError::field("waiting", "fewer bytes"));
        }
        Ok(Self { size, spoke, waiting: waiting.to_vec() })
    }
}
