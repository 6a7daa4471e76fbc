//! How the outside reaches a running migration, and where its peer's messages wait.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drover_ids::OwnerEpoch;

use crate::wire::{AbortCode, AbortReason, Message};

/// Why a grant was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// Only a source after Commit needs one.
    #[error("the migration has not committed: the guest needs no grant")]
    NotCommitted,
    /// The target's epoch is as new.
    #[error("epoch {granted} is not newer than the target's {target}")]
    Stale {
        /// What was granted.
        granted: OwnerEpoch,
        /// What the target owns the guest under.
        target: OwnerEpoch,
    },
}

/// Controls one migration from any thread. Clones control the same one. Every request is idempotent, returns at once,
/// and is a no-op once the migration has ended.
#[derive(Clone, Debug)]
pub struct MigrationControl {
    shared: Arc<Shared>,
}

/// The driver's end of a [`MigrationControl`]: serves one migration.
#[derive(Debug)]
pub struct ControlReceiver {
    shared: Arc<Shared>,
}

/// A control and the end that a driver takes.
pub fn control() -> (MigrationControl, ControlReceiver) {
    let shared = Arc::new(Shared::default());
    (MigrationControl { shared: Arc::clone(&shared) }, ControlReceiver { shared })
}

impl MigrationControl {
    /// Gives the migration up if it has not committed. At the source the guest goes on running; at the target nothing
    /// is left. After Commit: no effect.
    pub fn cancel(&self, reason: &str) {
        self.shared.change(|state| {
            if let Request::None = state.cancel {
                state.cancel = Request::Waiting(reason.to_owned());
            }
        });
    }

    /// The orchestrator's word to a source after Commit that the target has been fenced and the guest is the source's
    /// under `epoch`.
    ///
    /// Fencing alone is not enough: a target that owned the volumes may have run and written them, and the RAM that
    /// stands here is then older than the disks. The fence's proof names the last owner; where that is the target, the
    /// guest is restarted from its disks instead, and this source is told to [`abandon`](Self::abandon).
    ///
    /// # Errors
    /// [`GrantError`]; nothing has changed then.
    pub fn grant(&self, epoch: OwnerEpoch) -> Result<(), GrantError> {
        self.shared.change(|state| {
            let target = state.committed_to.ok_or(GrantError::NotCommitted)?;
            if epoch <= target {
                return Err(GrantError::Stale { granted: epoch, target });
            }
            state.grant = Request::Waiting(epoch);
            Ok(())
        })
    }

    /// Ends the driver without a decision: the guest stays paused for good, and its owner drops it. Before Commit the
    /// same as [`cancel`](Self::cancel).
    pub fn abandon(&self) {
        self.shared.change(|state| {
            if let Request::None = state.abandon {
                state.abandon = Request::Waiting(());
            }
        });
    }
}

/// What a driver waits for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Cancel(String),
    Grant(OwnerEpoch),
    Abandon,
    /// From the thread that reads: a message, or why there will be no more.
    Peer(Result<Message, AbortReason>),
}

/// Messages that may wait to be handled. An honest peer has one on the way at a time.
const INBOX_MAX: usize = 8;

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// Each request is a value of its own and the newest wins: however often it is repeated, nothing grows.
#[derive(Debug, Default)]
struct State {
    cancel: Request<String>,
    abandon: Request<()>,
    grant: Request<OwnerEpoch>,
    committed_to: Option<OwnerEpoch>,
    inbox: VecDeque<Result<Message, AbortReason>>,
    peer_ended: bool,
}

#[derive(Debug, Default)]
enum Request<T> {
    #[default]
    None,
    Waiting(T),
    Taken,
}

impl<T> Request<T> {
    fn take(&mut self) -> Option<T> {
        match std::mem::replace(self, Self::Taken) {
            Self::Waiting(value) => Some(value),
            other => {
                *self = other;
                None
            }
        }
    }

    fn is_waiting(&self) -> bool {
        matches!(self, Self::Waiting(_))
    }
}

impl State {
    fn next(&mut self) -> Option<Input> {
        // Requests first: a peer that talks without end must not keep a cancel waiting.
        self.abandon
            .take()
            .map(|()| Input::Abandon)
            .or_else(|| self.cancel.take().map(Input::Cancel))
            .or_else(|| self.grant.take().map(Input::Grant))
            .or_else(|| self.inbox.pop_front().map(Input::Peer))
    }

    fn is_pending(&self) -> bool {
        self.abandon.is_waiting()
            || self.cancel.is_waiting()
            || self.grant.is_waiting()
            || !self.inbox.is_empty()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }
}

impl ControlReceiver {
    /// What has arrived, if anything.
    pub(crate) fn try_next(&self) -> Option<Input> {
        self.shared.lock().next()
    }

    /// Whether [`try_next`](Self::try_next) would bring something.
    pub(crate) fn is_pending(&self) -> bool {
        self.shared.lock().is_pending()
    }

    /// Waits for something to arrive, for at most `limit` (`None`: as long as it takes).
    pub(crate) fn wait(&self, limit: Option<Duration>) -> Option<Input> {
        let state = self.shared.lock();
        let idle = |state: &mut State| !state.is_pending();
        let mut state = match limit {
            Some(limit) => {
                let waited = self.shared.changed.wait_timeout_while(state, limit, idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.shared.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner),
        };
        state.next()
    }

    /// From here on a grant newer than `target_epoch` is accepted.
    pub(crate) fn committed_to(&self, target_epoch: OwnerEpoch) {
        self.shared.change(|state| state.committed_to = Some(target_epoch));
    }

    /// Where the reading thread puts what it reads.
    pub(crate) fn inbox(&self) -> Inbox {
        Inbox { shared: Arc::clone(&self.shared) }
    }
}

/// The reading thread's end.
#[derive(Debug)]
pub(crate) struct Inbox {
    shared: Arc<Shared>,
}

impl Inbox {
    /// Delivers; false once there is no point in reading on: after an error, or where the peer floods us.
    pub(crate) fn deliver(&self, input: Result<Message, AbortReason>) -> bool {
        self.shared.change(|state| {
            if state.peer_ended {
                return false;
            }
            let flooded = state.inbox.len() >= INBOX_MAX;
            let input = match input {
                Ok(_) if flooded => {
                    Err(AbortReason::new(AbortCode::Protocol, "the peer sends more than it is asked for"))
                }
                input => input,
            };
            state.peer_ended = input.is_err();
            state.inbox.push_back(input);
            !state.peer_ended
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_cancel_is_one_cancel_with_the_first_reason() {
        let (control, receiver) = control();
        control.cancel("first");
        control.cancel("second");
        assert_eq!(receiver.try_next(), Some(Input::Cancel("first".to_owned())));
        control.cancel("third");
        assert_eq!(receiver.try_next(), None);
    }

    #[test]
    fn a_grant_needs_a_commit_and_a_newer_epoch() {
        let (control, receiver) = control();
        let (target, newer) = (OwnerEpoch::new(5), OwnerEpoch::new(6));
        assert_eq!(control.grant(newer), Err(GrantError::NotCommitted));
        receiver.committed_to(target);
        assert_eq!(control.grant(target), Err(GrantError::Stale { granted: target, target }));
        assert_eq!(receiver.try_next(), None);
        control.grant(newer).unwrap();
        assert_eq!(receiver.wait(None), Some(Input::Grant(newer)));
        control.grant(newer.next()).unwrap();
        assert_eq!(
            receiver.wait(None),
            Some(Input::Grant(newer.next())),
            "a failed grant can be followed by another"
        );
    }

    #[test]
    fn a_peer_that_floods_is_cut_off_and_requests_pass_it() {
        let (control, receiver) = control();
        let inbox = receiver.inbox();
        let ready = || Ok(Message::Ready { ledger: crate::wire::Ledger::default() });
        for _ in 0..INBOX_MAX {
            assert!(inbox.deliver(ready()));
        }
        assert!(!inbox.deliver(ready()));
        assert!(!inbox.deliver(ready()));
        control.abandon();
        assert_eq!(receiver.try_next(), Some(Input::Abandon));
        let rest: Vec<_> = std::iter::from_fn(|| receiver.try_next()).collect();
        assert_eq!(rest.len(), INBOX_MAX + 1);
        assert!(matches!(rest.last(), Some(Input::Peer(Err(_)))));
    }

    #[test]
    fn waiting_ends_with_its_limit() {
        let (_control, receiver) = control();
        assert_eq!(receiver.wait(Some(Duration::from_millis(1))), None);
    }
}
