//! What every [`StoragePool`] must do.
//!
//! A test of an implementation makes a [`Bench`] and calls [`check_all`]. Each check works on identities of its own and
//! leaves nothing behind, which the last one asserts.

use std::any::Any;

use drover_ids::{ImageDigest, SnapshotId, VolumeId};
use drover_units::Bytes;

use crate::{Observer, Source, StorageError, StoragePool, Target, Unobserved, copy};

const MIB: u64 = 1 << 20;
/// Size of the disks: a few of Ceph's objects (4 MiB), and no multiple of one.
const SIZE: Bytes = Bytes::mib(10);

/// A pool, and the means of a guest to use its volumes.
pub trait Bench {
    /// The pool, empty.
    fn pool(&self) -> &dyn StoragePool;
    /// Writes into a volume, as its owner would.
    fn write(&self, volume: VolumeId, offset: u64, bytes: &[u8]);
    /// Reads from a volume.
    fn read(&self, volume: VolumeId, offset: u64, length: usize) -> Vec<u8>;
    /// Holds a volume as a running VM does, until what is returned is dropped.
    fn hold(&self, volume: VolumeId) -> Box<dyn Any>;
}

/// Every check.
pub fn check_all(bench: &dyn Bench) {
    volumes_are_made_once_and_deleted_once(bench);
    sizes_that_no_disk_has_are_refused(bench);
    volumes_grow_and_never_shrink(bench);
    a_volume_in_use_is_not_deleted(bench);
    a_snapshot_keeps_what_was_there(bench);
    a_rollback_brings_content_and_size_back(bench);
    a_running_volume_is_snapshotted_or_refused_as_the_capabilities_say(bench);
    a_prepared_snapshot_is_of_the_moment_it_is_taken_at(bench);
    a_protected_snapshot_stays(bench);
    clones_of_snapshots_are_independent(bench);
    an_image_is_filled_in_pieces_and_cloned(bench);
    an_incomplete_image_is_none_and_can_be_taken_up_or_deleted(bench);
    what_clones_need_is_not_deleted(bench);
    a_flattened_clone_needs_nothing(bench);
    disks_are_copied_with_their_holes(bench);
    a_cancelled_copy_stops(bench);
    usage_is_told(bench);
    nothing_is_left(bench);
}

fn volume(n: u128) -> VolumeId {
    VolumeId::from_u128(0xc0_0000 + n)
}

fn snapshot(n: u128) -> SnapshotId {
    SnapshotId::from_u128(0x5a_0000 + n)
}

fn image(n: u8) -> ImageDigest {
    ImageDigest::new([n; 32])
}

fn delete(pool: &dyn StoragePool, volume: VolumeId) {
    pool.delete_volume(volume, &Unobserved).expect("it is not used");
}

#[track_caller]
fn refused<T>(outcome: crate::Result<T>, expect: fn(&StorageError) -> bool) {
    match outcome {
        Ok(_) => panic!("must be refused"),
        Err(error) => assert!(expect(&error), "refused for another reason: {error:?}"),
    }
}

fn volumes_are_made_once_and_deleted_once(bench: &dyn Bench) {
    let (pool, id) = (bench.pool(), volume(1));
    refused(pool.volume_usage(id), |error| matches!(error, StorageError::NoSuchVolume(_)));
    pool.create_volume(id, SIZE).expect("there is room");
    assert_eq!(bench.read(id, SIZE.get() - 512, 512), [0; 512], "a new volume reads as zeros");
    bench.write(id, 0, b"kept");
    pool.create_volume(id, SIZE).expect("a repetition is no error");
    assert_eq!(bench.read(id, 0, 4), b"kept", "a repetition changes nothing");
    refused(pool.create_volume(id, Bytes::mib(20)), |error| matches!(error, StorageError::Exists(_)));
    assert_eq!(pool.volume_usage(id).expect("it is there").size, SIZE);
    delete(pool, id);
    delete(pool, id);
    refused(pool.volume_usage(id), |error| matches!(error, StorageError::NoSuchVolume(_)));
}

fn sizes_that_no_disk_has_are_refused(bench: &dyn Bench) {
    let (pool, id) = (bench.pool(), volume(2));
    for size in [0, 1, 513].map(Bytes::new) {
        refused(pool.create_volume(id, size), |error| matches!(error, StorageError::Size(_)));
        refused(pool.begin(Target::Volume(id), size), |error| matches!(error, StorageError::Size(_)));
    }
    pool.create_volume(id, Bytes::new(512)).expect("one sector is a disk");
    delete(pool, id);
}

fn volumes_grow_and_never_shrink(bench: &dyn Bench) {
    let (pool, id) = (bench.pool(), volume(3));
    refused(pool.grow_volume(id, SIZE), |error| matches!(error, StorageError::NoSuchVolume(_)));
    pool.create_volume(id, SIZE).expect("there is room");
    bench.write(id, SIZE.get() - 4, b"tail");
    {
        let _running = bench.hold(id);
        pool.grow_volume(id, Bytes::mib(24)).expect("a volume in use can grow");
    }
    pool.grow_volume(id, Bytes::mib(24)).expect("a repetition is no error");
    refused(pool.grow_volume(id, SIZE), |error| matches!(error, StorageError::Shrink { .. }));
    refused(pool.grow_volume(id, Bytes::new(1)), |error| matches!(error, StorageError::Size(_)));
    assert_eq!(pool.volume_usage(id).expect("it is there").size, Bytes::mib(24));
    assert_eq!(bench.read(id, SIZE.get() - 4, 8), b"tail\0\0\0\0");
    delete(pool, id);
}

fn a_volume_in_use_is_not_deleted(bench: &dyn Bench) {
    let (pool, id) = (bench.pool(), volume(4));
    pool.create_volume(id, SIZE).expect("there is room");
    let running = bench.hold(id);
    refused(pool.delete_volume(id, &Unobserved), |error| matches!(error, StorageError::InUse { .. }));
    drop(running);
    delete(pool, id);
}

fn a_snapshot_keeps_what_was_there(bench: &dyn Bench) {
    let (pool, id) = (bench.pool(), volume(5));
    refused(pool.create_snapshot(id, snapshot(1)), |error| matches!(error, StorageError::NoSuchVolume(_)));
    refused(pool.snapshots(id), |error| matches!(error, StorageError::NoSuchVolume(_)));
    pool.create_volume(id, SIZE).expect("there is room");
    bench.write(id, MIB, b"one");
    pool.create_snapshot(id, snapshot(1)).expect("nobody uses it");
    pool.create_snapshot(id, snapshot(1)).expect("a repetition is no error");
    bench.write(id, MIB, b"two");
    let mut kept = pool.open(Source::Snapshot { volume: id, snapshot: snapshot(1) }).expect("it is there");
    let mut bytes = [0; 3];
    kept.read_at(MIB, &mut bytes).expect("within the disk");
    assert_eq!((&bytes, kept.size()), (b"one", SIZE));
    drop(kept);
    let found: Vec<_> = pool.snapshots(id).expect("it is there").iter().map(|s| (s.id, s.size)).collect();
    assert_eq!(found, [(snapshot(1), SIZE)]);
    refused(pool.delete_volume(id, &Unobserved), |error| {
        matches!(error, StorageError::HasSnapshots { snapshots: 1, .. })
    });
    pool.delete_snapshot(id, snapshot(1)).expect("it is not protected");
    pool.delete_snapshot(id, snapshot(1)).expect("a repetition is no error");
    let gone = pool.open(Source::Snapshot { volume: id, snapshot: snapshot(1) });
    refused(gone.map(drop), |error| matches!(error, StorageError::NoSuchSnapshot { .. }));
    delete(pool, id);
}

fn a_rollback_brings_content_and_size_back(bench: &dyn Bench) {
    let (pool, id) = (bench.pool(), volume(6));
    pool.create_volume(id, SIZE).expect("there is room");
    bench.write(id, 5 * MIB, b"before");
    pool.create_snapshot(id, snapshot(2)).expect("nobody uses it");
    pool.grow_volume(id, Bytes::mib(12)).expect("larger");
    bench.write(id, 5 * MIB, b"after!");
    bench.write(id, 11 * MIB, b"after!");
    {
        let _running = bench.hold(id);
        let outcome = pool.rollback(id, snapshot(2), &Unobserved);
        refused(outcome, |error| matches!(error, StorageError::InUse { .. }));
    }
    for _ in 0..2 {
        pool.rollback(id, snapshot(2), &Unobserved).expect("nobody uses it");
        assert_eq!(bench.read(id, 5 * MIB, 6), b"before");
        assert_eq!(pool.volume_usage(id).expect("it is there").size, SIZE);
    }
    let missing = pool.rollback(id, snapshot(99), &Unobserved);
    refused(missing, |error| matches!(error, StorageError::NoSuchSnapshot { .. }));
    assert_eq!(pool.snapshots(id).expect("it is there").len(), 1, "the snapshot stays");
    pool.delete_snapshot(id, snapshot(2)).expect("it is not protected");
    delete(pool, id);
}

fn a_running_volume_is_snapshotted_or_refused_as_the_capabilities_say(bench: &dyn Bench) {
    let (pool, id) = (bench.pool(), volume(7));
    pool.create_volume(id, SIZE).expect("there is room");
    let running = bench.hold(id);
    let outcome = pool.create_snapshot(id, snapshot(3));
    drop(running);
    if pool.capabilities().online_snapshot {
        outcome.expect("this pool says it can");
        pool.delete_snapshot(id, snapshot(3)).expect("it is not protected");
    } else {
        refused(outcome, |error| matches!(error, StorageError::InUse { .. }));
    }
    assert_eq!(pool.snapshots(id).expect("it is there"), []);
    delete(pool, id);
}

fn a_prepared_snapshot_is_of_the_moment_it_is_taken_at(bench: &dyn Bench) {
    let (pool, id) = (bench.pool(), volume(11));
    let missing = pool.prepare_snapshot(id, snapshot(8)).map(drop);
    refused(missing, |error| matches!(error, StorageError::NoSuchVolume(_)));
    pool.create_volume(id, SIZE).expect("there is room");
    drop(pool.prepare_snapshot(id, snapshot(8)).expect("it is there"));
    assert_eq!(pool.snapshots(id).expect("it is there"), [], "not taken");
    for text in [b"one", b"two"] {
        // The second time one is there already: of a moment that is over.
        let prepared = pool.prepare_snapshot(id, snapshot(8)).expect("it is there");
        bench.write(id, MIB, text);
        prepared.take().expect("nobody uses it");
        bench.write(id, MIB, b"new");
        let mut kept =
            pool.open(Source::Snapshot { volume: id, snapshot: snapshot(8) }).expect("it is there");
        let mut bytes = [0; 3];
        kept.read_at(MIB, &mut bytes).expect("within the disk");
        assert_eq!(&bytes, text);
    }
    pool.protect_snapshot(id, snapshot(8), true).expect("it is there");
    let kept = pool.prepare_snapshot(id, snapshot(8)).map(drop);
    refused(kept, |error| matches!(error, StorageError::Protected(_)));
    pool.protect_snapshot(id, snapshot(8), false).expect("it has no clones");
    pool.delete_snapshot(id, snapshot(8)).expect("it is not protected");
    delete(pool, id);
}

fn a_protected_snapshot_stays(bench: &dyn Bench) {
    let (pool, id) = (bench.pool(), volume(8));
    pool.create_volume(id, SIZE).expect("there is room");
    let missing = pool.protect_snapshot(id, snapshot(4), true);
    refused(missing, |error| matches!(error, StorageError::NoSuchSnapshot { .. }));
    pool.create_snapshot(id, snapshot(4)).expect("nobody uses it");
    for protect in [true, true, false, false, true] {
        pool.protect_snapshot(id, snapshot(4), protect).expect("a repetition is no error");
        assert_eq!(pool.snapshots(id).expect("it is there")[0].protected, protect);
    }
    let outcome = pool.delete_snapshot(id, snapshot(4));
    refused(outcome, |error| matches!(error, StorageError::Protected(_)));
    pool.protect_snapshot(id, snapshot(4), false).expect("it has no clones");
    pool.delete_snapshot(id, snapshot(4)).expect("it is not protected any more");
    delete(pool, id);
}

fn clones_of_snapshots_are_independent(bench: &dyn Bench) {
    let (pool, parent, child) = (bench.pool(), volume(9), volume(10));
    let source = Source::Snapshot { volume: parent, snapshot: snapshot(5) };
    pool.create_volume(parent, SIZE).expect("there is room");
    let missing = pool.clone_volume(child, source, SIZE, &Unobserved);
    refused(missing, |error| matches!(error, StorageError::NoSuchSnapshot { .. }));
    bench.write(parent, 2 * MIB, b"shared");
    pool.create_snapshot(parent, snapshot(5)).expect("nobody uses it");
    let small = pool.clone_volume(child, source, Bytes::mib(1), &Unobserved);
    refused(small, |error| matches!(error, StorageError::Shrink { .. }));
    for _ in 0..2 {
        pool.clone_volume(child, source, Bytes::mib(16), &Unobserved).expect("a repetition is no error");
    }
    assert_eq!(pool.volume_usage(child).expect("it is there").size, Bytes::mib(16));
    assert_eq!(bench.read(child, 2 * MIB, 6), b"shared");
    bench.write(child, 2 * MIB, b"mine!!");
    bench.write(parent, 2 * MIB, b"theirs");
    assert_eq!(bench.read(child, 2 * MIB, 6), b"mine!!");
    assert_eq!(bench.read(child, 15 * MIB, 2), [0; 2]);
    delete(pool, child);
    // Cloning may have protected it.
    pool.protect_snapshot(parent, snapshot(5), false).expect("it has no clones");
    pool.delete_snapshot(parent, snapshot(5)).expect("it is not protected");
    delete(pool, parent);
}

fn fill(pool: &dyn StoragePool, digest: ImageDigest) {
    let mut writer = pool.begin(Target::Image(digest), SIZE).expect("there is room");
    writer.write_at(3 * MIB, b"image").expect("within the disk");
    writer.finish().expect("it was not there");
}

fn an_image_is_filled_in_pieces_and_cloned(bench: &dyn Bench) {
    let (pool, digest, id) = (bench.pool(), image(1), volume(11));
    assert_eq!(pool.image(digest).expect("the pool answers"), None);
    let mut writer = pool.begin(Target::Image(digest), SIZE).expect("there is room");
    refused(writer.write_at(SIZE.get() - 1, b"ab"), |error| matches!(error, StorageError::Failed { .. }));
    writer.write_at(0, b"first").expect("within the disk");
    writer.sync().expect("the storage takes it");
    drop(writer);
    assert_eq!(pool.image(digest).expect("the pool answers"), None, "it is not complete");
    let mut writer = pool.begin(Target::Image(digest), SIZE).expect("it is taken up");
    let mut bytes = [0; 5];
    writer.read_at(0, &mut bytes).expect("within the disk");
    assert_eq!(&bytes, b"first", "what was written before is there");
    writer.write_at(SIZE.get() - 4, b"last").expect("within the disk");
    writer.finish().expect("it was not there");
    assert_eq!(pool.image(digest).expect("the pool answers"), Some(SIZE));
    refused(pool.begin(Target::Image(digest), SIZE).map(drop), |error| {
        matches!(error, StorageError::Exists(_))
    });
    pool.clone_volume(id, Source::Image(digest), SIZE, &Unobserved).expect("it is complete");
    assert_eq!(bench.read(id, 0, 6), b"first\0");
    assert_eq!(bench.read(id, SIZE.get() - 4, 4), b"last");
    delete(pool, id);
    pool.delete_image(digest, &Unobserved).expect("nothing needs it");
    pool.delete_image(digest, &Unobserved).expect("a repetition is no error");
}

fn an_incomplete_image_is_none_and_can_be_taken_up_or_deleted(bench: &dyn Bench) {
    let (pool, digest, id) = (bench.pool(), image(2), volume(12));
    drop(pool.begin(Target::Image(digest), SIZE).expect("there is room"));
    drop(pool.begin(Target::Volume(id), SIZE).expect("there is room"));
    let source = Source::Image(digest);
    let outcome = pool.clone_volume(volume(13), source, SIZE, &Unobserved);
    refused(outcome, |error| matches!(error, StorageError::NoSuchImage(_)));
    refused(pool.open(source).map(drop), |error| matches!(error, StorageError::NoSuchImage(_)));
    assert_eq!(pool.list().expect("the pool answers").len(), 2, "what is incomplete is listed");
    pool.delete_image(digest, &Unobserved).expect("nothing needs it");
    delete(pool, id);
    assert_eq!(pool.list().expect("the pool answers"), []);
}

fn what_clones_need_is_not_deleted(bench: &dyn Bench) {
    let (pool, digest, child, parent) = (bench.pool(), image(3), volume(14), volume(15));
    fill(pool, digest);
    pool.clone_volume(child, Source::Image(digest), SIZE, &Unobserved).expect("it is complete");
    pool.create_volume(parent, SIZE).expect("there is room");
    pool.create_snapshot(parent, snapshot(6)).expect("nobody uses it");
    let source = Source::Snapshot { volume: parent, snapshot: snapshot(6) };
    let grandchild = volume(16);
    pool.clone_volume(grandchild, source, SIZE, &Unobserved).expect("it is there");
    let needed: fn(&StorageError) -> bool = |error| matches!(error, StorageError::HasClones(_));
    if pool.capabilities().clones_need_source {
        refused(pool.delete_image(digest, &Unobserved), needed);
        refused(pool.delete_snapshot(parent, snapshot(6)), |error| {
            matches!(error, StorageError::HasClones(_) | StorageError::Protected(_))
        });
        refused(pool.protect_snapshot(parent, snapshot(6), false), needed);
        assert_eq!(bench.read(child, 3 * MIB, 5), b"image", "a refusal changes nothing");
        delete(pool, child);
    }
    delete(pool, grandchild);
    pool.protect_snapshot(parent, snapshot(6), false).expect("it has no clones any more");
    pool.delete_snapshot(parent, snapshot(6)).expect("it is not protected");
    delete(pool, parent);
    pool.delete_image(digest, &Unobserved).expect("nothing needs it");
    if !pool.capabilities().clones_need_source {
        assert_eq!(bench.read(child, 3 * MIB, 5), b"image");
        delete(pool, child);
    }
}

fn a_flattened_clone_needs_nothing(bench: &dyn Bench) {
    let (pool, digest, child) = (bench.pool(), image(4), volume(17));
    fill(pool, digest);
    pool.clone_volume(child, Source::Image(digest), SIZE, &Unobserved).expect("it is complete");
    pool.flatten_volume(child, &Unobserved).expect("it is there");
    pool.flatten_volume(child, &Unobserved).expect("a repetition is no error");
    pool.delete_image(digest, &Unobserved).expect("nothing needs it");
    assert_eq!(bench.read(child, 3 * MIB, 5), b"image");
    delete(pool, child);
}

fn disks_are_copied_with_their_holes(bench: &dyn Bench) {
    let (pool, digest, id) = (bench.pool(), image(5), volume(18));
    fill(pool, digest);
    let mut from = pool.open(Source::Image(digest)).expect("it is complete");
    assert_eq!(from.size(), SIZE);
    let mut to = pool.begin(Target::Volume(id), Bytes::mib(12)).expect("there is room");
    copy(&mut *from, &mut *to, &Unobserved).expect("there is room");
    to.finish().expect("it was not there");
    drop(from);
    assert_eq!(bench.read(id, 3 * MIB, 5), b"image");
    assert_eq!(pool.volume_usage(id).expect("it is there").size, Bytes::mib(12));
    if let Some(used) = pool.volume_usage(id).expect("it is there").used {
        assert!(used <= Bytes::mib(4), "holes stay holes: {used}");
    }
    delete(pool, id);
    pool.delete_image(digest, &Unobserved).expect("nothing needs it");
}

fn a_cancelled_copy_stops(bench: &dyn Bench) {
    struct Cancelled;
    impl Observer for Cancelled {
        fn progress(&self, _: Bytes, _: Bytes) {}
        fn is_cancelled(&self) -> bool {
            true
        }
    }
    let (pool, digest, id) = (bench.pool(), image(6), volume(19));
    fill(pool, digest);
    let mut from = pool.open(Source::Image(digest)).expect("it is complete");
    let mut to = pool.begin(Target::Volume(id), SIZE).expect("there is room");
    let outcome = copy(&mut *from, &mut *to, &Cancelled);
    refused(outcome, |error| matches!(error, StorageError::Cancelled));
    drop((from, to));
    delete(pool, id);
    pool.delete_image(digest, &Unobserved).expect("nothing needs it");
}

fn usage_is_told(bench: &dyn Bench) {
    let (pool, id) = (bench.pool(), volume(20));
    pool.create_volume(id, SIZE).expect("there is room");
    let empty = pool.volume_usage(id).expect("it is there");
    bench.write(id, 0, &[7; 2 << 20]);
    let written = pool.volume_usage(id).expect("it is there");
    if let (Some(empty), Some(written)) = (empty.used, written.used) {
        assert!(empty < Bytes::mib(1) && written >= Bytes::mib(2), "{empty} then {written}");
    }
    // Room is told where somebody counts it: a Ceph cluster without a manager daemon does not.
    let usage = pool.usage().expect("the pool answers");
    assert!(
        usage.available <= usage.capacity && usage.used.is_none_or(|used| used > Bytes::ZERO),
        "{usage:?}"
    );
    delete(pool, id);
}

fn nothing_is_left(bench: &dyn Bench) {
    assert_eq!(bench.pool().list().expect("the pool answers"), []);
}
