//! Fields out of and into a payload.

use super::{FrameKind, WireError};

/// Reads a payload field by field; every read says which field it is for, so that an error can.
pub(super) struct Fields<'a> {
    kind: FrameKind,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(kind: FrameKind, payload: &'a [u8]) -> Self {
        Self { kind, rest: payload }
    }

    pub(super) fn take(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) =
            self.rest.split_at_checked(length).ok_or(WireError::Short { kind: self.kind, field })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let (taken, rest) =
            self.rest.split_first_chunk::<N>().ok_or(WireError::Short { kind: self.kind, field })?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, WireError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(super) fn u128(&mut self, field: &'static str) -> Result<u128, WireError> {
        self.array(field).map(u128::from_le_bytes)
    }

    /// A count that `max` bounds.
    pub(super) fn count(&mut self, field: &'static str, max: usize) -> Result<usize, WireError> {
        let count = self.u16(field)?.into();
        if count > max { Err(self.invalid(field)) } else { Ok(count) }
    }

    /// UTF-8 text of at most `max` bytes.
    pub(super) fn text(&mut self, field: &'static str, max: usize) -> Result<String, WireError> {
        let length = self.count(field, max)?;
        let bytes = self.take(field, length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| self.invalid(field))?;
        Ok(text.to_owned())
    }

    pub(super) fn invalid(&self, field: &'static str) -> WireError {
        WireError::Field { kind: self.kind, field }
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn end(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(WireError::Trailing { kind: self.kind, extra }),
        }
    }
}

/// Writes text as [`Fields::text`] reads it, cut at a character boundary where it is longer than `max`.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str, max: usize) {
    let mut length = text.len().min(max);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    let count = u16::try_from(length).expect("limits of texts are below 64 KiB");
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&text.as_bytes()[..length]);
}
