//! An open image: its shape, and what may be done to it as a whole.

mod data;
mod encryption;
mod lock;
mod metadata;
mod snapshots;

use std::{ffi::CString, fmt, sync::Arc};

use crate::{
    Buffers, Error, ImageQueue, Pool, Progress,
    cluster::check,
    ffi::{
        c_string,
        image::{RawImage, RawWatch},
    },
};

pub use encryption::EncryptionFormat;
pub use lock::{LockMode, LockOwner, Watcher};
pub use snapshots::Snapshot;

/// How an image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading only. Leaves no trace on the image: no watch, no lock.
    ReadOnly,
    /// For reading and writing. A writer that takes no explicit lock shares the image with every other: see
    /// [`Image::acquire_lock`].
    ReadWrite,
}

/// A range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

/// What an image is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// Its size, bytes.
    pub size: u64,
    /// Size of one object, bytes: what one OSD stores together, and the best size and alignment for large requests.
    pub object_size: u64,
}

/// An image at the other end of a clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkedImage {
    /// Its pool.
    pub pool: String,
    /// Its namespace there.
    pub namespace: String,
    /// Its id, which a rename does not change.
    pub id: String,
    /// Its name.
    pub name: String,
    /// It has been removed by its owner, and remains for its clones only.
    pub in_trash: bool,
}

/// An open image, cheap to clone. Closes when the last of clones, [queues](ImageQueue) and [watches](UpdateWatch) has
/// gone.
#[derive(Clone)]
pub struct Image {
    raw: Arc<RawImage>,
    pool: Pool,
    name: Arc<str>,
    access: Access,
}

/// Calls a listener while it lives: see [`Image::watch_updates`].
pub struct UpdateWatch {
    _raw: RawWatch,
}

impl fmt::Debug for UpdateWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpdateWatch")
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("pool", &self.pool)
            .field("name", &self.name)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

impl Image {
    /// Opens an image.
    ///
    /// # Errors
    /// [`Error::is_not_found`].
    pub fn open(pool: &Pool, name: &str, access: Access) -> Result<Self, Error> {
        Self::open_at(pool, name, None, access)
    }

    /// Opens an image as it was at a snapshot, for reading.
    ///
    /// # Errors
    /// [`Error::is_not_found`].
    pub fn open_snapshot(pool: &Pool, name: &str, snapshot: &str) -> Result<Self, Error> {
        Self::open_at(pool, name, Some(c_string("a snapshot's name", snapshot)?), Access::ReadOnly)
    }

    fn open_at(pool: &Pool, name: &str, snapshot: Option<CString>, access: Access) -> Result<Self, Error> {
        let text = c_string("an image's name", name)?;
        let raw = RawImage::open(pool.raw(), &text, snapshot.as_deref(), access == Access::ReadOnly)
            .map_err(|answer| Error::refused("open the image", name, answer))?;
        Ok(Self { raw: Arc::new(raw), pool: pool.clone(), name: name.into(), access })
    }

    fn raw(&self) -> &Arc<RawImage> {
        &self.raw
    }

    /// Turns an answer into an error that names this image.
    fn refused(&self, operation: &'static str) -> impl FnOnce(i32) -> Error {
        let name = Arc::clone(&self.name);
        move |answer| Error::refused(operation, &*name, answer)
    }

    fn refused_long(&self, operation: &'static str) -> impl FnOnce(i64) -> Error {
        let name = Arc::clone(&self.name);
        move |answer| Error::refused(operation, &*name, answer)
    }

    /// The pool it is in.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
    /// The name it was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// How it was opened.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Its size now, bytes. May ask the cluster, where a change has been announced.
    pub fn size(&self) -> Result<u64, Error> {
        self.raw.size().map_err(self.refused("read the size of the image"))
    }

    /// Its size and its objects' size.
    pub fn shape(&self) -> Result<ImageShape, Error> {
        let info = self.raw.info().map_err(self.refused("read the shape of the image"))?;
        Ok(ImageShape { size: info.size, object_size: info.object_size })
    }

    /// The bits of `RBD_FEATURE_*`.
    pub fn features(&self) -> Result<u64, Error> {
        self.raw.features().map_err(self.refused("read the features of the image"))
    }

    /// Its id, which a rename does not change and which the names of its objects carry.
    pub fn id(&self) -> Result<String, Error> {
        self.raw.id().map_err(self.refused("read the id of the image"))
    }

    /// The image and snapshot it was cloned from, where it has not been flattened since.
    pub fn parent(&self) -> Result<Option<(LinkedImage, String)>, Error> {
        match self.raw.parent() {
            Ok(parent) => Ok(Some(parent)),
            Err(answer) if answer == -libc::ENOENT => Ok(None),
            Err(answer) => Err(self.refused("read the parent of the image")(answer)),
        }
    }

    /// Makes it `size` bytes long. Whoever has it open is told.
    ///
    /// # Errors
    /// `EINVAL` where it would shrink and `may_shrink` is not set.
    pub fn resize(&self, size: u64, may_shrink: bool, progress: Progress<'_>) -> Result<(), Error> {
        check(self.raw.resize(size, may_shrink, progress)).map_err(self.refused("resize the image"))
    }

    /// Copies from the parent what the image still shares with it, so that it needs the parent no more. May run beside
    /// I/O.
    pub fn flatten(&self, progress: Progress<'_>) -> Result<(), Error> {
        check(self.raw.flatten(progress)).map_err(self.refused("flatten the image"))
    }

    /// Gives back extents of zeros of at least `granularity` bytes, a power of two of at least 4 KiB.
    pub fn sparsify(&self, granularity: usize, progress: Progress<'_>) -> Result<(), Error> {
        check(self.raw.sparsify(granularity, progress)).map_err(self.refused("sparsify the image"))
    }

    /// Calls `listener` whenever the image's header has changed: its size, its snapshots, its parent. It is called on
    /// one of librbd's threads and must not call back into the library: it hands over to a thread of its own.
    pub fn watch_updates(&self, listener: impl Fn() + Send + Sync + 'static) -> Result<UpdateWatch, Error> {
        let raw = self.raw.watch(Box::new(listener)).map_err(self.refused("watch the image"))?;
        Ok(UpdateWatch { _raw: raw })
    }

    /// A way to do I/O without waiting, for one worker, with at most `depth` requests at once.
    pub fn queue<B: Buffers>(&self, depth: u16) -> Result<ImageQueue<B>, Error> {
        ImageQueue::open(&self.raw, depth)
    }
}
