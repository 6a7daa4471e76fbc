//! The cluster as everybody but the loop sees it.

use std::sync::Arc;

use drover_cluster_state::{Change, ClusterState, Now, Txn};
use drover_ports::Store;
use drover_reconcile::{Book, CommitOutcome, Heartbeat, HeartbeatAnswer};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{EventLog, commit::Committer};

/// How often a request is admitted again because what it looked at has changed meanwhile. Each try sees fresh state,
/// so that only steady contention for the same few records exhausts this.
const ADMISSIONS_MAX: u32 = 16;

/// The cluster at one moment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Desired and observed state.
    pub state: &'a ClusterState,
    /// What placement goes by: hosts, what they hold, policies.
    pub book: &'a Book,
    /// What has happened lately.
    pub events: &'a EventLog,
    /// The moment.
    pub now: Now,
}

/// The loop has ended: the process is shutting down, or its store has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control plane is shutting down")]
pub struct DriverGone;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError<E: std::error::Error + 'static> {
    /// It does not stand. Nothing has changed.
    #[error(transparent)]
    Refused(E),
    /// What it looks at keeps changing. Nothing has changed.
    #[error("the request was overtaken by others {ADMISSIONS_MAX} times")]
    Contended,
    /// The store did not say: it may have been accepted.
    #[error("it is not known whether the request was stored: {0}")]
    Unknown(String),
    /// No loop.
    #[error(transparent)]
    Gone(#[from] DriverGone),
}

/// A closure that the loop runs between two steps.
pub(crate) type Look = Box<dyn FnOnce(View<'_>) + Send>;

/// What the loop is asked.
pub(crate) enum Request {
    /// Show the state.
    Look(Look),
    /// Take in what is known to be stored.
    Observe(Vec<Change>, oneshot::Sender<()>),
    /// Take in a heartbeat.
    Heartbeat(Heartbeat, oneshot::Sender<HeartbeatAnswer>),
}

/// A handle of the running [`Driver`](crate::Driver). Cheap to clone.
#[derive(Debug)]
pub struct Cluster<S> {
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) changed: watch::Receiver<u64>,
    pub(crate) committer: Arc<Committer<S>>,
}

impl<S> Clone for Cluster<S> {
    fn clone(&self) -> Self {
        Self {
            requests: self.requests.clone(),
            changed: self.changed.clone(),
            committer: Arc::clone(&self.committer),
        }
    }
}

impl<S: Store> Cluster<S> {
    /// What `look` sees. It runs in the loop: it must be quick, and must not panic.
    ///
    /// # Errors
    /// [`DriverGone`].
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(View<'_>) -> T + Send + 'static,
    ) -> Result<T, DriverGone> {
        let (answer, answered) = oneshot::channel();
        let look: Look = Box::new(move |view| {
            // Nobody waits for it any more.
            let _unread = answer.send(look(view));
        });
        self.requests.send(Request::Look(look)).await.map_err(|_| DriverGone)?;
        answered.await.map_err(|_| DriverGone)
    }

    /// Carries out what `admit` decides: commits its transaction if what it has looked at has not changed, else asks it
    /// again. When this returns `Ok`, the transaction is durable and readers see it.
    ///
    /// # Errors
    /// [`SubmitError`]. Cancel safe: a request that is dropped may have been carried out or not.
    pub async fn submit<T, E>(
        &self,
        admit: impl Fn(View<'_>) -> Result<(T, Option<Txn>), E> + Clone + Send + 'static,
    ) -> Result<T, SubmitError<E>>
    where
        T: Send + 'static,
        E: std::error::Error + Send + 'static,
    {
        for _ in 0..ADMISSIONS_MAX {
            let admit = admit.clone();
            let (value, txn) = self.read(admit).await?.map_err(SubmitError::Refused)?;
            let Some(txn) = txn else { return Ok(value) };
            match self.committer.commit(&txn).await {
                CommitOutcome::Committed(revision) => {
                    self.observe(txn.writes.into_iter().map(|write| write.at(revision)).collect()).await?;
                    return Ok(value);
                }
                CommitOutcome::Conflict(changes) => self.observe(changes).await?,
                CommitOutcome::Unknown(reason) => return Err(SubmitError::Unknown(reason)),
            }
        }
        Err(SubmitError::Contended)
    }

    /// Hands a heartbeat to the planner. The lease counts from the moment the loop takes it up, which is never before
    /// it was received.
    ///
    /// # Errors
    /// [`DriverGone`].
    pub async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<HeartbeatAnswer, DriverGone> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Heartbeat(heartbeat, answer)).await.map_err(|_| DriverGone)?;
        answered.await.map_err(|_| DriverGone)
    }

    /// Wakes whenever something may have changed: look again then.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    async fn observe(&self, changes: Vec<Change>) -> Result<(), DriverGone> {
        let (seen, was_seen) = oneshot::channel();
        self.requests.send(Request::Observe(changes, seen)).await.map_err(|_| DriverGone)?;
        was_seen.await.map_err(|_| DriverGone)
    }
}
