//! Every backend here keeps the contract.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{sync::Arc, time::Duration};

use drover_block::{
    Access, Backend, FileBackend, MemoryImage,
    conformance::{self, TestImage},
    decorators::{Delayed, Faulty},
};
use drover_dir_volume::DirPool;
use drover_ids::VolumeId;
use drover_units::Bytes;

struct Memory(MemoryImage);

impl TestImage for Memory {
    fn open(&self, access: Access) -> Arc<dyn Backend> {
        match access {
            Access::ReadWrite => Arc::new(self.0.open()),
            Access::ReadOnly => Arc::new(self.0.open_read_only()),
        }
    }
    fn durable(&self) -> Option<Vec<u8>> {
        Some(self.0.durable())
    }
    fn grow(&self, size: Bytes) {
        self.0.grow(size);
    }
}

struct RawFile {
    pool: DirPool,
    _dir: tempfile::TempDir,
}

const VOLUME: VolumeId = VolumeId::from_u128(1);

impl RawFile {
    fn new(size: Bytes) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pool = DirPool::open(dir.path()).unwrap();
        pool.create_volume(VOLUME, size).unwrap();
        Self { pool, _dir: dir }
    }
}

impl TestImage for RawFile {
    fn open(&self, access: Access) -> Arc<dyn Backend> {
        Arc::new(FileBackend::open(self.pool.volume_path(VOLUME), access).unwrap())
    }
    fn durable(&self) -> Option<Vec<u8>> {
        // Only a power failure could tell.
        None
    }
    fn grow(&self, size: Bytes) {
        let file = std::fs::OpenOptions::new().write(true).open(self.pool.volume_path(VOLUME)).unwrap();
        file.set_len(size.get()).unwrap();
    }
}

/// A memory image behind a decorator.
struct Decorated(MemoryImage, fn(Arc<dyn Backend>) -> Arc<dyn Backend>);

impl TestImage for Decorated {
    fn open(&self, access: Access) -> Arc<dyn Backend> {
        self.1(Memory(self.0.clone()).open(access))
    }
    fn durable(&self) -> Option<Vec<u8>> {
        Some(self.0.durable())
    }
    fn grow(&self, size: Bytes) {
        self.0.grow(size);
    }
}

#[test]
fn the_memory_backend_conforms() {
    conformance::run(&|size| Box::new(Memory(MemoryImage::new(size))));
}

#[test]
fn the_file_backend_conforms() {
    conformance::run(&|size| Box::new(RawFile::new(size)));
}

#[test]
fn a_delayed_backend_conforms() {
    let slow = |inner| Arc::new(Delayed::new(inner, Duration::from_millis(1))) as Arc<dyn Backend>;
    conformance::run(&|size| Box::new(Decorated(MemoryImage::new(size), slow)));
}

#[test]
fn a_backend_that_never_fails_on_purpose_conforms() {
    let faultless = |inner| Arc::new(Faulty::new(inner, |_| None)) as Arc<dyn Backend>;
    conformance::run(&|size| Box::new(Decorated(MemoryImage::new(size), faultless)));
}
