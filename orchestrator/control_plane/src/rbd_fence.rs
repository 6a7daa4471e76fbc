//! Taking RBD images away from whoever has them, and letting clients in again once they are known to be gone.

use std::{collections::BTreeSet, time::Duration};

use drover_cluster_state::{Blocklist, VolumeFence, VolumeOwner};
use drover_ids::{OwnerEpoch, VmId, VolumeId};
use drover_rbd::{ClientAddress, Cluster, Error, Pool};
use drover_rbd_volume::{Fence, FenceProof};
use drover_reconcile::FenceRefusal;
use drover_storage_pools::volume_name;

use crate::status::describe;

/// How long an entry of the blocklist lasts unless it is renewed: longer than a control plane may be away, since the
/// process behind it may be one that is stopped, and wakes up then.
pub(crate) const LASTS: Duration = Duration::from_secs(24 * 3600);

/// One volume to be fenced.
#[derive(Clone, Debug)]
pub(crate) struct RbdFence {
    pub(crate) volume: VolumeId,
    pub(crate) vm: VmId,
    pub(crate) floor: OwnerEpoch,
    pub(crate) clients: BTreeSet<String>,
    pub(crate) spared: BTreeSet<String>,
}

impl RbdFence {
    /// Fences the image: raises its floor, blocklists whoever may write it, and waits for the map that says so. `pool`
    /// is open with the control plane's own key. Blocks.
    pub(crate) fn carry_out(&self, pool: &Pool) -> Result<VolumeFence, FenceRefusal> {
        let registered = addresses(&self.clients)?;
        let spared = addresses(&self.spared)?;
        let fence =
            Fence { vm: self.vm, floor: self.floor, registered: &registered, spared: &spared, lasts: LASTS };
        let proof = drover_rbd_volume::fence(pool, &volume_name(self.volume), &fence)
            .map_err(|error| FenceRefusal(describe(&error)))?;
        Ok(proven(self.volume, proof))
    }
}

fn proven(volume: VolumeId, proof: FenceProof) -> VolumeFence {
    let previous =
        proof.previous.map(|owner| VolumeOwner { vm: owner.vm, node: owner.node, epoch: owner.epoch });
    let blocklist = Blocklist {
        entries: proof.entries.iter().map(ToString::to_string).collect(),
        map_epoch: proof.osdmap_epoch.0,
    };
    VolumeFence { volume, epoch: proof.epoch, previous, blocklist: Some(blocklist) }
}

/// What an agent has reported is not believed without a look.
fn addresses(texts: &BTreeSet<String>) -> Result<Vec<ClientAddress>, FenceRefusal> {
    let parse =
        |text: &String| text.parse().map_err(|error| FenceRefusal(format!("a reported client: {error}")));
    texts.iter().map(parse).collect()
}

/// Keeps clients out for [`LASTS`] from now. Blocks.
pub(crate) fn renew<'a>(
    cluster: &Cluster,
    entries: impl IntoIterator<Item = &'a String>,
) -> Result<(), Error> {
    drover_rbd_volume::renew(cluster, &known(entries), LASTS).map(drop)
}

/// Lets clients in again. Blocks.
pub(crate) fn lift<'a>(
    cluster: &Cluster,
    entries: impl IntoIterator<Item = &'a String>,
) -> Result<(), Error> {
    drover_rbd_volume::unfence(cluster, &known(entries))
}

/// Ours, from the store: what is none was never an entry.
fn known<'a>(entries: impl IntoIterator<Item = &'a String>) -> Vec<ClientAddress> {
    entries.into_iter().filter_map(|text| text.parse().ok()).collect()
}
