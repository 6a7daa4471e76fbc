//! Files that clients send: where a stream meets the import that waits for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use drover_cluster_state::Name;
use tokio::sync::{Notify, mpsc, oneshot};
use tonic::Status;

use crate::upload::Upload;

/// An import that has just been admitted may need this long until it waits for its bytes.
const MEET: Duration = Duration::from_secs(10);

/// A stream of bytes.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// Where in the file it begins.
    pub(crate) offset: u64,
    /// The bytes.
    pub(crate) upload: Upload,
    /// How many bytes there are once the stream has ended, or why it is not taken.
    pub(crate) answer: oneshot::Sender<Result<u64, Status>>,
}

/// Imports that wait, by the image's name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Uploads {
    waiting: Arc<Mutex<BTreeMap<Name, mpsc::Sender<Incoming>>>>,
    changed: Arc<Notify>,
}

/// An import that waits, until it is dropped.
#[derive(Debug)]
pub(super) struct Expected {
    uploads: Uploads,
    image: Name,
    pub(super) streams: mpsc::Receiver<Incoming>,
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.uploads.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.image);
    }
}

impl Uploads {
    /// Waits for streams from here on, one at a time.
    pub(super) fn expect(&self, image: &Name) -> Expected {
        let (sender, streams) = mpsc::channel(1);
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(image.clone(), sender);
        self.changed.notify_waiters();
        Expected { uploads: self.clone(), image: image.clone(), streams }
    }

    /// Hands a stream to the import that waits for it.
    ///
    /// # Errors
    /// The stream, if none does.
    pub(crate) async fn hand_over(&self, image: &Name, incoming: Incoming) -> Result<(), Incoming> {
        let find = async {
            loop {
                let changed = self.changed.notified();
                let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).get(image).cloned();
                match waiting {
                    Some(sender) => return sender,
                    None => changed.await,
                }
            }
        };
        match tokio::time::timeout(MEET, find).await {
            Ok(sender) => sender.send(incoming).await.map_err(|error| error.0),
            Err(_) => Err(incoming),
        }
    }
}
