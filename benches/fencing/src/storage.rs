//! A cluster, what the control plane does with it, and the volumes that guests are given.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use drover_ids::{OwnerEpoch, VmId, VolumeId};
use drover_rbd::{ClientAddress, Cluster, ConnectConfig, Library, Pool, Source};
use drover_rbd_volume::{Fence, FenceProof, unfence};
use drover_storage_pools::{RbdStorage, StoragePool as _, Unobserved, volume_name};
use drover_test_ceph_cluster::{CephCluster, CephOptions};
use drover_units::Bytes;
use drover_wire::vm::v1 as wire;

/// The user whose key a VM's process has: it can blocklist nobody.
const USER: &str = "drover-bench";
/// Longer than any bench.
const LASTS: Duration = Duration::from_secs(3600);

/// A running cluster and its administrator.
pub(crate) struct Storage {
    cluster: CephCluster,
    admin: Pool,
    pub(crate) pool: RbdStorage,
    key: String,
}

impl Storage {
    pub(crate) fn start(options: &CephOptions) -> anyhow::Result<Self> {
        let cluster = CephCluster::start(options)?;
        let source = Source::ConfFile { path: cluster.conf_path(), user: "admin".to_owned() };
        let connected = Cluster::connect(Library::load()?, &ConnectConfig::new(source))?;
        let admin = Pool::open(&connected, cluster.pool(), "")?;
        let key = cluster.create_vmm_key(USER, cluster.pool())?;
        Ok(Self { cluster, pool: RbdStorage::new(admin.clone()), admin, key })
    }

    /// An empty volume.
    pub(crate) fn create(&self, size: Bytes) -> anyhow::Result<VolumeId> {
        let volume = next_volume();
        self.pool.create_volume(volume, size)?;
        Ok(volume)
    }

    pub(crate) fn delete(&self, volume: VolumeId) -> anyhow::Result<()> {
        self.pool.delete_volume(volume, &Unobserved).with_context(|| format!("volume {volume}"))
    }

    /// A volume as vmmd is told of it.
    pub(crate) fn disk(&self, volume: VolumeId) -> wire::Disk {
        let access = wire::RbdAccess {
            mon_hosts: self.cluster.mon_hosts().to_owned(),
            ceph_pool: self.cluster.pool().to_owned(),
            user: USER.to_owned(),
            key: self.key.clone(),
            ..wire::RbdAccess::default()
        };
        wire::Disk {
            volume_id: volume.to_string(),
            rbd: Some(wire::RbdImage { access: Some(access), image: volume_name(volume) }),
            ..wire::Disk::default()
        }
    }

    /// Fences as the control plane does: whoever has `volume` open is refused from now on.
    pub(crate) fn fence(
        &self,
        (vm, volume): (VmId, VolumeId),
        floor: OwnerEpoch,
        registered: &[ClientAddress],
    ) -> anyhow::Result<FenceProof> {
        let fence = Fence { vm, floor, registered, spared: &[], lasts: LASTS };
        Ok(drover_rbd_volume::fence(&self.admin, &volume_name(volume), &fence)?)
    }

    /// Lets clients in again that are gone.
    pub(crate) fn unfence(&self, fenced: &[ClientAddress]) -> anyhow::Result<()> {
        Ok(unfence(self.admin.cluster(), fenced)?)
    }

    /// Makes sure that nothing is left, and says so.
    pub(crate) fn finish(self) -> anyhow::Result<String> {
        let Self { cluster, admin, pool, .. } = self;
        drop((pool, admin));
        let leaks = cluster.leaks()?;
        ensure!(leaks.is_empty(), "left in the cluster: {leaks}");
        Ok(leaks.to_string())
    }
}

fn next_volume() -> VolumeId {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    VolumeId::from_u128((0xfe0c << 64) | u128::from(NEXT.fetch_add(1, Ordering::Relaxed)))
}
