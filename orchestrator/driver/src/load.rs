//! The whole store, read at the start.

use drover_cluster_state::Change;
use drover_ports::{Revision, Store, StoreError, store::MAX_LIST_ENTRIES};
use drover_records::{RecordError, StoredKey};

use crate::{
    commit::{Meaning, interpret},
    event_log::LoggedEvent,
};

/// Why the store could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store does not answer.
    #[error("reading the store failed")]
    Store(#[from] StoreError),
    /// A record is unusable. Going on without it could start a VM that runs already.
    #[error("the record '{key}' in the store cannot be used")]
    Record {
        /// Where it is stored.
        key: String,
        /// What is wrong with it.
        #[source]
        source: RecordError,
    },
}

/// Everything that is stored.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// Every record.
    pub(crate) records: Vec<Change>,
    /// Every event, in order.
    pub(crate) events: Vec<LoggedEvent>,
    /// The changes from here on complete it. Some may be in it already.
    pub(crate) revision: Revision,
}

/// Reads everything, page by page.
pub(crate) async fn load(store: &impl Store) -> Result<Snapshot, LoadError> {
    let mut snapshot = Snapshot { revision: store.revision().await?, ..Snapshot::default() };
    let mut after = None;
    loop {
        let page = store.list("", after.as_ref(), MAX_LIST_ENTRIES).await?;
        for entry in &page.entries {
            let understood = entry
                .key
                .as_str()
                .parse::<StoredKey>()
                .and_then(|key| Ok((interpret(&key, &entry.value, entry.revision)?, key)));
            match understood {
                Ok((Meaning::Record(change), _)) => snapshot.records.push(change),
                Ok((Meaning::Event(event), _)) => snapshot.events.push(event),
                Ok((Meaning::EventDropped, _)) => {}
                // No decision depends on an event.
                Err(error) if entry.key.as_str().starts_with(drover_records::EVENT_PREFIX) => {
                    tracing::warn!(key = %entry.key, %error, "an event cannot be read");
                }
                Err(source) => return Err(LoadError::Record { key: entry.key.to_string(), source }),
            }
        }
        match page.entries.into_iter().next_back() {
            Some(last) if page.more => after = Some(last.key),
            _ => break,
        }
    }
    snapshot.events.sort_by_key(|event| event.sequence);
    Ok(snapshot)
}
