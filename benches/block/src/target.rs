//! The cluster and the image, or the file, that everybody works on.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use drover_test_ceph_cluster::{CephCluster, CephOptions, LeakReport};
use drover_wire::vm::v1 as wire;
use tempfile::TempDir;

use crate::Contender;

const VOLUME: &str = "0b10c000-0000-4000-8000-000000000001";
const IMAGE: &str = "volume-0b10c000-0000-4000-8000-000000000001";
/// The user whose key a VM's process has.
const USER: &str = "drover-bench";
const IMAGE_SIZE: &str = "1G";
/// How long the image may be in use after the last one has ended: less than the half minute for which a cluster keeps a place for
/// a client that has died.
const REMOVAL_MAX: Duration = Duration::from_secs(10);
/// Small enough for any machine's page cache.
const FILE_MIB: usize = 512;

/// Where the bytes are that everybody works on.
pub(crate) enum Target {
    Rbd(RbdTarget),
    File(FileTarget),
}

/// An image on a cluster of our own.
pub(crate) struct RbdTarget {
    cluster: CephCluster,
    vmm_key: String,
}

/// A raw file, in the page cache for the most part.
pub(crate) struct FileTarget {
    path: PathBuf,
    _folder: TempDir,
}

impl Target {
    /// Starts a cluster and writes the whole image, so that reads find data and writes need no allocation.
    pub(crate) fn on_rbd() -> anyhow::Result<Self> {
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
        Ok(Self::Rbd(RbdTarget { cluster, vmm_key }))
    }

    /// Writes the whole file, so that reads find data and writes need no allocation. It lies below `folder`.
    pub(crate) fn on_a_file(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let folder = tempfile::Builder::new().prefix("bench-block").tempdir_in(folder)?;
        let target = FileTarget { path: folder.path().join("disk.raw"), _folder: folder };
        let mut file = File::create(&target.path)?;
        // Neither zeros nor anything that repeats within a page.
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        let mut piece = vec![0; 1 << 20];
        for _ in 0..FILE_MIB {
            for bytes in piece.chunks_exact_mut(8) {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            file.write_all(&piece)?;
        }
        file.sync_all()?;
        Ok(Self::File(target))
    }

    /// As vmmd is told of it: an image with a key that can do no more than a VM's may.
    pub(crate) fn disk(&self, queues: u32) -> wire::Disk {
        let disk = wire::Disk { volume_id: VOLUME.to_owned(), queues, ..wire::Disk::default() };
        match self {
            Self::File(file) => wire::Disk { path: file.path.to_string_lossy().into_owned(), ..disk },
            Self::Rbd(RbdTarget { cluster, vmm_key }) => {
                let access = wire::RbdAccess {
                    mon_hosts: cluster.mon_hosts().to_owned(),
                    ceph_pool: cluster.pool().to_owned(),
                    namespace: String::new(),
                    user: USER.to_owned(),
                    key: vmm_key.clone(),
                    fsid: cluster.fsid().to_owned(),
                };
                let rbd = wire::RbdImage { access: Some(access), image: IMAGE.to_owned() };
                wire::Disk { rbd: Some(rbd), ..disk }
            }
        }
    }

    /// The file, where it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(file) => Some(&file.path),
            Self::Rbd(_) => None,
        }
    }

    /// As QEMU is told of it. A file goes through the page cache and io_uring, as with us.
    pub(crate) fn qemu_drive(&self) -> String {
        match self {
            Self::Rbd(RbdTarget { cluster, .. }) => format!(
                "driver=rbd,pool={},image={IMAGE},conf={},cache.direct=on,if=none,id=disk",
                cluster.pool(),
                cluster.conf_path().display()
            ),
            Self::File(file) => format!(
                "driver=raw,file.driver=file,file.filename={},file.aio=io_uring,if=none,id=disk",
                file.path.display()
            ),
        }
    }

    /// As fio is told of it: arguments and environment.
    pub(crate) fn fio(&self) -> (Vec<String>, Option<(&'static str, PathBuf)>) {
        match self {
            Self::Rbd(RbdTarget { cluster, .. }) => (
                vec![
                    "--ioengine=rbd".to_owned(),
                    "--clientname=admin".to_owned(),
                    format!("--pool={}", cluster.pool()),
                    format!("--rbdname={IMAGE}"),
                ],
                Some(("CEPH_CONF", cluster.conf_path())),
            ),
            Self::File(file) => (
                vec![
                    "--ioengine=io_uring".to_owned(),
                    "--invalidate=0".to_owned(),
                    "--fallocate=none".to_owned(),
                    format!("--filename={}", file.path.display()),
                    format!("--size={FILE_MIB}m"),
                ],
                None,
            ),
        }
    }

    /// Removes what was made, and says what is left on the cluster.
    pub(crate) fn finish(
        &self,
        contenders: Vec<Box<dyn Contender + '_>>,
    ) -> anyhow::Result<Option<LeakReport>> {
        drop(contenders);
        let Self::Rbd(RbdTarget { cluster, .. }) = self else { return Ok(None) };
        remove(cluster)?;
        Ok(Some(cluster.leaks()?))
    }
}

/// The cluster may need a moment to forget whoever closed the image last; whoever ended without closing it, it keeps for longer.
fn remove(cluster: &CephCluster) -> anyhow::Result<()> {
    let image = format!("{}/{IMAGE}", cluster.pool());
    let deadline = Instant::now() + REMOVAL_MAX;
    loop {
        match cluster.rbd(&["rm", "--no-progress", &image]) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(500)),
        }
    }
}
