//! With a real tap, in a network namespace of the test's own.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::os::fd::{AsFd, OwnedFd};

use drover_tap::{HEADER_LEN, Interface, Offloads, Tap, TapError, TapName};
use drover_test_prerequisites::network_namespace;

fn name(text: &str) -> TapName {
    text.parse().unwrap()
}

#[test]
fn a_tap_is_made_used_handed_on_and_removed() {
    if !network_namespace() {
        return;
    }
    let taps = Tap::open(&name("t0"), 1).unwrap();
    assert_eq!(taps[0].name(), "t0");
    let most = taps[0].probe_offloads().unwrap();
    assert!(most.checksum && most.tso4 && most.tso6, "every kernel of the last decade: {most:?}");
    taps[0].set_offloads(Offloads { checksum: true, ..Offloads::default() }).unwrap();
    taps[0].set_attached(false).expect("nothing to do with one queue");
    let interface = Interface::find(name("t0")).unwrap();
    interface.set_mtu(9000).unwrap();
    interface.set_up(true).unwrap();
    // The kernel says hello on an interface that comes up (IPv6), or nothing: but never blocks.
    let mut buffer = [0; 9000 + 14 + HEADER_LEN];
    while let Ok(count) = nix::unistd::read(taps[0].as_fd(), &mut buffer) {
        assert!(count > HEADER_LEN);
    }
    let handed: OwnedFd = taps[0].as_fd().try_clone_to_owned().unwrap();
    assert_eq!(Tap::from_fd(handed).unwrap().name(), "t0");
    drop((taps, interface));
    assert!(!Interface::exists(&name("t0")), "it lives as long as its queues");
}

#[test]
fn several_queues_come_and_go() {
    if !network_namespace() {
        return;
    }
    let taps = Tap::open(&name("t0"), 3).unwrap();
    taps[2].set_attached(false).unwrap();
    taps[1].set_attached(false).unwrap();
    taps[1].set_attached(true).unwrap();
    taps[2].set_attached(true).unwrap();
    assert!(Tap::open(&name("t0"), 1).is_err(), "an interface of several queues is not one of one");
}

#[test]
fn a_persistent_interface_stays_until_it_is_deleted() {
    if !network_namespace() {
        return;
    }
    for queues in [1, 2] {
        Interface::create(name("t1"), queues).unwrap().set_up(true).unwrap();
        assert!(Interface::exists(&name("t1")));
        drop(Tap::open(&name("t1"), queues).unwrap());
        Interface::create(name("t1"), queues).expect("it is there");
        Interface::find(name("t1")).unwrap().delete(queues).unwrap();
        assert!(!Interface::exists(&name("t1")));
    }
    assert!(matches!(Interface::find(name("t1")), Err(TapError::Refused { attempt: "find", .. })));
}

#[test]
fn what_is_not_a_tap_is_refused() {
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(Tap::from_fd(null.into()), Err(TapError::NotATap(_))));
}
