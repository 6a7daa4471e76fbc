//! What is particular to raw files.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "waits for the kernel with a deadline")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use drover_block::{
    Access, Backend, BackendQueue, BlockError, Completion, FileBackend, OpenError, Owner, OwnershipError,
    QueueConfig, Request, RequestBatch, Segments, Tag, Token,
};
use drover_dir_volume::{DirPool, LockError, OwnerRecord, fence, read_record};
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

/// Set for the child of the test below: the volume's raw file.
const CHILD: &str = "DROVER_TEST_OWNER_OF";

/// kill -9 of an owner under load: the lock goes with the last of its I/O, and not before.
#[test]
fn a_killed_owner_lets_go_of_its_volume() {
    if let Some(path) = std::env::var_os(CHILD) {
        write_until_killed(Path::new(&path));
    }
    let (_dir, pool) = pool();
    let path = pool.volume_path(VOLUME);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_owner_lets_go_of_its_volume", "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The harness prints too, before the child's line or around it.
    let started =
        BufReader::new(child.stdout.take().unwrap()).lines().any(|line| line.unwrap().contains(UNDER_LOAD));
    assert!(started, "the child owns the volume");
    let backend = FileBackend::open(&path, Access::ReadWrite).unwrap();
    let error = backend.acquire(&owner(2)).unwrap_err();
    assert!(matches!(error, OwnershipError::Held { owner: Some(holder) } if holder == owner(1)), "{error:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = fence(&pool, VOLUME, owner(1).vm, OwnerEpoch::new(2)) {
        assert!(matches!(error, LockError::Held { .. }) && Instant::now() < deadline, "{error:?}");
        std::thread::yield_now();
    }
    assert!(matches!(backend.acquire(&owner(1)), Err(OwnershipError::StaleEpoch { .. })));
    backend.acquire(&owner(2)).unwrap();
}

const UNDER_LOAD: &str = "writes are under way";

fn write_until_killed(path: &Path) -> ! {
    let backend = FileBackend::open(path, Access::ReadWrite).unwrap();
    backend.acquire(&owner(1)).unwrap();
    let memory = GuestMemory::anonymous(Bytes::mib(1));
    let mut queue = backend.queue(QueueConfig { depth: 32 }).unwrap();
    let (mut batch, mut completions) = (RequestBatch::default(), Vec::new());
    for tag in 0.. {
        let segments = Segments::from_iter([memory.segment(Gpa::ZERO, 65536).unwrap()]);
        let token = Token::new(Tag(tag));
        batch.push(match tag % 8 {
            0 => Request::flush(token),
            _ => Request::write(Sectors::new(tag % 8 * 128), segments, token),
        });
        while !batch.is_empty() {
            queue.submit(&mut batch);
            queue.reap(&mut completions);
            completions.clear();
        }
        if tag == 100 {
            std::io::Write::write_all(&mut std::io::stdout(), format!("{UNDER_LOAD}\n").as_bytes()).unwrap();
        }
    }
    unreachable!("killed before 2^64 requests")
}
