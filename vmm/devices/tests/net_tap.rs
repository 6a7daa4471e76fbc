//! Network interfaces on real taps in a bridge: what one guest sends, the other receives, offloads included. In a network
//! namespace of each test's own; where that is not allowed, the tests are skipped and counted.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::sync::Arc;

use drover_devices::{MacAddress, NetConfig, NetPort, VirtioNet};
use drover_tap::{Interface, Tap, TapName};
use drover_test_prerequisites::network_namespace;
use drover_units::Bytes;
use guest::{
    Events, VERSION_1,
    driver::{
        Buffer::{Read, Write},
        Driver, FREE,
    },
};

const RAM: Bytes = Bytes::mib(2);
const RX: usize = 0;
const TX: usize = 1;
const HEADER: usize = 12;
const LEN: u32 = 2048;
const BUFFERS: u64 = 60;

const CSUM: u64 = 1;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const HOST_TSO4: u64 = 1 << 11;
const MERGEABLE: u64 = 1 << 15;

const A: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 0xa]);
const B: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 0xb]);

/// Bytes of TCP that leave in one packet, and those in each that a guest without TSO gets.
const DATA: usize = 20_000;
const SEGMENT: usize = 1448;

fn name(text: &str) -> TapName {
    text.parse().unwrap()
}

/// A guest whose tap is in the bridge.
fn guest(tap: &str, mac: MacAddress, features: u64) -> Driver {
    let taps = Tap::open(&name(tap), 1).unwrap();
    let offloads = taps[0].probe_offloads().unwrap();
    let ports = taps.into_iter().map(|tap| Box::new(tap) as Box<dyn NetPort>).collect();
    let config = NetConfig {
        name: tap.into(),
        mac,
        mtu: None,
        ports,
        offloads,
        metrics: Arc::default(),
        throttle: Arc::default(),
        events: Arc::new(Events::default()),
    };
    let mut driver = Driver::new(VirtioNet::new(config).unwrap(), RAM);
    let interface = Interface::find(name(tap)).unwrap();
    interface.join_bridge(&name("br0")).unwrap();
    interface.set_up(true).unwrap();
    driver.start(VERSION_1 | features, 3);
    for n in 0..BUFFERS {
        driver.offer(RX, &[Write(FREE + n * u64::from(LEN), LEN)]);
    }
    driver.kick(RX);
    driver
}

/// The next packet from `from`, whose buffers are used in order from the `at`th on. The host's own chatter is passed over.
fn next_from(driver: &mut Driver, from: MacAddress, at: &mut u64) -> Vec<u8> {
    loop {
        let mut packet = Vec::new();
        let mut wanted = 1;
        while wanted > 0 {
            let (_, written) = driver.wait(RX);
            let bytes = driver.read(FREE + *at * u64::from(LEN), written as usize);
            if packet.is_empty() {
                wanted = u16::from_le_bytes([bytes[10], bytes[11]]);
            }
            packet.extend(bytes);
            *at += 1;
            wanted -= 1;
        }
        if packet[HEADER + 6..HEADER + 12] == from.0 {
            return packet;
        }
    }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))).sum()
}

fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// TCP data for B that is to be cut into segments and summed up by whoever can, with the header that says so.
fn large_packet() -> Vec<u8> {
    let mut packet = Vec::new();
    // NEEDS_CSUM, TCPV4, length of all headers, segment size, where TCP begins, where its checksum is.
    packet.extend([1, 1]);
    for field in [54, SEGMENT as u16, 34, 16, 0] {
        packet.extend(field.to_le_bytes());
    }
    packet.extend(B.0);
    packet.extend(A.0);
    packet.extend([0x08, 0x00]);
    let mut ip = vec![0x45, 0];
    ip.extend(((20 + 20 + DATA) as u16).to_be_bytes());
    ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let checksum = !folded(sum(&ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    // What the checksum starts from: addresses, protocol and length.
    let pseudo = folded(sum(&ip[12..20]) + 6 + (20 + DATA) as u32);
    packet.extend(&ip);
    packet.extend([0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff]);
    packet.extend(pseudo.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend((0..DATA).map(|n| (n % 251) as u8));
    packet
}

fn send(driver: &mut Driver, packet: &[u8]) {
    let at = FREE + 0x4_0000;
    driver.write(at, packet);
    driver.send(TX, &[Read(at, 20), Read(at + 20, packet.len() as u32 - 20)]);
    driver.wait(TX);
}

fn bridge() {
    Interface::create_bridge(name("br0")).unwrap().set_up(true).unwrap();
}

#[test]
fn a_guest_that_takes_segments_uncut_gets_them_in_one_packet() {
    if !network_namespace() {
        return;
    }
    bridge();
    let mut a = guest("ta", A, CSUM | HOST_TSO4);
    let mut b = guest("tb", B, MERGEABLE | GUEST_CSUM | GUEST_TSO4);
    let packet = large_packet();
    send(&mut a, &packet);
    let got = next_from(&mut b, A, &mut 0);
    assert_eq!(got[..2], [1, 1], "a checksum to compute, TCP over IPv4 to cut");
    assert_eq!(got[HEADER..], packet[HEADER..]);
}

#[test]
fn a_guest_that_takes_none_gets_segments_with_checksums() {
    if !network_namespace() {
        return;
    }
    bridge();
    let mut a = guest("ta", A, CSUM | HOST_TSO4);
    let mut b = guest("tb", B, 0);
    let packet = large_packet();
    send(&mut a, &packet);
    let mut data = Vec::<u8>::new();
    let mut at = 0;
    while data.len() < DATA {
        let got = next_from(&mut b, A, &mut at);
        assert_eq!(got[..2], [0, 0], "nothing is left to do");
        let (ip, tcp) = (&got[HEADER + 14..HEADER + 34], &got[HEADER + 34..]);
        assert!(tcp.len() <= 20 + SEGMENT);
        assert_eq!(folded(sum(ip)), 0xffff, "IP's checksum");
        assert_eq!(folded(sum(&ip[12..20]) + 6 + tcp.len() as u32 + sum(tcp)), 0xffff, "TCP's checksum");
        data.extend(&tcp[20..]);
    }
    assert_eq!(data[..], packet[HEADER + 54..]);
}

#[test]
fn the_host_hears_of_a_packet_that_it_cannot_take() {
    if !network_namespace() {
        return;
    }
    bridge();
    let mut a = guest("ta", A, CSUM);
    let mut b = guest("tb", B, 0);
    // A checksum beyond the end of the packet: the kernel refuses, and the next one passes.
    let mut bad = vec![1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];
    bad.extend([0; 60]);
    send(&mut a, &bad);
    let mut good = vec![0; HEADER];
    good.extend(B.0);
    good.extend(A.0);
    good.extend([0x08, 0x06]);
    good.extend([0x77; 46]);
    send(&mut a, &good);
    assert_eq!(next_from(&mut b, A, &mut 0)[HEADER..], good[HEADER..]);
}
