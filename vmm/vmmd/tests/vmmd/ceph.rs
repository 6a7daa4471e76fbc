//! A real Ceph cluster under VMs: one image per volume, a key as VMs have it, and the right to fence.

use std::time::Duration;

use drover_ids::{OwnerEpoch, VmId, VolumeId};
use drover_probe_record::{Claim, ImageReport, stamp::Slots, verify_image};
use drover_rbd::{
    Access, ClientAddress, Cluster, ConnectConfig, CreateOptions, Image, Library, Pool, Source,
};
use drover_rbd_volume::{Fence, FenceProof, unfence};
use drover_test_ceph_cluster::{CephCluster, CephOptions};
use drover_units::Bytes;
use drover_wire::vm::v1 as wire;

use crate::support::{SEED, SLOTS, VM, VOLUME, Vmmd, config, disk_work};

const USER: &str = "vms";
/// What the probe's disk work fits.
pub(crate) const DISK: Bytes = Bytes::mib(4);

/// A cluster with its administrator. Nothing may be left in it at the end.
pub(crate) struct Ceph {
    pub(crate) cluster: CephCluster,
    pub(crate) admin: Pool,
    key: String,
    dir: tempfile::TempDir,
}

impl Ceph {
    /// Nothing where Ceph or KVM is not there: the test is then counted as skipped.
    pub(crate) fn start(options: &CephOptions) -> Option<Self> {
        if !drover_test_prerequisites::kvm() || !drover_test_prerequisites::ceph() {
            return None;
        }
        let cluster = CephCluster::start(options).expect("a cluster");
        let source = Source::ConfFile { path: cluster.conf_path(), user: "admin".to_owned() };
        let library = Library::load().expect("librbd is installed");
        let connected = Cluster::connect(library, &ConnectConfig::new(source)).expect("it answers");
        let admin = Pool::open(&connected, cluster.pool(), "").expect("the pool");
        let key = cluster.create_vmm_key(USER, cluster.pool()).expect("a key");
        Some(Self { cluster, admin, key, dir: tempfile::tempdir().expect("a directory") })
    }

    /// With a volume that the probe's disk work fits.
    pub(crate) fn with_volume(options: &CephOptions) -> Option<Self> {
        let ceph = Self::start(options)?;
        ceph.create(VOLUME, DISK);
        Some(ceph)
    }

    pub(crate) fn create(&self, volume: u128, size: Bytes) {
        self.admin.create_image(&name(volume), size.get(), &CreateOptions::default()).expect("an image");
    }

    /// A handle of the administrator's.
    pub(crate) fn image(&self) -> Image {
        Image::open(&self.admin, &name(VOLUME), Access::ReadWrite).expect("it is there")
    }

    pub(crate) async fn spawn(&self, name: &str) -> Vmmd {
        Vmmd::spawn(&self.dir.path().join(name)).await
    }

    /// A VM that writes this volume.
    pub(crate) fn config(&self) -> wire::VmConfig {
        let stall = wire::StallPolicy { deadline_ms: 1000, action: 0 };
        wire::VmConfig { disks: vec![self.disk(VOLUME)], stall: Some(stall), ..config(disk_work()) }
    }

    pub(crate) fn disk(&self, volume: u128) -> wire::Disk {
        let access = wire::RbdAccess {
            mon_hosts: self.cluster.mon_hosts().to_owned(),
            ceph_pool: self.cluster.pool().to_owned(),
            user: USER.to_owned(),
            key: self.key.clone(),
            ..wire::RbdAccess::default()
        };
        wire::Disk {
            volume_id: VolumeId::from_u128(volume).to_string(),
            rbd: Some(wire::RbdImage { access: Some(access), image: name(volume) }),
            ..wire::Disk::default()
        }
    }

    /// Does what the orchestrator does before it lets anybody else have the volume.
    pub(crate) fn fence(&self, floor: u64, registered: &[ClientAddress]) -> FenceProof {
        let fence = Fence {
            vm: VmId::from_u128(VM),
            floor: OwnerEpoch::new(floor),
            registered,
            spared: &[],
            lasts: Duration::from_secs(3600),
        };
        drover_rbd_volume::fence(&self.admin, &name(VOLUME), &fence).expect("fenced")
    }

    /// What is on the volume, given that so much was acknowledged.
    pub(crate) fn verify(&self, acked_max: u64) -> ImageReport {
        let file = self.dir.path().join("exported");
        let image = format!("{}/{}", self.cluster.pool(), name(VOLUME));
        let target = file.to_str().expect("a path of ours");
        self.cluster.rbd(&["export", "--no-progress", &image, target]).expect("exported");
        let claim = Claim { slots: Slots { seed: SEED, count: SLOTS }, acked_max };
        let report = verify_image(&file, &claim).expect("readable");
        std::fs::remove_file(&file).expect("removed");
        report
    }

    /// Lets the fenced in again, now that they are gone, and makes sure that nothing is left behind.
    pub(crate) fn assert_clean(self, fenced: &[ClientAddress]) {
        unfence(self.admin.cluster(), fenced).expect("let in again");
        for image in self.admin.images().expect("listed") {
            self.admin.remove_image(&image, &mut |_, _| true).expect("nobody has it open");
        }
        let leaks = self.cluster.leaks().expect("looked");
        assert!(leaks.is_empty(), "{leaks}");
    }
}

pub(crate) fn name(volume: u128) -> String {
    format!("volume-{}", VolumeId::from_u128(volume))
}

/// Under which addresses a process writes.
pub(crate) fn addresses(info: &wire::VmInfo) -> Vec<ClientAddress> {
    let texts = info.storage_clients.iter().flat_map(|client| &client.addresses);
    texts.map(|text| text.parse().expect("an address")).collect()
}
