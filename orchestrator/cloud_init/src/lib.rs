//! What a guest with cloud-init is told at its first boot, as a small read-only disk.
//!
//! cloud-init's data source "NoCloud" looks for a file system with the label `CIDATA` and reads `meta-data`, `user-data` and
//! `network-config` from it (cloud-init documentation, reference/datasources/nocloud). [`Seed`] holds what they are made of,
//! checked; [`Seed::image`] is the disk, an ISO 9660 image. The same seed is always the same bytes: a VM that has moved or
//! started again finds the disk that it had.
//!
//! User data often holds secrets: `Debug` shows its length, and no error repeats it.
#![forbid(unsafe_code)]

mod iso9660;
mod seed;

pub use seed::{
    HOSTNAME_BYTES_MAX, InvalidSeed, NETWORK_CONFIG_BYTES_MAX, SSH_KEY_BYTES_MAX, SSH_KEYS_MAX, Seed,
    USER_DATA_BYTES_MAX, Unchecked,
};
