//! Disk images: received, checked, made; or copied.

use std::{path::PathBuf, sync::Arc, time::Duration};

use drover_cluster_state::{ClusterState, DiskImage, DiskImageState, ImageFormat, ImageSource, Name};
use drover_ids::OperationId;
use drover_ports::Store;
use drover_reconcile::admission::{self, AdmissionError, Checkpoint, StorageFailure, StorageOutcome};
use drover_storage_pools::{Source, StorageError, StoragePool, Target, Unobserved};
use drover_units::Bytes;
use tokio::runtime::Handle;
use tonic::Status;

use super::{
    Incoming, Progress,
    fetch::{FetchError, NotPermitted},
    observe::Phase,
    receive::{Intake, IntakeError, forget},
    work::{copy_into, failed, vanished},
};
use crate::{
    pools::blocking,
    services::Api,
    status::{describe, status},
};

const RECEIVING: Phase = Phase { step: "receiving", from: 1, to: 60 };
const CHECKING: Phase = Phase { step: "checking and making the disk", from: 60, to: 99 };
const RESUMING: Phase = Phase { step: "looking at what has been received", from: 0, to: 1 };
const COPYING: Phase = Phase { step: "copying", from: 1, to: 99 };

/// Attempts to fetch a file that bring nothing; with their pauses about a minute.
const FRUITLESS_MAX: u32 = 10;
/// Before a file is asked for again, the first time; doubled up to the longest.
const FETCH_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause.
const FETCH_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A client that sends nothing for this long has gone: the import ends.
const UPLOAD_IDLE_MAX: Duration = Duration::from_secs(15 * 60);
/// Folder of files that are put aside, below the state directory.
const ASIDE: &str = "imports";

fn failure(error: IntakeError, leftover: bool) -> StorageOutcome {
    match error {
        IntakeError::Storage(error) => failed(&error, leftover),
        error => {
            let reason = describe(&error);
            StorageOutcome::Failed(StorageFailure { reason, cancelled: false, leftover })
        }
    }
}

fn aside_of<S: Store>(api: &Api<S>, image: &DiskImage) -> PathBuf {
    api.state_dir.path().join(ASIDE).join(format!("{}.{}.part", image.pool, image.digest))
}

impl<S: Store> Api<S> {
    pub(super) async fn import(&self, id: OperationId, image: DiskImage) -> StorageOutcome {
        let _alone = tokio::select! {
            alone = self.storage.object(&image.pool, image.digest) => alone,
            () = self.cancelled(id) => return failed(&StorageError::Cancelled, false),
        };
        if let Some(outcome) = self.shared(&image).await {
            return outcome;
        }
        let storage = match self.storage_of(&image.pool).await {
            Ok(storage) => storage,
            Err(error) => return failed(&error, false),
        };
        let aside = aside_of(self, &image);
        let made = self.receive_and_make(id, &image, &storage, &aside).await;
        match made {
            Ok((size, format)) => {
                blocking(move || forget(&aside)).await;
                let file_size = self.present(&image.name).await.map_or(image.file_size, |i| i.file_size);
                StorageOutcome::Image { size, file_size, format }
            }
            Err(error) => {
                let leftover = !self.discard(&storage, &image, &aside).await;
                failure(error, leftover)
            }
        }
    }

    /// An image that the pool has already, under another name or none.
    async fn shared(&self, image: &DiskImage) -> Option<StorageOutcome> {
        let of = image.clone();
        let ready = move |state: &ClusterState| {
            let ready =
                |other: &&drover_cluster_state::Stored<DiskImage>| other.state == DiskImageState::Ready;
            let found = admission::same_object_as(state, &of).find(ready);
            found.map(|other| (other.size, other.file_size, other.format))
        };
        let (size, file_size, format) = self.cluster.read(move |view| ready(view.state)).await.ok()??;
        Some(StorageOutcome::Image { size, file_size, format: format.unwrap_or(ImageFormat::Raw) })
    }

    async fn present(&self, name: &Name) -> Option<DiskImage> {
        let name = name.clone();
        let find = move |state: &ClusterState| state.disk_images.get(&name).map(|image| image.value.clone());
        self.cluster.read(move |view| find(view.state)).await.ok().flatten()
    }

    async fn receive_and_make(
        &self,
        id: OperationId,
        image: &DiskImage,
        storage: &Arc<dyn StoragePool>,
        aside: &std::path::Path,
    ) -> Result<(Bytes, ImageFormat), IntakeError> {
        let (looked, digest) = (Arc::clone(storage), image.digest);
        // Finished by a predecessor that was killed before it could say so.
        if let Some(size) = blocking(move || looked.image(digest)).await? {
            return Ok((size, image.format.unwrap_or(ImageFormat::Raw)));
        }
        let mut image = image.clone();
        loop {
            let intake = self.resume(id, &image, storage, aside).await?;
            let intake = match &image.source {
                ImageSource::Url(url) => self.fetch(id, &image.name, url.expose().to_owned(), intake).await?,
                ImageSource::Upload => self.take_uploads(id, &image.name, intake).await?,
                ImageSource::Copy(_) => return Err(IntakeError::Refused("it is a copy".to_owned())),
            };
            let resumed = intake.is_resumed();
            let make = move |progress: &Progress| intake.complete(progress);
            match self.observed(id, CHECKING, make).await {
                // A file that changed between two parts is no file of anybody's. Once more, from the start, in one part.
                Err(IntakeError::Mismatch { found, .. }) if resumed => {
                    tracing::warn!(image = %image.name, %found, "an image that came in parts is not what was announced");
                    if !self.discard(storage, &image, aside).await {
                        return Err(IntakeError::Refused("what was received cannot be removed".to_owned()));
                    }
                    image.received = Bytes::ZERO;
                }
                made => return made,
            }
        }
    }

    async fn resume(
        &self,
        id: OperationId,
        image: &DiskImage,
        storage: &Arc<dyn StoragePool>,
        aside: &std::path::Path,
    ) -> Result<Intake, IntakeError> {
        let (storage, image, aside) = (Arc::clone(storage), image.clone(), aside.to_owned());
        let resume = move |_: &Progress| {
            if let Some(folder) = aside.parent() {
                std::fs::create_dir_all(folder).map_err(|error| StorageError::Failed {
                    action: "make a folder for imports".to_owned(),
                    source: error.into(),
                })?;
            }
            Intake::resume(storage, &image, aside)
        };
        Ok(self.observed(id, RESUMING, resume).await?)
    }

    /// Writes down how far an import is, from the thread that takes the bytes.
    fn writes_down(&self, image: &Name) -> impl FnMut(Checkpoint) + Send + 'static {
        let (api, name, handle) = (self.clone(), image.clone(), Handle::current());
        move |checkpoint| {
            let name = name.clone();
            let written = api.cluster.submit(move |view| {
                let txn = admission::checkpoint_disk_image(view.state, &name, checkpoint);
                Ok::<_, AdmissionError>(((), txn))
            });
            // The next one tries again; until then more would be sent again.
            let _unwritten = handle.block_on(written);
        }
    }

    async fn fetch(
        &self,
        id: OperationId,
        image: &Name,
        url: String,
        mut intake: Intake,
    ) -> Result<Intake, IntakeError> {
        let (mut fruitless, mut pause) = (0, FETCH_PAUSE);
        while !intake.is_complete() {
            let before = intake.received();
            let (url, mut write_down) = (url.clone(), self.writes_down(image));
            let fetcher = self.storage.fetcher.clone();
            let take = move |progress: &Progress| {
                let taken = fetcher.open(&url, intake.received(), progress).map_err(IntakeError::from);
                let taken = taken.and_then(|mut fetched| {
                    intake.announce(fetched.file_size)?;
                    intake.will_resume();
                    intake.take(&mut fetched.body, progress, &mut write_down)
                });
                (intake, taken)
            };
            let (back, taken) = self.observed(id, RECEIVING, take).await;
            intake = back;
            match taken {
                Ok(()) => break,
                Err(IntakeError::BrokenOff(reason)) => {
                    if intake.received() > before {
                        (fruitless, pause) = (0, FETCH_PAUSE);
                    } else {
                        fruitless += 1;
                    }
                    if fruitless >= FRUITLESS_MAX {
                        let reason = format!("given up after {fruitless} attempts without a byte: {reason}");
                        return Err(IntakeError::Refused(reason));
                    }
                    tracing::info!(%image, received = intake.received(), reason, "a download broke off; going on");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.cancelled(id) => return Err(StorageError::Cancelled.into()),
                    }
                    pause = FETCH_PAUSE_MAX.min(pause * 2);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(intake)
    }

    async fn take_uploads(
        &self,
        id: OperationId,
        image: &Name,
        mut intake: Intake,
    ) -> Result<Intake, IntakeError> {
        let mut expected = self.storage.uploads.expect(image);
        self.show(id, RECEIVING.from, "waiting for the file").await;
        while !intake.is_complete() {
            let incoming = tokio::select! {
                incoming = expected.streams.recv() => incoming,
                () = self.cancelled(id) => return Err(StorageError::Cancelled.into()),
                () = tokio::time::sleep(UPLOAD_IDLE_MAX) => None,
            };
            let Some(Incoming { offset, mut upload, answer }) = incoming else {
                let minutes = UPLOAD_IDLE_MAX.as_secs() / 60;
                return Err(IntakeError::Refused(format!("nothing was sent for {minutes} minutes")));
            };
            if offset != intake.received() {
                let text = format!("offset: it is {offset}; valid: {}", intake.received());
                let _gone = answer.send(Err(Status::failed_precondition(text)));
                continue;
            }
            let mut write_down = self.writes_down(image);
            let take = move |progress: &Progress| {
                intake.will_resume();
                let taken = intake.take(&mut upload, progress, &mut write_down);
                (intake, taken)
            };
            let (back, taken) = self.observed(id, RECEIVING, take).await;
            intake = back;
            // Whoever sent it may have gone.
            let _gone = answer.send(match &taken {
                Ok(()) => Ok(intake.received()),
                Err(error) => Err(status(tonic::Code::Aborted, describe(error))),
            });
            match taken {
                Ok(()) => {}
                Err(IntakeError::BrokenOff(reason)) => {
                    tracing::info!(%image, received = intake.received(), reason, "an upload broke off");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(intake)
    }

    /// Removes what is left of an image that could not be made. Whether nothing is left.
    async fn discard(
        &self,
        storage: &Arc<dyn StoragePool>,
        image: &DiskImage,
        aside: &std::path::Path,
    ) -> bool {
        let (storage, digest, aside) = (Arc::clone(storage), image.digest, aside.to_owned());
        blocking(move || {
            forget(&aside);
            storage.delete_image(digest, &Unobserved).is_ok()
        })
        .await
    }

    pub(super) async fn copy_image(&self, id: OperationId, image: DiskImage) -> StorageOutcome {
        let ImageSource::Copy(of) = &image.source else { return vanished("what is to be copied") };
        let Some(of) = self.present(of).await.filter(|of| of.state == DiskImageState::Ready) else {
            return vanished("what is to be copied");
        };
        let _alone = tokio::select! {
            alone = self.storage.object(&image.pool, image.digest) => alone,
            () = self.cancelled(id) => return failed(&StorageError::Cancelled, false),
        };
        if let Some(outcome) = self.shared(&image).await {
            return outcome;
        }
        let (from, to) = match (self.storage_of(&of.pool).await, self.storage_of(&image.pool).await) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(error), _) | (_, Err(error)) => return failed(&error, false),
        };
        let (digest, size) = (image.digest, of.size);
        let target = Arc::clone(&to);
        let copied = self.observed(id, COPYING, move |progress| {
            copy_into(&*from, Source::Image(digest), &*target, (Target::Image(digest), size), progress)
        });
        match copied.await {
            Ok(()) => StorageOutcome::Image {
                size,
                file_size: of.file_size,
                format: of.format.unwrap_or(ImageFormat::Raw),
            },
            Err(error) => {
                let leftover = !self.discard(&to, &image, &aside_of(self, &image)).await;
                failed(&error, leftover)
            }
        }
    }
}

/// Removes files that were put aside for imports which are not under way any more.
pub(super) async fn forget_staged<S: Store>(api: &Api<S>) {
    let importing = |state: &ClusterState| -> Vec<DiskImage> {
        let importing = state.disk_images.values().filter(|image| image.state == DiskImageState::Importing);
        importing.map(|image| image.value.clone()).collect()
    };
    let Ok(importing) = api.cluster.read(move |view| importing(view.state)).await else { return };
    let kept: Vec<PathBuf> = importing.iter().map(|image| aside_of(api, image)).collect();
    let folder = api.state_dir.path().join(ASIDE);
    blocking(move || {
        let Ok(entries) = std::fs::read_dir(&folder) else { return };
        let left = entries.flatten().map(|entry| entry.path()).filter(|path| !kept.contains(path));
        left.for_each(|path| forget(&path));
    })
    .await;
}

impl From<FetchError> for IntakeError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Transient(reason) => Self::BrokenOff(reason),
            FetchError::Permanent(reason) => Self::Refused(reason),
            FetchError::NotPermitted => Self::NotPermitted(NotPermitted),
            FetchError::Cancelled => Self::Storage(StorageError::Cancelled),
        }
    }
}
