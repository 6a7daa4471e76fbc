//! The file: its tables, how it is opened, how its entries are read.

use std::{
    fs::{self, File},
    io,
    ops::Bound,
    path::Path,
};

use bytes::Bytes;
use drover_ports::{Entry, Key, Listing, Revision, StoreError};
use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase as _, ReadableTable, TableDefinition,
};
use tokio::sync::watch;

use crate::{OpenError, stored_key};

/// What is written into [`META`] as `format`. Grows when a version changes the tables.
pub(crate) const FORMAT: u64 = 1;

/// redb's page cache. The whole state of a large cluster is some MiB.
const CACHE_BYTES: usize = 32 << 20;

/// Key to (revision of its last write, value).
pub(crate) const ENTRIES: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("entries");
/// Where a change stands: its revision, and its number within the transaction.
pub(crate) type Place = (u64, u32);
/// A change: its key, and its new value or none.
pub(crate) type StoredChange = (&'static str, Option<&'static [u8]>);
/// The latest changes.
pub(crate) const HISTORY: TableDefinition<'_, Place, StoredChange> = TableDefinition::new("history");
/// Numbers about the store: the `META_*` keys.
pub(crate) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// See [`FORMAT`].
const META_FORMAT: &str = "format";
/// The latest revision.
pub(crate) const META_REVISION: &str = "revision";
/// The smallest revision that a watch can resume from.
pub(crate) const META_OLDEST: &str = "oldest";
/// Bytes of keys and values in [`HISTORY`].
pub(crate) const META_HISTORY_BYTES: &str = "history_bytes";

/// An open store, and what tells that it no longer is.
pub(crate) struct Open {
    // Declared first, so dropped first: closed before anybody hears of it.
    database: Database,
    closing: watch::Sender<()>,
}

impl Open {
    pub(crate) fn new(database: Database) -> Self {
        Self { database, closing: watch::Sender::new(()) }
    }

    pub(crate) fn get(&self) -> &Database {
        &self.database
    }

    /// Its sender goes once the file is closed.
    pub(crate) fn closed(&self) -> watch::Receiver<()> {
        self.closing.subscribe()
    }
}

/// Opens or creates the store.
pub(crate) fn open(path: &Path) -> Result<(Open, Revision), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    if !path.try_exists().map_err(io)? {
        create(path)?;
    }
    let database = builder().open(path).map_err(|error| open_error(path, error))?;
    let read = || -> Result<(Option<u64>, u64), redb::Error> {
        let meta = database.begin_read()?.open_table(META)?;
        Ok((number(&meta, META_FORMAT)?, number(&meta, META_REVISION)?.unwrap_or(0)))
    };
    let (format, revision) = read().map_err(|error| unreadable(path, error))?;
    match format {
        Some(FORMAT) => Ok((Open::new(database), Revision::new(revision))),
        other => Err(OpenError::Format { path: path.to_owned(), found: other.unwrap_or(0) }),
    }
}

/// Creates the file under another name and renames it, so that a crash leaves either no store or a whole one.
fn create(path: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let unfinished = path.with_extension("unfinished");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let database = builder().create(&unfinished).map_err(|error| open_error(path, error))?;
    let initialise = || -> Result<(), redb::Error> {
        let txn = database.begin_write()?;
        txn.open_table(ENTRIES)?;
        txn.open_table(HISTORY)?;
        txn.open_table(META)?.insert(META_FORMAT, FORMAT)?;
        Ok(txn.commit()?)
    };
    initialise().map_err(|error| unreadable(path, error))?;
    drop(database);
    fs::rename(&unfinished, path).map_err(io)?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.to_owned() },
        other => unreadable(path, other.into()),
    }
}

fn unreadable(path: &Path, source: redb::Error) -> OpenError {
    OpenError::Unreadable { path: path.to_owned(), source: Box::new(source) }
}

/// A number from [`META`].
pub(crate) fn number(
    meta: &impl ReadableTable<&'static str, u64>,
    key: &str,
) -> Result<Option<u64>, redb::StorageError> {
    Ok(meta.get(key)?.map(|value| value.value()))
}

/// The error of a failed read.
pub(crate) fn unavailable(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Unavailable { source: Box::new(error.into()) }
}

/// Starts a read transaction.
pub(crate) fn begin_read(database: &Database) -> Result<ReadTransaction, StoreError> {
    database.begin_read().map_err(unavailable)
}

/// The entry of `key`.
pub(crate) fn get(database: &Database, key: Key) -> Result<Option<Entry>, StoreError> {
    let entries = begin_read(database)?.open_table(ENTRIES).map_err(unavailable)?;
    let Some(found) = entries.get(key.as_str()).map_err(unavailable)? else { return Ok(None) };
    let (revision, value) = found.value();
    Ok(Some(Entry { key, value: Bytes::copy_from_slice(value), revision: Revision::new(revision) }))
}

/// A page of entries.
pub(crate) fn list(
    database: &Database,
    prefix: &str,
    after: Option<&Key>,
    limit: usize,
) -> Result<Listing, StoreError> {
    let txn = begin_read(database)?;
    let entries = txn.open_table(ENTRIES).map_err(unavailable)?;
    let meta = txn.open_table(META).map_err(unavailable)?;
    let start = match after {
        Some(after) if after.as_str() >= prefix => Bound::Excluded(after.as_str()),
        _ => Bound::Included(prefix),
    };
    let mut listing = Listing {
        entries: Vec::new(),
        revision: Revision::new(number(&meta, META_REVISION).map_err(unavailable)?.unwrap_or(0)),
        more: false,
    };
    for row in entries.range::<&str>((start, Bound::Unbounded)).map_err(unavailable)? {
        let (key, value) = row.map_err(unavailable)?;
        if !key.value().starts_with(prefix) {
            break;
        }
        if listing.entries.len() == limit {
            listing.more = true;
            break;
        }
        let (revision, value) = value.value();
        listing.entries.push(Entry {
            key: stored_key(key.value())?,
            value: Bytes::copy_from_slice(value),
            revision: Revision::new(revision),
        });
    }
    Ok(listing)
}
