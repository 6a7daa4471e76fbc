//! The [`Store`] port over redb: one file on a local disk, one process.
//!
//! ```text
//! commit ──► bounded queue ──► writer thread: one redb transaction, one fsync per group ──► answers
//! get, list, watch ──► blocking pool: read transactions on redb's snapshots
//! ```
//!
//! Transactions that arrive while the disk is busy are committed together: each has its own guards and its own
//! revision, and all of them share one fsync. Nothing is answered before that.
//!
//! History (what [`Store::watch`] reads) is kept in the same file, bounded by [`Options`], so that watchers resume
//! over a restart of the process. Watchers hold no buffer: each reads from its own place in history.
//!
//! After a failed commit redb refuses to write: so does this store, with [`StoreError::Unavailable`]. The process
//! should end and start again, which repairs the file.
#![forbid(unsafe_code)]

mod database;
mod history;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use drover_ports::{
    Change, Entry, Key, Listing, Revision, Store, StoreError, Txn, Watch, WatchBatch,
    store::{MAX_LIST_ENTRIES, MAX_WATCH_BATCH},
};
use redb::Database;
use tokio::sync::watch;

use crate::{database::Open, writer::Writer};

/// How much history is kept: whatever limit is met first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Transactions.
    pub history_transactions: u64,
    /// Bytes of keys and values in them. The newest transaction is always kept.
    pub history_bytes: u64,
}

impl Default for Options {
    /// A restarting reader is away for seconds and a busy cluster writes some hundreds of transactions a second, of
    /// about 1 KiB each.
    fn default() -> Self {
        Self { history_transactions: 10_000, history_bytes: 64 << 20 }
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or this one, has the store open.
    #[error("the store {path} is in use")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a version that this one does not understand.
    #[error("the store {path} has format {found}, this version reads format {}", database::FORMAT)]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The file is no store, or damaged.
    #[error("the store {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What redb says.
        #[source]
        source: Box<redb::Error>,
    },
    /// The file system refused something.
    #[error("creating the store {path} failed")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// A store in one file. Clones are the same store; the file is closed when the last is dropped.
#[derive(Clone, Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
}

struct Shared {
    // Declared first, so dropped first: the writer finishes and lets go of the database before it is closed.
    writer: Writer,
    database: Arc<Open>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("latest", &*self.writer.latest().borrow()).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store at `path`, or creates it; repairs it after a crash. Blocks on the disk.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: &Path, options: Options) -> Result<Self, OpenError> {
        let (database, revision) = database::open(path)?;
        let database = Arc::new(database);
        let writer = Writer::spawn(Arc::clone(&database), revision, options)
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        Ok(Self { shared: Arc::new(Shared { writer, database }) })
    }

    /// What tells that the file is closed. A task that was given up may have left a read under way behind it: whoever
    /// opens the file again waits for this first.
    pub fn closed(&self) -> Closed {
        Closed(self.shared.database.closed())
    }
}

/// Tells when the file of an [`EmbeddedStore`] is closed. It does not keep it open.
#[derive(Debug)]
pub struct Closed(watch::Receiver<()>);

impl Closed {
    /// Waits until nobody has the store and no read of it is under way. Cancel safe.
    pub async fn wait(mut self) {
        // Nothing is ever sent: the sender goes with the database.
        while self.0.changed().await.is_ok() {}
    }
}

/// Runs `read` where it may wait for the disk.
async fn blocking<T: Send + 'static>(
    database: Arc<Open>,
    read: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let task = tokio::task::spawn_blocking(move || read(database.get()));
    task.await.unwrap_or_else(|source| Err(StoreError::Unavailable { source: source.into() }))
}

impl Store for EmbeddedStore {
    type Watch = EmbeddedWatch;

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let key = key.clone();
        blocking(Arc::clone(&self.shared.database), move |database| database::get(database, key)).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Listing, StoreError> {
        let (prefix, after, limit) = (prefix.to_owned(), after.cloned(), limit.min(MAX_LIST_ENTRIES));
        blocking(Arc::clone(&self.shared.database), move |database| {
            database::list(database, &prefix, after.as_ref(), limit)
        })
        .await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        txn.validate()?;
        self.shared.writer.commit(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<EmbeddedWatch, StoreError> {
        // Subscribed before the check: a commit in between wakes the first wait.
        let latest = self.shared.writer.latest();
        blocking(Arc::clone(&self.shared.database), move |database| {
            history::check_resumable(database, after)
        })
        .await?;
        let database = Arc::downgrade(&self.shared.database);
        Ok(EmbeddedWatch { database, prefix: prefix.to_owned(), cursor: after, latest })
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(*self.shared.writer.latest().borrow())
    }
}

/// A reader of an [`EmbeddedStore`]'s changes. It does not keep the store open.
#[derive(Debug)]
pub struct EmbeddedWatch {
    database: Weak<Open>,
    prefix: String,
    /// Everything up to here has been delivered, or did not match.
    cursor: Revision,
    latest: watch::Receiver<Revision>,
}

impl Watch for EmbeddedWatch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            let latest = *self.latest.borrow_and_update();
            if self.cursor < latest {
                let database = self.database.upgrade().ok_or(StoreError::Closed)?;
                let (prefix, cursor) = (self.prefix.clone(), self.cursor);
                let (changes, revision) = blocking(database, move |database| {
                    history::read(database, &prefix, cursor, MAX_WATCH_BATCH)
                })
                .await?;
                // Nothing awaits from here to the return: a dropped call has not moved the cursor.
                self.cursor = revision;
                if !changes.is_empty() {
                    return Ok(WatchBatch { changes, revision });
                }
                continue;
            }
            self.latest.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }
}

/// A change as it is stored.
fn stored_change(revision: u64, key: &str, value: Option<&[u8]>) -> Result<Change, StoreError> {
    Ok(Change {
        revision: Revision::new(revision),
        key: stored_key(key)?,
        value: value.map(bytes::Bytes::copy_from_slice),
    })
}

/// A key that was valid when it was written.
fn stored_key(text: &str) -> Result<Key, StoreError> {
    Key::new(text).map_err(|error| StoreError::Corrupt { what: error.to_string() })
}
