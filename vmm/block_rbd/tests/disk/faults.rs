//! Storage that refuses, and storage that does not answer.

use std::{
    sync::{Mutex, mpsc},
    time::Duration,
};

use drover_block::{Access, Backend, BlockError, OwnershipError};
use drover_ids::{OwnerEpoch, VmId};
use drover_rbd::Image;
use drover_rbd_volume::{Fence, FenceProof, fence, unfence};
use drover_test_ceph_cluster::{CephOptions, Daemon};
use drover_units::{Bytes, Sectors};

use crate::support::{Ceph, DEADLINE, Worker, content, owner, wait_until};

const SIZE: Bytes = Bytes::mib(16);
const DEPTH: u16 = 32;

fn fence_below(ceph: &Ceph, image: &str, epoch: u64) -> FenceProof {
    let floor = OwnerEpoch::new(epoch);
    let what = Fence {
        vm: VmId::from_u128(1),
        floor,
        registered: &[],
        spared: &[],
        lasts: Duration::from_secs(600),
    };
    fence(&ceph.admin, image, &what).unwrap()
}

/// Keeps writing until an answer is not success, and returns that answer and the acknowledged value of each block.
fn write_until_refused(worker: &mut Worker) -> (BlockError, Vec<u64>) {
    let mut acknowledged = vec![0; usize::from(DEPTH)];
    for value in 1.. {
        let requests: Vec<_> = (0..u64::from(DEPTH)).map(|block| worker.write(block, value)).collect();
        let blocks: std::collections::BTreeMap<_, _> =
            requests.iter().map(drover_block::Request::tag).zip(0_usize..).collect();
        worker.submit(requests);
        let mut refused = None;
        for (tag, answer) in worker.drain() {
            match answer {
                Ok(()) => acknowledged[blocks[&tag]] = value,
                Err(error) => refused = Some(error),
            }
        }
        if let Some(error) = refused {
            return (error, acknowledged);
        }
    }
    unreachable!("the storage refuses some day")
}

#[test]
fn a_client_that_is_fenced_under_load_loses_its_disk_and_nothing_it_was_told() {
    let Some(ceph) = Ceph::start(&CephOptions::default()) else { return };
    let name = ceph.image(SIZE);
    let old = ceph.open(&name, Access::ReadWrite);
    old.acquire(&owner(1, 1)).unwrap();
    let mut worker = Worker::new(&old, DEPTH);
    let (error, acknowledged, proof) = std::thread::scope(|scope| {
        let load = scope.spawn(move || {
            let (error, acknowledged) = write_until_refused(&mut worker);
            (worker, error, acknowledged)
        });
        // Under load: after the first answers.
        wait_until("load", || {
            Image::open(&ceph.admin, &name, drover_rbd::Access::ReadOnly).unwrap().used().unwrap() > 0
        });
        let proof = fence_below(&ceph, &name, 2);
        let (mut worker, error, acknowledged) = load.join().unwrap();
        let after = worker.write(0, u64::MAX);
        assert!(matches!(worker.run(after), Err(BlockError::Fenced)), "for ever");
        (error, acknowledged, proof)
    });
    assert!(matches!(error, BlockError::Fenced), "{error:?}");
    assert!(old.is_fenced());
    assert!(matches!(old.acquire(&owner(1, 9)), Err(OwnershipError::AlreadyOwned { .. })));
    assert!(old.release().is_err());

    let new = ceph.open(&name, Access::ReadWrite);
    new.acquire(&owner(2, 2)).unwrap();
    let mut worker = Worker::new(&new, 1);
    for (block, value) in acknowledged.iter().enumerate() {
        let found = worker.read(block as u64);
        // The write after the last acknowledged one may have happened.
        let fits = found == content(*value) || found == content(value + 1);
        assert!(fits, "block {block}: acknowledged {value}, found {:?}", &found[..8]);
    }
    drop((worker, new, old));
    unfence(ceph.admin.cluster(), &proof.entries).unwrap();
}

#[test]
fn a_broken_lock_is_a_lost_disk() {
    let Some(ceph) = Ceph::start(&CephOptions::default()) else { return };
    let name = ceph.image(SIZE);
    let disk = ceph.open(&name, Access::ReadWrite);
    disk.acquire(&owner(1, 1)).unwrap();
    let mut worker = Worker::new(&disk, DEPTH);
    let write = worker.write(0, 1);
    worker.run(write).unwrap();
    let thief = Image::open(&ceph.admin, &name, drover_rbd::Access::ReadWrite).unwrap();
    let held = thief.lock_owners().unwrap();
    // As somebody does who does not go by the rules: without a fence, without a record.
    ceph.admin.cluster().blocklist_add(held[0].address, Duration::from_secs(600)).unwrap();
    thief.break_lock(&held[0]).unwrap();
    thief.acquire_lock().unwrap();
    let write = worker.write(0, 2);
    assert!(matches!(worker.run(write), Err(BlockError::Fenced)));
    drop((worker, disk, thief));
    ceph.admin.cluster().blocklist_remove(held[0].address).unwrap();
}

#[test]
fn requests_wait_for_an_osd_that_is_stopped_and_none_is_lost() {
    let Some(ceph) = Ceph::start(&CephOptions::default()) else { return };
    let name = ceph.image(SIZE);
    let disk = ceph.open(&name, Access::ReadWrite);
    disk.acquire(&owner(1, 1)).unwrap();
    let mut worker = Worker::new(&disk, DEPTH);
    let write = worker.write(0, 1);
    worker.run(write).unwrap();
    assert_eq!(disk.oldest_request(), None);

    ceph.cluster.stop(Daemon::Osd(0)).unwrap();
    let requests: Vec<_> = (0..u64::from(DEPTH)).map(|block| worker.write(block, 2)).collect();
    worker.submit(requests);
    let long = Duration::from_secs(2);
    wait_until("a stall", || disk.oldest_request().is_some_and(|age| age >= long));
    assert_eq!(worker.queue.in_flight(), usize::from(DEPTH), "they wait, and do not fail");

    ceph.cluster.cont(Daemon::Osd(0)).unwrap();
    assert!(worker.drain().values().all(Result::is_ok));
    assert_eq!(disk.oldest_request(), None);
    for block in 0..u64::from(DEPTH) {
        assert_eq!(worker.read(block), content(2), "block {block}");
    }
}

#[test]
fn a_queue_is_dropped_while_the_cluster_is_away_and_its_client_may_be_fenced() {
    let Some(ceph) = Ceph::start(&CephOptions::default()) else { return };
    let name = ceph.image(SIZE);
    let disk = ceph.open(&name, Access::ReadWrite);
    disk.acquire(&owner(1, 1)).unwrap();
    let mut worker = Worker::new(&disk, DEPTH);
    ceph.cluster.kill(Daemon::Osd(0)).unwrap();
    let requests: Vec<_> = (0..u64::from(DEPTH)).map(|block| worker.write(block, 4)).collect();
    worker.submit(requests);
    // On a thread of its own, so that a wait without a limit fails instead of hanging.
    let (dropped, listen) = mpsc::channel();
    std::thread::spawn(move || {
        drop(worker);
        // Not given up: the requests may still happen.
        let kept = disk.release();
        drop(disk);
        dropped.send(kept).unwrap();
    });
    let kept = listen.recv_timeout(DEADLINE).expect("dropping does not wait for the cluster");
    assert!(matches!(kept, Err(OwnershipError::InFlight(n)) if n == u64::from(DEPTH)), "{kept:?}");

    ceph.cluster.restart(Daemon::Osd(0)).unwrap();
    let proof = fence_below(&ceph, &name, 2);
    assert!(!proof.entries.is_empty(), "what is left to librbd is found and refused");
    let new = ceph.open(&name, Access::ReadWrite);
    new.acquire(&owner(2, 2)).unwrap();
    let mut worker = Worker::new(&new, 1);
    let write = worker.write(0, 5);
    worker.run(write).unwrap();
    assert_eq!(worker.read(0), content(5));
    drop((worker, new));
    // The old client lives as long as this process: it is let in again when there is nothing left for it.
    ceph.admin.remove_image(&name, &mut |_, _| true).unwrap();
    unfence(ceph.admin.cluster(), &proof.entries).unwrap();
}

#[test]
fn an_osd_that_is_killed_and_comes_back_finds_the_owner_as_it_was() {
    let Some(ceph) = Ceph::start(&CephOptions::default()) else { return };
    let name = ceph.image(SIZE);
    let disk = ceph.open(&name, Access::ReadWrite);
    disk.acquire(&owner(1, 1)).unwrap();
    let mut worker = Worker::new(&disk, DEPTH);
    ceph.cluster.kill(Daemon::Osd(0)).unwrap();
    let requests: Vec<_> = (0..u64::from(DEPTH)).map(|block| worker.write(block, 3)).collect();
    worker.submit(requests);
    ceph.cluster.restart(Daemon::Osd(0)).unwrap();
    assert!(worker.drain().values().all(Result::is_ok));
    for block in 0..u64::from(DEPTH) {
        assert_eq!(worker.read(block), content(3), "block {block}");
    }
    let other = ceph.open(&name, Access::ReadWrite);
    assert!(matches!(other.acquire(&owner(2, 2)), Err(OwnershipError::Held { .. })), "its lock is as it was");
}

#[test]
fn a_size_that_changes_under_load_is_seen_without_being_asked_for() {
    let Some(ceph) = Ceph::start(&CephOptions::default()) else { return };
    let name = ceph.image(SIZE);
    let disk = ceph.open(&name, Access::ReadWrite);
    disk.acquire(&owner(1, 1)).unwrap();
    let (told, listen) = mpsc::channel();
    let told = Mutex::new(told);
    disk.set_resize_listener(Box::new(move |capacity| told.lock().unwrap().send(capacity).unwrap()));
    let mut worker = Worker::new(&disk, DEPTH);
    let requests: Vec<_> = (0..u64::from(DEPTH)).map(|block| worker.write(block, 1)).collect();
    worker.submit(requests);
    let image = Image::open(&ceph.admin, &name, drover_rbd::Access::ReadWrite).unwrap();
    image.resize(Bytes::mib(24).get(), false, &mut |_, _| true).unwrap();
    let new: Sectors = Bytes::mib(24).to_sectors().unwrap();
    assert_eq!(listen.recv_timeout(DEADLINE).unwrap(), new);
    assert!(worker.drain().values().all(Result::is_ok));
    let last = new.get() / 8 - 1;
    let write = worker.write(last, 7);
    worker.run(write).unwrap();
    assert_eq!(worker.read(last), content(7));
}

#[test]
fn snapshots_and_flattening_go_on_beside_the_owners_load() {
    let Some(ceph) = Ceph::start(&CephOptions::default()) else { return };
    let parent = ceph.image(SIZE);
    {
        let image = Image::open(&ceph.admin, &parent, drover_rbd::Access::ReadWrite).unwrap();
        for block in 0..64 {
            image.write(block * 4096, &content(block)).unwrap();
        }
        image.create_snapshot("base").unwrap();
    }
    let options = drover_rbd::CreateOptions::default();
    ceph.admin.clone_image((&ceph.admin, &parent, "base"), "clone", &options).unwrap();
    let disk = ceph.open("clone", Access::ReadWrite);
    disk.acquire(&owner(1, 1)).unwrap();
    let mut worker = Worker::new(&disk, DEPTH);
    let manager = Image::open(&ceph.admin, "clone", drover_rbd::Access::ReadWrite).unwrap();
    std::thread::scope(|scope| {
        let managed = scope.spawn(|| {
            manager.create_snapshot("now").unwrap();
            manager.flatten(&mut |_, _| true).unwrap();
        });
        let mut value = 1000;
        loop {
            value += 1;
            let requests: Vec<_> = (0..u64::from(DEPTH)).map(|block| worker.write(block, value)).collect();
            worker.submit(requests);
            assert!(worker.drain().values().all(Result::is_ok));
            if managed.is_finished() {
                break;
            }
        }
        managed.join().unwrap();
        for block in 0..64 {
            let expected = if block < u64::from(DEPTH) { value } else { block };
            assert_eq!(worker.read(block), content(expected), "block {block}");
        }
    });
    manager.remove_snapshot("now", &mut |_, _| true).unwrap();
    drop((worker, disk, manager));
    let parent = Image::open(&ceph.admin, &parent, drover_rbd::Access::ReadWrite).unwrap();
    assert!(parent.children(Some("base")).unwrap().is_empty(), "flattened");
    parent.remove_snapshot("base", &mut |_, _| true).unwrap();
}
