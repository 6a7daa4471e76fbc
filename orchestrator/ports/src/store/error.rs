//! What can go wrong with a store.

use super::{Key, Revision};

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A guard did not hold: somebody else changed the key first. Read again and decide again.
    #[error("{key} is {}, and was expected to be {}", Shown(.current), Shown(.expected))]
    Conflict {
        /// The guarded key.
        key: Key,
        /// What the guard demanded: a revision, or `None` for an absent key.
        expected: Option<Revision>,
        /// What the key is at.
        current: Option<Revision>,
    },
    /// The transaction breaks a limit.
    #[error("the transaction was refused: {reason}")]
    InvalidTxn {
        /// Which limit, and by how much.
        reason: String,
    },
    /// The changes after `after` have been dropped.
    #[error("history after revision {after} is gone: the oldest that can be resumed from is {oldest}")]
    Compacted {
        /// What the reader asked for.
        after: Revision,
        /// The smallest revision that can still be resumed from.
        oldest: Revision,
    },
    /// The store has never been at this revision: the reader comes from another store, or from a lost future.
    #[error("revision {after} is in the future: the store is at {current}")]
    FutureRevision {
        /// What the reader asked for.
        after: Revision,
        /// Where the store is.
        current: Revision,
    },
    /// The transaction may or may not have been applied.
    #[error("it is not known whether the transaction took effect")]
    OutcomeUnknown {
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store cannot be reached or read.
    #[error("the store is not available")]
    Unavailable {
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store has been closed.
    #[error("the store has been closed")]
    Closed,
    /// What is stored is not what a store writes.
    #[error("the store is damaged: {what}")]
    Corrupt {
        /// Where, and what was found.
        what: String,
    },
}

/// A key's place in history, for people.
struct Shown<'a>(&'a Option<Revision>);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(revision) => write!(f, "at revision {revision}"),
            None => f.write_str("absent"),
        }
    }
}
