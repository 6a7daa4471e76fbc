//! Guarded transactions.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::{Key, Revision, StoreError};

/// Largest value, bytes. The largest record is an operation with the rejections of every node, some tens of KiB.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Most guards plus writes in a transaction.
pub const MAX_TXN_OPS: usize = 512;
/// Most bytes of values in a transaction. Below what an etcd server takes by default (1.5 MiB).
pub const MAX_TXN_BYTES: usize = 5 << 18;

/// A condition that must hold when a transaction is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The key has no value.
    Absent(Key),
    /// The key's value was written at this revision.
    Unchanged(Key, Revision),
}

impl Guard {
    /// The key it looks at.
    pub fn key(&self) -> &Key {
        match self {
            Self::Absent(key) | Self::Unchanged(key, _) => key,
        }
    }

    /// The revision it demands; `None` for an absent key.
    pub fn expected(&self) -> Option<Revision> {
        match self {
            Self::Absent(_) => None,
            Self::Unchanged(_, revision) => Some(*revision),
        }
    }

    /// Whether it holds for a key that is at `current`.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if not.
    pub fn check(&self, current: Option<Revision>) -> Result<(), StoreError> {
        if self.expected() == current {
            return Ok(());
        }
        Err(StoreError::Conflict { key: self.key().clone(), expected: self.expected(), current })
    }
}

/// A change that a transaction makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Gives the key this value.
    Put(Key, Bytes),
    /// Removes the key. Removing an absent key is no error, and no change that a watch would show.
    Delete(Key),
}

impl Write {
    /// The key it changes.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}

/// Guards and writes that take effect together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold.
    pub guards: Vec<Guard>,
    /// Applied in this order; each key at most once.
    pub writes: Vec<Write>,
}

impl Txn {
    /// Checks what every store demands of a transaction.
    ///
    /// # Errors
    /// [`StoreError::InvalidTxn`] if there is nothing to write, if a key is written twice, or if a limit is broken.
    pub fn validate(&self) -> Result<(), StoreError> {
        let refuse = |reason: String| Err(StoreError::InvalidTxn { reason });
        if self.writes.is_empty() {
            return refuse("it writes nothing".to_owned());
        }
        let ops = self.guards.len() + self.writes.len();
        if ops > MAX_TXN_OPS {
            return refuse(format!("{ops} guards and writes, at most {MAX_TXN_OPS} are taken"));
        }
        let mut written = BTreeSet::new();
        let mut total = 0_usize;
        for write in &self.writes {
            if !written.insert(write.key()) {
                return refuse(format!("{} is written twice", write.key()));
            }
            let Write::Put(key, value) = write else { continue };
            if value.len() > MAX_VALUE_BYTES {
                return refuse(format!(
                    "{key} has {} bytes, at most {MAX_VALUE_BYTES} are taken",
                    value.len()
                ));
            }
            total = total.saturating_add(value.len());
        }
        if total > MAX_TXN_BYTES {
            return refuse(format!("{total} bytes of values, at most {MAX_TXN_BYTES} are taken"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).expect("test keys are valid")
    }

    #[track_caller]
    fn refused(txn: &Txn, because: &str) {
        let error = txn.validate().expect_err("must be refused").to_string();
        assert!(error.contains(because), "{error}");
    }

    #[test]
    fn limits_are_named() {
        let put = |text: &str, length: usize| Write::Put(key(text), Bytes::from(vec![0; length]));
        refused(&Txn::default(), "nothing");
        refused(
            &Txn { guards: vec![], writes: vec![put("a", 1), Write::Delete(key("a"))] },
            "a is written twice",
        );
        refused(&Txn { guards: vec![], writes: vec![put("a", MAX_VALUE_BYTES + 1)] }, "1048577 bytes");
        refused(
            &Txn { guards: vec![], writes: vec![put("a", MAX_VALUE_BYTES), put("b", MAX_VALUE_BYTES)] },
            "2097152 bytes of values",
        );
        let many = (0..=MAX_TXN_OPS).map(|n| put(&n.to_string(), 1)).collect();
        refused(&Txn { guards: vec![], writes: many }, "513 guards and writes");
    }

    #[test]
    fn a_guard_holds_only_at_its_own_revision() {
        let guard = Guard::Unchanged(key("a"), Revision::new(3));
        assert!(guard.check(Some(Revision::new(3))).is_ok());
        assert!(guard.check(Some(Revision::new(4))).is_err());
        assert!(guard.check(None).is_err());
        assert!(Guard::Absent(key("a")).check(None).is_ok());
        let error = Guard::Absent(key("a")).check(Some(Revision::new(4))).expect_err("present");
        assert_eq!(error.to_string(), "a is at revision 4, and was expected to be absent");
    }
}
