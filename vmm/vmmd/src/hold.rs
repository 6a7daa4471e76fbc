//! Holding a VM's disks for a moment, so that snapshots of several volumes are of one moment.
//!
//! ```text
//! none --HoldQueues--> held --ReleaseQueues--> none
//!                        |                       ^
//!                        +--limit--> expired ----+  (ReleaseQueues learns of it)
//! ```
//!
//! What is held is the whole machine: its vCPUs stand as well, so that the guest sees no disk that hangs, and nothing it
//! does falls between two snapshots. One hold at a time, and never for longer than its limit, whoever has died meanwhile.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use drover_ids::OperationId;
use drover_machine::{Holder, PauseGuard};
use tracing::warn;

use crate::refused::{Refused, chain};

/// Longest hold that may be asked for. A guest that stands longer than this is better off with snapshots taken one by
/// one.
pub(crate) const LIMIT_MAX: Duration = Duration::from_secs(1);

/// The hold of one VM.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hold {
    present: Arc<Mutex<Option<Present>>>,
}

#[derive(Debug)]
struct Present {
    operation: OperationId,
    began: Instant,
    drained: Duration,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The machine is being paused.
    Taking,
    Held(#[expect(dead_code, reason = "held until it is dropped")] PauseGuard),
    /// The limit ended it, after this.
    Expired(Duration),
}

/// How a hold went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) lasted: Duration,
    /// Its limit ended it, not its release.
    pub(crate) expired: bool,
}

impl Hold {
    /// Holds the machine for at most `limit`, the time that its disks need to drain included. Returns how long that
    /// took. Repeating it changes nothing.
    ///
    /// Cancel safe: a hold whose caller has gone away ends by its limit.
    pub(crate) async fn take(
        &self,
        holder: Holder,
        operation: OperationId,
        limit: Duration,
    ) -> Result<Duration, Refused> {
        let began = Instant::now();
        {
            let mut present = self.lock();
            match &*present {
                Some(same) if same.operation == operation => return Ok(same.drained),
                Some(Present { state: State::Taking | State::Held(_), .. }) => {
                    return Err(Refused::Precondition("the disks are held for another operation".to_owned()));
                }
                Some(Present { state: State::Expired(_), .. }) | None => {}
            }
            *present = Some(Present { operation, began, drained: Duration::ZERO, state: State::Taking });
        }
        // Not this future's to end: it goes when the connection of its caller does, and nobody would take the mark away.
        let hold = self.clone();
        let taking = tokio::spawn(async move { hold.take_marked(holder, operation, limit, began).await });
        taking
            .await
            .unwrap_or_else(|error| Err(Refused::Failed(format!("holding the disks failed: {error}"))))
    }

    async fn take_marked(
        &self,
        holder: Holder,
        operation: OperationId,
        limit: Duration,
        began: Instant,
    ) -> Result<Duration, Refused> {
        let taken = tokio::task::spawn_blocking(move || holder.hold(limit)).await;
        let refused = match taken {
            Ok(Some(Ok(guard))) => {
                let drained = began.elapsed();
                *self.lock() = Some(Present { operation, began, drained, state: State::Held(guard) });
                let hold = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(limit.saturating_sub(drained)).await;
                    hold.expire(operation);
                });
                return Ok(drained);
            }
            Ok(Some(Err(error))) => {
                Refused::Precondition(format!("the disks do not drain: {}", chain(&error)))
            }
            Ok(None) => Refused::Precondition("there is no machine whose disks could be held".to_owned()),
            Err(error) => Refused::Failed(format!("holding the disks failed: {error}")),
        };
        *self.lock() = None;
        Err(refused)
    }

    /// Lets the disks go on.
    pub(crate) fn release(&self, operation: OperationId) -> Result<Held, Refused> {
        let mut present = self.lock();
        match present.take() {
            Some(Present { operation: held, began, state, .. }) if held == operation => {
                let held = match &state {
                    State::Expired(lasted) => Held { lasted: *lasted, expired: true },
                    State::Taking | State::Held(_) => Held { lasted: began.elapsed(), expired: false },
                };
                drop(present);
                // The machine runs from here on.
                drop(state);
                Ok(held)
            }
            other => {
                *present = other;
                Err(Refused::Precondition("the disks are not held for this operation".to_owned()))
            }
        }
    }

    fn expire(&self, operation: OperationId) {
        let mut present = self.lock();
        let Some(held) = present.as_mut().filter(|held| held.operation == operation) else { return };
        if let State::Held(_) = held.state {
            let lasted = held.began.elapsed();
            let state = std::mem::replace(&mut held.state, State::Expired(lasted));
            drop(present);
            drop(state);
            warn!(lasted_ms = lasted.as_millis(), "held disks were not released in time and go on");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Present>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
