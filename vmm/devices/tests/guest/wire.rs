//! The other end of an interface under test: a queue of packets that is no tap, so that no rights are needed.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixDatagram,
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use drover_devices::{MacAddress, NetConfig, NetMetrics, NetPort, Throttle, VirtioNet};
use drover_tap::Offloads;

use super::Events;

pub(crate) const MAC: MacAddress = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
pub(crate) const HEADER: usize = 12;

/// What the host's network sees of one queue.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    far: Arc<UnixDatagram>,
    near: Arc<UnixDatagram>,
    pub(crate) attached: Arc<AtomicBool>,
    pub(crate) offloads: Arc<Mutex<Offloads>>,
}

#[derive(Debug)]
struct Port {
    wire: Wire,
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.near.as_fd()
    }
}

impl NetPort for Port {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        *self.wire.offloads.lock().unwrap() = offloads;
        Ok(())
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        let was = self.wire.attached.swap(attached, Ordering::Relaxed);
        if was == attached { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
    }
}

impl Wire {
    fn new() -> (Self, Box<dyn NetPort>) {
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let (attached, offloads) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let wire = Self { far: Arc::new(far), near: Arc::new(near), attached, offloads };
        (wire.clone(), Box::new(Port { wire }))
    }

    /// Puts a packet with an empty header on the wire to the driver.
    pub(crate) fn put(&self, frame: &[u8]) {
        let mut packet = vec![0; HEADER];
        packet.extend(frame);
        assert_eq!(self.far.send(&packet).unwrap(), packet.len());
    }

    /// The next packet from the driver, with its header.
    pub(crate) fn take(&self) -> Vec<u8> {
        let mut packet = vec![0; 1 << 17];
        let len = self.far.recv(&mut packet).expect("a packet within the deadline");
        packet.truncate(len);
        packet
    }

    /// Sends these bytes, header and all, to the driver; without an allocation.
    pub(crate) fn put_packet(&self, packet: &[u8]) {
        assert_eq!(self.far.send(packet).unwrap(), packet.len());
    }

    /// The next packet from the driver, header and all, into these bytes; without an allocation.
    pub(crate) fn take_into(&self, packet: &mut [u8]) -> usize {
        self.far.recv(packet).expect("a packet within the deadline")
    }

    /// From now on, whoever reads from the device's end while nothing is there waits, or does not.
    pub(crate) fn set_waits(&self, waits: bool) {
        self.near.set_nonblocking(!waits).unwrap();
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Relaxed)
    }
}

/// A frame to an address, of this length.
pub(crate) fn frame(to: MacAddress, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
    frame[..6].copy_from_slice(&to.0);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame
}

pub(crate) fn interface(pairs: usize) -> (VirtioNet, Vec<Wire>) {
    instrumented(pairs, Arc::default(), Arc::default())
}

pub(crate) fn instrumented(
    pairs: usize,
    metrics: Arc<NetMetrics>,
    throttle: Arc<Throttle>,
) -> (VirtioNet, Vec<Wire>) {
    let (wires, ports) = (0..pairs).map(|_| Wire::new()).unzip();
    let config = NetConfig {
        name: "net0".into(),
        mac: MAC,
        mtu: Some(1500),
        ports,
        offloads: Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true },
        metrics,
        throttle,
        events: Arc::new(Events::default()),
    };
    (VirtioNet::new(config).unwrap(), wires)
}
