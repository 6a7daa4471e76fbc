//! The fields of a saved state as bytes: little-endian, in order, without names or padding.

use crate::StateError;

/// Collects the fields of a saved state.
#[derive(Debug, Default)]
pub struct PayloadWriter {
    bytes: Vec<u8>,
}

impl PayloadWriter {
    /// Starts without fields.
    pub fn new() -> Self {
        Self::default()
    }
    /// Appends a byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }
    /// Appends a truth value: one byte, 0 or 1.
    pub fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }
    /// Appends 16 bits.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// Appends 32 bits.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// Appends 64 bits.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }
    /// Appends bytes of any number, with their length as 32 bits before them.
    ///
    /// # Panics
    /// With 4 GiB or more, which is beyond what an envelope holds.
    pub fn bytes(&mut self, value: &[u8]) {
        self.u32(u32::try_from(value.len()).expect("an envelope holds less than 4 GiB"));
        self.bytes.extend_from_slice(value);
    }
    /// Appends the number of elements that follow, as 32 bits.
    ///
    /// # Panics
    /// With 2^32 elements or more, which is beyond what an envelope holds.
    pub fn count(&mut self, elements: usize) {
        self.u32(u32::try_from(elements).expect("an envelope holds fewer than 2^32 elements"));
    }
    /// All fields.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes the fields of a saved state apart. Every method names the field, for the error.
#[derive(Debug)]
pub struct PayloadReader<'a> {
    bytes: &'a [u8],
}

impl<'a> PayloadReader<'a> {
    /// Starts at the first field.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Takes a byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, StateError> {
        self.array(field).map(u8::from_le_bytes)
    }
    /// Takes a truth value; a byte other than 0 and 1 is an error.
    pub fn bool(&mut self, field: &'static str) -> Result<bool, StateError> {
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(StateError::field(field, "0 or 1")),
        }
    }
    /// Takes 16 bits.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, StateError> {
        self.array(field).map(u16::from_le_bytes)
    }
    /// Takes 32 bits.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, StateError> {
        self.array(field).map(u32::from_le_bytes)
    }
    /// Takes 64 bits.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, StateError> {
        self.array(field).map(u64::from_le_bytes)
    }
    /// Takes what [`PayloadWriter::bytes`] wrote, without a copy.
    pub fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], StateError> {
        let length = self.u32(field)? as usize;
        let (front, back) = self.bytes.split_at_checked(length).ok_or(StateError::Truncated { field })?;
        self.bytes = back;
        Ok(front)
    }
    /// Takes what [`PayloadWriter::count`] wrote. More than `max` is an error, so that the caller may allocate.
    pub fn count(&mut self, field: &'static str, max: usize) -> Result<usize, StateError> {
        let count = self.u32(field)? as usize;
        if count > max {
            return Err(StateError::field(field, "fewer elements"));
        }
        Ok(count)
    }

    /// Demands that every byte has been taken.
    pub fn finish(self) -> Result<(), StateError> {
        match self.bytes.len() {
            0 => Ok(()),
            left => Err(StateError::Trailing(left)),
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], StateError> {
        let (front, back) = self.bytes.split_first_chunk().ok_or(StateError::Truncated { field })?;
        self.bytes = back;
        Ok(*front)
    }
}
