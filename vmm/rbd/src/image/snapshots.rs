//! Points in an image's past.

use crate::{Error, Image, LinkedImage, Progress, cluster::check, ffi::c_string};

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number, higher for later ones.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The image's size at that point, bytes.
    pub size: u64,
    /// It may not be removed.
    pub protected: bool,
}

const NAME: &str = "a snapshot's name";

impl Image {
    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, Error> {
        let operation = "list the snapshots of the image";
        let mut found = self.raw().snapshots().map_err(self.refused_long(operation))?;
        found.sort_by_key(|snapshot| snapshot.id);
        let mut snapshots = Vec::with_capacity(found.len());
        for snapshot in found {
            let protected = match self.raw().is_protected(&c_string(NAME, &snapshot.name)?) {
                Ok(protected) => protected,
                // Gone since it was listed.
                Err(answer) if answer == -libc::ENOENT => continue,
                Err(answer) => return Err(self.refused(operation)(answer)),
            };
            snapshots.push(Snapshot { id: snapshot.id, name: snapshot.name, size: snapshot.size, protected });
        }
        Ok(snapshots)
    }

    /// Keeps the image as it is now: every write that has completed is in, a later one is not. Where another client
    /// holds the lock, it is asked to do it.
    ///
    /// # Errors
    /// [`Error::is_already_there`].
    pub fn create_snapshot(&self, name: &str) -> Result<(), Error> {
        check(self.raw().create_snapshot(&c_string(NAME, name)?)).map_err(self.refused("snapshot the image"))
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// [`Error::is_not_found`]; [`Error::is_busy`] where it is protected.
    pub fn remove_snapshot(&self, name: &str, progress: Progress<'_>) -> Result<(), Error> {
        check(self.raw().remove_snapshot(&c_string(NAME, name)?, progress))
            .map_err(self.refused("remove a snapshot of the image"))
    }

    /// Makes the image what it was at a snapshot. Nobody else may have it locked.
    pub fn roll_back(&self, name: &str, progress: Progress<'_>) -> Result<(), Error> {
        check(self.raw().roll_back(&c_string(NAME, name)?, progress))
            .map_err(self.refused("roll back the image"))
    }

    /// Forbids the snapshot's removal. Idempotent.
    pub fn protect_snapshot(&self, name: &str) -> Result<(), Error> {
        match self.raw().protect(&c_string(NAME, name)?) {
            answer if answer == -libc::EBUSY => Ok(()),
            answer => check(answer).map_err(self.refused("protect a snapshot of the image")),
        }
    }

    /// Allows the snapshot's removal. Idempotent.
    ///
    /// # Errors
    /// [`Error::is_busy`] where an old-format clone depends on it.
    pub fn unprotect_snapshot(&self, name: &str) -> Result<(), Error> {
        match self.raw().unprotect(&c_string(NAME, name)?) {
            answer if answer == -libc::EINVAL => Ok(()),
            answer => check(answer).map_err(self.refused("unprotect a snapshot of the image")),
        }
    }

    /// The clones of one snapshot, or of all of them.
    ///
    /// Looks through a handle's own view of the image: not while I/O runs on the same handle.
    pub fn children(&self, snapshot: Option<&str>) -> Result<Vec<LinkedImage>, Error> {
        let operation = "list the clones of the image";
        let Some(name) = snapshot else { return self.raw().children().map_err(self.refused_long(operation)) };
        check(self.raw().set_snapshot(Some(&c_string(NAME, name)?))).map_err(self.refused(operation))?;
        let found = self.raw().children();
        check(self.raw().set_snapshot(None)).map_err(self.refused(operation))?;
        found.map_err(self.refused_long(operation))
    }
}
