//! What the fuzz targets share.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a finding")]

use std::{fs::File, io::Write as _};

#[path = "../../vmm/devices/tests/hostile_guest/mod.rs"]
pub mod hostile_guest;

/// A file in memory with this content.
pub fn file_with(content: &[u8]) -> File {
    let mut file = File::from(
        rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("memory for a file"),
    );
    file.write_all(content).expect("memory for a file");
    file
}
