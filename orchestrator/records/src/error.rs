//! What can be wrong with a stored record.

/// Why a stored record is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are no message.
    #[error("the stored bytes are no record")]
    Undecodable(#[from] prost::DecodeError),
    /// A key of no known kind.
    #[error("'{key}' is no key of this version")]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A field that must be there is not, or holds something that only a newer version knows.
    #[error("{field} is missing, or of a kind that this version does not know")]
    Missing {
        /// Its name in `drover.store.v1`.
        field: &'static str,
    },
    /// A field breaks a rule.
    #[error("{field} is invalid: {reason}")]
    Invalid {
        /// Its name in `drover.store.v1`.
        field: &'static str,
        /// What was found, and what would be valid.
        reason: String,
    },
    /// A field of `drover.placement.v1` breaks a rule.
    #[error("{record} has an invalid field")]
    Placement {
        /// Whose field.
        record: &'static str,
        /// Which, and what would be valid.
        #[source]
        source: drover_placement_messages::MessageError,
    },
    /// A record is stored under a key that is not its own.
    #[error("under '{key}' there is {found}")]
    Misfiled {
        /// Where it was found.
        key: String,
        /// What was found.
        found: String,
    },
}
