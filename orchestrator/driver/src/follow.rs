//! Following the store's changes.

use std::{sync::Arc, time::Duration};

use drover_cluster_state::Change;
use drover_ports::{Revision, Store, StoreError, Watch as _};
use tokio::sync::mpsc;

use crate::{
    commit::{Meaning, describe, meaning},
    event_log::LoggedEvent,
    load::{Snapshot, load},
};

/// Wait before the store is asked again after it has failed.
const RETRY: Duration = Duration::from_secs(1);

/// What the store says.
#[derive(Debug)]
pub(crate) enum News {
    /// What has changed, in order.
    Changes { records: Vec<Change>, events: Vec<LoggedEvent> },
    /// Changes were missed: this is everything there is.
    Snapshot(Snapshot),
}

/// Hands on everything that changes after `revision`, until the loop has gone or the store is closed.
pub(crate) async fn follow<S: Store>(store: Arc<S>, mut revision: Revision, news: mpsc::Sender<News>) {
    loop {
        match follow_from(&*store, &mut revision, &news).await {
            Ok(()) | Err(StoreError::Closed) => return,
            Err(StoreError::Compacted { .. } | StoreError::FutureRevision { .. }) => {
                match load(&*store).await {
                    Ok(snapshot) => {
                        revision = snapshot.revision;
                        if news.send(News::Snapshot(snapshot)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::error!(error = describe(&error), "the store cannot be read again");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            Err(error) => {
                tracing::error!(error = describe(&error), "the store's changes cannot be read");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// `Ok` once nobody listens any more.
async fn follow_from(
    store: &impl Store,
    revision: &mut Revision,
    news: &mpsc::Sender<News>,
) -> Result<(), StoreError> {
    let mut watch = store.watch("", *revision).await?;
    loop {
        let batch = watch.next().await?;
        let (mut records, mut events) = (Vec::new(), Vec::new());
        for change in &batch.changes {
            match meaning(change) {
                Ok(Meaning::Record(change)) => records.push(change),
                Ok(Meaning::Event(event)) => events.push(event),
                Ok(Meaning::EventDropped) => {}
                // Only this version writes while it runs: a bug, or another hand in the store.
                Err(error) => tracing::error!(key = %change.key, %error, "a change cannot be used"),
            }
        }
        if news.send(News::Changes { records, events }).await.is_err() {
            return Ok(());
        }
        *revision = batch.revision;
    }
}
