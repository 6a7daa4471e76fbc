//! A store in memory.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::watch;

use crate::store::{
    Change, Entry, Key, Listing, MAX_LIST_ENTRIES, MAX_WATCH_BATCH, Revision, Store, StoreError, Txn, Watch,
    WatchBatch, Write,
};

/// A [`Store`] that lives as long as its last clone. Clones are the same store.
#[derive(Clone, Debug)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The latest revision; wakes watchers.
    latest: watch::Sender<Revision>,
    /// How many transactions history keeps.
    history_limit: usize,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Key, (Bytes, Revision)>,
    revision: Revision,
    /// One element per transaction, the newest last: it is at `revision`.
    history: VecDeque<Vec<Change>>,
}

impl State {
    /// The smallest revision that a watch can resume from.
    fn oldest(&self) -> Revision {
        Revision::new(self.revision.get() - self.history.len() as u64)
    }

    fn check_resumable(&self, after: Revision) -> Result<(), StoreError> {
        if after > self.revision {
            return Err(StoreError::FutureRevision { after, current: self.revision });
        }
        if after < self.oldest() {
            return Err(StoreError::Compacted { after, oldest: self.oldest() });
        }
        Ok(())
    }
}

impl MemoryStore {
    /// An empty store that keeps the changes of the last `history_limit` transactions.
    pub fn new(history_limit: usize) -> Self {
        let (latest, _) = watch::channel(Revision::ZERO);
        Self { shared: Arc::new(Shared { state: Mutex::default(), latest, history_limit }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a failing test already: what it left is as good as any.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    /// A store with plenty of history for a test.
    fn default() -> Self {
        Self::new(10_000)
    }
}

impl Store for MemoryStore {
    type Watch = MemoryWatch;

    async fn get(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let state = self.state();
        let entry = state.entries.get(key);
        Ok(entry.map(|(value, revision)| Entry {
            key: key.clone(),
            value: value.clone(),
            revision: *revision,
        }))
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Listing, StoreError> {
        let state = self.state();
        let limit = limit.min(MAX_LIST_ENTRIES);
        let mut entries: Vec<Entry> = state
            .entries
            .iter()
            .filter(|(key, _)| key.as_str().starts_with(prefix) && after.is_none_or(|after| *key > after))
            .take(limit + 1)
            .map(|(key, (value, revision))| Entry {
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
            })
            .collect();
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok(Listing { entries, revision: state.revision, more })
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        txn.validate()?;
        let mut state = self.state();
        for guard in &txn.guards {
            guard.check(state.entries.get(guard.key()).map(|(_, revision)| *revision))?;
        }
        let revision = state.revision.next();
        let mut changes = Vec::with_capacity(txn.writes.len());
        for write in txn.writes {
            match write {
                Write::Put(key, value) => {
                    state.entries.insert(key.clone(), (value.clone(), revision));
                    changes.push(Change { revision, key, value: Some(value) });
                }
                Write::Delete(key) => {
                    if state.entries.remove(&key).is_some() {
                        changes.push(Change { revision, key, value: None });
                    }
                }
            }
        }
        state.revision = revision;
        state.history.push_back(changes);
        if state.history.len() > self.shared.history_limit {
            state.history.pop_front();
        }
        self.shared.latest.send_replace(revision);
        Ok(revision)
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<MemoryWatch, StoreError> {
        self.state().check_resumable(after)?;
        let latest = self.shared.latest.subscribe();
        Ok(MemoryWatch { store: self.clone(), prefix: prefix.to_owned(), cursor: after, latest })
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.state().revision)
    }
}

/// A reader of a [`MemoryStore`]'s changes.
#[derive(Debug)]
pub struct MemoryWatch {
    store: MemoryStore,
    prefix: String,
    /// Everything up to here has been delivered, or did not match.
    cursor: Revision,
    latest: watch::Receiver<Revision>,
}

impl MemoryWatch {
    /// Moves the cursor on until there is something to deliver.
    fn advance(&mut self) -> Result<Option<WatchBatch>, StoreError> {
        let state = self.store.state();
        state.check_resumable(self.cursor)?;
        let skip = usize::try_from(self.cursor.get() - state.oldest().get()).unwrap_or(usize::MAX);
        let mut changes = Vec::new();
        for transaction in state.history.iter().skip(skip) {
            changes.extend(
                transaction.iter().filter(|change| change.key.as_str().starts_with(&self.prefix)).cloned(),
            );
            self.cursor = self.cursor.next();
            if changes.len() >= MAX_WATCH_BATCH {
                break;
            }
        }
        Ok(if changes.is_empty() { None } else { Some(WatchBatch { changes, revision: self.cursor }) })
    }
}

impl Watch for MemoryWatch {
    async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            self.latest.mark_unchanged();
            if let Some(batch) = self.advance()? {
                return Ok(batch);
            }
            self.latest.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{self, StoreFixture};

    struct Fixture;

    impl StoreFixture for Fixture {
        type Store = MemoryStore;

        async fn open(&mut self, history_limit: usize) -> MemoryStore {
            MemoryStore::new(history_limit)
        }

        async fn reopen(&mut self, store: MemoryStore) -> MemoryStore {
            store
        }
    }

    #[tokio::test]
    async fn the_fake_store_conforms() {
        conformance::run(&mut Fixture).await;
    }
}
