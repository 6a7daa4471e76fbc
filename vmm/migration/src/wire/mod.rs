//! The migration stream: framed, versioned, bounded, checked.
//!
//! ```text
//!  source                                   target
//!    Hello{versions, epochs, shape}  --->            compares shapes
//!                                    <---  HelloAck
//!    Pages*  RoundEnd{1, ledger}     --->            applies, compares ledgers
//!                                    <---  RoundAck{1, ledger}
//!    ... more rounds ...
//!    Pages*  State*  Handover{ledger}--->            applies, compares, restores
//!                                    <---  Ready{ledger}
//!    Commit{epoch}                   --->            takes the volumes, runs
//!                                    <---  Resumed{epoch}
//!  either side, before Commit: Abort{reason}
//! ```
//!
//! Every frame begins with [`HEADER_LEN`] bytes, little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `DRVM` |
//! | 4 | 2 | version of the payload's encoding |
//! | 6 | 2 | [`FrameKind`] |
//! | 8 | 8 | sequence number, from 0, per direction |
//! | 16 | 4 | length of the payload |
//! | 20 | 4 | CRC-32C (Castagnoli, RFC 3720 B.4) of bytes 0..20 and the payload |
//!
//! The sequence number makes a lost, repeated or reordered frame an error at once, whatever carried it. The CRC finds
//! faults, not forgeries: those are the transport's (TLS).
//!
//! Decoding is total: any bytes give a message or a [`WireError`], and a header makes its reader allocate no more than
//! its kind's limit, which is little over 1 MiB for the largest. The encoding of version 1 is frozen in `testdata/wire_v1.golden`.

mod bytes;
mod frame;
mod message;
mod pages;
#[cfg(test)]
mod tests;

pub use frame::{Frame, FrameEncoder, FrameKind, FrameReader, HEADER_LEN, Ledger, ReadError, Stamp};
pub use message::{
    AbortCode, AbortReason, Hello, MAX_DEVICES, MAX_FEATURE_WORDS, MAX_RAM_RANGES, MAX_TEXT, Message,
};
pub(crate) use message::{encode_shape, shape_from_bytes};
pub use pages::{MAX_DATA_PAGES, MAX_RUNS, PagesBuilder, PagesView, RunKind};

/// The oldest encoding that this build speaks.
pub const VERSION_MIN: u16 = 1;
/// The newest encoding that this build speaks.
pub const VERSION_MAX: u16 = 1;

/// Bytes that are not what the protocol allows here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The peer speaks something else.
    #[error("the peer does not speak the migration protocol (a frame begins with {0:02x?})")]
    Magic([u8; 4]),
    /// An encoding that this build does not know.
    #[error("frame version {0} is not one of {VERSION_MIN}..={VERSION_MAX}")]
    Version(u16),
    /// A frame kind that this build does not know.
    #[error("frame kind {0} is not known")]
    Kind(u16),
    /// A frame is missing, repeated or out of order.
    #[error("frame {got} arrived where {expected} was due")]
    Sequence {
        /// The number that was due.
        expected: u64,
        /// The number that arrived.
        got: u64,
    },
    /// A payload longer than its kind allows.
    #[error("a {kind:?} frame of {length} bytes is longer than the {max} allowed")]
    TooLong {
        /// The frame's kind.
        kind: FrameKind,
        /// What its header announces.
        length: u32,
        /// What is allowed.
        max: u32,
    },
    /// The bytes were changed on the way.
    #[error("a {0:?} frame is damaged: its checksum does not match")]
    Checksum(FrameKind),
    /// The payload ends before its last field.
    #[error("a {kind:?} frame ends within '{field}'")]
    Short {
        /// The frame's kind.
        kind: FrameKind,
        /// The field that is cut.
        field: &'static str,
    },
    /// The payload goes on after its last field.
    #[error("a {kind:?} frame has {extra} bytes after its last field")]
    Trailing {
        /// The frame's kind.
        kind: FrameKind,
        /// How many.
        extra: usize,
    },
    /// A field has a value that it cannot have.
    #[error("field '{field}' of a {kind:?} frame is not valid")]
    Field {
        /// The frame's kind.
        kind: FrameKind,
        /// The field.
        field: &'static str,
    },
}
