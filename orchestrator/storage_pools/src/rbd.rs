//! A pool that is a Ceph pool, or a namespace of one: its disks are RBD images.
//!
//! ```text
//! volume-<id>                   a volume; its snapshots are called by their ids
//! image-<32 digits of SHA-256>  a disk image; complete once it has a protected snapshot "base"
//! ```
//!
//! Whoever holds a volume's exclusive lock carries out what is asked of it meanwhile (snapshot, resize, flatten); librbd
//! sees to that.

use std::ops::Range;

use drover_ids::{ImageDigest, SnapshotId, VolumeId};
use drover_rbd::{Access, CreateOptions, Error, Extent, Image, Pool};
use drover_units::Bytes;

use crate::{
    Capabilities, DiskReader, DiskWriter, Observer, PoolUsage, PreparedSnapshot, Result, SnapshotInfo,
    Source, StorageError, StoragePool, Target, VolumeUsage, pool::check_size,
};

/// What clones of an image are made of.
const BASE: &str = "base";
/// Metadata of an image: its whole digest.
const DIGEST: &str = "drover.sha256";
/// Metadata of a volume that is being filled.
const FILLING: &str = "drover.filling";
/// Metadata that is ours, and that a clone must not inherit.
const OURS: &str = "drover";
/// Hexadecimal digits of a digest in a name.
const DIGEST_DIGITS: usize = 32;
/// Images whose use is summed up for the pool: each has to be opened.
const IMAGES_SUMMED_MAX: usize = 64;

/// Images in a Ceph pool.
#[derive(Clone, Debug)]
pub struct RbdStorage {
    pool: Pool,
}

/// The RBD image of a volume.
pub fn volume_name(volume: VolumeId) -> String {
    format!("volume-{volume}")
}

/// The RBD image of a disk image.
pub fn image_name(image: ImageDigest) -> String {
    format!("image-{}", &image.to_string()[..DIGEST_DIGITS])
}

fn target_name(target: Target) -> String {
    match target {
        Target::Volume(volume) => volume_name(volume),
        Target::Image(image) => image_name(image),
    }
}

fn failed(action: &str) -> impl FnOnce(Error) -> StorageError {
    let action = action.to_owned();
    move |error| match error.errno().map(|errno| errno as i32) {
        // ENOSPC and EDQUOT of a pool that is full or has a quota.
        Some(28 | 122) => StorageError::Full { action, source: error.into() },
        _ if error.is_cancelled() => StorageError::Cancelled,
        _ => StorageError::Failed { action, source: error.into() },
    }
}

/// An observer as librbd's progress function, which counts in units of its own.
fn report(observer: &dyn Observer) -> impl FnMut(u64, u64) -> bool {
    move |done, total| {
        observer.progress(Bytes::new(done), Bytes::new(total));
        !observer.is_cancelled()
    }
}

impl RbdStorage {
    /// The storage of a pool. Its user must be one that may use every image of it.
    pub fn new(pool: Pool) -> Self {
        Self { pool }
    }

    fn open_if_there(&self, name: &str, access: Access) -> Result<Option<Image>> {
        match Image::open(&self.pool, name, access) {
            Ok(image) => Ok(Some(image)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(failed(&format!("open {name}"))(error)),
        }
    }

    fn open_volume(&self, volume: VolumeId, access: Access) -> Result<Image> {
        self.open_if_there(&volume_name(volume), access)?.ok_or(StorageError::NoSuchVolume(volume))
    }

    /// Makes an image, or finds the one that an interrupted attempt has left. Whether it was found.
    fn create(&self, name: &str, size: Bytes) -> Result<bool> {
        let options = CreateOptions::default();
        for _ in 0..2 {
            match self.pool.create_image(name, size.get(), &options) {
                Ok(()) => return Ok(false),
                Err(error) if !error.is_already_there() => {
                    return Err(failed(&format!("create {name}"))(error));
                }
                Err(_) if self.open_if_there(name, Access::ReadOnly)?.is_some() => return Ok(true),
                // A name without an image: a creation that was killed.
                Err(_) => {
                    self.pool
                        .remove_image(name, &mut |_, _| true)
                        .or_else(absent)
                        .map_err(failed("clean up"))?;
                }
            }
        }
        Err(StorageError::Exists(name.to_owned()))
    }

    fn remove(&self, name: &str, observer: &dyn Observer) -> Result<(), Error> {
        self.pool.remove_image(name, &mut report(observer)).or_else(absent)
    }

    /// Who has a volume open for writing.
    fn in_use(&self, volume: VolumeId, image: &Image, error: Error) -> StorageError {
        let owners = image.lock_owners().unwrap_or_default();
        let watchers = image.watchers().unwrap_or_default();
        let named: Vec<String> = (owners.iter().map(|owner| format!("{owner:?}")))
            .chain(watchers.iter().map(|watcher| format!("{watcher:?}")))
            .collect();
        let source = format!("{error}; clients of it: {}", named.join(", "));
        StorageError::InUse { volume, source: source.into() }
    }

    fn snapshot(image: &Image, volume: VolumeId, snapshot: SnapshotId) -> Result<drover_rbd::Snapshot> {
        let name = snapshot.to_string();
        let found = image.snapshots().map_err(failed("list snapshots"))?;
        let found = found.into_iter().find(|one| one.name == name);
        found.ok_or(StorageError::NoSuchSnapshot { volume, snapshot })
    }

    /// The image and snapshot that a source is, and its size. Complete ones only.
    fn resolve(&self, source: Source) -> Result<(String, String, Bytes)> {
        match source {
            Source::Image(digest) => {
                let size = self.image(digest)?.ok_or(StorageError::NoSuchImage(digest))?;
                Ok((image_name(digest), BASE.to_owned(), size))
            }
            Source::Snapshot { volume, snapshot } => {
                let name = volume_name(volume);
                let image = self
                    .open_if_there(&name, Access::ReadOnly)?
                    .ok_or(StorageError::NoSuchSnapshot { volume, snapshot })?;
                let found = Self::snapshot(&image, volume, snapshot)?;
                Ok((name, found.name, Bytes::new(found.size)))
            }
        }
    }

    fn refuse_with_clones(image: &Image, snapshot: &str) -> Result<()> {
        let clones = image.children(Some(snapshot)).map_err(failed("list clones"))?;
        match clones.len() {
            0 => Ok(()),
            many => Err(StorageError::HasClones(format!("{}@{snapshot} ({many} of them)", image.name()))),
        }
    }
}

/// Nothing to remove.
fn absent(error: Error) -> Result<(), Error> {
    if error.is_not_found() { Ok(()) } else { Err(error) }
}

impl StoragePool for RbdStorage {
    fn capabilities(&self) -> Capabilities {
        Capabilities { instant_clone: true, clones_need_source: true, online_snapshot: true }
    }

    fn usage(&self) -> Result<PoolUsage> {
        let room = self.pool.cluster().usage().map_err(failed("read the usage of the cluster"))?;
        let names = self.pool.images().map_err(failed("list the images"))?;
        let mut used = (names.len() <= IMAGES_SUMMED_MAX).then_some(0_u64);
        for name in names.iter().take(IMAGES_SUMMED_MAX) {
            let Some(sum) = &mut used else { break };
            if let Some(image) = self.open_if_there(name, Access::ReadOnly)? {
                *sum += image.used().map_err(failed("read the usage of an image"))?;
            }
        }
        // Without a manager daemon nobody counts, and the monitors say zero.
        let told = room.total > 0;
        Ok(PoolUsage {
            capacity: told.then_some(Bytes::new(room.total)),
            available: told.then_some(Bytes::new(room.available)),
            used: used.map(Bytes::new),
        })
    }

    fn create_volume(&self, volume: VolumeId, size: Bytes) -> Result<()> {
        check_size(size)?;
        if self.create(&volume_name(volume), size)? && self.volume_usage(volume)?.size != size {
            return Err(StorageError::Exists(format!("volume {volume}")));
        }
        Ok(())
    }

    fn clone_volume(&self, volume: VolumeId, source: Source, size: Bytes, _: &dyn Observer) -> Result<()> {
        check_size(size)?;
        let name = volume_name(volume);
        let (parent, snapshot, has) = self.resolve(source)?;
        if has > size {
            return Err(StorageError::Shrink { from: has, to: size });
        }
        let of = (&self.pool, parent.as_str(), snapshot.as_str());
        for attempt in 0..2 {
            match self.pool.clone_image(of, &name, &CreateOptions::default()) {
                Ok(()) => break,
                Err(error) if !error.is_already_there() || attempt > 0 => {
                    return Err(failed(&format!("clone {source}"))(error));
                }
                Err(_) if self.open_if_there(&name, Access::ReadOnly)?.is_some() => break,
                Err(_) => self.remove(&name, &crate::Unobserved).map_err(failed("clean up"))?,
            }
        }
        let clone = self.open_volume(volume, Access::ReadWrite)?;
        // A clone inherits what is said of its parent: who owns that is nothing to it.
        for (key, _) in clone.all_metadata().map_err(failed("read metadata"))? {
            if key.starts_with(OURS) {
                clone.remove_metadata(&key).or_else(absent).map_err(failed("remove metadata"))?;
            }
        }
        match Bytes::new(clone.size().map_err(failed("read the size"))?) {
            has if has == size => Ok(()),
            has if has < size => {
                clone.resize(size.get(), false, &mut |_, _| true).map_err(failed("resize the clone"))
            }
            _ => Err(StorageError::Exists(format!("volume {volume}"))),
        }
    }

    fn grow_volume(&self, volume: VolumeId, size: Bytes) -> Result<()> {
        check_size(size)?;
        let image = self.open_volume(volume, Access::ReadWrite)?;
        let has = Bytes::new(image.size().map_err(failed("read the size"))?);
        if has > size {
            return Err(StorageError::Shrink { from: has, to: size });
        }
        if has == size {
            return Ok(());
        }
        image.resize(size.get(), false, &mut |_, _| true).map_err(failed("resize the volume"))
    }

    fn flatten_volume(&self, volume: VolumeId, observer: &dyn Observer) -> Result<()> {
        let image = self.open_volume(volume, Access::ReadWrite)?;
        if image.parent().map_err(failed("read the parent"))?.is_none() {
            return Ok(());
        }
        image.flatten(&mut report(observer)).map_err(failed("flatten the volume"))
    }

    fn volume_usage(&self, volume: VolumeId) -> Result<VolumeUsage> {
        let image = self.open_volume(volume, Access::ReadOnly)?;
        let size = Bytes::new(image.size().map_err(failed("read the size"))?);
        let used = image.used().map_err(failed("read the usage"))?;
        Ok(VolumeUsage { size, used: Some(Bytes::new(used)) })
    }

    fn delete_volume(&self, volume: VolumeId, observer: &dyn Observer) -> Result<()> {
        let name = volume_name(volume);
        if let Some(image) = self.open_if_there(&name, Access::ReadOnly)? {
            let snapshots = image.snapshots().map_err(failed("list snapshots"))?.len();
            if snapshots > 0 {
                return Err(StorageError::HasSnapshots { volume, snapshots });
            }
        }
        match self.remove(&name, observer) {
            Ok(()) => Ok(()),
            // Somebody watches it, or holds its lock.
            Err(error) if error.is_busy() || error.is_fenced() => {
                Err(match self.open_if_there(&name, Access::ReadOnly)? {
                    Some(image) => self.in_use(volume, &image, error),
                    None => failed("delete the volume")(error),
                })
            }
            Err(error) => Err(failed("delete the volume")(error)),
        }
    }

    fn create_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<()> {
        let image = self.open_volume(volume, Access::ReadWrite)?;
        match image.create_snapshot(&snapshot.to_string()) {
            Err(error) if !error.is_already_there() => Err(failed("snapshot the volume")(error)),
            _ => Ok(()),
        }
    }

    fn prepare_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<Box<dyn PreparedSnapshot>> {
        self.delete_snapshot(volume, snapshot)?;
        // Opening takes longer than keeping.
        let image = self.open_volume(volume, Access::ReadWrite)?;
        Ok(Box::new(Prepared { image, name: snapshot.to_string() }))
    }

    fn snapshots(&self, volume: VolumeId) -> Result<Vec<SnapshotInfo>> {
        let image = self.open_volume(volume, Access::ReadOnly)?;
        let found = image.snapshots().map_err(failed("list snapshots"))?;
        // One with another name was made by a person.
        let known = found.into_iter().filter_map(|one| {
            let id = one.name.parse().ok()?;
            Some(SnapshotInfo { id, size: Bytes::new(one.size), protected: one.protected })
        });
        let mut snapshots: Vec<SnapshotInfo> = known.collect();
        snapshots.sort_by_key(|snapshot| snapshot.id);
        Ok(snapshots)
    }

    fn protect_snapshot(&self, volume: VolumeId, snapshot: SnapshotId, protect: bool) -> Result<()> {
        let image = self
            .open_if_there(&volume_name(volume), Access::ReadWrite)?
            .ok_or(StorageError::NoSuchVolume(volume))?;
        let name = Self::snapshot(&image, volume, snapshot)?.name;
        if protect {
            return image.protect_snapshot(&name).map_err(failed("protect the snapshot"));
        }
        Self::refuse_with_clones(&image, &name)?;
        image.unprotect_snapshot(&name).map_err(failed("unprotect the snapshot"))
    }

    fn rollback(&self, volume: VolumeId, snapshot: SnapshotId, observer: &dyn Observer) -> Result<()> {
        let image = self.open_volume(volume, Access::ReadWrite)?;
        let name = Self::snapshot(&image, volume, snapshot)?.name;
        match image.roll_back(&name, &mut report(observer)) {
            Ok(()) => Ok(()),
            Err(error) if error.is_fenced() || error.is_busy() => Err(self.in_use(volume, &image, error)),
            Err(error) => Err(failed("roll back the volume")(error)),
        }
    }

    fn delete_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<()> {
        let Some(image) = self.open_if_there(&volume_name(volume), Access::ReadWrite)? else {
            return Ok(());
        };
        let found = match Self::snapshot(&image, volume, snapshot) {
            Err(StorageError::NoSuchSnapshot { .. }) => return Ok(()),
            found => found?,
        };
        if found.protected {
            return Err(StorageError::Protected(snapshot));
        }
        Self::refuse_with_clones(&image, &found.name)?;
        let removed = image.remove_snapshot(&found.name, &mut |_, _| true);
        removed.or_else(absent).map_err(failed("delete the snapshot"))
    }

    fn image(&self, image: ImageDigest) -> Result<Option<Bytes>> {
        let Some(opened) = self.open_if_there(&image_name(image), Access::ReadOnly)? else { return Ok(None) };
        let snapshots = opened.snapshots().map_err(failed("list snapshots"))?;
        let base = snapshots.into_iter().find(|snapshot| snapshot.name == BASE && snapshot.protected);
        Ok(base.map(|base| Bytes::new(base.size)))
    }

    fn delete_image(&self, image: ImageDigest, observer: &dyn Observer) -> Result<()> {
        let name = image_name(image);
        if let Some(opened) = self.open_if_there(&name, Access::ReadWrite)? {
            let snapshots = opened.snapshots().map_err(failed("list snapshots"))?;
            if snapshots.iter().any(|snapshot| snapshot.name == BASE) {
                Self::refuse_with_clones(&opened, BASE)?;
                opened.unprotect_snapshot(BASE).or_else(absent).map_err(failed("unprotect the image"))?;
                let removed = opened.remove_snapshot(BASE, &mut |_, _| true);
                removed.or_else(absent).map_err(failed("delete the image's snapshot"))?;
            }
        }
        self.remove(&name, observer).map_err(failed("delete the image"))
    }

    fn begin(&self, target: Target, size: Bytes) -> Result<Box<dyn DiskWriter>> {
        check_size(size)?;
        let name = target_name(target);
        let found = self.create(&name, size)?;
        let image =
            Image::open(&self.pool, &name, Access::ReadWrite).map_err(failed("open what is filled"))?;
        let complete = match target {
            Target::Image(digest) => found && self.image(digest)?.is_some(),
            Target::Volume(_) => found && image.metadata(FILLING).map_err(failed("read metadata"))?.is_none(),
        };
        if complete {
            return Err(StorageError::Exists(target.to_string()));
        }
        let (key, value) = match target {
            Target::Image(digest) => (DIGEST, digest.to_string()),
            Target::Volume(_) => (FILLING, "1".to_owned()),
        };
        image.set_metadata(key, &value).map_err(failed("write metadata"))?;
        if image.size().map_err(failed("read the size"))? != size.get() {
            image.resize(size.get(), true, &mut |_, _| true).map_err(failed("resize what is filled"))?;
        }
        Ok(Box::new(Writer { image, target, size }))
    }

    fn open(&self, source: Source) -> Result<Box<dyn DiskReader>> {
        let (name, snapshot, size) = self.resolve(source)?;
        let image =
            Image::open_snapshot(&self.pool, &name, &snapshot).map_err(failed(&format!("open {source}")))?;
        Ok(Box::new(Reader { image, size, extents: None }))
    }

    fn list(&self) -> Result<Vec<Target>> {
        let mut found = Vec::new();
        for name in self.pool.images().map_err(failed("list the images"))? {
            if let Some(id) = name.strip_prefix("volume-") {
                found.extend(id.parse().ok().map(Target::Volume));
            } else if let Some(digits) = name.strip_prefix("image-") {
                let opened = self.open_if_there(&name, Access::ReadOnly)?;
                let digest = match opened {
                    Some(image) => image.metadata(DIGEST).map_err(failed("read metadata"))?,
                    None => None,
                };
                // One that was killed before it could say: any digest with these digits names it.
                let digest = digest.unwrap_or_else(|| format!("{digits:0<64}"));
                found.extend(digest.parse().ok().map(Target::Image));
            }
        }
        Ok(found)
    }
}

struct Prepared {
    image: Image,
    name: String,
}

impl PreparedSnapshot for Prepared {
    fn take(self: Box<Self>) -> Result<()> {
        self.image.create_snapshot(&self.name).map_err(failed("snapshot the volume"))
    }
}

struct Reader {
    image: Image,
    size: Bytes,
    /// What holds data, once somebody has asked.
    extents: Option<Vec<Extent>>,
}

impl DiskReader for Reader {
    fn size(&self) -> Bytes {
        self.size
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let count = self.image.read(offset, buffer).map_err(failed("read an image"))?;
        if count == buffer.len() {
            return Ok(());
        }
        let source = format!("{count} of {} bytes at {offset}", buffer.len());
        Err(StorageError::Failed { action: "read past the end of a disk".to_owned(), source: source.into() })
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>> {
        if self.extents.is_none() {
            let mut extents: Vec<Extent> = Vec::new();
            let within = Extent { offset: 0, length: self.size.get() };
            let visited = self.image.for_each_extent(None, within, true, &mut |extent, exists| {
                match extents.last_mut() {
                    _ if !exists => {}
                    // Neighbours become one: a full disk of 16 TiB has millions of objects.
                    Some(last) if last.offset + last.length == extent.offset => last.length += extent.length,
                    _ => extents.push(extent),
                }
                true
            });
            visited.map_err(failed("look through an image"))?;
            self.extents = Some(extents);
        }
        let extents = self.extents.as_deref().unwrap_or_default();
        let next = extents.partition_point(|extent| extent.offset + extent.length <= offset);
        Ok(extents.get(next).map(|extent| extent.offset.max(offset)..extent.offset + extent.length))
    }
}

struct Writer {
    image: Image,
    target: Target,
    size: Bytes,
}

impl Writer {
    fn check(&self, offset: u64, length: usize) -> Result<()> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.size.get());
        end.map(drop).ok_or_else(|| StorageError::Failed {
            action: "use a disk past its end".to_owned(),
            source: format!("{length} bytes at {offset}").into(),
        })
    }
}

impl DiskWriter for Writer {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        self.image.write(offset, bytes).map_err(failed("write an image"))
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.check(offset, buffer.len())?;
        self.image.read(offset, buffer).map(drop).map_err(failed("read an image"))
    }

    fn sync(&mut self) -> Result<()> {
        self.image.flush().map_err(failed("flush an image"))
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.sync()?;
        match self.target {
            Target::Volume(_) => {
                self.image.remove_metadata(FILLING).or_else(absent).map_err(failed("complete the volume"))
            }
            Target::Image(_) => {
                let made = self.image.create_snapshot(BASE);
                // Left by an attempt that was killed before it could protect it; nothing was written since.
                made.or_else(|error| if error.is_already_there() { Ok(()) } else { Err(error) })
                    .and_then(|()| self.image.protect_snapshot(BASE))
                    .map_err(failed("complete the image"))
            }
        }
    }
}
