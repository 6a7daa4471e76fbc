//! What comes into being in a pool, and what is refused.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{fs, io, io::Read, os::unix::fs::MetadataExt};

use drover_dir_volume::{DirPool, PoolError};
use drover_ids::VolumeId;
use drover_units::{Bytes, Sectors};

const VOLUME: VolumeId = VolumeId::from_u128(1);

fn pool() -> (tempfile::TempDir, DirPool) {
    let dir = tempfile::tempdir().unwrap();
    let pool = DirPool::open(dir.path()).unwrap();
    (dir, pool)
}

/// The names of all files in the pool, pending ones included.
fn files(pool: &DirPool) -> Vec<String> {
    let mut names = Vec::new();
    for folder in ["volumes", "images"] {
        for entry in fs::read_dir(pool.root().join(folder)).unwrap() {
            names.push(entry.unwrap().file_name().into_string().unwrap());
        }
    }
    names
}

#[test]
fn a_root_that_is_not_a_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(matches!(DirPool::open(dir.path().join("file")), Err(PoolError::Open { .. })));
    assert!(matches!(DirPool::open(dir.path().join("missing")), Err(PoolError::Open { .. })));
}

#[test]
fn a_new_volume_is_sparse_and_has_its_size() {
    let (_dir, pool) = pool();
    pool.create_volume(VOLUME, Bytes::gib(1)).unwrap();
    let metadata = fs::metadata(pool.volume_path(VOLUME)).unwrap();
    assert_eq!((metadata.len(), metadata.blocks()), (1 << 30, 0));
    assert_eq!(pool.volume_size(VOLUME).unwrap(), Sectors::new(1 << 21));
    assert_eq!(files(&pool).len(), 1, "nothing pending is left");
}

#[test]
fn sizes_that_no_disk_can_have_are_refused() {
    let (_dir, pool) = pool();
    for size in [0, 1, 511, 513] {
        let error = pool.create_volume(VOLUME, Bytes::new(size)).unwrap_err();
        assert!(matches!(error, PoolError::Size { size: told } if told == size), "{error:?}");
        assert!(error.to_string().contains("multiple of 512"), "{error}");
    }
    assert_eq!(files(&pool), Vec::<String>::new());
}

#[test]
fn an_existing_volume_is_never_replaced() {
    let (_dir, pool) = pool();
    pool.create_volume(VOLUME, Bytes::mib(1)).unwrap();
    fs::write(pool.volume_path(VOLUME), "precious").unwrap();
    assert!(matches!(pool.create_volume(VOLUME, Bytes::mib(1)), Err(PoolError::VolumeExists(_))));
    assert_eq!(fs::read(pool.volume_path(VOLUME)).unwrap(), b"precious");
}

#[test]
fn an_imported_volume_has_the_content_and_zeros_after_it() {
    let (_dir, pool) = pool();
    // A hole in the middle, an end that is not a whole block.
    let mut content = vec![0; 300_000];
    content[..3].copy_from_slice(b"abc");
    content[299_999] = b'z';
    pool.import_volume(VOLUME, Bytes::mib(1), &mut &content[..], Bytes::new(300_000)).unwrap();
    content.resize(1 << 20, 0);
    assert_eq!(fs::read(pool.volume_path(VOLUME)).unwrap(), content);
    assert!(fs::metadata(pool.volume_path(VOLUME)).unwrap().blocks() * 512 < 300_000, "zeros take no space");
}

#[test]
fn an_import_of_the_wrong_length_leaves_nothing() {
    let (_dir, pool) = pool();
    for (announced, sent) in [(1000_u64, 999), (1000, 1001), (1000, 100_000), (2048, 10)] {
        let error = pool
            .import_volume(VOLUME, Bytes::new(1024), &mut io::repeat(1).take(sent), Bytes::new(announced))
            .unwrap_err();
        assert!(matches!(error, PoolError::Length { .. }), "{error:?}");
    }
    assert_eq!(files(&pool), Vec::<String>::new());
}

#[test]
fn an_import_to_the_end_takes_what_fits() {
    let (_dir, pool) = pool();
    let size = Bytes::new(1024);
    let error = pool.import_volume_to_end(VOLUME, size, &mut io::repeat(1).take(1025)).unwrap_err();
    assert!(matches!(error, PoolError::Length { .. }), "{error:?}");
    assert_eq!(files(&pool), Vec::<String>::new());
    pool.import_volume_to_end(VOLUME, size, &mut io::repeat(1).take(1000)).unwrap();
    let content = fs::read(pool.volume_path(VOLUME)).unwrap();
    assert_eq!((content.len(), content.iter().map(|byte| usize::from(*byte)).sum()), (1024, 1000_usize));
}

#[test]
fn a_missing_volume_has_no_size() {
    let (_dir, pool) = pool();
    assert!(matches!(pool.volume_size(VOLUME), Err(PoolError::NoSuchVolume(_))));
}

#[test]
fn image_names_cannot_leave_the_pool_or_hide_in_it() {
    let (_dir, pool) = pool();
    let long = "x".repeat(201);
    for name in ["", ".", "..", ".hidden", "a/b", "/etc/passwd", "a\0b", "a b", "ä", &long] {
        assert!(matches!(pool.image_path(name), Err(PoolError::ImageName(_))), "{name:?}");
    }
    assert_eq!(pool.image_path("probe-1.2_x").unwrap(), pool.root().join("images/probe-1.2_x"));
}

#[test]
fn an_image_appears_whole_and_never_changes() {
    let (_dir, pool) = pool();
    pool.add_image("probe", &mut &b"elf"[..], Bytes::new(3)).unwrap();
    let again = pool.add_image("probe", &mut &b"other"[..], Bytes::new(5));
    assert!(matches!(again, Err(PoolError::ImageExists(_))), "{again:?}");
    assert_eq!(fs::read(pool.image_path("probe").unwrap()).unwrap(), b"elf");
    assert!(matches!(pool.add_image("cut", &mut &b"e"[..], Bytes::new(3)), Err(PoolError::Length { .. })));
    assert_eq!(files(&pool), ["probe"]);
    pool.delete_image("probe").unwrap();
    pool.delete_image("probe").expect("idempotent");
}
