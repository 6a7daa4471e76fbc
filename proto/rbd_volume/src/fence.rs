//! Stopping owners that do not answer, and letting an image go from its VM.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use drover_ids::{OwnerEpoch, VmId};
use drover_rbd::{Access, ClientAddress, Cluster, Error, Image, OsdMapEpoch, Pool};
use drover_volume_owner::{Owner, OwnerRecord, Refusal};
use tracing::debug_span;

use crate::{
    lock::{LockError, lock},
    record::{Change, ImageRecord, update},
};

/// What is to be fenced.
#[derive(Clone, Copy, Debug)]
pub struct Fence<'a> {
    /// The VM whose owners are meant.
    pub vm: VmId,
    /// Its owners below this epoch are refused, for ever.
    pub floor: OwnerEpoch,
    /// The addresses that the owner's process is known to have had, whatever the image says.
    pub registered: &'a [ClientAddress],
    /// Addresses to leave alone: of processes that end by themselves, or wait to go on with a newer epoch. While one of
    /// them holds the lock, the image cannot be fenced.
    pub spared: &'a [ClientAddress],
    /// How long the blocklist's entries last unless they are [renewed](renew): longer than it may take until the
    /// process is known to be gone.
    pub lasts: Duration,
}

/// Evidence that no owner of `vm` older than `epoch` can write `image`, now or later: the record refuses them, and every
/// client that had the image open is refused by every OSD that serves a client which has seen `osdmap_epoch`.
///
/// Only [`fence`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FenceProof {
    /// The image.
    pub image: String,
    /// The VM it belongs to.
    pub vm: VmId,
    /// The floor that is recorded: the one asked for, or a higher one that was already there.
    pub epoch: OwnerEpoch,
    /// The last process that had acquired the image, if any.
    pub previous: Option<Owner>,
    /// The clients that are refused, in order.
    pub entries: Vec<ClientAddress>,
    /// The map that says so.
    pub osdmap_epoch: OsdMapEpoch,
}

/// Fences an image. `pool` is open with a key that may blocklist. Idempotent; repeating it renews the entries.
///
/// Blocklisted are the registered addresses, those in the owner record, the lock's owners, and everybody who has the
/// image open for writing, but for `pool`'s own client. What an owner with at least the floor has locked by now is left
/// alone: the fence has been overtaken by a restart that was already allowed.
///
/// # Errors
/// [`Refusal::OtherVm`] where the volume belongs to another VM, [`LockError::Held`] while somebody who is spared has it
/// locked, and what the cluster says. Some entries may have been made then.
pub fn fence(pool: &Pool, image: &str, fence: &Fence<'_>) -> Result<FenceProof, LockError> {
    // For writing: a handle for reading cannot see the lock. It writes nothing and locks nothing.
    let opened = debug_span!("image opened")
        .in_scope(|| Image::open(pool, image, Access::ReadWrite))
        .map_err(LockError::ceph("open"))?;
    let raise = |current: Option<&ImageRecord>| {
        let owner = current.map(|record| &record.owner);
        let raised = OwnerRecord::fenced(owner, fence.vm, fence.floor)?;
        let clients = current.map(|record| record.clients.clone()).unwrap_or_default();
        Ok::<_, LockError>(raised.map(|owner| Change::Replace(ImageRecord { owner, clients })))
    };
    let before = debug_span!("owner record raised").in_scope(|| update(&opened, raise))?;
    let mut entries: BTreeSet<ClientAddress> = fence.registered.iter().copied().collect();
    let overtaken = matches!(
        &before,
        Some(ImageRecord { owner: OwnerRecord::Acquired(owner), .. }) if owner.epoch >= fence.floor
    );
    if !overtaken {
        let _looking = debug_span!("users found").entered();
        entries.extend(before.iter().flat_map(|record| &record.clients));
        let owners = opened.lock_owners().map_err(LockError::ceph("read the lock of"))?;
        if owners.iter().any(|owner| fence.spared.contains(&owner.address)) {
            return Err(LockError::Held { owner: before.and_then(|record| record.owner.last_owner()) });
        }
        entries.extend(owners.iter().map(|owner| owner.address));
        let watchers = opened.watchers().map_err(LockError::ceph("list the users of"))?;
        entries.extend(watchers.iter().map(|watcher| watcher.address));
    }
    let ours = pool.cluster().addresses().map_err(LockError::ceph("name our client to"))?;
    entries.retain(|address| !ours.contains(address) && !fence.spared.contains(address));
    let entries: Vec<ClientAddress> = entries.into_iter().collect();
    let osdmap_epoch = renew(pool.cluster(), &entries, fence.lasts).map_err(LockError::ceph("fence"))?;
    Ok(FenceProof {
        image: image.to_owned(),
        vm: fence.vm,
        epoch: before.as_ref().map_or(fence.floor, |record| record.owner.floor().max(fence.floor)),
        previous: before.and_then(|record| record.owner.last_owner()),
        entries,
        osdmap_epoch,
    })
}

/// Most blocklist commands at once. They share the monitors' rounds, and a host has few clients.
const COMMANDS_MAX: usize = 16;

/// Blocklists clients, or makes their entries last longer. Returns the number of a map that has all of them, which
/// `cluster`'s client has seen.
pub fn renew(cluster: &Cluster, entries: &[ClientAddress], lasts: Duration) -> Result<OsdMapEpoch, Error> {
    let left = Mutex::new(entries.iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let add = || {
        while let Some(address) = next() {
            cluster.blocklist_add(*address, lasts)?;
        }
        Ok(())
    };
    // One round of the monitors for all, instead of one for each: with Ceph's own settings a round is up to a second.
    let adding = debug_span!("clients blocklisted");
    adding.in_scope(|| {
        thread::scope(|scope| {
            let helpers: Vec<_> = (1..entries.len().min(COMMANDS_MAX)).map(|_| scope.spawn(add)).collect();
            let mine = add();
            let others = helpers.into_iter().map(|helper| helper.join().expect("a helper does not panic"));
            others.chain([mine]).collect::<Result<(), Error>>()
        })
    })?;
    drop(adding);
    let _waiting = debug_span!("newest map seen").entered();
    cluster.wait_for_latest_osdmap()?;
    cluster.osdmap_epoch()
}

/// Lets clients in again whose processes are known to be gone. Idempotent.
pub fn unfence(cluster: &Cluster, entries: &[ClientAddress]) -> Result<(), Error> {
    entries.iter().try_for_each(|address| cluster.blocklist_remove(*address))
}

/// Ends `vm`'s claim to an image, so that another VM may acquire it. Idempotent. Takes the lock for a moment, which
/// takes it over from a client that has been fenced.
///
/// # Errors
/// [`LockError::Held`] while somebody has it locked, [`Refusal::OtherVm`] where it belongs to another VM.
pub fn detach(pool: &Pool, image: &str, vm: VmId) -> Result<(), LockError> {
    let image = Image::open(pool, image, Access::ReadWrite).map_err(LockError::ceph("open"))?;
    lock(&image)?;
    let detached = update(&image, |current| match current {
        None => Ok(None),
        Some(record) if record.owner.vm() != vm => Err(Refusal::OtherVm { vm: record.owner.vm() }.into()),
        Some(_) => Ok(Some(Change::Remove)),
    });
    let released = image.release_lock().map_err(LockError::ceph("unlock"));
    detached.and(released)
}
