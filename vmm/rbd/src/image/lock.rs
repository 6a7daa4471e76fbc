//! Who may write an image, and who has it open.

use crate::{ClientAddress, Error, Image, cluster::check, ffi::c_string};

/// How an image's lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// By one, who does not give it up when somebody else asks.
    Exclusive,
    /// By several.
    Shared,
}

/// A holder of an image's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockOwner {
    /// Its client. It need not be alive.
    pub address: ClientAddress,
    /// How it holds the lock.
    pub mode: LockMode,
}

/// A client that has an image open for writing. It need not be alive: a watch ends 30 s after its client's last sign of
/// life, or when the client is blocklisted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watcher<A = ClientAddress> {
    /// Its client.
    pub address: A,
    /// Its client's number.
    pub client: i64,
    /// The number of its watch.
    pub cookie: u64,
}

/// `RBD_LOCK_MODE_EXCLUSIVE`.
const EXCLUSIVE: i32 = 0;
/// `RBD_LOCK_MODE_SHARED`.
const SHARED: i32 = 1;

impl Image {
    /// Takes the exclusive lock explicitly: from now on every other client's write fails with `EROFS`, and it is not
    /// passed on when another asks for it. (The lock that librbd takes by itself at a first write wanders to whoever
    /// writes next: it protects nothing.)
    ///
    /// A lock whose owner has gone, watch and all, is taken over.
    ///
    /// # Errors
    /// `EROFS` or `EBUSY` where another client has it: [`Image::lock_owners`] names it.
    pub fn acquire_lock(&self) -> Result<(), Error> {
        check(self.raw().acquire_lock(EXCLUSIVE)).map_err(self.refused("lock the image"))
    }

    /// Waits for the writes under way, then gives the lock up.
    pub fn release_lock(&self) -> Result<(), Error> {
        check(self.raw().release_lock()).map_err(self.refused("unlock the image"))
    }

    /// Whether this client holds the lock, as far as it knows.
    pub fn is_lock_owner(&self) -> Result<bool, Error> {
        self.raw().is_lock_owner().map_err(self.refused("read the lock of the image"))
    }

    /// Who holds the lock; nobody where it is free.
    ///
    /// # Errors
    /// `EINVAL` through a handle that is open for reading.
    pub fn lock_owners(&self) -> Result<Vec<LockOwner>, Error> {
        let operation = "read the lock of the image";
        let (mode, owners) = match self.raw().lock_owners() {
            Ok(found) => found,
            Err(answer) if answer == -i64::from(libc::ENOENT) => return Ok(Vec::new()),
            Err(answer) => return Err(self.refused_long(operation)(answer)),
        };
        let mode = if mode == SHARED { LockMode::Shared } else { LockMode::Exclusive };
        let owner = |text: &String| match text.parse() {
            Ok(address) => Ok(LockOwner { address, mode }),
            Err(error) => Err(Error::Answer { operation, reason: format!("{error}") }),
        };
        owners.iter().map(owner).collect()
    }

    /// Takes the lock away from an owner. Does not stop its writes under way: blocklist it first.
    ///
    /// # Errors
    /// [`Error::is_not_found`] where it is not the owner (any more).
    pub fn break_lock(&self, owner: &LockOwner) -> Result<(), Error> {
        let mode = match owner.mode {
            LockMode::Exclusive => EXCLUSIVE,
            LockMode::Shared => SHARED,
        };
        let address = c_string("an address", &owner.address.to_string())?;
        check(self.raw().break_lock(mode, &address)).map_err(self.refused("break the lock of the image"))
    }

    /// Who has the image open for writing, this client included.
    pub fn watchers(&self) -> Result<Vec<Watcher>, Error> {
        let operation = "list the watchers of the image";
        let watcher = |watcher: Watcher<String>| match watcher.address.parse() {
            Ok(address) => Ok(Watcher { address, client: watcher.client, cookie: watcher.cookie }),
            Err(error) => Err(Error::Answer { operation, reason: format!("{error}") }),
        };
        self.raw().watchers().map_err(self.refused_long(operation))?.into_iter().map(watcher).collect()
    }
}
