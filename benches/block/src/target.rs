//! The cluster and the image that everybody works on.

use std::{
    path::PathBuf,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use drover_test_ceph_cluster::{CephCluster, CephOptions, LeakReport};
use drover_wire::vm::v1 as wire;

use crate::Contender;

const VOLUME: &str = "0b10c000-0000-4000-8000-000000000001";
const IMAGE: &str = "volume-0b10c000-0000-4000-8000-000000000001";
/// The user whose key a VM's process has.
const USER: &str = "drover-bench";
const IMAGE_SIZE: &str = "1G";
/// What a VMM may take to end after its guest has.
const END: Duration = Duration::from_secs(20);

pub(crate) struct Target {
    cluster: CephCluster,
    vmm_key: String,
}

impl Target {
    /// Starts a cluster and writes the whole image, so that reads find data and writes need no allocation.
    pub(crate) fn prepare() -> anyhow::Result<Self> {
        let options = CephOptions {
            // For everybody alike: with librbd's cache a write ends before the cluster has it.
            extra_global: vec!["rbd cache = false".to_owned()],
            ..CephOptions::default()
        };
        let cluster = CephCluster::start(&options)?;
        let image = format!("{}/{IMAGE}", cluster.pool());
        cluster.rbd(&["create", "--size", IMAGE_SIZE, &image])?;
        cluster.rbd(&[
            "bench",
            "--io-type",
            "write",
            "--io-size",
            "4M",
            "--io-total",
            IMAGE_SIZE,
            "--io-pattern",
            "seq",
            &image,
        ])?;
        let vmm_key = cluster.create_vmm_key(USER, cluster.pool())?;
        Ok(Self { cluster, vmm_key })
    }

    pub(crate) fn pool(&self) -> &str {
        self.cluster.pool()
    }

    pub(crate) fn image(&self) -> &'static str {
        IMAGE
    }

    pub(crate) fn conf(&self) -> PathBuf {
        self.cluster.conf_path()
    }

    /// The image as vmmd is told of it, with a key that can do no more than a VM's may.
    pub(crate) fn disk(&self) -> wire::Disk {
        let access = wire::RbdAccess {
            mon_hosts: self.cluster.mon_hosts().to_owned(),
            ceph_pool: self.cluster.pool().to_owned(),
            namespace: String::new(),
            user: USER.to_owned(),
            key: self.vmm_key.clone(),
            fsid: self.cluster.fsid().to_owned(),
        };
        let rbd = wire::RbdImage { access: Some(access), image: IMAGE.to_owned() };
        wire::Disk {
            volume_id: VOLUME.to_owned(),
            path: String::new(),
            read_only: false,
            rbd: Some(rbd),
            queues: 0,
        }
    }

    /// Removes the image and says what is left.
    pub(crate) fn finish(&self, contenders: Vec<Box<dyn Contender + '_>>) -> anyhow::Result<LeakReport> {
        drop(contenders);
        self.cluster.rbd(&["rm", "--no-progress", &format!("{}/{IMAGE}", self.pool())])?;
        Ok(self.cluster.leaks()?)
    }
}

/// A child that is killed if it is not waited for.
pub(crate) struct Ended(pub Child);

impl Ended {
    /// Waits until it has ended by itself.
    pub(crate) fn wait(mut self, what: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + END;
        loop {
            if let Some(status) = self.0.try_wait().with_context(|| format!("cannot wait for {what}"))? {
                if !status.success() {
                    bail!("{what} ended with {status}");
                }
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{what} did not end within {END:?}");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
