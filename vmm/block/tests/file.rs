//! What is particular to raw files.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{fs, path::Path};

use drover_block::{
    Access, Backend, BackendQueue, BlockError, Completion, FileBackend, OpenError, Owner, OwnershipError,
    QueueConfig, Request, RequestBatch, Segments, Tag, Token,
};
use drover_dir_volume::{DirPool, OwnerRecord, fence, read_record};
use drover_guest_memory::GuestMemory;
use drover_ids::{NodeId, OwnerEpoch, VmId, VolumeId};
use drover_units::{Bytes, Gpa, Sectors};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const VOLUME: VolumeId = VolumeId::from_u128(1);

fn owner(epoch: u64) -> Owner {
    Owner { vm: VmId::from_u128(1), node: NodeId::from_u128(2), epoch: OwnerEpoch::new(epoch), pid: 3 }
}

fn pool() -> (tempfile::TempDir, DirPool) {
    let dir = tempfile::tempdir().unwrap();
    let pool = DirPool::open(dir.path()).unwrap();
    pool.create_volume(VOLUME, Bytes::mib(1)).unwrap();
    (dir, pool)
}

/// Carries out one request.
fn run(queue: &mut dyn BackendQueue, request: Request) -> Result<(), BlockError> {
    let mut batch = RequestBatch::default();
    batch.push(request);
    queue.submit(&mut batch);
    let mut completions = Vec::<Completion>::new();
    while completions.is_empty() {
        let mut wait = [PollFd::new(queue.completion_event(), PollFlags::POLLIN)];
        assert_eq!(
            poll(&mut wait, PollTimeout::from(30_000_u16)).unwrap(),
            1,
            "an answer within the deadline"
        );
        queue.reap(&mut completions);
    }
    assert_eq!(completions.len(), 1);
    completions.remove(0).into_result()
}

#[test]
fn what_cannot_be_a_disk_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| FileBackend::open(path, Access::ReadWrite).unwrap_err();
    let missing = open(&dir.path().join("missing.raw"));
    assert!(
        matches!(&missing, OpenError::Io { .. }) && missing.to_string().contains("missing.raw"),
        "{missing}"
    );
    let odd = dir.path().join("odd.raw");
    for size in [0, 511, 513] {
        fs::write(&odd, vec![0; size]).unwrap();
        assert!(matches!(open(&odd), OpenError::Size { size: told, .. } if told == size as u64));
    }
    assert!(matches!(FileBackend::open(dir.path(), Access::ReadOnly), Err(OpenError::NotAFile { .. })));
    let fifo = dir.path().join("fifo.raw");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(FileBackend::open(&fifo, Access::ReadOnly), Err(OpenError::NotAFile { .. })));
}

#[test]
fn acquiring_leaves_the_owner_record_beside_the_file() {
    let (_dir, pool) = pool();
    let backend = FileBackend::open(pool.volume_path(VOLUME), Access::ReadWrite).unwrap();
    backend.acquire(&owner(4)).unwrap();
    let record = read_record(&pool.sidecar_path(VOLUME)).unwrap();
    assert_eq!(record, Some(OwnerRecord::Acquired(owner(4))));
    assert!(fence(&pool, VOLUME, owner(4).vm, OwnerEpoch::new(5)).is_err(), "the owner lives");
    backend.release().unwrap();
    fence(&pool, VOLUME, owner(4).vm, OwnerEpoch::new(5)).unwrap();
    assert!(matches!(backend.acquire(&owner(4)), Err(OwnershipError::StaleEpoch { .. })));
}

#[test]
fn a_file_that_was_truncated_under_us_is_an_error_not_zeros() {
    let (_dir, pool) = pool();
    let backend = FileBackend::open(pool.volume_path(VOLUME), Access::ReadWrite).unwrap();
    backend.acquire(&owner(1)).unwrap();
    let mut queue = backend.queue(QueueConfig { depth: 4 }).unwrap();
    fs::OpenOptions::new().write(true).open(pool.volume_path(VOLUME)).unwrap().set_len(1024).unwrap();
    let memory = GuestMemory::anonymous(Bytes::mib(1));
    // Across the new end: the first part is transferred, the rest is not there.
    let segments = Segments::from_iter([memory.segment(Gpa::ZERO, 4096).unwrap()]);
    let read = Request::read(Sectors::ZERO, segments, Token::new(Tag(0)));
    let error = run(queue.as_mut(), read).unwrap_err();
    assert!(matches!(error, BlockError::Io { .. }), "{error:?}");
    // The queue goes on.
    let segments = Segments::from_iter([memory.segment(Gpa::ZERO, 1024).unwrap()]);
    run(queue.as_mut(), Request::read(Sectors::ZERO, segments, Token::new(Tag(1)))).unwrap();
}

#[test]
fn a_release_outlasts_queues_that_are_idle() {
    let (_dir, pool) = pool();
    let first = FileBackend::open(pool.volume_path(VOLUME), Access::ReadWrite).unwrap();
    let second = FileBackend::open(pool.volume_path(VOLUME), Access::ReadWrite).unwrap();
    first.acquire(&owner(1)).unwrap();
    let mut queue = first.queue(QueueConfig { depth: 1 }).unwrap();
    run(queue.as_mut(), Request::flush(Token::new(Tag(0)))).unwrap();
    first.release().unwrap();
    second.acquire(&owner(2)).expect("an idle queue holds nothing");
}
