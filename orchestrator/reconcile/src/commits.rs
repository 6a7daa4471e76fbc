//! Transactions between their submission and their answer.
//!
//! A record with a transaction under way is left alone: a second one on the same view would only lose. Whoever wanted
//! one is planned again when the answer comes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use drover_cluster_state::{Key, Moment, Txn, Write};
use drover_ids::VmId;

use crate::CommitId;

/// After this a transaction's answer is no longer waited for. Whether it was stored then shows on the watch, or as a
/// conflict of the next one.
const COMMIT_WAIT_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Pending {
    keys: Vec<Key>,
    writes: Vec<Write>,
    deadline: Moment,
}

/// The transactions under way.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    next: u64,
    pending: BTreeMap<CommitId, Pending>,
    held: BTreeSet<Key>,
    waiting: BTreeSet<VmId>,
}

impl Commits {
    /// Whether a transaction with this record is under way.
    pub(crate) fn holds(&self, key: &Key) -> bool {
        self.held.contains(key)
    }

    /// Whether one with any record of `txn` is.
    pub(crate) fn blocks(&self, txn: &Txn) -> bool {
        txn.keys().any(|key| self.held.contains(key))
    }

    /// Notes a VM to be planned when the next answer comes.
    pub(crate) fn wait(&mut self, vm: VmId) {
        self.waiting.insert(vm);
    }

    /// The VMs that waited.
    pub(crate) fn take_waiting(&mut self) -> BTreeSet<VmId> {
        std::mem::take(&mut self.waiting)
    }

    /// Notes a submission.
    pub(crate) fn open(&mut self, txn: &Txn, now: Moment) -> CommitId {
        self.next += 1;
        let id = CommitId(self.next);
        let keys: Vec<Key> = txn.keys().cloned().collect();
        self.held.extend(keys.iter().cloned());
        let deadline = now.after(COMMIT_WAIT_MAX);
        self.pending.insert(id, Pending { keys, writes: txn.writes.clone(), deadline });
        id
    }

    /// Notes an answer. Returns the records and what was to be written; `None` if nobody waits for it any more.
    pub(crate) fn close(&mut self, id: CommitId) -> Option<(Vec<Key>, Vec<Write>)> {
        let pending = self.pending.remove(&id)?;
        for key in &pending.keys {
            self.held.remove(key);
        }
        Some((pending.keys, pending.writes))
    }

    /// Those whose answer is overdue.
    pub(crate) fn overdue(&self, now: Moment) -> Vec<CommitId> {
        self.pending.iter().filter(|(_, pending)| now >= pending.deadline).map(|(id, _)| *id).collect()
    }
}
