//! Cluster state's transactions as the store's, and the store's changes as cluster state's.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use drover_cluster_state::{self as cluster, ClusterEvent, Expect};
use drover_ports::{Change, Guard, Key, Revision, Store, StoreError, Txn, Write};
use drover_reconcile::CommitOutcome;
use drover_records::{RecordError, StoredKey, Value};

use crate::event_log::{LoggedEvent, Sequence};

/// A change of the store, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "short-lived, and nearly all are records")]
pub(crate) enum Meaning {
    /// A record changed.
    Record(cluster::Change),
    /// An event was logged.
    Event(LoggedEvent),
    /// An event was dropped; whoever dropped it knows.
    EventDropped,
}

/// What a change of the store means.
pub(crate) fn meaning(change: &Change) -> Result<Meaning, RecordError> {
    let key: StoredKey = change.key.as_str().parse()?;
    let revision = change.revision;
    match (&change.value, key) {
        (Some(value), key) => interpret(&key, value, revision),
        (None, StoredKey::Record(key)) => Ok(Meaning::Record(cluster::Change::Delete { revision, key })),
        (None, StoredKey::Event(_)) => Ok(Meaning::EventDropped),
    }
}

/// What a stored value means.
pub(crate) fn interpret(key: &StoredKey, value: &[u8], revision: Revision) -> Result<Meaning, RecordError> {
    match (drover_records::decode(key, value)?, key) {
        (Value::Record(record), _) => Ok(Meaning::Record(cluster::Change::Put { revision, record })),
        (Value::Event(event), StoredKey::Event(id)) => {
            let index = id.rsplit_once('-').and_then(|(_, index)| index.parse().ok()).unwrap_or(0);
            let sequence = Sequence::at(revision, index);
            Ok(Meaning::Event(LoggedEvent { sequence, event, id: id.clone() }))
        }
        (Value::Event(_), StoredKey::Record(key)) => {
            Err(RecordError::Misfiled { key: drover_records::key_text(key), found: "an event".to_owned() })
        }
    }
}

/// Submits transactions.
#[derive(Debug)]
pub(crate) struct Committer<S> {
    store: Arc<S>,
    /// Ids of the events this process writes: its start, and a number.
    start: u64,
    next: AtomicU64,
}

impl<S: Store> Committer<S> {
    /// `start` differs from that of every other process that ever wrote to this store.
    pub(crate) fn new(store: Arc<S>, start: u64) -> Self {
        Self { store, start, next: AtomicU64::new(0) }
    }

    pub(crate) fn store(&self) -> &Arc<S> {
        &self.store
    }

    /// Commits `txn`; tells what has changed where it is known.
    pub(crate) async fn commit(&self, txn: &cluster::Txn) -> CommitOutcome {
        match self.store.commit(self.stored(txn)).await {
            Ok(revision) => CommitOutcome::Committed(revision),
            Err(StoreError::Conflict { .. }) => match self.present(txn).await {
                Ok(changes) => CommitOutcome::Conflict(changes),
                Err(error) => CommitOutcome::Unknown(describe(&error)),
            },
            Err(error) => CommitOutcome::Unknown(describe(&error)),
        }
    }

    /// Logs events that belong to no transaction.
    pub(crate) async fn record(&self, events: Vec<ClusterEvent>) -> Result<Revision, StoreError> {
        self.store.commit(self.stored(&cluster::Txn { events, ..cluster::Txn::default() })).await
    }

    /// Removes events from the store.
    pub(crate) async fn drop_events(&self, ids: Vec<String>) -> Result<Revision, StoreError> {
        let writes = ids.iter().map(|id| Write::Delete(key(drover_records::event_key(id)))).collect();
        self.store.commit(Txn { guards: Vec::new(), writes }).await
    }

    fn stored(&self, txn: &cluster::Txn) -> Txn {
        let guards = txn.guards.iter().map(|guard| {
            let key = key(drover_records::key_text(&guard.key));
            match guard.expect {
                Expect::Absent => Guard::Absent(key),
                Expect::Revision(revision) => Guard::Unchanged(key, revision),
            }
        });
        let mut writes: Vec<Write> = txn.writes.iter().map(stored_write).collect();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        for (index, event) in txn.events.iter().enumerate() {
            let id = format!("{:016x}-{number:x}-{index}", self.start);
            let value = Bytes::from(drover_records::encode_event(event));
            writes.push(Write::Put(key(drover_records::event_key(&id)), value));
        }
        Txn { guards: guards.collect(), writes }
    }

    /// Every guarded record as it is now.
    async fn present(&self, txn: &cluster::Txn) -> Result<Vec<cluster::Change>, StoreError> {
        let mut changes = Vec::with_capacity(txn.guards.len());
        for guard in &txn.guards {
            let key = &guard.key;
            let text = Key::new(drover_records::key_text(key)).expect("a record's key is short ASCII");
            // Read before the record: the record is absent at this revision or at a later one.
            let revision = self.store.revision().await?;
            match self.store.get(&text).await? {
                None => changes.push(cluster::Change::Delete { revision, key: key.clone() }),
                Some(entry) => {
                    let key = StoredKey::Record(key.clone());
                    match interpret(&key, &entry.value, entry.revision) {
                        Ok(Meaning::Record(change)) => changes.push(change),
                        Ok(_) => {}
                        Err(error) => return Err(StoreError::Corrupt { what: format!("{key}: {error}") }),
                    }
                }
            }
        }
        Ok(changes)
    }
}

fn stored_write(write: &cluster::Write) -> Write {
    match write {
        cluster::Write::Put(record) => {
            let value = Bytes::from(drover_records::encode(record));
            Write::Put(key(drover_records::key_text(&record.key())), value)
        }
        cluster::Write::Delete(deleted) => Write::Delete(key(drover_records::key_text(deleted))),
    }
}

fn key(text: String) -> Key {
    Key::new(text).expect("ids and names are short ASCII")
}

/// An error with its causes, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
