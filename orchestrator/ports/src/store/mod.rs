//! The store: an ordered map from keys to values whose every change has a revision.
//!
//! It is the one place where the cluster's decisions become true. The shape is etcd's, so that the embedded store and
//! an etcd cluster can stand in for each other: transactions guarded by revisions, listing by prefix, and watching
//! from a revision on.

mod error;
mod key;
mod txn;

use std::future::Future;

use bytes::Bytes;

pub use drover_cluster_state::Revision;
pub use error::StoreError;
pub use key::{InvalidKey, Key, MAX_KEY_BYTES};
pub use txn::{Guard, MAX_TXN_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES, Txn, Write};

/// Most entries that one [`Store::list`] returns, whatever was asked for.
///
/// A stored VM is about 1 KiB: a page is a few MiB at worst.
pub const MAX_LIST_ENTRIES: usize = 1024;

/// Most changes that one [`Watch::next`] returns.
pub const MAX_WATCH_BATCH: usize = 1024;

/// A key with its current value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Bytes,
    /// The revision of the transaction that wrote the value: what a [`Guard::Unchanged`] names.
    pub revision: Revision,
}

/// A page of entries in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<Entry>,
    /// The store's revision when the page was read. Pages of one walk may differ in it: a reader that needs all of
    /// them to agree watches from the first page's revision on.
    pub revision: Revision,
    /// Whether entries follow after the last one.
    pub more: bool,
}

/// One key's change in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The transaction's revision.
    pub revision: Revision,
    /// The key.
    pub key: Key,
    /// The value it was given; `None` if it was deleted.
    pub value: Option<Bytes>,
}

/// Consecutive changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// In the order of their revisions, then of the writes in a transaction. Never half of a transaction.
    pub changes: Vec<Change>,
    /// Everything up to and including this revision has now been delivered: where to resume.
    pub revision: Revision,
}

/// A durable, ordered map with guarded transactions.
///
/// **Contract.** Transactions are serialisable: each takes effect at once, wholly or not at all, and the store's
/// revision grows by exactly one. [`commit`](Store::commit) answers after the transaction can no longer be lost, so
/// that what was acknowledged is there after a crash. Readers see only what is durable. All methods may be called
/// from many tasks at once. Dropping a future gives up the answer; a `commit` may still take effect.
pub trait Store: Send + Sync + 'static {
    /// A reader of changes.
    type Watch: Watch;

    /// The current value of `key`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`].
    fn get(&self, key: &Key) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// The entries whose keys start with `prefix` and are greater than `after`, at most `limit` of them and never
    /// more than [`MAX_LIST_ENTRIES`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`].
    fn list(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> impl Future<Output = Result<Listing, StoreError>> + Send;

    /// Applies `txn` if all of its guards hold, and returns its revision once it is durable.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if a guard does not hold, [`StoreError::InvalidTxn`] if the transaction breaks a
    /// limit: nothing has changed. [`StoreError::OutcomeUnknown`]: it may or may not have been applied; the caller
    /// reads again before it decides anything.
    fn commit(&self, txn: Txn) -> impl Future<Output = Result<Revision, StoreError>> + Send;

    /// Follows the changes of keys that start with `prefix`, from right after the revision `after`.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if history no longer reaches back that far: list again, then watch from there.
    /// [`StoreError::FutureRevision`] if the store has never been at `after`.
    fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> impl Future<Output = Result<Self::Watch, StoreError>> + Send;

    /// The revision of the latest durable transaction.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    fn revision(&self) -> impl Future<Output = Result<Revision, StoreError>> + Send;
}

/// A reader of changes. It buffers nothing on the store's side: one that is too slow meets
/// [`StoreError::Compacted`] instead of holding history for ever.
pub trait Watch: Send + 'static {
    /// Waits for the next changes; never returns an empty batch. Cancel safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] once the reader has fallen out of history; [`StoreError::Closed`] once the store
    /// has been closed and all changes were delivered.
    fn next(&mut self) -> impl Future<Output = Result<WatchBatch, StoreError>> + Send;
}
