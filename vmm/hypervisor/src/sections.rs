//! The byte form of saved states: sections, each a number (u16), a length (u32) and that many bytes, little-endian.
//!
//! Numbers are never used again for something else. The envelope around it all carries kind, version and checksum
//! (drover-saved-state).

use std::collections::BTreeMap;

use crate::{
    StateError,
    plain::{self, Plain},
};

/// Bytes before each section's own.
const HEADER: usize = 6;

/// Appends sections.
#[derive(Debug, Default)]
pub(crate) struct SectionWriter {
    bytes: Vec<u8>,
}

impl SectionWriter {
    pub(crate) fn put(&mut self, id: u16, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).expect("a section holds a few structures, never 4 GiB");
        self.bytes.extend_from_slice(&id.to_le_bytes());
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn put_plain<T: Plain>(&mut self, id: u16, value: &T) {
        self.put(id, &plain::to_bytes(value));
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// The sections of a state, to be taken out one by one.
#[derive(Debug)]
pub(crate) struct SectionReader<'a> {
    sections: BTreeMap<u16, &'a [u8]>,
}

impl<'a> SectionReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Result<Self, StateError> {
        let mut sections = BTreeMap::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let truncated = StateError::Truncated { at: bytes.len() - rest.len() };
            let (header, behind) = rest.split_first_chunk::<HEADER>().ok_or(truncated.clone())?;
            let id = u16::from_le_bytes([header[0], header[1]]);
            let len = u32::from_le_bytes([header[2], header[3], header[4], header[5]]);
            let (section, behind) =
                usize::try_from(len).ok().and_then(|len| behind.split_at_checked(len)).ok_or(truncated)?;
            if sections.insert(id, section).is_some() {
                return Err(StateError::RepeatedSection { id });
            }
            rest = behind;
        }
        Ok(Self { sections })
    }

    pub(crate) fn take_optional(&mut self, id: u16) -> Option<&'a [u8]> {
        self.sections.remove(&id)
    }

    pub(crate) fn take(&mut self, id: u16) -> Result<&'a [u8], StateError> {
        self.take_optional(id).ok_or(StateError::MissingSection { id })
    }

    pub(crate) fn take_plain<T: Plain>(&mut self, id: u16) -> Result<T, StateError> {
        let bytes = self.take(id)?;
        plain::from_bytes(bytes).ok_or(StateError::SectionLength {
            id,
            found: bytes.len(),
            expected: "the size of its KVM structure",
        })
    }

    pub(crate) fn take_u64s<const N: usize>(&mut self, id: u16) -> Result<[u64; N], StateError> {
        let bytes = self.take(id)?;
        let (words, rest) = bytes.as_chunks::<8>();
        let words = <&[[u8; 8]; N]>::try_from(words).ok().filter(|_| rest.is_empty());
        words.map(|words| words.map(u64::from_le_bytes)).ok_or(StateError::SectionLength {
            id,
            found: bytes.len(),
            expected: "a fixed number of 64-bit words",
        })
    }

    /// Everything has been taken, or there is a section nobody knows.
    pub(crate) fn finish(self) -> Result<(), StateError> {
        match self.sections.keys().next() {
            Some(&id) => Err(StateError::UnknownSection { id }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(bytes: &[u8], expect: StateError) {
        let result = SectionReader::new(bytes).and_then(SectionReader::finish);
        assert_eq!(result, Err(expect));
    }

    #[test]
    fn malformed_sections_are_named() {
        check(&[1], StateError::Truncated { at: 0 });
        check(&[1, 0, 0xff, 0xff, 0xff, 0xff, 1], StateError::Truncated { at: 0 });
        check(&[1, 0, 1, 0, 0, 0, 9, 2], StateError::Truncated { at: 7 });
        check(&[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0], StateError::RepeatedSection { id: 1 });
        check(&[7, 0, 0, 0, 0, 0], StateError::UnknownSection { id: 7 });
    }

    proptest! {
        #[test]
        fn sections_come_back_as_written(sections in prop::collection::btree_map(any::<u16>(), prop::collection::vec(any::<u8>(), 0..40), 0..8)) {
            let mut writer = SectionWriter::default();
            for (&id, bytes) in &sections {
                writer.put(id, bytes);
            }
            let bytes = writer.finish();
            let mut reader = SectionReader::new(&bytes).unwrap();
            for (&id, expect) in &sections {
                prop_assert_eq!(reader.take(id).unwrap(), expect.as_slice());
            }
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn any_bytes_are_sections_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = SectionReader::new(&bytes);
        }
    }
}
