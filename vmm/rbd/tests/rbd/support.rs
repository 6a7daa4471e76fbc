//! A cluster and clients of it.

use drover_rbd::{Access, Cluster, ConnectConfig, CreateOptions, Image, Library, Pool, Secret, Source};
use drover_test_ceph_cluster::{CephCluster, CephOptions};

/// A cluster with an administrator. Nothing may be left on it when it goes.
pub(crate) struct Ceph {
    pub(crate) cluster: CephCluster,
    pub(crate) pool: Pool,
}

impl Ceph {
    /// Nothing where Ceph is not installed: the test is then counted as skipped.
    pub(crate) fn start() -> Option<Self> {
        if !drover_test_prerequisites::ceph() {
            return None;
        }
        let cluster = CephCluster::start(&CephOptions::default()).unwrap();
        let pool = Pool::open(&connect(&cluster), cluster.pool(), "").unwrap();
        Some(Self { cluster, pool })
    }

    /// A new image, open for writing.
    pub(crate) fn image(&self, name: &str, size: u64) -> Image {
        self.pool.create_image(name, size, &CreateOptions::default()).unwrap();
        self.open(name)
    }

    pub(crate) fn open(&self, name: &str) -> Image {
        Image::open(&self.pool, name, Access::ReadWrite).unwrap()
    }

    /// The same image through another client.
    pub(crate) fn open_elsewhere(&self, name: &str) -> Image {
        let pool = Pool::open(&connect(&self.cluster), self.cluster.pool(), "").unwrap();
        Image::open(&pool, name, Access::ReadWrite).unwrap()
    }

    pub(crate) fn remove(&self, name: &str) {
        self.pool.remove_image(name, &mut |_, _| true).unwrap();
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let leaks = self.cluster.leaks().unwrap();
            assert!(leaks.is_empty(), "{leaks}");
        }
    }
}

pub(crate) fn connect(cluster: &CephCluster) -> Cluster {
    Cluster::connect(Library::load().unwrap(), &config(cluster)).unwrap()
}

pub(crate) fn config(cluster: &CephCluster) -> ConnectConfig {
    ConnectConfig::new(Source::Monitors {
        hosts: cluster.mon_hosts().to_owned(),
        user: "admin".to_owned(),
        key: Secret::new(cluster.admin_key()),
    })
}

pub(crate) fn done(_: u64, _: u64) -> bool {
    true
}
