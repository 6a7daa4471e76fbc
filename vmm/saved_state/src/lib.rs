//! Saved state: what a device or vCPU hands to its successor in another process, perhaps of another release.
//!
//! Three layers, each with its own file:
//!
//! - [`SavedState`]: a type that can be saved. It names its kind and version and lists its fields by hand, so that
//!   a change of the in-memory type can never change the format silently.
//! - [`PayloadWriter`] and [`PayloadReader`]: its fields as little-endian bytes. The reader never trusts a length,
//!   and [`PayloadReader::finish`] refuses what is left over.
//! - [`Envelope`]: `{kind, instance, version, bytes}` with a checksum. Migration and suspend transport a list of
//!   them and look at nothing but the kind.
//!
//! A format only grows: a new field means a new version, the old one stays readable, and a golden file per version
//! keeps it so. Saved state comes from disk or from a peer and is untrusted (invariant B10): every error is a
//! [`StateError`], and nothing is allocated before its length has been checked against what is there.
//!
//! What this crate does not do: define any device's state (that is each device's `state.rs`), or encrypt.
#![forbid(unsafe_code)]

mod envelope;
mod payload;

use std::fmt;

pub use envelope::{ENVELOPES_MAX, Envelope, Kind, PAYLOAD_BYTES_MAX, decode_list, encode_list};
pub use payload::{PayloadReader, PayloadWriter};

/// A type that can be saved and restored.
pub trait SavedState: Sized {
    /// What the envelope says this is: lower-case letters, digits and `-`, at most 32 bytes. Never changes.
    const KIND: &'static str;
    /// The version [`encode`](SavedState::encode) writes.
    const VERSION: u16;

    /// Writes every field, in the order of the current version.
    fn encode(&self, payload: &mut PayloadWriter);

    /// Reads the fields of `version`, which is at least 1 and at most [`VERSION`](SavedState::VERSION).
    ///
    /// Validates what can be validated without the machine; the device checks the rest when it is restored. Does
    /// not call [`PayloadReader::finish`]: [`from_envelope`](SavedState::from_envelope) does.
    fn decode(version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError>;

    /// Saves this as the state of the `instance`-th device of its kind.
    fn to_envelope(&self, instance: u16) -> Envelope {
        let mut payload = PayloadWriter::new();
        self.encode(&mut payload);
        Envelope::new(Kind::of::<Self>(), instance, Self::VERSION, payload.into_bytes())
    }

    /// Restores from an envelope of this kind, demanding that every byte of it is understood.
    fn from_envelope(envelope: &Envelope) -> Result<Self, StateError> {
        if envelope.kind().as_str() != Self::KIND {
            return Err(StateError::Kind { expected: Self::KIND, found: envelope.kind().clone() });
        }
        if !(1..=Self::VERSION).contains(&envelope.version()) {
            return Err(StateError::Version {
                kind: Self::KIND,
                found: envelope.version(),
                newest: Self::VERSION,
            });
        }
        let mut payload = PayloadReader::new(envelope.payload());
        let state = Self::decode(envelope.version(), &mut payload)?;
        payload.finish()?;
        Ok(state)
    }
}

/// Saved state that cannot be used. Nothing has been restored from it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The bytes are not an envelope.
    #[error("not a saved state: {0}")]
    Malformed(Malformed),
    /// Written for something else.
    #[error("expected the saved state of '{expected}', found that of '{found}'")]
    Kind {
        /// What was to be restored.
        expected: &'static str,
        /// What the envelope holds.
        found: Kind,
    },
    /// Written by a newer release (or version 0, which never was).
    #[error("the saved state of '{kind}' has version {found}; this release reads versions 1 to {newest}")]
    Version {
        /// What was to be restored.
        kind: &'static str,
        /// The envelope's version.
        found: u16,
        /// The newest version known.
        newest: u16,
    },
    /// The payload ends inside a field.
    #[error("the saved state ends inside field '{field}'")]
    Truncated {
        /// The field being read.
        field: &'static str,
    },
    /// Bytes are left after the last field: they would be lost.
    #[error("the saved state has {0} bytes that this release does not understand")]
    Trailing(usize),
    /// A field holds what no device could have saved.
    #[error("the saved state's field '{field}' is not valid: {reason}")]
    Field {
        /// The field.
        field: &'static str,
        /// What would be valid.
        reason: &'static str,
    },
}

impl StateError {
    /// A field that holds what no device could have saved. `reason` says what would be valid.
    pub fn field(field: &'static str, reason: &'static str) -> Self {
        Self::Field { field, reason }
    }
}

/// How the bytes fail to be an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// They end before the envelope does.
    Truncated,
    /// They do not start with the magic number.
    Magic,
    /// The layout is from a release that is not known here.
    Layout(u16),
    /// The kind is empty, too long, or has characters that no kind has.
    Kind,
    /// The payload is longer than [`PAYLOAD_BYTES_MAX`].
    TooLong,
    /// There are more than [`ENVELOPES_MAX`] envelopes.
    TooMany,
    /// The checksum does not fit the content.
    Checksum,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => write!(f, "it is cut short"),
            Self::Magic => write!(f, "the magic number is missing"),
            Self::Layout(layout) => write!(f, "layout {layout} is not known"),
            Self::Kind => write!(f, "the kind is not a name"),
            Self::TooLong => write!(f, "the payload is longer than {PAYLOAD_BYTES_MAX} bytes"),
            Self::TooMany => write!(f, "there are more than {ENVELOPES_MAX} parts"),
            Self::Checksum => write!(f, "the checksum is wrong"),
        }
    }
}
