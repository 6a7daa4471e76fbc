//! The bounded history of changes, in the file.

use drover_ports::{Change, Revision, StoreError};
use redb::{Database, ReadTransaction, Table};

use crate::{
    Options,
    database::{
        HISTORY, META, META_HISTORY_BYTES, META_OLDEST, META_REVISION, Place, StoredChange, begin_read,
        number, unavailable,
    },
    stored_change,
};

/// Whether a watch can start right after `after`.
pub(crate) fn check_resumable(database: &Database, after: Revision) -> Result<(), StoreError> {
    bounds(&begin_read(database)?, after).map(drop)
}

/// The latest revision, if `after` is within history.
fn bounds(txn: &ReadTransaction, after: Revision) -> Result<Revision, StoreError> {
    let meta = txn.open_table(META).map_err(unavailable)?;
    let revision = |key| -> Result<Revision, StoreError> {
        Ok(Revision::new(number(&meta, key).map_err(unavailable)?.unwrap_or(0)))
    };
    let (current, oldest) = (revision(META_REVISION)?, revision(META_OLDEST)?);
    if after > current {
        return Err(StoreError::FutureRevision { after, current });
    }
    if after < oldest {
        return Err(StoreError::Compacted { after, oldest });
    }
    Ok(current)
}

/// The changes of matching keys after `after`: whole transactions until there are at least `limit` changes, and the
/// revision up to which that is all.
pub(crate) fn read(
    database: &Database,
    prefix: &str,
    after: Revision,
    limit: usize,
) -> Result<(Vec<Change>, Revision), StoreError> {
    let txn = begin_read(database)?;
    let current = bounds(&txn, after)?;
    let history = txn.open_table(HISTORY).map_err(unavailable)?;
    let mut changes: Vec<Change> = Vec::new();
    for row in history.range((after.get() + 1, 0)..).map_err(unavailable)? {
        let (place, change) = row.map_err(unavailable)?;
        let ((revision, _), (key, value)) = (place.value(), change.value());
        if changes.len() >= limit
            && let Some(last) = changes.last()
            && last.revision.get() < revision
        {
            let delivered = last.revision;
            return Ok((changes, delivered));
        }
        if key.starts_with(prefix) {
            changes.push(stored_change(revision, key, value)?);
        }
    }
    Ok((changes, current))
}

/// History as the writer sees it, within one redb transaction.
pub(crate) struct Recorder<'txn> {
    rows: Table<'txn, Place, StoredChange>,
    meta: Table<'txn, &'static str, u64>,
    revision: u64,
    oldest: u64,
    bytes: u64,
}

impl<'txn> Recorder<'txn> {
    /// Opens the tables.
    pub(crate) fn open(txn: &'txn redb::WriteTransaction) -> Result<Self, redb::Error> {
        let (rows, meta) = (txn.open_table(HISTORY)?, txn.open_table(META)?);
        let [revision, oldest, bytes] = [
            number(&meta, META_REVISION)?.unwrap_or(0),
            number(&meta, META_OLDEST)?.unwrap_or(0),
            number(&meta, META_HISTORY_BYTES)?.unwrap_or(0),
        ];
        Ok(Self { rows, meta, revision, oldest, bytes })
    }

    /// The revision of the transaction that is being recorded.
    pub(crate) fn next_revision(&self) -> u64 {
        self.revision + 1
    }

    /// Records one change of that transaction.
    pub(crate) fn record(&mut self, index: u32, key: &str, value: Option<&[u8]>) -> Result<(), redb::Error> {
        self.rows.insert((self.next_revision(), index), (key, value))?;
        self.bytes += row_bytes(key, value);
        Ok(())
    }

    /// Ends that transaction.
    pub(crate) fn finish(&mut self) -> Revision {
        self.revision += 1;
        Revision::new(self.revision)
    }

    /// Drops what exceeds the limits and writes the numbers down.
    pub(crate) fn close(mut self, options: Options) -> Result<(), redb::Error> {
        while self.oldest + 1 < self.revision
            && (self.revision - self.oldest > options.history_transactions
                || self.bytes > options.history_bytes)
        {
            self.oldest += 1;
            self.drop_transaction(self.oldest)?;
        }
        self.meta.insert(META_REVISION, self.revision)?;
        self.meta.insert(META_OLDEST, self.oldest)?;
        self.meta.insert(META_HISTORY_BYTES, self.bytes)?;
        Ok(())
    }

    fn drop_transaction(&mut self, revision: u64) -> Result<(), redb::Error> {
        for row in self.rows.extract_from_if(..=(revision, u32::MAX), |_, _| true)? {
            let (_, change) = row?;
            let (key, value) = change.value();
            self.bytes = self.bytes.saturating_sub(row_bytes(key, value));
        }
        Ok(())
    }
}

fn row_bytes(key: &str, value: Option<&[u8]>) -> u64 {
    (key.len() + value.map_or(0, <[u8]>::len)) as u64
}
