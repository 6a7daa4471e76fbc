//! Images as wholes.

use std::{sync::mpsc, time::Duration};

use drover_rbd::{Access, CreateOptions, EncryptionFormat, Extent, Image, LockMode, Secret};

use crate::support::{Ceph, done};

const MIB: u64 = 1 << 20;

fn bytes(image: &Image, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    assert_eq!(image.read(offset, &mut buffer).unwrap(), length);
    buffer
}

#[test]
fn an_image_has_the_shape_it_was_given() {
    let Some(ceph) = Ceph::start() else { return };
    let options = CreateOptions { object_order: Some(20), data_pool: None };
    ceph.pool.create_image("one", 10 * MIB, &options).unwrap();
    assert!(ceph.pool.create_image("one", MIB, &options).unwrap_err().is_already_there());
    let image = ceph.open("one");
    let shape = image.shape().unwrap();
    assert_eq!((shape.size, shape.object_size), (10 * MIB, MIB));
    assert!(image.resize(5 * MIB, false, &mut done).is_err(), "it would shrink");
    image.resize(20 * MIB, false, &mut done).unwrap();
    assert_eq!(image.size().unwrap(), 20 * MIB);
    image.resize(5 * MIB, true, &mut done).unwrap();
    assert_eq!(image.size().unwrap(), 5 * MIB);
    assert!(ceph.pool.remove_image("one", &mut done).unwrap_err().is_busy(), "it is open");
    drop(image);
    ceph.pool.rename_image("one", "two").unwrap();
    assert_eq!(ceph.pool.images().unwrap(), ["two"]);
    let mut calls = 0;
    ceph.pool
        .remove_image("two", &mut |_, _| {
            calls += 1;
            true
        })
        .unwrap();
    assert!(calls > 0, "progress is reported");
    assert!(ceph.pool.remove_image("two", &mut done).unwrap_err().is_not_found());
}

#[test]
fn more_images_than_the_first_guess_of_their_lister_are_all_listed() {
    let Some(ceph) = Ceph::start() else { return };
    let names: Vec<String> = (0..70).map(|n| format!("image-{n:02}")).collect();
    for name in &names {
        ceph.pool.create_image(name, MIB, &CreateOptions::default()).unwrap();
    }
    let mut listed = ceph.pool.images().unwrap();
    listed.sort();
    assert_eq!(listed, names);
    names.iter().for_each(|name| ceph.remove(name));
}

#[test]
fn snapshots_and_clones_keep_what_was_there() {
    let Some(ceph) = Ceph::start() else { return };
    let image = ceph.image("parent", 8 * MIB);
    image.write(0, &[1; 4096]).unwrap();
    image.create_snapshot("base").unwrap();
    assert!(image.create_snapshot("base").unwrap_err().is_already_there());
    image.protect_snapshot("base").unwrap();
    image.protect_snapshot("base").expect("idempotent");
    image.write(0, &[2; 4096]).unwrap();
    image.create_snapshot("later").unwrap();
    let listed: Vec<_> =
        image.snapshots().unwrap().into_iter().map(|s| (s.name, s.size, s.protected)).collect();
    assert_eq!(listed, [("base".to_owned(), 8 * MIB, true), ("later".to_owned(), 8 * MIB, false)]);
    let past = Image::open_snapshot(&ceph.pool, "parent", "base").unwrap();
    assert_eq!(bytes(&past, 0, 4096), [1; 4096]);
    drop(past);

    ceph.pool.clone_image((&ceph.pool, "parent", "base"), "child", &CreateOptions::default()).unwrap();
    let child = ceph.open("child");
    assert_eq!(bytes(&child, 0, 4096), [1; 4096]);
    let (parent, snapshot) = child.parent().unwrap().unwrap();
    assert_eq!((parent.name.as_str(), snapshot.as_str()), ("parent", "base"));
    let children = image.children(Some("base")).unwrap();
    assert_eq!(children.iter().map(|child| child.name.as_str()).collect::<Vec<_>>(), ["child"]);
    assert!(image.children(Some("later")).unwrap().is_empty());
    assert_eq!(bytes(&image, 0, 4096), [2; 4096], "asking for clones has not moved the handle");
    assert!(image.remove_snapshot("base", &mut done).unwrap_err().is_busy(), "protected");

    let mut last = (0, 0);
    child
        .flatten(&mut |at, total| {
            last = (at, total);
            true
        })
        .unwrap();
    assert!(last.1 > 0 && last.0 <= last.1, "{last:?}");
    assert_eq!(child.parent().unwrap(), None);
    image.roll_back("base", &mut done).unwrap();
    assert_eq!(bytes(&image, 0, 4096), [1; 4096]);
    image.unprotect_snapshot("base").unwrap();
    image.unprotect_snapshot("base").expect("idempotent");
    for name in ["base", "later"] {
        image.remove_snapshot(name, &mut done).unwrap();
    }
    assert!(image.remove_snapshot("base", &mut done).unwrap_err().is_not_found());
    drop((image, child));
    ceph.remove("child");
    ceph.remove("parent");
}

#[test]
fn copies_are_sparse_and_usage_counts_what_is_there() {
    let Some(ceph) = Ceph::start() else { return };
    let (from, to) = (ceph.image("from", 32 * MIB), ceph.image("to", 32 * MIB));
    // Data, zeros in the middle of it, and data at the end.
    let mut content = vec![7; 512 << 10];
    content[128 << 10..256 << 10].fill(0);
    assert_eq!(from.write_sparse(MIB, &content).unwrap(), 384 << 10);
    from.write(32 * MIB - 512, &[9; 512]).unwrap();
    from.create_snapshot("s").unwrap();
    let mut told = Vec::new();
    from.copy_sparse(&to, &mut |at, total| {
        told.push((at, total));
        true
    })
    .unwrap();
    assert_eq!(told.last(), Some(&(32 * MIB, 32 * MIB)));
    assert_eq!(bytes(&to, MIB, 512 << 10), content);
    assert_eq!(bytes(&to, 32 * MIB - 512, 512), [9; 512]);
    assert_eq!(bytes(&to, 16 * MIB, 4096), [0; 4096]);
    assert_eq!((from.used().unwrap(), to.used().unwrap()), (8 * MIB, 8 * MIB), "two objects each");
    assert!(from.copy_sparse(&to, &mut |_, _| false).unwrap_err().is_cancelled());

    // What has changed since the snapshot, and what was taken away.
    from.write(20 * MIB, &[1; 4096]).unwrap();
    from.write_zeroes(Extent { offset: MIB, length: 4096 }).unwrap();
    assert_eq!(bytes(&from, MIB, 4096), [0; 4096]);
    let mut changed = Vec::new();
    let all = Extent { offset: 0, length: 32 * MIB };
    from.for_each_extent(Some("s"), all, true, &mut |extent, _| {
        changed.push(extent.offset);
        true
    })
    .unwrap();
    assert_eq!(changed, [0, 20 * MIB]);
    from.discard(Extent { offset: 20 * MIB, length: 4 * MIB }).unwrap();
    assert_eq!(from.used().unwrap(), 8 * MIB);
    assert!(from.write(32 * MIB - 512, &[1; 1024]).is_err(), "beyond the end");
    from.remove_snapshot("s", &mut done).unwrap();
    drop((from, to));
    ceph.remove("from");
    ceph.remove("to");
}

#[test]
fn metadata_is_kept_by_key_with_empty_and_long_values() {
    let Some(ceph) = Ceph::start() else { return };
    let image = ceph.image("one", MIB);
    let long = "x".repeat(5000);
    for (key, value) in [("a", "1"), ("b", ""), ("c", long.as_str())] {
        image.set_metadata(key, value).unwrap();
    }
    assert_eq!(image.metadata("c").unwrap().as_deref(), Some(long.as_str()));
    assert_eq!(image.metadata("b").unwrap().as_deref(), Some(""));
    assert_eq!(image.metadata("none").unwrap(), None);
    image.remove_metadata("a").unwrap();
    image.remove_metadata("a").expect("idempotent");
    assert_eq!(image.all_metadata().unwrap(), [("b".to_owned(), String::new()), ("c".to_owned(), long)]);
    image.remove_metadata("b").unwrap();
    image.remove_metadata("c").unwrap();
    assert!(image.all_metadata().unwrap().is_empty());
    drop(image);
    ceph.remove("one");
}

#[test]
fn an_explicit_lock_is_not_passed_on() {
    let Some(ceph) = Ceph::start() else { return };
    let (holder, other) = (ceph.image("one", 4 * MIB), ceph.open_elsewhere("one"));
    assert!(holder.lock_owners().unwrap().is_empty());
    holder.acquire_lock().unwrap();
    assert!(holder.is_lock_owner().unwrap() && !other.is_lock_owner().unwrap());
    let owners = other.lock_owners().unwrap();
    let address = holder.pool().cluster().addresses().unwrap()[0];
    assert_eq!(
        owners.iter().map(|owner| (owner.address, owner.mode)).collect::<Vec<_>>(),
        [(address, LockMode::Exclusive)]
    );
    let watchers = other.watchers().unwrap();
    assert_eq!(watchers.len(), 2);
    assert!(watchers.iter().any(|watcher| watcher.address == address));
    assert!(other.acquire_lock().unwrap_err().is_fenced());
    assert!(other.write(0, &[1; 512]).unwrap_err().is_fenced());
    // What is done to the image as a whole goes through the holder.
    other.create_snapshot("s").unwrap();
    other.remove_snapshot("s", &mut done).unwrap();
    other.resize(8 * MIB, false, &mut done).unwrap();
    assert_eq!(holder.size().unwrap(), 8 * MIB);
    holder.release_lock().unwrap();
    other.acquire_lock().unwrap();
    other.write(0, &[1; 512]).unwrap();
    drop((holder, other));
    ceph.remove("one");
}

#[test]
fn a_change_is_announced_to_whoever_watches() {
    let Some(ceph) = Ceph::start() else { return };
    let (image, other) = (ceph.image("one", 4 * MIB), ceph.open_elsewhere("one"));
    let (told, listen) = mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let watch = image.watch_updates(move || told.lock().unwrap().send(()).unwrap_or(())).unwrap();
    other.resize(8 * MIB, false, &mut done).unwrap();
    listen.recv_timeout(Duration::from_secs(30)).expect("told of the new size");
    assert_eq!(image.size().unwrap(), 8 * MIB);
    // The watch keeps the image open; nothing is told after it.
    drop(image);
    drop(watch);
    while listen.try_recv().is_ok() {}
    other.resize(12 * MIB, false, &mut done).unwrap();
    assert!(listen.recv_timeout(Duration::from_secs(1)).is_err(), "its listener is gone");
    drop(other);
    ceph.remove("one");
}

#[test]
fn an_encrypted_image_shows_its_content_with_the_passphrase_only() {
    let Some(ceph) = Ceph::start() else { return };
    // The header of LUKS 2 takes 16 MiB.
    let image = ceph.image("secret", 24 * MIB);
    let (right, wrong) = (Secret::new("correct horse"), Secret::new("battery staple"));
    match image.format_encryption(EncryptionFormat::Luks2, &right) {
        Err(error) if error.is_unsupported() => {
            drover_test_prerequisites::skipped("this librbd was built without encryption");
            drop(image);
            return ceph.remove("secret");
        }
        formatted => formatted.unwrap(),
    }
    drop(image);
    let image = ceph.open("secret");
    assert!(image.load_encryption(EncryptionFormat::Luks2, &wrong).is_err());
    image.load_encryption(EncryptionFormat::Luks2, &right).unwrap();
    assert_eq!(image.size().unwrap(), 8 * MIB, "without the header");
    image.write(0, &[1; 4096]).unwrap();
    assert_eq!(bytes(&image, 0, 4096), [1; 4096]);
    drop(image);
    let raw = Image::open(&ceph.pool, "secret", Access::ReadOnly).unwrap();
    assert_ne!(bytes(&raw, 16 * MIB, 4096), [1; 4096], "what the cluster stores");
    drop(raw);
    ceph.remove("secret");
}
