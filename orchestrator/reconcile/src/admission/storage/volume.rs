//! Work on volumes.

use std::collections::BTreeSet;

use drover_cluster_state::{
    CloneSource, ClusterState, DiskImageState, Key, Name, NameKind, NameRecord, Record, SnapshotState,
    StorageWork, Stored, Subject, Txn, Volume, VolumeParent, VolumeState, WallTime,
};
use drover_ids::VolumeId;
use drover_units::Bytes;

use super::{
    AdmissionError, Admitted, RequestIdentity, begin, repeated_work, require_free,
    snapshot::{SnapshotName, find_snapshot},
    usable_pools,
};
use crate::{
    admission::{
        vm::{find_volume, parse_name},
        volume::{check_volume_size, find_pool, require_pool},
    },
    ident,
};

/// What a clone is to be made of, as the client named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloneOf {
    /// A disk image.
    Image(String),
    /// A snapshot.
    Snapshot(SnapshotName),
}

/// A request for a volume with content, as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneVolume {
    /// Its name.
    pub name: String,
    /// Its pool. Empty: the source's.
    pub pool: String,
    /// Zero: the source's size.
    pub size_bytes: u64,
    /// What it begins with.
    pub source: CloneOf,
}

/// What a client's words mean.
struct Resolved<'a> {
    source: CloneSource,
    size: Bytes,
    /// What the clone needs where it is in the same pool.
    parent: VolumeParent,
    /// What must not have changed.
    image: Option<&'a Stored<drover_cluster_state::DiskImage>>,
    volume: Option<&'a Stored<Volume>>,
}

fn resolve<'a>(state: &'a ClusterState, source: &CloneOf) -> Result<Resolved<'a>, AdmissionError> {
    match source {
        CloneOf::Image(text) => {
            let found = Name::new(text).ok().and_then(|name| state.disk_images.get(&name));
            let image = found.ok_or_else(|| {
                let known = state.disk_images.keys().map(Name::as_str);
                AdmissionError::not_found("image", "disk image", text, known)
            })?;
            if image.state != DiskImageState::Ready {
                let problem = format!("disk image '{}' is not ready ({:?})", image.name, image.state);
                return Err(AdmissionError::wrong_state("image", problem, "a disk image that is ready"));
            }
            Ok(Resolved {
                source: CloneSource::Image { pool: image.pool.clone(), digest: image.digest },
                size: image.size,
                parent: VolumeParent::Image(image.digest),
                image: Some(image),
                volume: None,
            })
        }
        CloneOf::Snapshot(name) => {
            let (volume, snapshot) = find_snapshot(state, name)?;
            if snapshot.state != SnapshotState::Ready {
                let problem = format!("snapshot '{}' is not ready ({:?})", snapshot.name, snapshot.state);
                return Err(AdmissionError::wrong_state("snapshot", problem, "a snapshot that is ready"));
            }
            let (id, snapshot_id) = (volume.id, snapshot.id);
            Ok(Resolved {
                source: CloneSource::Snapshot {
                    pool: volume.pool.clone(),
                    volume: id,
                    snapshot: snapshot_id,
                },
                size: snapshot.size,
                parent: VolumeParent::Snapshot { volume: id, snapshot: snapshot_id },
                image: None,
                volume: Some(volume),
            })
        }
    }
}

/// Admits a volume that begins as a copy of something.
pub fn clone_volume(
    state: &ClusterState,
    configured: &BTreeSet<Name>,
    request: &CloneVolume,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let found = resolve(state, &request.source);
    // The source may be gone by the time of a repetition, which is recognised nevertheless.
    if let Some(earlier) = repeated_work(state, identity, StorageWork::VOLUME_CLONE, &request.name)? {
        return Ok(earlier);
    }
    let Resolved { size: has, parent, image, volume, source } = found?;
    let name = parse_name("name", &request.name)?;
    if let Some(taken) = state.names.get(&(NameKind::Volume, name.clone())) {
        let (name, holder) = (name.to_string(), taken.holder.to_string());
        return Err(AdmissionError::NameTaken { field: "name", kind: "volume", name, holder });
    }
    let pool = match request.pool.as_str() {
        "" => source.pool().clone(),
        text => find_pool(&usable_pools(state, configured), text)?,
    };
    let size = if request.size_bytes == 0 { has } else { Bytes::new(request.size_bytes) };
    check_volume_size("size_bytes", size)?;
    if size < has {
        let problem = format!("{} is less than the {} of the source", size.get(), has.get());
        return Err(AdmissionError::invalid("size_bytes", problem, format!("at least {}", has.get())));
    }
    let id = match identity.request_id.as_str() {
        "" => VolumeId::from_u128(identity.random),
        request_id => ident::volume_of_request(request_id),
    };
    let mut txn = Txn::new();
    require_pool(state, &pool, &mut txn);
    // Clones of images in directories are copies, and so are those that are made in another pool.
    let needs_source = state.pools.contains_key(&pool) && *source.pool() == pool;
    if let Some(image) = image {
        txn.require(Key::DiskImage(image.name.clone()), image);
    }
    if let Some(volume) = volume {
        txn.require(Key::Volume(volume.id), volume);
    }
    let subject = (Subject::Volume(id), name.clone());
    let operation = begin(&mut txn, identity, StorageWork::VolumeClone(source), subject, now);
    let holder = Subject::Volume(id);
    txn.create(Record::Name(NameRecord { kind: NameKind::Volume, name: name.clone(), holder }));
    let mut made = Volume::new(id, name, pool, size, now);
    made.parent = needs_source.then_some(parent);
    made.operation = Some(operation);
    txn.create(Record::Volume(made));
    Ok(Admitted { operation, txn: Some(txn) })
}

/// Admits the growth of a volume, in use or not.
pub fn resize_volume(
    state: &ClusterState,
    volume: &str,
    size_bytes: u64,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let size = Bytes::new(size_bytes);
    let work = StorageWork::VolumeResize { size };
    if let Some(earlier) = repeated_work(state, identity, work.name(), volume)? {
        return Ok(earlier);
    }
    let volume = find_idle(state, volume)?;
    check_volume_size("size_bytes", size)?;
    if size < volume.size {
        let problem =
            format!("volume '{}' has {} bytes, and {} are less", volume.name, volume.size.get(), size_bytes);
        let valid = format!("at least {}: a volume is not made smaller", volume.size.get());
        return Err(AdmissionError::invalid("size_bytes", problem, valid));
    }
    Ok(admit(volume, work, identity, now))
}

/// Admits that a clone is made independent.
pub fn flatten_volume(
    state: &ClusterState,
    volume: &str,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let work = StorageWork::VolumeFlatten;
    if let Some(earlier) = repeated_work(state, identity, work.name(), volume)? {
        return Ok(earlier);
    }
    Ok(admit(find_idle(state, volume)?, work, identity, now))
}

/// Admits the removal of a volume: nobody can attach it from now on.
pub fn delete_volume(
    state: &ClusterState,
    volume: &str,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let work = StorageWork::VolumeDelete;
    if let Some(earlier) = repeated_work(state, identity, work.name(), volume)? {
        return Ok(earlier);
    }
    let volume = find_volume(state, "volume", volume)?;
    if let Some(holder) = volume.attached {
        let vm = state.vms.get(&holder).map_or_else(|| holder.to_string(), |vm| vm.spec.name.to_string());
        return Err(AdmissionError::VolumeAttached { field: "volume", volume: volume.name.clone(), vm });
    }
    if volume.state == VolumeState::Creating {
        let problem = format!("volume '{}' is still being created", volume.name);
        return Err(AdmissionError::wrong_state("volume", problem, "a volume that is ready"));
    }
    require_free(state, "volume", &format!("volume '{}'", volume.name), volume.operation)?;
    if !volume.snapshots.is_empty() {
        let names: Vec<String> = volume.snapshots.iter().map(|snapshot| snapshot.name.to_string()).collect();
        return Err(AdmissionError::InUse {
            field: "volume",
            kind: "volume",
            name: volume.name.to_string(),
            users: super::shown("its snapshot", &names),
        });
    }
    let mut admitted = admit(volume, work, identity, now);
    if let Some(Record::Volume(record)) = admitted.txn.as_mut().and_then(last_put) {
        record.state = VolumeState::Deleting;
    }
    Ok(admitted)
}

/// A volume that can be worked on.
pub(super) fn find_idle<'a>(
    state: &'a ClusterState,
    volume: &str,
) -> Result<&'a Stored<Volume>, AdmissionError> {
    let volume = find_volume(state, "volume", volume)?;
    if volume.state != VolumeState::Ready {
        let problem = format!("volume '{}' is not ready ({:?})", volume.name, volume.state);
        return Err(AdmissionError::wrong_state("volume", problem, "a volume that is ready"));
    }
    require_free(state, "volume", &format!("volume '{}'", volume.name), volume.operation)?;
    Ok(volume)
}

/// An operation that works on a volume; the volume's record is the last write.
pub(super) fn admit(
    volume: &Stored<Volume>,
    work: StorageWork,
    identity: &RequestIdentity,
    now: WallTime,
) -> Admitted {
    let mut txn = Txn::new();
    let operation = begin(&mut txn, identity, work, (Subject::Volume(volume.id), volume.name.clone()), now);
    let changed = Volume { operation: Some(operation), ..volume.value.clone() };
    txn.update(volume.revision, Record::Volume(changed));
    Admitted { operation, txn: Some(txn) }
}

pub(super) fn last_put(txn: &mut Txn) -> Option<&mut Record> {
    match txn.writes.last_mut() {
        Some(drover_cluster_state::Write::Put(record)) => Some(record),
        _ => None,
    }
}
