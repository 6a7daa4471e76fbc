//! The ways to the VM's thread: [`VmHandle`].

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};

use drover_ids::OwnerEpoch;
use drover_lifecycle::StopReason;
use drover_machine::Reclaimed;
use drover_wire::vm::v1 as wire;
use tokio::sync::{Notify, oneshot};

use super::migrating::{ReceiveEnded, SendEnded};
use crate::{
    order::{Change, Order, Renewal},
    refused::Refused,
    status::Status,
    watchdog::{Fencing, Watchdog},
};

/// Inputs that may wait for the VM's thread (B9). One agent sends one command at a time; whoever finds the queue full is
/// told to try again.
pub(crate) const INPUTS_MAX: usize = 16;

/// What happens to the VM.
pub(super) enum Input<M> {
    Order(Box<Order>, oneshot::Sender<Answer>),
    /// One that came before its caller.
    Ahead(Box<Order>),
    /// A device comes or goes, under this epoch.
    Change(OwnerEpoch, Box<Change>, oneshot::Sender<Result<(), Refused>>),
    /// Reclaim free memory, under this epoch.
    Reclaim(OwnerEpoch, Duration, oneshot::Sender<Result<Reclaimed, Refused>>),
    SendEnded(Box<SendEnded<M>>),
    ReceiveEnded(Box<ReceiveEnded<M>>),
    /// Something may be due: the lease, a migration's progress, the machine's end.
    Tick,
}

/// How a command went.
pub(super) type Answer = Result<Reply, Refused>;

/// The answer to a command that was carried out.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// The VM's state after it.
    pub(crate) info: wire::VmInfo,
    /// Where the receiving thread of a migration listens.
    pub(crate) listening: Option<SocketAddr>,
}

/// Sends to the VM's thread, from any thread.
pub(crate) struct VmHandle<M> {
    inputs: SyncSender<Input<M>>,
    shared: Arc<Shared>,
}

struct Shared {
    status: Arc<Status>,
    watchdog: Watchdog,
    /// Why the machine has ended by itself. Not an input, because those who tell it must never wait: the VM's thread
    /// may be waiting for them.
    ended: OnceLock<(StopReason, String)>,
    end_acknowledged: Notify,
}

impl<M> Clone for VmHandle<M> {
    fn clone(&self) -> Self {
        Self { inputs: self.inputs.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<M> fmt::Debug for VmHandle<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmHandle").field("status", &self.shared.status).finish_non_exhaustive()
    }
}

impl<M> VmHandle<M> {
    pub(super) fn new(inputs: SyncSender<Input<M>>, status: Arc<Status>, watchdog: Watchdog) -> Self {
        let (ended, end_acknowledged) = (OnceLock::new(), Notify::new());
        Self { inputs, shared: Arc::new(Shared { status, watchdog, ended, end_acknowledged }) }
    }

    /// What the VM's thread has published.
    pub(crate) fn status(&self) -> &Arc<Status> {
        &self.shared.status
    }

    /// Has an order carried out. The order is carried out even if this future is dropped.
    pub(crate) async fn order(&self, order: Order) -> Result<Reply, Refused> {
        let (answer, answered) = oneshot::channel();
        self.try_send(Input::Order(Box::new(order), answer))?;
        answered.await.map_err(|_| Refused::Gone)?
    }

    /// Has the guest's free memory reclaimed.
    pub(crate) async fn reclaim(&self, epoch: OwnerEpoch, limit: Duration) -> Result<Reclaimed, Refused> {
        let (answer, answered) = oneshot::channel();
        self.try_send(Input::Reclaim(epoch, limit, answer))?;
        answered.await.map_err(|_| Refused::Gone)?
    }

    /// Has a device attached, or taken away.
    pub(crate) async fn change(&self, epoch: OwnerEpoch, change: Change) -> Result<(), Refused> {
        let (answer, answered) = oneshot::channel();
        self.try_send(Input::Change(epoch, Box::new(change), answer))?;
        answered.await.map_err(|_| Refused::Gone)?
    }

    /// Renews the lease: at once, whatever the VM's thread is waiting for.
    pub(crate) fn renew(&self, renewal: Renewal) -> Result<(), Refused> {
        let renewed = self.shared.watchdog.renew(renewal);
        // What has ended needs no lease, and whoever renews it may not have heard of the end yet.
        if renewed.is_err() && self.status().info().state() == wire::VmState::Stopped {
            return Ok(());
        }
        renewed?;
        // A VM that was paused for the lease goes on.
        self.tick();
        Ok(())
    }

    /// Tells that the machine has ended by itself, or that this host wants it to, whatever its epoch. The first reason
    /// counts. Never blocks.
    pub(crate) fn end(&self, reason: StopReason, detail: String) {
        if self.shared.ended.set((reason, detail)).is_ok() {
            self.tick();
        }
    }

    /// What [`Self::end`] told.
    pub(super) fn ended(&self) -> Option<&(StopReason, String)> {
        self.shared.ended.get()
    }

    /// Whoever had to know of the VM's end knows.
    pub(crate) fn acknowledge_end(&self) {
        self.shared.end_acknowledged.notify_one();
    }

    /// Waits for [`Self::acknowledge_end`].
    pub(crate) async fn end_acknowledged(&self) {
        self.shared.end_acknowledged.notified().await;
    }

    /// Makes the VM's thread look at what may be due. If its queue is full it will do so
    /// anyway, with each of the inputs in it.
    pub(super) fn tick(&self) {
        let _ = self.inputs.try_send(Input::Tick);
    }

    /// Waits for room in the queue.
    pub(super) fn send(&self, input: Input<M>) {
        // The VM's thread lives as long as the process; when it is gone there is nobody left to tell.
        let _ = self.inputs.send(input);
    }

    fn try_send(&self, input: Input<M>) -> Result<(), Refused> {
        self.inputs.try_send(input).map_err(|error| match error {
            TrySendError::Full(_) => Refused::TooMany,
            TrySendError::Disconnected(_) => Refused::Gone,
        })
    }
}

impl<M: Send + 'static> Fencing for VmHandle<M> {
    fn pause_due(&self) {
        self.tick();
    }

    fn kill_due(&self) {
        self.status().publish_end(StopReason::SelfFenced, "the lease ran out without being renewed");
    }
}
