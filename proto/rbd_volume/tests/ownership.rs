//! Owners, fences and what they leave behind, on a real cluster.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use drover_ids::{NodeId, OwnerEpoch, VmId};
use drover_rbd::{
    Access, ClientAddress, Cluster, ConnectConfig, CreateOptions, Image, Library, Pool, Secret, Source,
};
use drover_rbd_volume::{
    Fence, ImageLock, LockError, Owner, OwnerRecord, Refusal, detach, fence, read_record, renew, unfence,
};
use drover_test_ceph_cluster::{CephCluster, CephOptions};

const IMAGE: &str = "volume";
const SIZE: u64 = 16 << 20;
const LASTS: Duration = Duration::from_secs(600);

fn start() -> Option<CephCluster> {
    drover_test_prerequisites::ceph().then(|| CephCluster::start(&CephOptions::default()).unwrap())
}

/// The control plane: a client that may do everything.
fn admin(ceph: &CephCluster) -> Pool {
    connect(ceph, "admin", ceph.admin_key())
}

fn connect(ceph: &CephCluster, user: &str, key: &str) -> Pool {
    let source =
        Source::Monitors { hosts: ceph.mon_hosts().to_owned(), user: user.to_owned(), key: Secret::new(key) };
    let cluster = Cluster::connect(Library::load().unwrap(), &ConnectConfig::new(source)).unwrap();
    Pool::open(&cluster, ceph.pool(), "").unwrap()
}

/// VMMs: each a client of its own, with a key that can do no more than use the pool.
struct Vmms<'a> {
    ceph: &'a CephCluster,
    key: String,
}

impl<'a> Vmms<'a> {
    fn new(ceph: &'a CephCluster) -> Self {
        Self { ceph, key: ceph.create_vmm_key("vmm", ceph.pool()).unwrap() }
    }
    fn open(&self) -> Image {
        Image::open(&connect(self.ceph, "vmm", &self.key), IMAGE, Access::ReadWrite).unwrap()
    }
}

fn address(image: &Image) -> ClientAddress {
    image.pool().cluster().addresses().unwrap()[0]
}

/// Gives the lock up, and with it the handle that it keeps open.
fn release(lock: ImageLock) {
    lock.release().unwrap();
}

fn owner(node: u128, epoch: u64) -> Owner {
    owner_of(1, node, epoch)
}

fn owner_of(vm: u128, node: u128, epoch: u64) -> Owner {
    let (vm, node, epoch) = (VmId::from_u128(vm), NodeId::from_u128(node), OwnerEpoch::new(epoch));
    Owner { vm, node, epoch, pid: 4 }
}

fn floor(epoch: u64, registered: &[ClientAddress]) -> Fence<'_> {
    Fence { vm: VmId::from_u128(1), floor: OwnerEpoch::new(epoch), registered, spared: &[], lasts: LASTS }
}

/// After which nothing of a test may be left.
fn finish(ceph: &CephCluster, admin: &Pool) {
    admin.remove_image(IMAGE, &mut |_, _| true).unwrap();
    let leaks = ceph.leaks().unwrap();
    assert!(leaks.is_empty(), "{leaks}");
}

#[test]
fn an_image_has_one_owner_at_a_time_and_only_later_ones_after_it() {
    let Some(ceph) = start() else { return };
    let admin = admin(&ceph);
    admin.create_image(IMAGE, SIZE, &CreateOptions::default()).unwrap();
    let vmms = Vmms::new(&ceph);
    let (source, target) = (vmms.open(), vmms.open());
    assert_eq!(read_record(&source).unwrap(), None);

    let lock = ImageLock::acquire(&source, owner(1, 1)).unwrap();
    let record = read_record(&target).unwrap().unwrap();
    assert_eq!((record.owner, record.clients), (OwnerRecord::Acquired(owner(1, 1)), vec![address(&source)]));
    let error = ImageLock::acquire(&target, owner(2, 2)).unwrap_err();
    assert!(matches!(error, LockError::Held { owner: Some(held) } if held == owner(1, 1)), "{error:?}");
    assert!(target.write(0, &[1; 512]).unwrap_err().is_fenced(), "the lock keeps other writers out");
    source.write(0, &[2; 512]).unwrap();

    // Handed over, declined, handed over for good.
    release(lock);
    let lock = ImageLock::acquire(&source, owner(1, 1)).unwrap();
    release(lock);
    let lock = ImageLock::acquire(&target, owner(2, 2)).unwrap();
    assert_eq!(lock.owner(), owner(2, 2));
    release(lock);

    let refused = |candidate, expect: fn(&Refusal) -> bool| {
        let error = ImageLock::acquire(&source, candidate).unwrap_err();
        assert!(matches!(&error, LockError::Refused(refusal) if expect(refusal)), "{error:?}");
        assert!(source.lock_owners().unwrap().is_empty(), "a refused owner keeps no lock");
    };
    refused(owner(1, 1), |refusal| matches!(refusal, Refusal::StaleEpoch { .. }));
    refused(owner(1, 2), |refusal| matches!(refusal, Refusal::EpochInUse { .. }));
    refused(owner_of(9, 1, 9), |refusal| matches!(refusal, Refusal::OtherVm { .. }));

    assert!(matches!(
        detach(&admin, IMAGE, VmId::from_u128(9)),
        Err(LockError::Refused(Refusal::OtherVm { .. }))
    ));
    let lock = ImageLock::acquire(&source, owner(1, 3)).unwrap();
    assert!(matches!(detach(&admin, IMAGE, VmId::from_u128(1)), Err(LockError::Held { .. })));
    release(lock);
    detach(&admin, IMAGE, VmId::from_u128(1)).unwrap();
    detach(&admin, IMAGE, VmId::from_u128(1)).expect("idempotent");
    release(ImageLock::acquire(&source, owner_of(9, 1, 1)).unwrap());
    drop((source, target));
    finish(&ceph, &admin);
}

#[test]
fn a_fence_stops_an_owner_that_does_not_answer() {
    let Some(ceph) = start() else { return };
    let admin = admin(&ceph);
    admin.create_image(IMAGE, SIZE, &CreateOptions::default()).unwrap();
    let vmms = Vmms::new(&ceph);
    // An owner, one that only has the image open, and one that is known from elsewhere.
    let (old, bystander, new) = (vmms.open(), vmms.open(), vmms.open());
    let lost = ImageLock::acquire(&old, owner(1, 1)).unwrap();
    old.write(0, &[1; 4096]).unwrap();
    old.flush().unwrap();
    drop(new);
    let registered: ClientAddress = "127.0.0.9:0/4711".parse().unwrap();

    let proof = fence(&admin, IMAGE, &floor(2, &[registered])).unwrap();
    let mut expected = vec![address(&old), address(&bystander), registered];
    expected.sort();
    assert_eq!(proof.entries, expected);
    assert_eq!((proof.epoch, proof.previous), (OwnerEpoch::new(2), Some(owner(1, 1))));
    assert!(proof.osdmap_epoch <= admin.cluster().osdmap_epoch().unwrap());
    let mut listed: Vec<_> =
        admin.cluster().blocklist().unwrap().into_iter().map(|entry| entry.address).collect();
    listed.sort();
    assert_eq!(listed, expected);

    // The new owner writes before the old one tries: what the old one does then must not reach the image.
    let new = vmms.open();
    let error = ImageLock::acquire(&new, owner(2, 1)).unwrap_err();
    assert!(matches!(error, LockError::Refused(Refusal::StaleEpoch { .. })), "{error:?}");
    let lock = ImageLock::acquire(&new, owner(2, 2)).unwrap();
    new.write(0, &[2; 4096]).unwrap();
    for image in [&old, &bystander] {
        assert!(image.write(0, &[3; 4096]).unwrap_err().is_fenced());
        assert!(matches!(ImageLock::acquire(image, owner(3, 9)), Err(LockError::Fenced)));
    }
    let mut read = [0; 4096];
    new.read(0, &mut read).unwrap();
    assert_eq!(read, [2; 4096]);

    // A fence that comes again, late, does not hit the owner it has made room for.
    let again = fence(&admin, IMAGE, &floor(2, &[registered])).unwrap();
    assert_eq!((again.entries.as_slice(), again.previous), ([registered].as_slice(), Some(owner(2, 2))));
    new.write(0, &[4; 4096]).unwrap();
    renew(admin.cluster(), &proof.entries, LASTS).unwrap();

    release(lock);
    drop((lost, old, bystander, new));
    unfence(admin.cluster(), &proof.entries).unwrap();
    unfence(admin.cluster(), &proof.entries).expect("idempotent");
    finish(&ceph, &admin);
}

#[test]
fn a_vmms_key_can_own_and_cannot_fence() {
    let Some(ceph) = start() else { return };
    let admin = admin(&ceph);
    admin.create_image(IMAGE, SIZE, &CreateOptions::default()).unwrap();
    let vmms = Vmms::new(&ceph);
    let (victim, other) = (vmms.open(), vmms.open());
    let lock = ImageLock::acquire(&victim, owner(1, 1)).unwrap();
    let error = other.pool().cluster().blocklist_add(address(&victim), LASTS).unwrap_err();
    assert!(error.is_denied(), "{error:?}");
    let error = fence(other.pool(), IMAGE, &floor(1, &[address(&victim)])).unwrap_err();
    assert!(matches!(&error, LockError::Ceph { source, .. } if source.is_denied()), "{error:?}");
    victim.write(0, &[1; 512]).expect("the owner is untouched");
    release(lock);
    drop((victim, other));
    finish(&ceph, &admin);
}

#[test]
fn a_clone_does_not_inherit_its_parents_owner() {
    let Some(ceph) = start() else { return };
    let admin = admin(&ceph);
    admin.create_image(IMAGE, SIZE, &CreateOptions::default()).unwrap();
    let image = Vmms::new(&ceph).open();
    let lock = ImageLock::acquire(&image, owner(1, 1)).unwrap();
    image.create_snapshot("s").unwrap();
    admin.clone_image((&admin, IMAGE, "s"), "clone", &CreateOptions::default()).unwrap();
    let clone = Image::open(&admin, "clone", Access::ReadWrite).unwrap();
    assert_eq!(read_record(&clone).unwrap(), None);
    release(ImageLock::acquire(&clone, owner_of(2, 1, 1)).unwrap());
    drop(clone);
    admin.remove_image("clone", &mut |_, _| true).unwrap();
    image.remove_snapshot("s", &mut |_, _| true).unwrap();
    release(lock);
    drop(image);
    finish(&ceph, &admin);
}
