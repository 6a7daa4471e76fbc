//! Connecting, and what is not an image's.

use std::time::Duration;

use drover_rbd::{
    Access, Attribute, Cluster, ConnectConfig, CreateOptions, Error, Image, Library, Pool, Secret, Source,
};
use drover_test_ceph_cluster::Daemon;

use crate::support::{Ceph, config, connect, done};

#[test]
fn a_client_connects_by_file_or_by_monitors_and_knows_itself() {
    let Some(ceph) = Ceph::start() else { return };
    let library = Library::load().unwrap();
    assert!(library.librbd_version().minor >= 16, "{library:?}");
    let by_monitors = connect(&ceph.cluster);
    let by_file = Source::ConfFile { path: ceph.cluster.conf_path(), user: "admin".to_owned() };
    let by_file = Cluster::connect(library, &ConnectConfig::new(by_file)).unwrap();
    for client in [&by_monitors, &by_file] {
        assert_eq!(client.fsid().unwrap(), ceph.cluster.fsid());
        assert_eq!(client.addresses().unwrap().len(), 1);
        assert!(client.pools().unwrap().contains(&ceph.cluster.pool().to_owned()));
    }
    assert_ne!(by_monitors.addresses().unwrap(), by_file.addresses().unwrap());
    assert_ne!(by_monitors.instance(), by_file.instance());
}

#[test]
fn what_keeps_a_client_out_is_told_apart() {
    let Some(ceph) = Ceph::start() else { return };
    let library = Library::load().unwrap();
    let mut wrong = config(&ceph.cluster);
    if let Source::Monitors { key, .. } = &mut wrong.source {
        *key = Secret::new("AQD/GQNr7J1DGhAAdKqBiPD9zp4tLbtb/3BSSQ==");
    }
    let error = Cluster::connect(library, &wrong).unwrap_err();
    assert!(error.is_denied(), "{error:?}");
    assert!(!format!("{error:?}").contains("AQD"), "no key in an error");
    let nowhere = Source::ConfFile { path: "/nonexistent/ceph.conf".into(), user: "admin".to_owned() };
    let error = Cluster::connect(library, &ConnectConfig::new(nowhere)).unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
    let error = Pool::open(&connect(&ceph.cluster), "no-such-pool", "").unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
    let error = Image::open(&ceph.pool, "no-such-image", Access::ReadOnly).unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("no-such-image"), "{error}");
    let error = Image::open(&ceph.pool, "nul\0", Access::ReadOnly).unwrap_err();
    assert!(matches!(error, Error::NulByte { .. }), "{error:?}");
    let error = connect(&ceph.cluster).command(&serde_json::json!({"prefix": "no such"})).unwrap_err();
    assert!(matches!(&error, Error::Command { command, .. } if command == "no such"), "{error:?}");

    ceph.cluster.stop(Daemon::Mon).unwrap();
    let mut short = config(&ceph.cluster);
    short.timeouts.connect = Duration::from_secs(1);
    let error = Cluster::connect(library, &short).unwrap_err();
    assert!(error.is_timed_out(), "{error:?}");
    ceph.cluster.cont(Daemon::Mon).unwrap();
}

#[test]
fn a_blocklisted_client_is_refused_until_its_entry_is_removed() {
    let Some(ceph) = Ceph::start() else { return };
    let image = ceph.image("one", 8 << 20);
    let victim = ceph.open_elsewhere("one");
    victim.write(0, &[1; 512]).unwrap();
    let address = victim.pool().cluster().addresses().unwrap()[0];
    let admin = ceph.pool.cluster();
    let before = admin.osdmap_epoch().unwrap();
    admin.blocklist_add(address, Duration::from_secs(600)).unwrap();
    assert!(admin.osdmap_epoch().unwrap() > before);
    admin.wait_for_latest_osdmap().unwrap();
    let listed: Vec<_> = admin.blocklist().unwrap().iter().map(|entry| entry.address).collect();
    assert_eq!(listed, [address]);
    let error = victim.write(0, &[2; 512]).unwrap_err();
    assert!(error.is_fenced(), "{error:?}");
    image.write(0, &[3; 512]).expect("others go on");
    drop((victim, image));
    admin.blocklist_remove(address).unwrap();
    admin.blocklist_remove(address).expect("idempotent");
    assert!(admin.blocklist().unwrap().is_empty());
    ceph.remove("one");
}

#[test]
fn namespaces_keep_images_apart() {
    let Some(ceph) = Ceph::start() else { return };
    ceph.pool.create_namespace("tenant").unwrap();
    assert!(ceph.pool.create_namespace("tenant").unwrap_err().is_already_there());
    assert_eq!(ceph.pool.namespaces().unwrap(), ["tenant"]);
    let inside = Pool::open(ceph.pool.cluster(), ceph.pool.name(), "tenant").unwrap();
    inside.create_image("one", 4 << 20, &CreateOptions::default()).unwrap();
    assert_eq!(inside.images().unwrap(), ["one"]);
    assert!(ceph.pool.images().unwrap().is_empty());
    inside.remove_image("one", &mut done).unwrap();
    ceph.pool.remove_namespace("tenant").unwrap();
    assert!(ceph.pool.namespaces().unwrap().is_empty());
}

#[test]
fn an_attribute_changes_only_from_what_it_is_said_to_be() {
    let Some(ceph) = Ceph::start() else { return };
    let image = ceph.image("one", 4 << 20);
    let object = format!("rbd_header.{}", image.id().unwrap());
    let attribute = Attribute { object: &object, name: "test" };
    let (pool, swap) = (&ceph.pool, |old: &[u8], new: &[u8]| {
        ceph.pool.compare_and_set_attribute(attribute, old, new).unwrap()
    });
    assert_eq!(pool.attribute(attribute).unwrap(), b"");
    assert!(!swap(b"a", b"b"), "there is none");
    assert!(swap(b"", b"a"));
    assert!(!swap(b"", b"b"), "there is one");
    assert!(swap(b"a", &[0; 3000]), "binary, and longer than the first guess of its reader");
    assert_eq!(pool.attribute(attribute).unwrap(), [0; 3000]);
    assert!(swap(&[0; 3000], b""));
    assert_eq!(pool.attribute(attribute).unwrap(), b"");
    let nowhere = Attribute { object: "no-such-object", name: "test" };
    assert!(pool.attribute(nowhere).unwrap_err().is_not_found());
    assert!(pool.compare_and_set_attribute(nowhere, b"", b"a").unwrap_err().is_not_found(), "not created");
    drop(image);
    ceph.remove("one");
}
