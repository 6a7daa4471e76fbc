//! The Store port over redb.
