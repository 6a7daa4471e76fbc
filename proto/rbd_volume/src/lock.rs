//! The exclusive lock of one writer.

use drover_rbd::Image;
use drover_volume_owner::{Owner, OwnerRecord, Refusal};
use nix::errno::Errno;

use crate::record::{Change, ImageRecord, RecordError, read_record, update};

/// Why an image could not be locked, fenced or detached. Who may write it is as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another client holds the lock.
    #[error("the volume is in use by {}", describe(.owner))]
    Held {
        /// Who last acquired it; `None` where the holder left no record.
        owner: Option<Owner>,
    },
    /// The record does not admit this owner, now or later.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This client has been blocklisted: it can do nothing more, and its process must end.
    #[error("this client of the cluster has been fenced")]
    Fenced,
    /// The owner record cannot be used.
    #[error("cannot tell who owns the volume")]
    Record(#[from] RecordError),
    /// The cluster refused.
    #[error("cannot {attempt} the volume")]
    Ceph {
        /// What was tried.
        attempt: &'static str,
        /// Why not.
        #[source]
        source: drover_rbd::Error,
    },
}

fn describe(owner: &Option<Owner>) -> String {
    match owner {
        Some(owner) => owner.to_string(),
        None => "a client that left no owner record".to_owned(),
    }
}

impl LockError {
    pub(crate) fn ceph(attempt: &'static str) -> impl FnOnce(drover_rbd::Error) -> Self {
        move |source| match source.errno() {
            Some(Errno::ESHUTDOWN) => Self::Fenced,
            _ => Self::Ceph { attempt, source },
        }
    }
}

/// Takes an image's lock, or says whose it is.
pub(crate) fn lock(image: &Image) -> Result<(), LockError> {
    image.acquire_lock().map_err(|error| match error.errno() {
        // A record that cannot be read must not hide that the volume is in use.
        Some(Errno::EROFS | Errno::EBUSY | Errno::EAGAIN) => LockError::Held {
            owner: read_record(image).ok().flatten().and_then(|record| record.owner.last_owner()),
        },
        _ => LockError::ceph("lock")(error),
    })
}

/// Who last acquired the image, whether or not they still have it.
///
/// # Errors
/// See [`LockError`].
pub fn last_owner(image: &Image) -> Result<Option<Owner>, LockError> {
    Ok(read_record(image)?.and_then(|record| record.owner.last_owner()))
}

/// The exclusive right to write one image through one handle of it, until [released](Self::release) or until the image
/// is closed.
///
/// The owner record stays behind: it is the epoch floor for whoever comes next.
#[derive(Debug)]
pub struct ImageLock {
    image: Image,
    owner: Owner,
}

impl ImageLock {
    /// Takes the image's lock for `owner` and records it. `image` is open for writing. Never waits for another owner;
    /// a lock that a fenced or long dead client has left behind is taken over.
    ///
    /// # Errors
    /// See [`LockError`]. Repeating the call with the same owner after a release is allowed: that is how the source of
    /// an aborted migration goes on.
    pub fn acquire(image: &Image, owner: Owner) -> Result<Self, LockError> {
        lock(image)?;
        match Self::record(image, owner) {
            Ok(()) => Ok(Self { image: image.clone(), owner }),
            Err(error) => {
                // What was taken is given back; where that fails, closing the image does it.
                let _ = image.release_lock();
                Err(error)
            }
        }
    }

    /// Makes the record say that `owner` has it. The lock is held.
    fn record(image: &Image, owner: Owner) -> Result<(), LockError> {
        let clients = image.pool().cluster().addresses().map_err(LockError::ceph("name our client to"))?;
        let new = ImageRecord { owner: OwnerRecord::Acquired(owner), clients };
        let before = update(image, |current| {
            if let Some(current) = current {
                current.owner.admit(&owner)?;
            }
            // The source of an aborted migration comes back as who it was: the record says so already.
            let change = current != Some(&new);
            Ok::<_, LockError>(change.then(|| Change::Replace(new.clone())))
        })?;
        if matches!(before, Some(ImageRecord { owner: OwnerRecord::Fenced { .. }, .. })) {
            // From here on every OSD that serves us knows whom the fence has refused.
            image.pool().cluster().wait_for_latest_osdmap().map_err(LockError::ceph("see the fence of"))?;
        }
        Ok(())
    }

    /// Who holds it.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Gives the lock up. I/O must have been flushed, and none may be under way.
    ///
    /// # Errors
    /// The lock may then be held or not: try again, or close the image, which gives it up for sure.
    pub fn release(&self) -> Result<(), LockError> {
        self.image.release_lock().map_err(LockError::ceph("unlock"))
    }
}
