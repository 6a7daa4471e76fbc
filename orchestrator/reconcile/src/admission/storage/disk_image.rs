//! Disk images.

use std::collections::BTreeSet;

use drover_cluster_state::{
    ClusterState, DiskImage, DiskImageState, ImageFormat, ImageSource, Key, Name, Record, Secret,
    StorageWork, Stored, Subject, Txn, VolumeParent, WallTime,
};
use drover_ids::ImageDigest;
use drover_units::Bytes;

use super::{
    AdmissionError, Admitted, RequestIdentity, begin, clones_of, repeated_work, require_free, shown,
    usable_pools,
};
use crate::admission::{
    vm::parse_name,
    volume::{find_pool, require_pool},
};

/// Largest file that is taken in: a raw disk of a size that people import at all.
const FILE_BYTES_MAX: Bytes = Bytes::gib(2 << 10);
/// Longest URL, bytes. What servers and browsers agree to take.
const URL_BYTES_MAX: usize = 2048;

/// Where the file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportFrom {
    /// At a web server.
    Url(Secret),
    /// At the client, with this size.
    Upload(u64),
}

/// A request for a new disk image, as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportDiskImage {
    /// Its name.
    pub name: String,
    /// Its pool. Empty: the only one there is.
    pub pool: String,
    /// Of the file.
    pub sha256: String,
    /// `None`: found out.
    pub format: Option<ImageFormat>,
    /// Where the file is.
    pub from: ImportFrom,
}

/// A request for a copy of a disk image, as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyDiskImage {
    /// What to copy.
    pub image: String,
    /// The copy's name.
    pub name: String,
    /// Its pool.
    pub pool: String,
}

/// Admits a new disk image. One that the pool has already, under whatever name, is there at once.
pub fn import_disk_image(
    state: &ClusterState,
    configured: &BTreeSet<Name>,
    request: &ImportDiskImage,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let work = StorageWork::DiskImageImport;
    if let Some(earlier) = repeated_work(state, identity, work.name(), &request.name)? {
        return Ok(earlier);
    }
    let digest: ImageDigest = request.sha256.parse().map_err(|error: drover_ids::ParseDigestError| {
        let valid = "the SHA-256 of the file: what arrives is checked against it";
        AdmissionError::invalid("sha256", error.to_string(), valid)
    })?;
    let (source, file_size) = match &request.from {
        ImportFrom::Url(url) => {
            check_url(url.expose())?;
            (ImageSource::Url(url.clone()), Bytes::ZERO)
        }
        ImportFrom::Upload(size) => {
            let size = Bytes::new(*size);
            if size == Bytes::ZERO || size > FILE_BYTES_MAX {
                let valid = format!("more than 0, at most {FILE_BYTES_MAX}");
                return Err(AdmissionError::invalid("upload_bytes", format!("it is {}", size.get()), valid));
            }
            (ImageSource::Upload, size)
        }
    };
    let pool = find_pool(&usable_pools(state, configured), &request.pool)?;
    let format = request.format;
    let new = NewImage { name: &request.name, pool, digest, file_size, format, source };
    admit(state, new, work, identity, now)
}

/// Admits a copy of a disk image in another pool, or another name for it in its own.
pub fn copy_disk_image(
    state: &ClusterState,
    configured: &BTreeSet<Name>,
    request: &CopyDiskImage,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let work = StorageWork::DiskImageCopy;
    if let Some(earlier) = repeated_work(state, identity, work.name(), &request.name)? {
        return Ok(earlier);
    }
    let image = find_image(state, &request.image)?;
    if image.state != DiskImageState::Ready {
        let problem = format!("disk image '{}' is not ready ({:?})", image.name, image.state);
        return Err(AdmissionError::wrong_state("image", problem, "a disk image that is ready"));
    }
    let pool = find_pool(&usable_pools(state, configured), &request.pool)?;
    let source = ImageSource::Copy(image.name.clone());
    let DiskImage { digest, file_size, format, .. } = image.value;
    let new = NewImage { name: &request.name, pool, digest, file_size, format, source };
    let mut admitted = admit(state, new, work, identity, now)?;
    if let Some(txn) =
        admitted.txn.as_mut().filter(|txn| txn.keys().all(|key| *key != Key::DiskImage(image.name.clone())))
    {
        txn.require(Key::DiskImage(image.name.clone()), image);
    }
    Ok(admitted)
}

/// Admits the removal of a disk image that nothing needs.
pub fn delete_disk_image(
    state: &ClusterState,
    image: &str,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let work = StorageWork::DiskImageDelete;
    if let Some(earlier) = repeated_work(state, identity, work.name(), image)? {
        return Ok(earlier);
    }
    let image = find_image(state, image)?;
    require_free(state, "image", &format!("disk image '{}'", image.name), image.operation)?;
    let clones = clones_of(state, &image.pool, VolumeParent::Image(image.digest));
    // Another name for the same object keeps it for its clones.
    if !clones.is_empty() && same_object_as(state, image).next().is_none() {
        return Err(AdmissionError::InUse {
            field: "image",
            kind: "disk image",
            name: image.name.to_string(),
            users: format!("{} (a clone; one that is flattened does not need it)", shown("volume", &clones)),
        });
    }
    let mut txn = Txn::new();
    let subject = (Subject::DiskImage(image.name.clone()), image.name.clone());
    let operation = begin(&mut txn, identity, work, subject, now);
    let deleting =
        DiskImage { state: DiskImageState::Deleting, operation: Some(operation), ..image.value.clone() };
    txn.update(image.revision, Record::DiskImage(deleting));
    Ok(Admitted { operation, txn: Some(txn) })
}

/// Other images that are the same object and are to stay.
pub fn same_object_as<'a>(
    state: &'a ClusterState,
    image: &'a DiskImage,
) -> impl Iterator<Item = &'a Stored<DiskImage>> {
    state.disk_images.values().filter(move |other| {
        other.pool == image.pool
            && other.digest == image.digest
            && other.name != image.name
            && other.state != DiskImageState::Deleting
    })
}

struct NewImage<'a> {
    name: &'a str,
    pool: Name,
    digest: ImageDigest,
    file_size: Bytes,
    format: Option<ImageFormat>,
    source: ImageSource,
}

fn admit(
    state: &ClusterState,
    new: NewImage<'_>,
    work: StorageWork,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let name = parse_name("name", new.name)?;
    let taken = state.disk_images.contains_key(&name).then_some("disk image");
    if let Some(kind) = taken.or(state.images.contains_key(&name).then_some("boot image")) {
        let holder = "with this name".to_owned();
        return Err(AdmissionError::NameTaken { field: "name", kind, name: name.to_string(), holder });
    }
    let mut txn = Txn::new();
    require_pool(state, &new.pool, &mut txn);
    txn.require_absent(Key::Image(name.clone()));
    let operation = identity.operation();
    let NewImage { pool, digest, file_size, format, source, .. } = new;
    let image = DiskImage {
        name: name.clone(),
        pool,
        digest,
        file_size,
        size: Bytes::ZERO,
        format,
        source,
        received: Bytes::ZERO,
        state: DiskImageState::Importing,
        operation: Some(operation),
        created_at: now,
    };
    begin(&mut txn, identity, work, (Subject::DiskImage(name.clone()), name), now);
    txn.create(Record::DiskImage(image));
    Ok(Admitted { operation, txn: Some(txn) })
}

fn find_image<'a>(state: &'a ClusterState, text: &str) -> Result<&'a Stored<DiskImage>, AdmissionError> {
    let found = Name::new(text).ok().and_then(|name| state.disk_images.get(&name));
    found.ok_or_else(|| {
        AdmissionError::not_found("image", "disk image", text, state.disk_images.keys().map(Name::as_str))
    })
}

/// The URL is not repeated: it may hold credentials.
fn check_url(url: &str) -> Result<(), AdmissionError> {
    let refused = |problem: &str| {
        AdmissionError::invalid("url", problem, format!("http:// or https://, at most {URL_BYTES_MAX} bytes"))
    };
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let rest = rest.ok_or_else(|| refused("it is of another kind"))?;
    if rest.is_empty() || rest.starts_with('/') {
        return Err(refused("it names no server"));
    }
    if url.len() > URL_BYTES_MAX || !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(refused("it is too long, or has characters that a URL has not"));
    }
    Ok(())
}
