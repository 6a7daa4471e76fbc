//! The saved state of a socket device: the guest's address. Its connections end with the machine.

use drover_saved_state::{PayloadReader, PayloadWriter, SavedState, StateError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VsockState {
    pub(super) cid: u64,
}

impl SavedState for VsockState {
    const KIND: &'static str = "virtio-vsock";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.u64(self.cid);
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        Ok(Self { cid: payload.u64("cid")? })
    }
}
