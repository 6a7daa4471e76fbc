//! The saved state of a balloon. What is in it is RAM's to say: it reads as zeros. A session of hints does not survive:
//! the driver is told that it is over.

use drover_saved_state::{PayloadReader, PayloadWriter, SavedState, StateError};

/// The configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BalloonState {
    pub(super) target: u32,
    pub(super) actual: u32,
    pub(super) hint_command: u32,
    pub(super) poison: u32,
}

impl SavedState for BalloonState {
    const KIND: &'static str = "virtio-balloon";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.u32(self.target);
        payload.u32(self.actual);
        payload.u32(self.hint_command);
        payload.u32(self.poison);
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        Ok(Self {
            target: payload.u32("target")?,
            actual: payload.u32("actual")?,
            hint_command: payload.u32("hint_command")?,
            poison: payload.u32("poison")?,
        })
    }
}
