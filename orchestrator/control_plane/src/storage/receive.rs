//! Taking in an image's file: hashed as it comes, and written to where it can be gone on with.
//!
//! A raw file goes straight into the pool, zeros left out. A qcow2 file is put aside in the state directory, because its
//! tables may be anywhere in it, and becomes a disk when it is complete.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::Arc,
};

use drover_cluster_state::{DiskImage, ImageFormat};
use drover_ids::ImageDigest;
use drover_reconcile::admission::Checkpoint;
use drover_storage_pools::{
    DiskWriter, Observer, Qcow2, StorageError, StoragePool, Target, copy, write_sparse,
};
use drover_units::{Bytes, SECTOR_SIZE};
use sha2::{Digest as _, Sha256};

use super::fetch::NotPermitted;

/// Bytes read and written at a time.
const BLOCK_BYTES: usize = 1 << 20;
/// Bytes after which it is written down how far the import is: at most so many are sent again after a crash.
const CHECKPOINT_BYTES: u64 = 32 << 20;
/// Largest disk of an image: what a volume can be.
const DISK_MAX: Bytes = Bytes::gib(16 << 10);

/// Why a file is not taken in.
#[derive(Debug, thiserror::Error)]
pub(super) enum IntakeError {
    /// The source broke off: what has come is kept, and it can be gone on with.
    #[error("{0}")]
    BrokenOff(String),
    /// The source will never give what is wanted.
    #[error("{0}")]
    Refused(String),
    /// The source is where nothing is fetched from.
    #[error(transparent)]
    NotPermitted(#[from] NotPermitted),
    /// The file is another one than was announced.
    #[error("sha256: the file that came has {found}, not {expected}")]
    Mismatch {
        /// Of what came.
        found: ImageDigest,
        /// Of what was wanted.
        expected: ImageDigest,
    },
    /// It cannot be stored.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

enum Sink {
    /// A file of ours.
    Aside(File),
    /// The pool.
    Pool(Box<dyn DiskWriter>),
}

/// An image's file on its way. Everything but the accessors blocks.
pub(super) struct Intake {
    storage: Arc<dyn StoragePool>,
    digest: ImageDigest,
    aside: PathBuf,
    file_size: Bytes,
    format: Option<ImageFormat>,
    received: u64,
    /// How much of it came in an earlier life, or after a break: such a file may be a mixture.
    resumed: bool,
    hash: Sha256,
    sink: Option<Sink>,
}

impl Intake {
    /// Goes on where the record of an import says it is; from the start where what was received has gone.
    pub(super) fn resume(
        storage: Arc<dyn StoragePool>,
        image: &DiskImage,
        aside: PathBuf,
    ) -> Result<Self, StorageError> {
        let mut intake = Self {
            storage,
            digest: image.digest,
            aside,
            file_size: image.file_size,
            format: image.format,
            received: 0,
            resumed: image.received > Bytes::ZERO,
            hash: Sha256::new(),
            sink: None,
        };
        if image.received > Bytes::ZERO && image.format.is_some() {
            intake.open_sink()?;
            intake.hash_again(image.received.get())?;
        }
        Ok(intake)
    }

    pub(super) fn checkpoint(&self) -> Checkpoint {
        Checkpoint { received: Bytes::new(self.received), file_size: self.file_size, format: self.format }
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn is_complete(&self) -> bool {
        self.received > 0 && self.received == self.file_size.get()
    }

    /// Whether parts of it came at different times.
    pub(super) fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// What comes next continues what has come.
    pub(super) fn will_resume(&mut self) {
        self.resumed |= self.received > 0;
    }

    /// The source has said how large the file is.
    pub(super) fn announce(&mut self, file_size: Bytes) -> Result<(), IntakeError> {
        if self.file_size != Bytes::ZERO && self.file_size != file_size {
            let (was, is) = (self.file_size.get(), file_size.get());
            return Err(IntakeError::Refused(format!("the file has {is} bytes now, and had {was} before")));
        }
        self.file_size = file_size;
        Ok(())
    }

    fn open_sink(&mut self) -> Result<&mut Sink, StorageError> {
        if self.sink.is_none() {
            self.sink = Some(match self.format {
                Some(ImageFormat::Qcow2) => {
                    let file =
                        File::options().read(true).write(true).create(true).truncate(false).open(&self.aside);
                    Sink::Aside(file.map_err(|error| cannot("create a file for the image", error))?)
                }
                _ => {
                    let size = Bytes::new(self.file_size.get().next_multiple_of(SECTOR_SIZE));
                    Sink::Pool(self.storage.begin(Target::Image(self.digest), size)?)
                }
            });
        }
        Ok(self.sink.as_mut().expect("it has just been opened"))
    }

    /// The hash's state does not outlive a process: the bytes are read again.
    fn hash_again(&mut self, received: u64) -> Result<(), StorageError> {
        let mut block = vec![0; BLOCK_BYTES];
        let mut offset = 0;
        while offset < received {
            let length = usize::try_from(received - offset).unwrap_or(usize::MAX).min(BLOCK_BYTES);
            let block = &mut block[..length];
            let read = match self.sink.as_mut() {
                Some(Sink::Aside(file)) => file.read_exact_at(block, offset).is_ok(),
                Some(Sink::Pool(writer)) => writer.read_at(offset, block).map(|()| true)?,
                None => false,
            };
            if !read {
                // Shorter than was written down: a crash of the host. From the start, then.
                (self.hash, self.received) = (Sha256::new(), 0);
                return Ok(());
            }
            self.hash.update(&*block);
            offset += length as u64;
        }
        self.received = received;
        Ok(())
    }

    /// Takes in what `source` gives, from `received` on, until the file is complete.
    pub(super) fn take(
        &mut self,
        source: &mut dyn Read,
        observer: &dyn Observer,
        checkpoint: &mut dyn FnMut(Checkpoint),
    ) -> Result<(), IntakeError> {
        let taken = self.take_blocks(source, observer, checkpoint);
        if taken.is_err() && self.sync().is_ok() {
            checkpoint(self.checkpoint());
        }
        taken
    }

    fn take_blocks(
        &mut self,
        source: &mut dyn Read,
        observer: &dyn Observer,
        checkpoint: &mut dyn FnMut(Checkpoint),
    ) -> Result<(), IntakeError> {
        let mut block = vec![0; BLOCK_BYTES];
        let mut since = 0;
        while !self.is_complete() {
            if observer.is_cancelled() {
                return Err(StorageError::Cancelled.into());
            }
            observer.progress(Bytes::new(self.received), self.file_size);
            let left = usize::try_from(self.file_size.get() - self.received).unwrap_or(usize::MAX);
            let wanted = left.min(BLOCK_BYTES);
            let (filled, error) = fill(source, &mut block[..wanted]);
            self.store(&block[..filled])?;
            since += filled as u64;
            if since >= CHECKPOINT_BYTES {
                since = 0;
                self.sync()?;
                checkpoint(self.checkpoint());
            }
            match error {
                None if filled == wanted => {}
                None => {
                    let (has, all) = (self.received, self.file_size.get());
                    return Err(IntakeError::BrokenOff(format!("it ended after {has} of {all} bytes")));
                }
                Some(error) => return Err(IntakeError::BrokenOff(error.to_string())),
            }
        }
        self.sync()?;
        checkpoint(self.checkpoint());
        Ok(())
    }

    fn store(&mut self, bytes: &[u8]) -> Result<(), IntakeError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.format.is_none() {
            // The first block is whole, or the file is shorter than a header, or it broke off: then again.
            if bytes.len() < Qcow2::MAGIC.len() && (bytes.len() as u64) < self.file_size.get() {
                return Ok(());
            }
            let is_qcow2 = bytes.starts_with(&Qcow2::MAGIC);
            self.format = Some(if is_qcow2 { ImageFormat::Qcow2 } else { ImageFormat::Raw });
        }
        let offset = self.received;
        match self.open_sink()? {
            Sink::Pool(writer) => write_sparse(&mut **writer, offset, bytes)?,
            Sink::Aside(file) => {
                file.write_all_at(bytes, offset).map_err(|error| cannot("put the image aside", error))?;
            }
        }
        self.hash.update(bytes);
        self.received += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        match &mut self.sink {
            Some(Sink::Pool(writer)) => writer.sync(),
            Some(Sink::Aside(file)) => file.sync_data().map_err(|error| cannot("flush a file", error)),
            None => Ok(()),
        }
    }

    /// Checks the file, and makes the disk of it. The disk's size.
    pub(super) fn complete(mut self, observer: &dyn Observer) -> Result<(Bytes, ImageFormat), IntakeError> {
        let found = ImageDigest::new(self.hash.finalize().into());
        if found != self.digest {
            return Err(IntakeError::Mismatch { found, expected: self.digest });
        }
        match self.sink.take() {
            Some(Sink::Pool(writer)) => {
                writer.finish()?;
                Ok((Bytes::new(self.file_size.get().next_multiple_of(SECTOR_SIZE)), ImageFormat::Raw))
            }
            Some(Sink::Aside(file)) => {
                let unreadable = |error: &dyn std::error::Error| {
                    IntakeError::Refused(format!(
                        "the image cannot be used: {}",
                        crate::status::describe(error)
                    ))
                };
                let mut disk = Qcow2::open(file, DISK_MAX).map_err(|error| unreadable(&error))?;
                let size = drover_storage_pools::DiskReader::size(&disk);
                let mut writer = self.storage.begin(Target::Image(self.digest), size)?;
                copy(&mut disk, &mut *writer, observer)?;
                writer.finish()?;
                Ok((size, ImageFormat::Qcow2))
            }
            None => Err(IntakeError::Refused("the file is empty".to_owned())),
        }
    }
}

/// Removes a file that was put aside. Idempotent.
pub(super) fn forget(aside: &std::path::Path) {
    match fs::remove_file(aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %aside.display(), %error, "a file of an import cannot be removed");
        }
        _ => {}
    }
}

fn cannot(action: &str, error: std::io::Error) -> StorageError {
    match error.kind() {
        std::io::ErrorKind::StorageFull => {
            StorageError::Full { action: action.to_owned(), source: error.into() }
        }
        _ => StorageError::Failed { action: action.to_owned(), source: error.into() },
    }
}

/// Reads until `buffer` is full, the source has ended or failed. What came before an error counts.
fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> (usize, Option<std::io::Error>) {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return (filled, Some(error)),
        }
    }
    (filled, None)
}
