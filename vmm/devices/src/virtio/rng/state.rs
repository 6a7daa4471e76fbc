//! The saved state of an entropy device: none but its place among the devices. Its queue is the transport's to save.

use drover_saved_state::{PayloadReader, PayloadWriter, SavedState, StateError};

/// Nothing that a driver could tell from a new device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RngState;

impl SavedState for RngState {
    const KIND: &'static str = "virtio-rng";
    const VERSION: u16 = 1;

    fn encode(&self, _payload: &mut PayloadWriter) {}

    fn decode(_version: u16, _payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        Ok(Self)
    }
}
