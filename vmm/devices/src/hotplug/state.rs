//! The saved state of the register block.

use drover_saved_state::{PayloadReader, PayloadWriter, SavedState, StateError};

/// What the guest has not been told of yet, or has not taken note of. A bit for each device number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HotplugState {
    pub(super) changed: u32,
    pub(super) asked: u32,
}

impl SavedState for HotplugState {
    const KIND: &'static str = "pci-hotplug";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.u32(self.changed);
        payload.u32(self.asked);
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        Ok(Self { changed: payload.u32("changed")?, asked: payload.u32("asked")? })
    }
}
