//! Texts that an image carries. They are copied to its clones.

use crate::{Error, Image, cluster::check, ffi::c_string};

impl Image {
    /// The value under a key, where there is one.
    pub fn metadata(&self, key: &str) -> Result<Option<String>, Error> {
        match self.raw().metadata(&c_string("a key", key)?) {
            Ok(value) => Ok(Some(value)),
            Err(answer) if answer == -i64::from(libc::ENOENT) => Ok(None),
            Err(answer) => Err(self.refused_long("read the metadata of the image")(answer)),
        }
    }

    /// Stores a value under a key. Where another client holds the lock, it is asked to do it: this takes as long as that
    /// client takes to answer, which may be for ever.
    pub fn set_metadata(&self, key: &str, value: &str) -> Result<(), Error> {
        check(self.raw().set_metadata(&c_string("a key", key)?, &c_string("a value", value)?))
            .map_err(self.refused("set the metadata of the image"))
    }

    /// Removes a key. Idempotent.
    pub fn remove_metadata(&self, key: &str) -> Result<(), Error> {
        match self.raw().remove_metadata(&c_string("a key", key)?) {
            answer if answer == -libc::ENOENT => Ok(()),
            answer => check(answer).map_err(self.refused("remove the metadata of the image")),
        }
    }

    /// Every key with its value, in the order of the keys.
    pub fn all_metadata(&self) -> Result<Vec<(String, String)>, Error> {
        self.raw().all_metadata().map_err(self.refused_long("list the metadata of the image"))
    }
}
