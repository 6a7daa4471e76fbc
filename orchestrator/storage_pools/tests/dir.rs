//! A directory passes what every pool must do.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{any::Any, fs::OpenOptions, os::unix::fs::FileExt as _};

use drover_dir_volume::{DirPool, Owner, VolumeLock};
use drover_ids::{NodeId, OwnerEpoch, VmId, VolumeId};
use drover_storage_pools::{
    DirStorage, StoragePool,
    conformance::{self, Bench},
};

struct DirBench {
    storage: DirStorage,
    pool: DirPool,
}

impl Bench for DirBench {
    fn pool(&self) -> &dyn StoragePool {
        &self.storage
    }

    fn write(&self, volume: VolumeId, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.pool.volume_path(volume)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    fn read(&self, volume: VolumeId, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let file = OpenOptions::new().read(true).open(self.pool.volume_path(volume)).unwrap();
        file.read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }

    fn hold(&self, volume: VolumeId) -> Box<dyn Any> {
        let file = OpenOptions::new().read(true).write(true).open(self.pool.volume_path(volume)).unwrap();
        let owner = Owner {
            vm: VmId::from_u128(1),
            node: NodeId::from_u128(2),
            epoch: OwnerEpoch::new(3),
            pid: std::process::id(),
        };
        Box::new(VolumeLock::acquire(&file, &self.pool.sidecar_path(volume), owner).unwrap())
    }
}

#[test]
fn a_directory_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let pool = DirPool::open(folder.path()).unwrap();
    conformance::check_all(&DirBench { storage: DirStorage::new(pool.clone()), pool });
}
