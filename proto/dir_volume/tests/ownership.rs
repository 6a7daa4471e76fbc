//! Who may write a volume, over its whole life.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs::{File, OpenOptions};

use drover_dir_volume::{
    DirPool, LockError, Owner, OwnerRecord, PoolError, VolumeLock, detach, fence, read_record,
};
use drover_ids::{NodeId, OwnerEpoch, VmId, VolumeId};
use drover_units::Bytes;
use tempfile::TempDir;

const VM: VmId = VmId::from_u128(0xA);
const OTHER_VM: VmId = VmId::from_u128(0xB);
const VOLUME: VolumeId = VolumeId::from_u128(0xC);

struct World {
    pool: DirPool,
    _dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pool = DirPool::open(dir.path()).unwrap();
        pool.create_volume(VOLUME, Bytes::mib(1)).unwrap();
        Self { pool, _dir: dir }
    }

    /// A handle of its own, as another process would have.
    fn handle(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.pool.volume_path(VOLUME)).unwrap()
    }

    fn acquire(&self, owner: Owner) -> Result<VolumeLock, LockError> {
        VolumeLock::acquire(&self.handle(), &self.pool.sidecar_path(VOLUME), owner)
    }

    fn record(&self) -> Option<OwnerRecord> {
        read_record(&self.pool.sidecar_path(VOLUME)).unwrap()
    }
}

fn owner(node: u128, epoch: u64) -> Owner {
    Owner { vm: VM, node: NodeId::from_u128(node), epoch: OwnerEpoch::new(epoch), pid: 77 }
}

#[test]
fn a_second_owner_is_refused_and_told_who_holds_the_volume() {
    let world = World::new();
    let _held = world.acquire(owner(1, 1)).unwrap();
    let error = world.acquire(owner(2, 2)).unwrap_err();
    assert!(matches!(error, LockError::Held { owner: Some(holder) } if holder == owner(1, 1)), "{error:?}");
    for part in [VM.to_string(), NodeId::from_u128(1).to_string(), "epoch 1".into(), "pid 77".into()] {
        assert!(error.to_string().contains(&part), "{error}");
    }
    assert_eq!(world.record(), Some(OwnerRecord::Acquired(owner(1, 1))), "the refused one left no trace");
}

#[test]
fn a_released_volume_goes_to_a_newer_epoch_and_never_back_to_an_older() {
    let world = World::new();
    world.acquire(owner(1, 1)).unwrap().release();
    drop(world.acquire(owner(2, 2)).unwrap());
    let error = world.acquire(owner(1, 1)).unwrap_err();
    assert!(
        matches!(error, LockError::StaleEpoch { recorded, .. } if recorded == OwnerEpoch::new(2)),
        "{error:?}"
    );
    world.acquire(owner(2, 2)).expect("a refused owner must not leave the lock taken");
}

#[test]
fn the_same_owner_may_take_a_released_volume_again() {
    let world = World::new();
    world.acquire(owner(1, 1)).unwrap().release();
    world.acquire(owner(1, 1)).unwrap();
}

#[test]
fn one_epoch_on_two_nodes_is_refused() {
    let world = World::new();
    world.acquire(owner(1, 1)).unwrap().release();
    let error = world.acquire(owner(2, 1)).unwrap_err();
    assert!(matches!(error, LockError::EpochInUse { owner: first } if first == owner(1, 1)), "{error:?}");
}

#[test]
fn a_duplicate_of_the_descriptor_does_not_outlive_the_release() {
    let world = World::new();
    let file = world.handle();
    let lock = VolumeLock::acquire(&file, &world.pool.sidecar_path(VOLUME), owner(1, 1)).unwrap();
    lock.release();
    world.acquire(owner(1, 1)).expect("`file` is still open, the lock is not");
}

#[test]
fn a_fence_refuses_older_owners_for_ever_and_admits_the_new_one_anywhere() {
    let world = World::new();
    world.acquire(owner(1, 1)).unwrap().release();
    let proof = fence(&world.pool, VOLUME, VM, OwnerEpoch::new(3)).unwrap();
    assert_eq!((proof.epoch, proof.previous), (OwnerEpoch::new(3), Some(owner(1, 1))));
    for epoch in [1, 2] {
        let error = world.acquire(owner(1, epoch)).unwrap_err();
        assert!(matches!(error, LockError::StaleEpoch { .. }), "{error:?}");
    }
    world.acquire(owner(2, 3)).unwrap();
}

#[test]
fn a_fence_is_refused_while_the_owner_lives() {
    let world = World::new();
    let held = world.acquire(owner(1, 1)).unwrap();
    let error = fence(&world.pool, VOLUME, VM, OwnerEpoch::new(2)).unwrap_err();
    assert!(matches!(error, LockError::Held { owner: Some(_) }), "{error:?}");
    held.release();
    world.acquire(owner(1, 1)).expect("the refused fence changed nothing");
}

#[test]
fn a_repeated_fence_gives_the_same_proof_and_never_lowers_the_floor() {
    let world = World::new();
    world.acquire(owner(1, 1)).unwrap().release();
    let first = fence(&world.pool, VOLUME, VM, OwnerEpoch::new(5)).unwrap();
    assert_eq!(fence(&world.pool, VOLUME, VM, OwnerEpoch::new(5)).unwrap(), first);
    assert_eq!(fence(&world.pool, VOLUME, VM, OwnerEpoch::new(2)).unwrap(), first);
    // Repeated after the new owner had come and gone, it must not shut that one out.
    world.acquire(owner(2, 5)).unwrap().release();
    let after = fence(&world.pool, VOLUME, VM, OwnerEpoch::new(5)).unwrap();
    assert_eq!((after.epoch, after.previous), (OwnerEpoch::new(5), Some(owner(2, 5))));
    world.acquire(owner(2, 5)).unwrap();
}

#[test]
fn a_volume_that_was_never_acquired_can_be_fenced() {
    let world = World::new();
    let proof = fence(&world.pool, VOLUME, VM, OwnerEpoch::new(2)).unwrap();
    assert_eq!(proof.previous, None);
    assert!(matches!(world.acquire(owner(1, 1)), Err(LockError::StaleEpoch { .. })));
}

#[test]
fn a_volume_belongs_to_one_vm_until_it_is_detached() {
    let world = World::new();
    world.acquire(owner(1, 7)).unwrap().release();
    let other = Owner { vm: OTHER_VM, ..owner(1, 1) };
    assert!(matches!(world.acquire(other), Err(LockError::OtherVm { vm }) if vm == VM));
    assert!(matches!(detach(&world.pool, VOLUME, OTHER_VM), Err(LockError::OtherVm { .. })));
    detach(&world.pool, VOLUME, VM).unwrap();
    detach(&world.pool, VOLUME, VM).expect("idempotent");
    let held = world.acquire(other).expect("epochs of different VMs are not compared");
    assert!(matches!(world.acquire(owner(1, 7)), Err(LockError::Held { .. })));
    held.release();
    assert!(matches!(world.acquire(owner(1, 7)), Err(LockError::OtherVm { vm }) if vm == OTHER_VM));
}

#[test]
fn a_damaged_record_lets_nobody_in() {
    let world = World::new();
    std::fs::write(world.pool.sidecar_path(VOLUME), "not json").unwrap();
    assert!(matches!(world.acquire(owner(1, 1)), Err(LockError::Record(_))));
    assert!(matches!(fence(&world.pool, VOLUME, VM, OwnerEpoch::new(9)), Err(LockError::Record(_))));
    std::fs::remove_file(world.pool.sidecar_path(VOLUME)).unwrap();
    world.acquire(owner(1, 1)).expect("the refused ones must not leave the lock taken");
}

#[test]
fn a_volume_in_use_cannot_be_deleted() {
    let world = World::new();
    let held = world.acquire(owner(1, 1)).unwrap();
    let error = world.pool.delete_volume(VOLUME).unwrap_err();
    assert!(matches!(error, PoolError::InUse { .. }), "{error:?}");
    held.release();
    let opened_before = world.handle();
    world.pool.delete_volume(VOLUME).unwrap();
    world.pool.delete_volume(VOLUME).expect("idempotent");
    assert!(!world.pool.sidecar_path(VOLUME).exists());
    let late = VolumeLock::acquire(&opened_before, &world.pool.sidecar_path(VOLUME), owner(1, 1));
    assert!(matches!(late, Err(LockError::Deleted)), "{late:?}");
}
