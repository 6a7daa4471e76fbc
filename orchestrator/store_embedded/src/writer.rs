//! The one thread that writes.

use std::{io, sync::Arc, thread};

use drover_ports::{Guard, Revision, StoreError, Txn, Write};
use redb::{Database, Durability};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Options,
    database::{ENTRIES, Open, unavailable},
    history::Recorder,
};

/// Most transactions that wait for the writer; more make `commit` wait for a place.
const QUEUE: usize = 256;
/// Most transactions that share one fsync.
const MAX_GROUP: usize = 64;

type Answer = Result<Revision, StoreError>;

struct Job {
    txn: Txn,
    answer: oneshot::Sender<Answer>,
}

/// Handle of the writer thread. Dropping it finishes what is queued, then ends the thread.
pub(crate) struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    latest: watch::Receiver<Revision>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn spawn(database: Arc<Open>, revision: Revision, options: Options) -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (publish, latest) = watch::channel(revision);
        let thread = thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || run(database.get(), queue, &publish, options))?;
        Ok(Self { jobs: Some(jobs), latest, thread: Some(thread) })
    }

    /// The latest durable revision, as it grows.
    pub(crate) fn latest(&self) -> watch::Receiver<Revision> {
        self.latest.clone()
    }

    pub(crate) async fn commit(&self, txn: Txn) -> Answer {
        let (answer, answered) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(Job { txn, answer }).await.map_err(|_| StoreError::Closed)?;
        // The thread answers every job, unless it panicked in redb: then nobody knows.
        answered.await.unwrap_or_else(|gone| Err(StoreError::OutcomeUnknown { source: gone.into() }))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

fn run(
    database: &Database,
    mut queue: mpsc::Receiver<Job>,
    publish: &watch::Sender<Revision>,
    options: Options,
) {
    while let Some(first) = queue.blocking_recv() {
        let mut group = vec![first];
        while group.len() < MAX_GROUP
            && let Ok(job) = queue.try_recv()
        {
            group.push(job);
        }
        let (txns, answers): (Vec<Txn>, Vec<_>) = group.into_iter().map(|job| (job.txn, job.answer)).unzip();
        let outcomes = match commit_group(database, &txns, options) {
            Ok(outcomes) => outcomes,
            Err(failure) => txns.iter().map(|_| Err(failure.answer())).collect(),
        };
        // Published first: who has the answer of a commit finds it when reading the revision.
        if let Some(latest) = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).max() {
            publish.send_replace(*latest);
        }
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            // Nobody waits for it any more: the transaction holds all the same.
            drop(answer.send(outcome));
        }
    }
}

/// Why a group failed as a whole.
enum Failure {
    /// Before anything could have been made durable.
    Before(Arc<redb::Error>),
    /// While it was made durable.
    During(Arc<redb::Error>),
}

impl Failure {
    fn answer(&self) -> StoreError {
        match self {
            Self::Before(error) => StoreError::Unavailable { source: Box::new(Arc::clone(error)) },
            Self::During(error) => StoreError::OutcomeUnknown { source: Box::new(Arc::clone(error)) },
        }
    }
}

/// Applies those transactions whose guards hold, in order, with one fsync.
fn commit_group(database: &Database, txns: &[Txn], options: Options) -> Result<Vec<Answer>, Failure> {
    let before = |error: redb::Error| {
        tracing::error!(%error, "the store cannot be written");
        Failure::Before(Arc::new(error))
    };
    let mut write = database.begin_write().map_err(|error| before(error.into()))?;
    write.set_durability(Durability::Immediate).map_err(|error| before(error.into()))?;
    let outcomes = apply_group(&write, txns, options).map_err(before)?;
    if outcomes.iter().all(Result::is_err) {
        write.abort().map_err(|error| before(error.into()))?;
        return Ok(outcomes);
    }
    write.commit().map_err(|error| {
        let error = redb::Error::from(error);
        tracing::error!(%error, "a commit of the store failed");
        Failure::During(Arc::new(error))
    })?;
    Ok(outcomes)
}

fn apply_group(
    write: &redb::WriteTransaction,
    txns: &[Txn],
    options: Options,
) -> Result<Vec<Answer>, redb::Error> {
    let mut entries = write.open_table(ENTRIES)?;
    let mut history = Recorder::open(write)?;
    let mut outcomes = Vec::with_capacity(txns.len());
    for txn in txns {
        outcomes.push(match check(&entries, &txn.guards) {
            Ok(()) => Ok(apply(&mut entries, &mut history, &txn.writes)?),
            Err(refused) => Err(refused),
        });
    }
    history.close(options)?;
    Ok(outcomes)
}

type Entries<'txn> = redb::Table<'txn, &'static str, (u64, &'static [u8])>;

/// Whether all guards hold.
fn check(entries: &Entries<'_>, guards: &[Guard]) -> Result<(), StoreError> {
    use redb::ReadableTable as _;
    for guard in guards {
        let current = entries.get(guard.key().as_str()).map_err(unavailable)?;
        guard.check(current.map(|entry| Revision::new(entry.value().0)))?;
    }
    Ok(())
}

/// Applies one transaction's writes.
fn apply(
    entries: &mut Entries<'_>,
    history: &mut Recorder<'_>,
    writes: &[Write],
) -> Result<Revision, redb::Error> {
    let mut index = 0;
    for write in writes {
        let (key, value) = match write {
            Write::Put(key, value) => {
                entries.insert(key.as_str(), (history.next_revision(), &value[..]))?;
                (key, Some(&value[..]))
            }
            Write::Delete(key) => {
                if entries.remove(key.as_str())?.is_none() {
                    continue;
                }
                (key, None)
            }
        };
        history.record(index, key.as_str(), value)?;
        index += 1;
    }
    Ok(history.finish())
}
