//! Encryption by librbd itself: the cluster and its network see ciphertext only.

use crate::{Error, Image, Secret, cluster::check};

/// A format of encrypted images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncryptionFormat {
    /// LUKS version 1.
    Luks1,
    /// LUKS version 2, with AES-256 in XTS mode.
    Luks2,
}

/// `RBD_ENCRYPTION_ALGORITHM_AES256`.
const AES_256: i32 = 1;

impl EncryptionFormat {
    /// `RBD_ENCRYPTION_FORMAT_*`.
    fn number(self) -> i32 {
        match self {
            Self::Luks1 => 0,
            Self::Luks2 => 1,
        }
    }
}

impl Image {
    /// Makes an empty image an encrypted one, whose usable size is smaller by the header (16 MiB for LUKS 2). Takes some
    /// seconds: deriving the key is meant to.
    ///
    /// # Errors
    /// [`Error::is_unsupported`] where the library was built without it.
    pub fn format_encryption(&self, format: EncryptionFormat, passphrase: &Secret) -> Result<(), Error> {
        check(self.raw().format_encryption(format.number(), AES_256, passphrase.reveal()))
            .map_err(self.refused("encrypt the image"))
    }

    /// Makes this handle read and write what is inside the encryption. Before its first I/O.
    ///
    /// # Errors
    /// [`Error::is_denied`] for a wrong passphrase, `EINVAL` where the image is not encrypted in this format.
    pub fn load_encryption(&self, format: EncryptionFormat, passphrase: &Secret) -> Result<(), Error> {
        check(self.raw().load_encryption(format.number(), AES_256, passphrase.reveal()))
            .map_err(self.refused("open the encryption of the image"))
    }
}
