//! Files that are there whole or not at all, also after a crash.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

/// Replaces `path` by `content`. After `Ok` the new content survives a crash of the host; before it, the old does.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let pending = Pending::create(path)?;
    (&pending.file).write_all(content)?;
    pending.file.sync_all()?;
    fs::rename(&pending.path, path)?;
    sync_parent(path)
}

/// A file under construction beside its final place. Gone again if it is dropped before [`Pending::publish`].
pub(crate) struct Pending {
    pub(crate) file: File,
    path: PathBuf,
}

impl Pending {
    /// Opens an empty file beside `target`, for reading and writing.
    pub(crate) fn create(target: &Path) -> io::Result<Self> {
        // Unique among the processes of this host; several hosts that share the pool differ by chance only in the
        // process id, so an existing file is left alone and the next number tried.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        const ATTEMPTS: u32 = 100;
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        for _ in 0..ATTEMPTS {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = target.with_file_name(format!(".{name}.{}.{number}.tmp", process::id()));
            match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { file, path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Gives the file its final name, durably. Fails with `AlreadyExists` where that name is taken.
    pub(crate) fn publish(self, target: &Path) -> io::Result<()> {
        publish(&self.file, &self.path, target)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Already renamed, or not worth reporting: a leftover is hidden, and nothing reads it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Gives a complete file its final name, durably; the one it has stays. Fails with `AlreadyExists` where that name is
/// taken.
pub(crate) fn publish(file: &File, path: &Path, target: &Path) -> io::Result<()> {
    file.sync_all()?;
    // A link, not a rename: it is the one that refuses an existing target.
    fs::hard_link(path, target)?;
    sync_parent(target)
}

/// Makes creations, renames and removals in `path`'s directory durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // A file's bare name is in the directory we are in.
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    File::open(parent)?.sync_all()
}
