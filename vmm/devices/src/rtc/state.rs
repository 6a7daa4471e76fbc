//! The saved state of the clock.

use drover_saved_state::{PayloadReader, PayloadWriter, SavedState, StateError};

use super::calendar::Date;

/// Bytes of the chip, registers included.
pub(super) const LEN: usize = 128;

/// How far the guest has set the clock from the host's, and what it keeps in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RtcState {
    pub(super) index: u8,
    /// Seconds.
    pub(super) ahead: i64,
    /// The date while the guest sets it, which holds the clock.
    pub(super) held: Option<Date>,
    pub(super) bytes: [u8; LEN],
}

impl SavedState for RtcState {
    const KIND: &'static str = "rtc";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.u8(self.index);
        payload.u64(self.ahead.cast_unsigned());
        payload.bool(self.held.is_some());
        if let Some(Date { year, month, day, hour, minute, second }) = self.held {
            payload.u16(year);
            [month, day, hour, minute, second].into_iter().for_each(|part| payload.u8(part));
        }
        payload.bytes(&self.bytes);
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        let index = payload.u8("index")?;
        let ahead = payload.u64("ahead")?.cast_signed();
        let held = match payload.bool("is_held")? {
            false => None,
            true => Some(Date {
                year: payload.u16("held.year")?,
                month: payload.u8("held.month")?,
                day: payload.u8("held.day")?,
                hour: payload.u8("held.hour")?,
                minute: payload.u8("held.minute")?,
                second: payload.u8("held.second")?,
            }),
        };
        let bytes = payload.bytes("bytes")?;
        let bytes = bytes.try_into().map_err(|_| StateError::field("bytes", "128 bytes"))?;
        Ok(Self { index, ahead, held, bytes })
    }
}
