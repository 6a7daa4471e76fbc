//! A VM's memory and states through a file, and what happens to files that are not whole.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::disallowed_methods, reason = "waits for the loading thread with a deadline")]

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::mpsc,
    time::Duration,
};

use drover_guest_memory::{FaultSource, GuestMemory};
use drover_ids::{OwnerEpoch, VmId};
use drover_saved_state::{Envelope, PayloadReader, PayloadWriter, SavedState, StateError};
use drover_suspend::{Contents, Identity, LoadError, ReadError, SuspendFile, SuspendWriter};
use drover_units::{Bytes, Gpa, PAGE_SIZE};
use nix::{
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, unshare},
};

const RAM: Bytes = Bytes::mib(32);
const LIMIT: Duration = Duration::from_secs(60);
const DATA_OFFSET: u64 = 64 << 10;

struct Number(u64);

impl SavedState for Number {
    const KIND: &'static str = "number";
    const VERSION: u16 = 1;
    fn encode(&self, payload: &mut PayloadWriter) {
        payload.u64(self.0);
    }
    fn decode(_: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        payload.u64("number").map(Self)
    }
}

fn epoch(number: u64) -> OwnerEpoch {
    OwnerEpoch::new(number)
}

/// RAM in which every seventh page is written, and a stretch of it.
fn memory() -> GuestMemory {
    let memory = GuestMemory::anonymous(RAM);
    for page in (0..RAM.get() / PAGE_SIZE).filter(|page| page % 7 == 3 || (500..700).contains(page)) {
        memory.write(Gpa::new(page * PAGE_SIZE + page % 4000), &(page + 1).to_le_bytes()).unwrap();
    }
    // Written, and zero again.
    memory.write(Gpa::new(4 << 20), &[0; 8192]).unwrap();
    memory
}

fn states() -> Vec<Envelope> {
    (0..3).map(|n| Number(n.into()).to_envelope(n)).collect()
}

struct Written {
    memory: GuestMemory,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn new_file(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn writer(memory: &GuestMemory, path: &Path) -> SuspendWriter {
    let identity = Identity { vm: VmId::from_u128(5), epoch: epoch(3) };
    let contents = Contents { identity, memory, shape: b"a shape", states: &states() };
    SuspendWriter::write(new_file(path), path, contents).unwrap()
}

fn written() -> Written {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("suspended");
    let memory = memory();
    writer(&memory, &path).commit().unwrap();
    Written { memory, path, _dir: dir }
}

fn contents(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.size().get() as usize];
    memory.read(Gpa::ZERO, &mut bytes).unwrap();
    bytes
}

/// Loads everything; the first failure, if there is one. `None` where this host or user has no userfaultfd.
fn load(file: SuspendFile, into: &GuestMemory) -> Option<Result<(), LoadError>> {
    let (sender, failures) = mpsc::channel();
    let loading = FaultSource::open()
        .map_err(LoadError::from)
        .and_then(|source| file.load(into, source, move |error| sender.send(error).unwrap()));
    match loading {
        Ok(_) => {}
        Err(LoadError::Memory(error)) => {
            drover_test_prerequisites::skipped(&format!("left out: {error}"));
            return None;
        }
        Err(error) => panic!("{error}"),
    }
    // Ends with a failure, or with the thread.
    match failures.recv_timeout(LIMIT) {
        Ok(error) => Some(Err(error)),
        Err(_) => {
            assert!(into.wait_loaded(LIMIT));
            Some(Ok(()))
        }
    }
}

/// A file system of this size, for this thread alone. `None` where that takes a privilege.
fn small_file_system(size: &str) -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let private = unshare(CloneFlags::CLONE_NEWNS).and_then(|()| {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
    });
    let options = format!("size={size}");
    let mounted = private
        .and_then(|()| mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(&*options)));
    match mounted {
        Ok(()) => Some(dir),
        Err(error) => {
            drover_test_prerequisites::skipped(&format!("left out: no file system of its own: {error}"));
            None
        }
    }
}

#[test]
fn a_file_system_that_would_be_full_is_left_as_it_was() {
    // A thread of its own: what it mounts goes with it.
    let test = || {
        let Some(dir) = small_file_system("66m") else { return };
        let path = dir.path().join("suspended");
        // More than what may be taken, and less than there is.
        let memory = GuestMemory::anonymous(RAM);
        memory.write(Gpa::ZERO, &vec![7; 24 << 20]).unwrap();
        let identity = Identity { vm: VmId::from_u128(5), epoch: epoch(3) };
        let contents = Contents { identity, memory: &memory, shape: b"", states: &states() };
        let error = SuspendWriter::write(new_file(&path), &path, contents).unwrap_err();
        assert!(error.to_string().contains("64 MiB stay free"), "{error}");
        assert_eq!(fs::metadata(&path).unwrap().len(), 0, "and its room is free again");
        umount(dir.path()).unwrap();
    };
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn what_is_written_comes_back_whole_and_zeros_take_no_room() {
    let written = written();
    let size = fs::metadata(&written.path).unwrap();
    assert!(size.len() > RAM.get() && size.blocks() * 512 < RAM.get() / 3, "{} blocks", size.blocks());
    let file = SuspendFile::open(&written.path).unwrap();
    assert_eq!(file.identity(), Identity { vm: VmId::from_u128(5), epoch: epoch(3) });
    assert_eq!((file.memory(), file.shape()), (RAM, &b"a shape"[..]));
    assert_eq!(file.states(), states());
    let target = GuestMemory::anonymous(RAM);
    if let Some(outcome) = load(file, &target) {
        outcome.unwrap();
        assert_eq!(contents(&target), contents(&written.memory));
        assert!(target.populated().unwrap().count() <= written.memory.populated().unwrap().count());
    }
}

#[test]
fn memory_can_be_used_while_it_comes_and_what_is_given_back_stays_zero() {
    let written = written();
    let target = GuestMemory::anonymous(RAM);
    let file = SuspendFile::open(&written.path).unwrap();
    let Ok(source) = FaultSource::open() else { return };
    let Ok(progress) = file.load(&target, source, |error| panic!("{error}")) else { return };
    let expected = contents(&written.memory);
    // From the end, against the direction of the background.
    let mut byte = [0; 8];
    for page in (0..RAM.get() / PAGE_SIZE).rev().step_by(5) {
        let at = page * PAGE_SIZE + page % 4000;
        target.read(Gpa::new(at), &mut byte).unwrap();
        assert_eq!(byte, expected[at as usize..at as usize + 8], "page {page}");
    }
    target.write(Gpa::new(0x3000), b"newer").unwrap();
    assert!(target.wait_loaded(LIMIT));
    assert!(progress.loaded() > Bytes::ZERO);
    target.read(Gpa::new(0x3000), &mut byte).unwrap();
    assert_eq!(&byte[..5], b"newer");
}

#[test]
fn a_file_without_its_last_step_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("suspended");
    let memory = memory();
    let writer = writer(&memory, &path);
    let not = |path: &Path| assert!(matches!(SuspendFile::open(path), Err(ReadError::NotSuspended { .. })));
    // As a writer that was killed leaves it.
    not(&path);
    drop(writer);
    not(&path);
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    // And the next try works in the same file.
    fs::write(&path, vec![0xff; 100_000]).unwrap();
    self::writer(&memory, &path).commit().unwrap();
    assert_eq!(SuspendFile::open(&path).unwrap().states(), states());
}

#[test]
fn a_file_that_is_cut_short_anywhere_is_refused() {
    let written = written();
    let whole = fs::metadata(&written.path).unwrap().len();
    let file = new_file(&written.path);
    for len in [whole - 1, whole - 100, RAM.get(), DATA_OFFSET, 5000] {
        file.set_len(len).unwrap();
        let error = SuspendFile::open(&written.path).unwrap_err();
        assert!(matches!(error, ReadError::Truncated { .. }), "{len}: {error}");
    }
    for len in [4095, 100, 0] {
        file.set_len(len).unwrap();
        let error = SuspendFile::open(&written.path).unwrap_err();
        assert!(matches!(error, ReadError::NotSuspended { .. }), "{len}: {error}");
    }
}

#[test]
fn damage_is_found_wherever_it_is() {
    let written = written();
    let file = new_file(&written.path);
    let behind = DATA_OFFSET + RAM.get();
    let index_len = RAM.get() / (64 << 10) * 8;
    let damaged = |at: u64| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        let outcome = SuspendFile::open(&written.path);
        file.write_all_at(&byte, at).unwrap();
        outcome.map(|_| ()).unwrap_err()
    };
    for at in [0, 3] {
        assert!(matches!(damaged(at), ReadError::NotSuspended { .. }), "byte {at}");
    }
    assert!(matches!(damaged(8), ReadError::Version { found: 5, newest: 1, .. }));
    for at in [12, 20, 35, 40, 50, 60, 70, 108] {
        assert!(matches!(damaged(at), ReadError::NotSuspended { .. }), "byte {at}");
    }
    for at in [4096, 4100, behind, behind + 100, behind + index_len, behind + index_len + 20] {
        assert!(matches!(damaged(at), ReadError::Corrupt { .. }), "byte {at}");
    }
    // In RAM it shows when that piece is loaded, and only what is there can be damaged.
    let at = DATA_OFFSET + 600 * PAGE_SIZE + 600;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    let opened = SuspendFile::open(&written.path).unwrap();
    let target = GuestMemory::anonymous(RAM);
    if let Some(outcome) = load(opened, &target) {
        let error = outcome.unwrap_err();
        assert!(
            matches!(error, LoadError::Corrupt { offset } if offset == Bytes::new(592 * PAGE_SIZE)),
            "{error}"
        );
    }
}

#[test]
fn a_file_is_claimed_by_newer_epochs_and_spent_once() {
    let written = written();
    let open = || SuspendFile::open(&written.path);
    let mut file = open().unwrap();
    assert!(file.is_last_owner(epoch(3)) && !file.is_last_owner(epoch(4)));
    let error = file.claim(epoch(3)).unwrap_err();
    assert!(matches!(error, ReadError::StaleEpoch { .. }), "{error}");
    file.claim(epoch(4)).unwrap();
    // Whoever claimed it is gone; the next one is newer.
    let mut file = open().unwrap();
    assert!(file.is_last_owner(epoch(3)) && file.is_last_owner(epoch(4)));
    assert!(matches!(file.claim(epoch(4)), Err(ReadError::StaleEpoch { .. })));
    file.claim(epoch(6)).unwrap();
    assert!(!file.is_last_owner(epoch(4)));
    let target = GuestMemory::anonymous(RAM);
    let Ok(source) = FaultSource::open() else { return };
    let Ok(progress) = file.load(&target, source, |error| panic!("{error}")) else { return };
    open().expect("a claim alone spends nothing");
    progress.consume().unwrap();
    assert!(matches!(open(), Err(ReadError::Consumed { .. })));
    assert!(target.wait_loaded(LIMIT), "what is being loaded goes on");
    assert_eq!(contents(&target), contents(&written.memory));
}
