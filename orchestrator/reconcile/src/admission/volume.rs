//! Volumes and boot images: their records. The bytes are the caller's, between two transactions:
//! [`create_volume`], make the file, [`ready_volume`] or [`forget_volume`]. A volume whose caller died in between is
//! still `Creating` after a restart, and is removed then.

use std::collections::BTreeSet;

use drover_cluster_state::{
    ClusterState, DiskImageState, Image, Key, Name, NameKind, NameRecord, Operation, OperationKind,
    OperationState, Record, SnapshotState, StorageWork, Stored, Subject, Txn, VmSpec, Volume, VolumeState,
    WallTime,
};
use drover_ids::{OperationId, SnapshotId, VolumeId};
use drover_units::{Bytes, SECTOR_SIZE};

use super::{AdmissionError, RequestIdentity, repeated, storage::usable_pools, vm::parse_name};
use crate::ident;

/// Largest volume: what a raw file can be on ext4 with 4 KiB blocks.
const VOLUME_SIZE_MAX: Bytes = Bytes::gib(16 << 10);

/// A request for a new volume, as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVolume {
    /// Its name.
    pub name: String,
    /// Its pool. Empty: the only one there is.
    pub pool: String,
    /// A multiple of a sector.
    pub size_bytes: u64,
}

/// A volume that may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmittedVolume {
    /// The volume.
    pub volume: VolumeId,
    /// What to commit first. `None`: the request has been admitted before; look at the volume's state.
    pub txn: Option<Txn>,
}

/// A boot image whose bytes are in the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// Its name.
    pub name: String,
    /// Its pool. Empty: the only one there is.
    pub pool: String,
    /// Size of the file.
    pub size: Bytes,
    /// SHA-256, hex.
    pub sha256: String,
    /// The least memory a VM needs to load it.
    pub min_memory: Bytes,
}

/// Admits a volume as `Creating`.
pub fn create_volume(
    state: &ClusterState,
    pools: &BTreeSet<Name>,
    request: &CreateVolume,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<AdmittedVolume, AdmissionError> {
    identity.check()?;
    let id = match identity.request_id.as_str() {
        "" => VolumeId::from_u128(identity.random),
        request_id => ident::volume_of_request(request_id),
    };
    if let Some(earlier) = state.volumes.get(&id) {
        if earlier.name.as_str() == request.name && earlier.size.get() == request.size_bytes {
            return Ok(AdmittedVolume { volume: id, txn: None });
        }
        let name = earlier.name.to_string();
        return Err(AdmissionError::RequestIdReused { kind: "volume.create", name });
    }
    let name = parse_name("name", &request.name)?;
    if let Some(taken) = state.names.get(&(NameKind::Volume, name.clone())) {
        let holder = taken.holder.to_string();
        return Err(AdmissionError::NameTaken {
            field: "name",
            kind: "volume",
            name: name.to_string(),
            holder,
        });
    }
    let pool = find_pool(&usable_pools(state, pools), &request.pool)?;
    let size = Bytes::new(request.size_bytes);
    check_volume_size("size_bytes", size)?;
    let mut txn = Txn::new();
    require_pool(state, &pool, &mut txn);
    let holder = Subject::Volume(id);
    txn.create(Record::Name(NameRecord { kind: NameKind::Volume, name: name.clone(), holder }));
    txn.create(Record::Volume(Volume::new(id, name, pool, size, now)));
    Ok(AdmittedVolume { volume: id, txn: Some(txn) })
}

/// Refuses what is no size of a volume.
pub(super) fn check_volume_size(field: &'static str, size: Bytes) -> Result<(), AdmissionError> {
    if size != Bytes::ZERO && size <= VOLUME_SIZE_MAX && size.to_sectors().is_some() {
        return Ok(());
    }
    Err(AdmissionError::invalid(
        field,
        format!("it is {}", size.get()),
        format!("a multiple of {SECTOR_SIZE} (a sector), more than 0, at most {VOLUME_SIZE_MAX}"),
    ))
}

/// Has a transaction fail if the pool's removal begins meanwhile. A pool of the configuration stays.
pub(super) fn require_pool(state: &ClusterState, pool: &Name, txn: &mut Txn) {
    if let Some(stored) = state.pools.get(pool) {
        txn.require(Key::Pool(pool.clone()), stored);
    }
}

/// The volume's bytes are there. `None`: it is not being created (any more).
pub fn ready_volume(state: &ClusterState, volume: VolumeId) -> Option<Txn> {
    let volume = state.volumes.get(&volume).filter(|v| v.state == VolumeState::Creating)?;
    let mut txn = Txn::new();
    txn.update(volume.revision, Record::Volume(Volume { state: VolumeState::Ready, ..volume.value.clone() }));
    Some(txn)
}

/// The volume's bytes are gone, or were never there: removes its record and frees its name. `None`: it is in use, or
/// has been forgotten.
pub fn forget_volume(state: &ClusterState, volume: VolumeId) -> Option<Txn> {
    let volume =
        state.volumes.get(&volume).filter(|v| v.state != VolumeState::Ready && v.attached.is_none())?;
    let mut txn = Txn::new();
    forget(state, volume, &mut txn);
    Some(txn)
}

/// A disk image's object is gone, or is another image's too: removes its record. `None`: it is not half removed, something
/// works on it, or it has been forgotten.
pub fn forget_disk_image(state: &ClusterState, image: &Name) -> Option<Txn> {
    let image = state.disk_images.get(image).filter(|image| image.state == DiskImageState::Deleting)?;
    if is_busy(state, image.operation) {
        return None;
    }
    let mut txn = Txn::new();
    txn.delete(Key::DiskImage(image.name.clone()), image);
    Some(txn)
}

/// A snapshot is gone from the storage: removes it from its volume's record. `None`: it is not half removed, something works
/// on the volume, or it has been forgotten.
pub fn forget_snapshot(state: &ClusterState, volume: VolumeId, snapshot: SnapshotId) -> Option<Txn> {
    let volume = state.volumes.get(&volume).filter(|volume| !is_busy(state, volume.operation))?;
    volume.snapshot(snapshot).filter(|one| one.state == SnapshotState::Deleting)?;
    let mut changed = volume.value.clone();
    changed.snapshots.retain(|one| one.id != snapshot);
    let mut txn = Txn::new();
    txn.update(volume.revision, Record::Volume(changed));
    Some(txn)
}

fn is_busy(state: &ClusterState, operation: Option<OperationId>) -> bool {
    let found = operation.and_then(|id| state.operations.get(&id));
    found.is_some_and(|operation| operation.is_running())
}

/// Removes a volume's record and frees its name.
pub(super) fn forget(state: &ClusterState, volume: &Stored<Volume>, txn: &mut Txn) {
    if let Some(name) = state.names.get(&(NameKind::Volume, volume.name.clone())) {
        txn.delete(Key::Name(NameKind::Volume, volume.name.clone()), name);
    }
    txn.delete(Key::Volume(volume.id), volume);
}

/// Admits an image. Called with `size` zero before its bytes are taken in, to refuse early; then again, to commit.
pub fn add_image(
    state: &ClusterState,
    pools: &BTreeSet<Name>,
    image: &NewImage,
    now: WallTime,
) -> Result<(Name, Txn), AdmissionError> {
    let name = parse_name("name", &image.name)?;
    if let Some(taken) = state.images.get(&name) {
        let holder = format!("with SHA-256 {}", taken.sha256);
        return Err(AdmissionError::NameTaken {
            field: "name",
            kind: "image",
            name: name.to_string(),
            holder,
        });
    }
    if state.disk_images.contains_key(&name) {
        let (name, holder) = (name.to_string(), "with this name".to_owned());
        return Err(AdmissionError::NameTaken { field: "name", kind: "disk image", name, holder });
    }
    if state.pools.keys().any(|pool| pool.as_str() == image.pool) {
        let problem = format!("boot images are files, and pool '{}' is in Ceph", image.pool);
        let names: Vec<&str> = pools.iter().map(Name::as_str).collect();
        return Err(AdmissionError::wrong_state("pool", problem, format!("one of: {}", names.join(", "))));
    }
    let pool = find_pool(pools, &image.pool)?;
    let mut txn = Txn::new();
    txn.require_absent(Key::DiskImage(name.clone()));
    txn.create(Record::Image(Image {
        name: name.clone(),
        pool: pool.clone(),
        size: image.size,
        sha256: image.sha256.clone(),
        min_memory: image.min_memory,
        created_at: now,
    }));
    Ok((pool, txn))
}

/// Removes a boot image's record, if no VM boots from it, with an operation that has ended: a repetition of the request
/// finds that, and gets `None`.
pub fn delete_image(
    state: &ClusterState,
    image: &str,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Option<(Image, Txn)>, AdmissionError> {
    let kind = OperationKind::Storage(StorageWork::ImageDelete);
    let is_same = |o: &Operation| o.kind == kind && o.subject_name.as_str() == image;
    if repeated(state, identity, is_same)?.is_some() {
        return Ok(None);
    }
    let found = Name::new(image).ok().and_then(|name| state.images.get(&name));
    let found = found.ok_or_else(|| {
        AdmissionError::not_found("image", "image", image, state.images.keys().map(Name::as_str))
    })?;
    let needs = |spec: &VmSpec| {
        spec.image == found.name || spec.devices.hardware.initrd.as_ref() == Some(&found.name)
    };
    let users: Vec<&str> =
        state.vms.values().filter(|vm| needs(&vm.spec)).map(|vm| vm.spec.name.as_str()).collect();
    if let Some(first) = users.first() {
        let users = match users.len() {
            1 => format!("VM '{first}'"),
            n => format!("VM '{first}' and {} more", n - 1),
        };
        return Err(AdmissionError::InUse {
            field: "image",
            kind: "image",
            name: found.name.to_string(),
            users,
        });
    }
    let mut txn = Txn::new();
    txn.delete(Key::Image(found.name.clone()), found);
    let subject = Subject::Image(found.name.clone());
    let operation = Operation::new(identity.operation(), kind, subject, found.name.clone(), now);
    txn.create(Record::Operation(operation.ended(OperationState::Done, "", now)));
    Ok(Some((found.value.clone(), txn)))
}

pub(super) fn find_pool(pools: &BTreeSet<Name>, text: &str) -> Result<Name, AdmissionError> {
    match (text, pools.len()) {
        ("", 1) => Ok(pools.first().expect("there is one").clone()),
        ("", _) => {
            let names: Vec<&str> = pools.iter().map(Name::as_str).collect();
            Err(AdmissionError::invalid("pool", "none is named", format!("one of: {}", names.join(", "))))
        }
        (text, _) => {
            let found = Name::new(text).ok().filter(|name| pools.contains(name));
            found.ok_or_else(|| {
                AdmissionError::not_found("pool", "pool", text, pools.iter().map(Name::as_str))
            })
        }
    }
}
