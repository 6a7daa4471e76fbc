//! A socket device as its driver, its machine and processes on the host see it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod guest;

use std::{
    io::{BufRead, BufReader, Read as _, Write as _},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use drover_devices::{VirtioVsock, VsockConfig};
use drover_units::Bytes;
use guest::{
    Events, SOON, VERSION_1,
    driver::{
        Buffer::{Read, Write},
        Driver, FREE,
    },
};

const CID: u64 = 42;
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

const LIMIT: Duration = Duration::from_secs(30);
/// Where packets to the device are put, and where those from it arrive.
const OUT: u64 = FREE;
const IN: u64 = FREE + 0x10_0000;
const IN_LEN: u32 = 4096;

struct Guest {
    driver: Driver,
    path: PathBuf,
    _dir: tempfile::TempDir,
    /// What the driver says of its own buffer.
    buffer: u32,
    taken: u32,
    slots: u64,
}

/// A packet from the device.
#[derive(Debug)]
struct Packet {
    operation: u16,
    host: u32,
    guest: u32,
    flags: u32,
    buffer: u32,
    forwarded: u32,
    data: Vec<u8>,
}

fn device(path: &PathBuf) -> VirtioVsock {
    let _ = std::fs::remove_file(path);
    VirtioVsock::new(VsockConfig {
        name: "vsock".into(),
        cid: CID,
        listener: UnixListener::bind(path).unwrap(),
        path: path.clone(),
        events: Arc::<Events>::default(),
    })
    .unwrap()
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.vsock");
        let mut driver = Driver::new(device(&path), Bytes::mib(4));
        driver.start(VERSION_1, 3);
        let mut guest = Self { driver, path, _dir: dir, buffer: 1 << 16, taken: 0, slots: 0 };
        guest.give_room(8);
        guest
    }

    fn give_room(&mut self, buffers: u64) {
        for _ in 0..buffers {
            let at = IN + 0x1_0000 * (self.slots % 16);
            self.slots += 1;
            self.driver.send(RX, &[Write(at, IN_LEN)]);
        }
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(format!("{}_{port}", self.path.display())).unwrap()
    }

    fn connect(&self, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        stream
    }

    fn header(&self, operation: u16, host: u32, guest: u32, len: u32, flags: u32) -> Vec<u8> {
        let mut header = Vec::new();
        header.extend(CID.to_le_bytes());
        header.extend(2_u64.to_le_bytes());
        header.extend(guest.to_le_bytes());
        header.extend(host.to_le_bytes());
        header.extend(len.to_le_bytes());
        header.extend(1_u16.to_le_bytes());
        header.extend(operation.to_le_bytes());
        header.extend(flags.to_le_bytes());
        header.extend(self.buffer.to_le_bytes());
        header.extend(self.taken.to_le_bytes());
        header
    }

    fn send_flagged(&mut self, operation: u16, host: u32, guest: u32, flags: u32) {
        let header = self.header(operation, host, guest, 0, flags);
        self.driver.write(OUT, &header);
        self.driver.send(TX, &[Read(OUT, 44)]);
        self.driver.wait(TX);
    }

    fn send(&mut self, operation: u16, host: u32, guest: u32) {
        self.send_flagged(operation, host, guest, 0);
    }

    fn send_data(&mut self, host: u32, guest: u32, data: &[u8]) {
        let header = self.header(RW, host, guest, data.len() as u32, 0);
        self.driver.write(OUT, &header);
        self.driver.write(OUT + 0x100, data);
        self.driver.send(TX, &[Read(OUT, 44), Read(OUT + 0x100, data.len() as u32)]);
        self.driver.wait(TX);
    }

    /// The next packet from the device; its buffer is given back.
    fn receive(&mut self) -> Packet {
        let (head, len) = self.driver.wait(RX);
        let raw = self.driver.read(0x1000 + 16 * u64::from(head), 8);
        let at = u64::from_le_bytes(raw.try_into().unwrap());
        let bytes = self.driver.read(at, len as usize);
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes[..16], [2, 0, 0, 0, 0, 0, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0]);
        let packet = Packet {
            host: u32_at(16),
            guest: u32_at(20),
            operation: u16::from_le_bytes([bytes[30], bytes[31]]),
            flags: u32_at(32),
            buffer: u32_at(36),
            forwarded: u32_at(40),
            data: bytes[44..].to_vec(),
        };
        assert_eq!(u32_at(24) as usize, packet.data.len());
        self.driver.send(RX, &[Write(at, IN_LEN)]);
        packet
    }

    fn expect(&mut self, operation: u16) -> Packet {
        let packet = self.receive();
        assert_eq!(packet.operation, operation, "{packet:?}");
        packet
    }

    /// A process on the host connects to the guest's port, and the guest takes it.
    fn connected_from_host(&mut self, port: u32) -> (UnixStream, u32) {
        let stream = self.connect(port);
        let request = self.expect(REQUEST);
        assert_eq!(request.guest, port);
        self.send(RESPONSE, request.host, port);
        let mut line = String::new();
        BufReader::with_capacity(1, &stream).read_line(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", request.host));
        (stream, request.host)
    }
}

#[test]
fn the_guest_reads_its_cid() {
    let guest = Guest::new();
    assert_eq!((guest.driver.register(8), guest.driver.config(0), guest.driver.config(4)), (19, 42, 0));
}

#[test]
fn a_process_on_the_host_talks_to_the_guest() {
    let mut guest = Guest::new();
    let (mut stream, host) = guest.connected_from_host(22);
    stream.write_all(b"hello").unwrap();
    let packet = guest.expect(RW);
    assert_eq!((packet.host, packet.guest, packet.data.as_slice()), (host, 22, &b"hello"[..]));
    guest.send_data(host, 22, b"and back");
    let mut back = [0; 8];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"and back");
    // The host ends: the guest is told, and that is all there is.
    drop(stream);
    assert_eq!(guest.expect(SHUTDOWN).flags, 3);
    guest.send_data(host, 22, b"too late");
    assert_eq!(guest.expect(RST).host, host);
}

#[test]
fn the_guest_talks_to_a_process_on_the_host() {
    let mut guest = Guest::new();
    let listener = guest.listen(1024);
    guest.send(REQUEST, 1024, 5000);
    let response = guest.expect(RESPONSE);
    assert_eq!((response.host, response.guest, response.buffer), (1024, 5000, 64 << 10));
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    guest.send_data(1024, 5000, b"ping");
    let mut ping = [0; 4];
    stream.read_exact(&mut ping).unwrap();
    assert_eq!(&ping, b"ping");
    stream.write_all(b"pong").unwrap();
    assert_eq!(guest.expect(RW).data, b"pong");
    // The guest sends no more and still hears; then it ends.
    guest.send_flagged(SHUTDOWN, 1024, 5000, 2);
    assert_eq!(stream.read(&mut ping).unwrap(), 0);
    stream.write_all(b"last").unwrap();
    assert_eq!(guest.expect(RW).data, b"last");
    guest.send_flagged(SHUTDOWN, 1024, 5000, 1);
    assert_eq!(guest.expect(RST).guest, 5000);
}

#[test]
fn a_port_where_nobody_listens_is_reset() {
    let mut guest = Guest::new();
    guest.send(REQUEST, 1024, 5000);
    assert_eq!(guest.expect(RST).guest, 5000);
    // And one of the guest's: the process on the host hears the end.
    let mut stream = guest.connect(80);
    let request = guest.expect(REQUEST);
    guest.send(RST, request.host, 80);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_host_that_half_closes_still_reads() {
    let mut guest = Guest::new();
    let (mut stream, host) = guest.connected_from_host(22);
    stream.write_all(b"request").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(RW).data, b"request");
    assert_eq!(guest.expect(SHUTDOWN).flags, 2);
    guest.send_data(host, 22, b"answer");
    guest.send_flagged(SHUTDOWN, host, 22, 3);
    guest.expect(RST);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
}

#[test]
fn the_guests_buffer_is_never_overrun() {
    let mut guest = Guest::new();
    guest.buffer = 1000;
    let (mut stream, host) = guest.connected_from_host(22);
    stream.set_nonblocking(true).unwrap();
    let sent: Vec<u8> = (0..50_000_u32).map(|n| n as u8).collect();
    let mut offset = 0;
    let mut received = Vec::new();
    while received.len() < sent.len() {
        if let Ok(count) = stream.write(&sent[offset..]) {
            offset += count;
        }
        let packet = guest.expect(RW);
        received.extend(packet.data);
        assert!(received.len() as u32 - guest.taken <= 1000, "more than there is room for");
        if received.len() as u32 - guest.taken == 1000 {
            guest.taken = received.len() as u32;
            guest.send(CREDIT_UPDATE, host, 22);
        }
    }
    assert_eq!(received, sent);
}

#[test]
fn a_reader_that_stops_holds_the_guest_and_a_guest_that_ignores_that_is_reset() {
    let mut guest = Guest::new();
    let (mut stream, host) = guest.connected_from_host(22);
    let piece = vec![7; 32 << 10];
    let mut sent = 0_u32;
    let mut forwarded = 0_u32;
    // As much as the socket takes, and then a buffer's worth.
    while sent.wrapping_sub(forwarded) < 64 << 10 {
        guest.send_data(host, 22, &piece);
        sent += piece.len() as u32;
        guest.send(CREDIT_REQUEST, host, 22);
        loop {
            let update = guest.expect(CREDIT_UPDATE);
            forwarded = update.forwarded;
            if guest.driver.answered(RX) == 0 {
                break;
            }
        }
    }
    // The reader goes on: the guest hears of the room by itself.
    let mut taken = vec![0; sent as usize];
    stream.read_exact(&mut taken).unwrap();
    while forwarded != sent {
        forwarded = guest.expect(CREDIT_UPDATE).forwarded;
        if sent - forwarded < 32 << 10 {
            break;
        }
    }
    // Against the rules: more than the credit.
    for _ in 0..200 {
        guest.send_data(host, 22, &piece);
        if guest.driver.answered(RX) > 0 && guest.receive().operation == RST {
            return;
        }
    }
    panic!("a guest that sends without credit is reset");
}

#[test]
fn many_connections_keep_their_data_apart() {
    let mut guest = Guest::new();
    let mut streams: Vec<_> = (0..100).map(|port| (port, guest.connected_from_host(port))).collect();
    for (port, (stream, _)) in &mut streams {
        stream.write_all(&port.to_le_bytes()).unwrap();
    }
    for _ in 0..streams.len() {
        let packet = guest.expect(RW);
        assert_eq!(packet.data, packet.guest.to_le_bytes());
    }
    for (port, (_, host)) in &streams {
        guest.send_data(*host, *port, &port.to_le_bytes());
    }
    for (port, (stream, _)) in &mut streams {
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, port.to_le_bytes());
    }
}

#[test]
fn nonsense_is_answered_with_resets_and_the_device_goes_on() {
    let mut guest = Guest::new();
    let (mut stream, host) = guest.connected_from_host(22);
    for operation in [RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 99] {
        guest.send(operation, 7, 7);
        let reset = guest.expect(RST);
        assert_eq!((reset.host, reset.guest), (7, 7), "operation {operation}");
    }
    // A reset is never answered, and neither is what is not from this guest.
    guest.send(RST, 7, 7);
    let mut foreign = guest.header(RW, host, 22, 0, 0);
    foreign[0] = 43;
    guest.driver.write(OUT, &foreign);
    guest.driver.send(TX, &[Read(OUT, 44)]);
    guest.driver.wait(TX);
    stream.write_all(b"still here").unwrap();
    assert_eq!(guest.expect(RW).data, b"still here");
    // An answer to a connection that is open already ends it.
    guest.send(RESPONSE, host, 22);
    assert_eq!(guest.expect(RST).host, host);
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
}

#[test]
fn a_process_that_does_not_say_where_to_is_closed() {
    let guest = Guest::new();
    for words in ["CONNECT x\n", "GET / HTTP/1.1\n", "CONNECT 4294967296\n", &"9".repeat(64)] {
        let mut stream = UnixStream::connect(&guest.path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(words.as_bytes()).unwrap();
        // Closed with what it had not read: an end or a reset, as the kernel has it.
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "{words}");
    }
    // Of many that say nothing, the oldest make room.
    let mut silent: Vec<_> = (0..80).map(|_| UnixStream::connect(&guest.path).unwrap()).collect();
    silent[0].set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(silent[0].read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_and_starts_again() {
    let mut guest = Guest::new();
    let short = guest.header(RW, 1, 1, 0, 0);
    let mut long = guest.header(RW, 1, 1, 100, 0);
    let mut huge = guest.header(RW, 1, 1, 1 << 20, 0);
    for (bytes, len) in [(short, 43), (std::mem::take(&mut long), 44), (std::mem::take(&mut huge), 44)] {
        guest.driver.write(OUT, &bytes);
        guest.driver.send(TX, &[Read(OUT, len)]);
        guest.driver.wait_for_needs_reset();
        guest.driver.start(VERSION_1, 3);
    }
    // A buffer too small for a header.
    guest.driver.send(RX, &[Write(IN, 43)]);
    guest.send(RW, 7, 7);
    guest.driver.wait_for_needs_reset();
    guest.driver.start(VERSION_1, 3);
    guest.give_room(4);
    guest.send(REQUEST, 1024, 5000);
    guest.expect(RST);
}

#[test]
fn resets_wait_for_room_and_the_guest_waits_with_them() {
    let mut guest = Guest::new();
    guest.driver.start(VERSION_1, 3);
    // No room at all: so many packets for nobody are taken, and then no more.
    let header = guest.header(RW, 7, 7, 0, 0);
    guest.driver.write(OUT, &header);
    let mut sent = 0;
    for _ in 0..300 {
        guest.driver.send(TX, &[Read(OUT, 44)]);
        sent += 1;
        if sent <= 256 {
            guest.driver.wait(TX);
        } else if sent - 256 == 40 {
            break;
        }
    }
    guest.give_room(8);
    for _ in 0..sent {
        guest.expect(RST);
    }
}

#[test]
fn connections_outlast_a_pause_and_end_with_a_move() {
    let mut guest = Guest::new();
    let (mut stream, host) = guest.connected_from_host(22);
    guest.driver.device.pause(SOON).unwrap();
    stream.write_all(b"meanwhile").unwrap();
    guest.driver.device.resume().unwrap();
    assert_eq!(guest.expect(RW).data, b"meanwhile");

    guest.driver.send(EVENT, &[Write(FREE + 0x8000, 4)]);
    guest.driver.device.pause(SOON).unwrap();
    guest.driver.write(FREE + 0x8000, &[0xff; 4]);
    assert_eq!(guest.driver.answered(EVENT), 0);
    let target = guest.driver.moved(device(&guest.path));
    guest.driver = target;
    guest.driver.device.resume().unwrap();
    assert_eq!(guest.driver.wait(EVENT).1, 4);
    assert_eq!(guest.driver.read(FREE + 0x8000, 4), [0; 4], "the transport has been reset");
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "and the host's side is closed");
    guest.send_data(host, 22, b"gone");
    assert_eq!(guest.expect(RST).host, host);
    guest.connected_from_host(23);
}
