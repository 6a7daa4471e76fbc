//! A Ceph pool passes what every pool must do; so does a namespace of one.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::any::Any;

use drover_ids::VolumeId;
use drover_rbd::{Access, Cluster, ConnectConfig, Image, Library, Pool, Source};
use drover_storage_pools::{
    RbdStorage, StoragePool,
    conformance::{self, Bench},
    volume_name,
};
use drover_test_ceph_cluster::{CephCluster, CephOptions};

struct RbdBench {
    storage: RbdStorage,
    /// Another client, as a VM's process is.
    guest: Pool,
}

impl Bench for RbdBench {
    fn pool(&self) -> &dyn StoragePool {
        &self.storage
    }

    fn write(&self, volume: VolumeId, offset: u64, bytes: &[u8]) {
        let image = Image::open(&self.guest, &volume_name(volume), Access::ReadWrite).unwrap();
        image.write(offset, bytes).unwrap();
        image.flush().unwrap();
    }

    fn read(&self, volume: VolumeId, offset: u64, length: usize) -> Vec<u8> {
        let image = Image::open(&self.guest, &volume_name(volume), Access::ReadOnly).unwrap();
        let mut bytes = vec![0; length];
        assert_eq!(image.read(offset, &mut bytes).unwrap(), length);
        bytes
    }

    fn hold(&self, volume: VolumeId) -> Box<dyn Any> {
        let image = Image::open(&self.guest, &volume_name(volume), Access::ReadWrite).unwrap();
        image.acquire_lock().unwrap();
        Box::new(image)
    }
}

fn connect(ceph: &CephCluster) -> Cluster {
    let source = Source::ConfFile { path: ceph.conf_path(), user: "admin".to_owned() };
    Cluster::connect(Library::load().unwrap(), &ConnectConfig::new(source)).unwrap()
}

#[test]
fn a_ceph_pool_conforms() {
    if !drover_test_prerequisites::ceph() {
        return;
    }
    let ceph = CephCluster::start(&CephOptions::default()).unwrap();
    let (ours, guests) = (connect(&ceph), connect(&ceph));
    let plain = Pool::open(&ours, ceph.pool(), "").unwrap();
    plain.create_namespace("tenant").unwrap();
    for namespace in ["", "tenant"] {
        let bench = RbdBench {
            storage: RbdStorage::new(Pool::open(&ours, ceph.pool(), namespace).unwrap()),
            guest: Pool::open(&guests, ceph.pool(), namespace).unwrap(),
        };
        conformance::check_all(&bench);
    }
    let leaks = ceph.leaks().unwrap();
    assert!(leaks.is_empty(), "{leaks}");
}
