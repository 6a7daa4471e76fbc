//! The archive that Linux unpacks as its first root file system: cpio in the "newc" form
//! (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::Context as _;

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_777;

/// Builds an archive entry by entry. Archives can be concatenated: a later one adds to an earlier one.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(crate) fn folder(&mut self, path: &str) -> &mut Self {
        self.entry(path, FOLDER, &[])
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(path, LINK, target.as_bytes())
    }

    /// A file with the permissions `mode`, such as `0o755`.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.entry(path, FILE | mode, content)
    }

    /// A file of this machine, with its permissions.
    pub(crate) fn copy(&mut self, path: &str, from: &Path) -> anyhow::Result<&mut Self> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = fs::metadata(from)?.permissions().mode() & 0o777;
        Ok(self.file(path, mode, &content))
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a file of an initramfs is smaller than 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
