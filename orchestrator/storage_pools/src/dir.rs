//! A pool that is a directory of raw files.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use drover_dir_volume::{DirPool, LockError, Partial, PoolError};
use drover_ids::{ImageDigest, SnapshotId, VolumeId};
use drover_units::Bytes;
use rustix::io::Errno;

use crate::{
    Capabilities, DiskReader, DiskWriter, Observer, PoolUsage, PreparedSnapshot, Result, SnapshotInfo,
    Source, StorageError, StoragePool, Target, VolumeUsage, copy::copy, pool::check_size,
};

/// Raw files in a directory. A clone or snapshot shares the blocks of what it was made of where the file system can
/// (XFS, Btrfs), and is a sparse copy elsewhere.
#[derive(Debug)]
pub struct DirStorage {
    pool: DirPool,
    reflinks: OnceLock<bool>,
}

impl DirStorage {
    /// The storage of a pool.
    pub fn new(pool: DirPool) -> Self {
        Self { pool, reflinks: OnceLock::new() }
    }

    /// Whether two files of this directory can share blocks: tried once.
    fn has_reflinks(&self) -> bool {
        *self.reflinks.get_or_init(|| {
            let target = self.pool.root().join("reflink-probe");
            let probe = || -> io::Result<()> {
                let (from, to) = (target.with_extension("from"), target.with_extension("to"));
                let (from, to) = (self.pool.begin_partial(&from)?, self.pool.begin_partial(&to)?);
                from.file().set_len(4096)?;
                Ok(rustix::fs::ioctl_ficlone(to.file(), from.file())?)
            };
            let outcome = probe();
            for extension in ["from", "to"] {
                // Hidden, empty, and overwritten by the next probe.
                let _left = self.pool.discard_partial(&target.with_extension(extension));
            }
            outcome.is_ok()
        })
    }

    fn source_path(&self, source: Source) -> PathBuf {
        match source {
            Source::Image(image) => self.pool.disk_image_path(image),
            Source::Snapshot { volume, snapshot } => self.pool.snapshot_path(volume, snapshot),
        }
    }

    fn target_path(&self, target: Target) -> PathBuf {
        match target {
            Target::Image(image) => self.pool.disk_image_path(image),
            Target::Volume(volume) => self.pool.volume_path(volume),
        }
    }

    fn open_source(&self, source: Source) -> Result<File> {
        match File::open(self.source_path(source)) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(match source {
                Source::Image(image) => StorageError::NoSuchImage(image),
                Source::Snapshot { volume, snapshot } => StorageError::NoSuchSnapshot { volume, snapshot },
            }),
            Err(error) => Err(StorageError::io(format!("open {source}"), error)),
        }
    }

    fn protection(&self, volume: VolumeId, snapshot: SnapshotId) -> PathBuf {
        self.pool.snapshot_path(volume, snapshot).with_extension("protected")
    }

    /// Fills a file with another one's content, sharing blocks where that works.
    fn fill(&self, from: &File, to: &Partial, size: Bytes, observer: &dyn Observer) -> Result<()> {
        let failed = |error| StorageError::io("copy a disk", error);
        if !self.has_reflinks() || rustix::fs::ioctl_ficlone(to.file(), from).is_err() {
            let from = from.try_clone().map_err(failed)?;
            let length = Bytes::new(from.metadata().map_err(failed)?.len());
            // What an interrupted copy has left is the beginning of this one, unless it is longer.
            to.file().set_len(length.get()).map_err(failed)?;
            copy(&mut FileReader { file: from, size: length }, &mut Filling { file: to.file() }, observer)?;
        }
        to.file().set_len(size.get()).map_err(failed)
    }

    /// Fills and publishes a file; one that cannot be completed is removed again.
    fn publish(&self, from: &File, target: &Path, size: Bytes, observer: &dyn Observer) -> Result<()> {
        let failed = |error| StorageError::io(format!("make {}", target.display()), error);
        let partial = self.pool.begin_partial(target).map_err(failed)?;
        let filled = self.fill(from, &partial, size, observer);
        match filled.and_then(|()| partial.publish().map_err(failed)) {
            Ok(()) => Ok(()),
            Err(error) => {
                // The error that counts is the first one.
                let _left = self.pool.discard_partial(target);
                Err(error)
            }
        }
    }
}

/// Room that a file takes, not its length.
fn blocks(path: &Path) -> io::Result<u64> {
    // In units of 512 bytes whatever the file system's own (stat(2)).
    Ok(fs::metadata(path)?.blocks().saturating_mul(512))
}

fn tree_blocks(folder: &Path) -> io::Result<u64> {
    let mut sum = 0_u64;
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let size =
            if entry.file_type()?.is_dir() { tree_blocks(&entry.path()) } else { blocks(&entry.path()) };
        match size {
            Ok(size) => sum = sum.saturating_add(size),
            // Removed since the folder was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sum)
}

fn pool_error(error: PoolError) -> StorageError {
    match error {
        PoolError::NoSuchVolume(volume) => StorageError::NoSuchVolume(volume),
        PoolError::VolumeExists(volume) => StorageError::Exists(format!("volume {volume}")),
        PoolError::Size { size } => StorageError::Size(Bytes::new(size)),
        PoolError::InUse { volume, source } => StorageError::InUse { volume, source: source.into() },
        PoolError::Io { action, path, source } => {
            StorageError::io(format!("{action} {}", path.display()), source)
        }
        other => StorageError::Failed { action: "use the pool".to_owned(), source: other.into() },
    }
}

fn lock_error(volume: VolumeId, error: LockError) -> StorageError {
    match error {
        LockError::Deleted => StorageError::NoSuchVolume(volume),
        LockError::Io { path, source } => StorageError::io(format!("lock {}", path.display()), source),
        held => StorageError::InUse { volume, source: held.into() },
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StorageError::io(format!("remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

struct Prepared {
    storage: DirStorage,
    volume: VolumeId,
    snapshot: SnapshotId,
}

impl PreparedSnapshot for Prepared {
    fn take(self: Box<Self>) -> Result<()> {
        self.storage.create_snapshot(self.volume, self.snapshot)
    }
}

impl StoragePool for DirStorage {
    fn capabilities(&self) -> Capabilities {
        let reflinks = self.has_reflinks();
        Capabilities { instant_clone: reflinks, clones_need_source: false, online_snapshot: reflinks }
    }

    fn usage(&self) -> Result<PoolUsage> {
        let root = self.pool.root();
        let failed = |error| StorageError::io(format!("read the usage of {}", root.display()), error);
        let room = rustix::fs::statvfs(root).map_err(|errno| failed(errno.into()))?;
        let used = tree_blocks(root).map_err(failed)?;
        Ok(PoolUsage {
            capacity: Some(Bytes::new(room.f_blocks.saturating_mul(room.f_frsize))),
            available: Some(Bytes::new(room.f_bavail.saturating_mul(room.f_frsize))),
            used: Some(Bytes::new(used)),
        })
    }

    fn create_volume(&self, volume: VolumeId, size: Bytes) -> Result<()> {
        match self.pool.create_volume(volume, size).map_err(pool_error) {
            Err(StorageError::Exists(_)) if self.volume_usage(volume)?.size == size => Ok(()),
            other => other,
        }
    }

    fn clone_volume(
        &self,
        volume: VolumeId,
        source: Source,
        size: Bytes,
        observer: &dyn Observer,
    ) -> Result<()> {
        check_size(size)?;
        let path = self.pool.volume_path(volume);
        if path.exists() {
            let same = self.volume_usage(volume)?.size == size;
            return if same { Ok(()) } else { Err(StorageError::Exists(format!("volume {volume}"))) };
        }
        let from = self.open_source(source)?;
        let has = from.metadata().map_err(|error| StorageError::io(format!("read {source}"), error))?.len();
        if has > size.get() {
            return Err(StorageError::Shrink { from: Bytes::new(has), to: size });
        }
        self.publish(&from, &path, size, observer)
    }

    fn grow_volume(&self, volume: VolumeId, size: Bytes) -> Result<()> {
        check_size(size)?;
        let has = self.volume_usage(volume)?.size;
        if has > size {
            return Err(StorageError::Shrink { from: has, to: size });
        }
        let path = self.pool.volume_path(volume);
        let grow = || -> io::Result<()> {
            let file = fs::OpenOptions::new().write(true).open(&path)?;
            file.set_len(size.get())?;
            file.sync_all()
        };
        grow().map_err(|error| StorageError::io(format!("resize {}", path.display()), error))
    }

    fn flatten_volume(&self, volume: VolumeId, _: &dyn Observer) -> Result<()> {
        // A copy, or blocks that the file system keeps for as long as anybody uses them.
        self.volume_usage(volume).map(drop)
    }

    fn volume_usage(&self, volume: VolumeId) -> Result<VolumeUsage> {
        let size = self.pool.volume_size(volume).map_err(pool_error)?;
        let path = self.pool.volume_path(volume);
        let used =
            blocks(&path).map_err(|error| StorageError::io(format!("read {}", path.display()), error))?;
        Ok(VolumeUsage {
            size: size.to_bytes().expect("a file's length fits 64 bits"),
            used: Some(Bytes::new(used)),
        })
    }

    fn delete_volume(&self, volume: VolumeId, _: &dyn Observer) -> Result<()> {
        let path = self.pool.volume_path(volume);
        let folder = self.pool.snapshots_path(volume);
        if folder.exists() {
            let snapshots = self.snapshots(volume)?.len();
            if snapshots > 0 {
                return Err(StorageError::HasSnapshots { volume, snapshots });
            }
        }
        self.pool.delete_volume(volume).map_err(pool_error)?;
        self.pool
            .discard_partial(&path)
            .map_err(|error| StorageError::io(format!("remove what is left of volume {volume}"), error))?;
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StorageError::io(format!("remove {}", folder.display()), error))
            }
            _ => Ok(()),
        }
    }

    fn create_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<()> {
        let target = self.pool.snapshot_path(volume, snapshot);
        if target.exists() {
            return Ok(());
        }
        let path = self.pool.volume_path(volume);
        let failed = |error| StorageError::io(format!("snapshot {}", path.display()), error);
        let (held, file) = match self.pool.hold_volume(volume) {
            Ok(held) => {
                let file = held.file().try_clone().map_err(failed)?;
                (Some(held), file)
            }
            // The file system shares the blocks of one moment, whoever writes.
            Err(LockError::Held { .. }) if self.has_reflinks() => (None, File::open(&path).map_err(failed)?),
            Err(error) => return Err(lock_error(volume, error)),
        };
        let size = Bytes::new(file.metadata().map_err(failed)?.len());
        self.publish(&file, &target, size, &crate::Unobserved)?;
        drop(held);
        Ok(())
    }

    fn prepare_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<Box<dyn PreparedSnapshot>> {
        self.volume_usage(volume)?;
        self.delete_snapshot(volume, snapshot)?;
        let storage = Self { pool: self.pool.clone(), reflinks: self.has_reflinks().into() };
        Ok(Box::new(Prepared { storage, volume, snapshot }))
    }

    fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotInfo>> {
        let folder = self.pool.snapshots_path(volume);
        let failed = |error| StorageError::io(format!("read {}", folder.display()), error);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.volume_usage(volume)?;
                return Ok(Vec::new());
            }
            Err(error) => return Err(failed(error)),
        };
        let mut snapshots = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".raw")).and_then(|id| id.parse().ok());
            let Some(id) = id else { continue };
            let size = Bytes::new(entry.metadata().map_err(failed)?.len());
            snapshots.push(SnapshotInfo { id, size, protected: self.protection(volume, id).exists() });
        }
        snapshots.sort_by_key(|snapshot| snapshot.id);
        Ok(snapshots)
    }

    fn protect_snapshot(&self, volume: VolumeId, snapshot: SnapshotId, protect: bool) -> Result<()> {
        self.open_source(Source::Snapshot { volume, snapshot })?;
        let path = self.protection(volume, snapshot);
        if !protect {
            return remove(&path);
        }
        let made = File::create(&path).and_then(|file| file.sync_all());
        made.map_err(|error| StorageError::io(format!("create {}", path.display()), error))
    }

    fn rollback(&self, volume: VolumeId, snapshot: SnapshotId, observer: &dyn Observer) -> Result<()> {
        let from = self.open_source(Source::Snapshot { volume, snapshot })?;
        let held = self.pool.hold_volume(volume).map_err(|error| lock_error(volume, error))?;
        let path = self.pool.volume_path(volume);
        let failed = |error| StorageError::io(format!("roll back {}", path.display()), error);
        // An interrupted one may have been of another snapshot.
        self.pool.discard_partial(&path).map_err(failed)?;
        let size = Bytes::new(from.metadata().map_err(failed)?.len());
        let partial = self.pool.begin_partial(&path).map_err(failed)?;
        let filled = self.fill(&from, &partial, size, observer);
        match filled.and_then(|()| held.replace_with(&partial).map_err(failed)) {
            Ok(()) => Ok(()),
            Err(error) => {
                let _left = self.pool.discard_partial(&path);
                Err(error)
            }
        }
    }

    fn delete_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<()> {
        let path = self.pool.snapshot_path(volume, snapshot);
        if self.protection(volume, snapshot).exists() {
            return Err(StorageError::Protected(snapshot));
        }
        self.pool
            .discard_partial(&path)
            .map_err(|error| StorageError::io(format!("remove what is left of {}", path.display()), error))?;
        remove(&path)
    }

    fn image(&self, image: ImageDigest) -> Result<Option<Bytes>> {
        let path = self.pool.disk_image_path(image);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(Bytes::new(metadata.len()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::io(format!("read {}", path.display()), error)),
        }
    }

    fn delete_image(&self, image: ImageDigest, _: &dyn Observer) -> Result<()> {
        let path = self.pool.disk_image_path(image);
        self.pool
            .discard_partial(&path)
            .map_err(|error| StorageError::io(format!("remove what is left of {}", path.display()), error))?;
        remove(&path)
    }

    fn begin(&self, target: Target, size: Bytes) -> Result<Box<dyn DiskWriter>> {
        check_size(size)?;
        let path = self.target_path(target);
        if path.exists() {
            return Err(StorageError::Exists(target.to_string()));
        }
        let begin = || {
            let partial = self.pool.begin_partial(&path)?;
            partial.file().set_len(size.get())?;
            Ok(partial)
        };
        let partial = begin().map_err(|error| StorageError::io(format!("begin {target}"), error))?;
        Ok(Box::new(PartialWriter { partial, target }))
    }

    fn open(&self, source: Source) -> Result<Box<dyn DiskReader>> {
        let file = self.open_source(source)?;
        let size = file.metadata().map_err(|error| StorageError::io(format!("read {source}"), error))?.len();
        Ok(Box::new(FileReader { file, size: Bytes::new(size) }))
    }

    fn list(&self) -> Result<Vec<Target>> {
        let mut found = Vec::new();
        for folder in ["volumes", "disk-images"] {
            let folder = self.pool.root().join(folder);
            let failed = |error| StorageError::io(format!("read {}", folder.display()), error);
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(failed)?,
            };
            for entry in entries {
                let name = entry.map_err(failed)?.file_name();
                found.extend(name.to_str().and_then(target_of));
            }
        }
        found.sort_by_key(ToString::to_string);
        found.dedup();
        Ok(found)
    }
}

/// What a file's name says it is: complete or partial.
fn target_of(name: &str) -> Option<Target> {
    let name = match name.strip_prefix('.') {
        Some(partial) => partial.strip_suffix(".part")?,
        None => name,
    };
    let name = name.strip_suffix(".raw")?;
    name.parse().map(Target::Volume).or_else(|_| name.parse().map(Target::Image)).ok()
}

struct FileReader {
    file: File,
    size: Bytes,
}

impl DiskReader for FileReader {
    fn size(&self) -> Bytes {
        self.size
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| StorageError::io("read a disk", error))
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>> {
        use rustix::fs::{SeekFrom, seek};
        let failed = |errno: Errno| StorageError::io("look for data of a disk", errno.into());
        if offset >= self.size.get() {
            return Ok(None);
        }
        let start = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        };
        Ok(Some(start..seek(&self.file, SeekFrom::Hole(start)).map_err(failed)?))
    }
}

/// A file that is not published by whoever fills it.
struct Filling<'a> {
    file: &'a File,
}

impl DiskWriter for Filling<'_> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|error| StorageError::io("write a disk", error))
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buffer, offset).map_err(|error| StorageError::io("read a disk", error))
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|error| StorageError::io("flush a disk", error))
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.sync()
    }
}

struct PartialWriter {
    partial: Partial,
    target: Target,
}

impl PartialWriter {
    /// A file would grow.
    fn check(&self, offset: u64, length: usize) -> Result<()> {
        let size =
            self.partial.file().metadata().map_err(|error| StorageError::io("read a disk", error))?.len();
        let end = offset.checked_add(length as u64).filter(|end| *end <= size);
        end.map(drop).ok_or_else(|| {
            StorageError::io("write past the end of a disk", io::ErrorKind::InvalidInput.into())
        })
    }
}

impl DiskWriter for PartialWriter {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        Filling { file: self.partial.file() }.write_at(offset, bytes)
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        Filling { file: self.partial.file() }.read_at(offset, buffer)
    }

    fn sync(&mut self) -> Result<()> {
        Filling { file: self.partial.file() }.sync()
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let target = self.target;
        self.partial.publish().map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => StorageError::Exists(target.to_string()),
            _ => StorageError::io(format!("complete {target}"), error),
        })
    }
}
