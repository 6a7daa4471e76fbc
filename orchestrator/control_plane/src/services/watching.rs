//! Streams that follow something of the cluster.

use std::ops::ControlFlow;

use drover_driver::{Cluster, DriverGone, View};
use drover_ports::Store;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::status::gone;

/// Messages that wait for a slow reader; then looking waits too, so that the reader gets the newest state later
/// instead of every state now.
const MESSAGES_AHEAD: usize = 16;

/// A stream of messages to a client.
pub(crate) type Watching<T> = ReceiverStream<Result<T, Status>>;

/// What one look has found: messages to send, and the cursor to go on with, or the end.
pub(crate) type Look<C, T> = (Vec<Result<T, Status>>, ControlFlow<(), C>);

/// Looks at once and after every change, from `cursor` on, until `look` breaks off, the client goes, or the control
/// plane ends (which is UNAVAILABLE: watch again).
pub(crate) fn watch<S, C, T>(
    cluster: Cluster<S>,
    cursor: C,
    look: impl Fn(View<'_>, C) -> Look<C, T> + Clone + Send + 'static,
) -> Watching<T>
where
    S: Store,
    C: Send + 'static,
    T: Send + 'static,
{
    let (sender, stream) = mpsc::channel(MESSAGES_AHEAD);
    tokio::spawn(async move {
        if let Err(ended) = run(&cluster, cursor, look, &sender).await {
            // A client that has gone does not read it.
            let _unread = sender.send(Err(gone(ended))).await;
        }
    });
    ReceiverStream::new(stream)
}

async fn run<S, C, T>(
    cluster: &Cluster<S>,
    mut cursor: C,
    look: impl Fn(View<'_>, C) -> Look<C, T> + Clone + Send + 'static,
    sender: &mpsc::Sender<Result<T, Status>>,
) -> Result<(), DriverGone>
where
    S: Store,
    C: Send + 'static,
    T: Send + 'static,
{
    let mut changes = cluster.changes();
    loop {
        // Before looking: what changes while we look wakes us again.
        changes.mark_unchanged();
        let look = look.clone();
        let (messages, next) = cluster.read(move |view| look(view, cursor)).await?;
        for message in messages {
            if sender.send(message).await.is_err() {
                return Ok(());
            }
        }
        match next {
            ControlFlow::Break(()) => return Ok(()),
            ControlFlow::Continue(next) => cursor = next,
        }
        tokio::select! {
            changed = changes.changed() => changed.map_err(|_| DriverGone)?,
            () = sender.closed() => return Ok(()),
        }
    }
}
