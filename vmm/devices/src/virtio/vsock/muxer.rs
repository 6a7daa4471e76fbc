//! All connections of a guest: what each waits for, and what it has to say to the guest next.
//!
//! Sockets are watched for edges: a connection remembers that it can be read, or written, until the socket says
//! otherwise. So a guest without room, or a thread that is paused, costs nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
};

use vmm_sys_util::epoll::EventSet;

use super::{
    connection::{BUFFER_BYTES, Flow},
    request::{
        Credit, HANDSHAKE_BYTES_MAX, Operation, Packet, Ports, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, handshake,
    },
};
use crate::virtio::service::Sources;

/// Most connections at once, both ways: with their buffers 64 MiB, where every reader on the host has stopped.
pub(super) const CONNECTIONS_MAX: usize = 1024;
/// Most processes on the host that have connected and not said where to.
const HANDSHAKES_MAX: usize = 64;
/// Most resets for packets of connections that are not there that wait for room in the guest's queue.
pub(super) const RESETS_MAX: usize = 256;
/// New connections taken from the listener in one go.
const ACCEPTS_MAX: usize = 16;
/// Ports of the host's side that mean a process which connected first; a guest's own programs use low ones.
const HOST_PORTS: u32 = 1 << 30;

/// The listener's number among the sources; connections and handshakes are numbered from the next.
pub(super) const LISTENER: u64 = 0;

/// A guest's connections. Numbers name sources: one for each socket, never used twice at a time.
#[derive(Debug)]
pub(super) struct Muxer {
    pub(super) cid: u64,
    listener: UnixListener,
    path: PathBuf,
    connections: BTreeMap<u32, Connection>,
    by_ports: BTreeMap<Ports, u32>,
    handshakes: BTreeMap<u32, Handshake>,
    /// Connections that may have something for the guest; each is there once.
    ready: VecDeque<u32>,
    resets: VecDeque<Ports>,
    last_number: u32,
    last_port: u32,
}

#[derive(Debug)]
struct Handshake {
    stream: UnixStream,
    line: Vec<u8>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    ports: Ports,
    flow: Flow,
    /// The guest's data that the host's reader has not taken.
    backlog: VecDeque<u8>,
    phase: Phase,
    readable: bool,
    /// What the guest will no longer do: flags of its shutdown.
    guest_done: u32,
    /// It is in the line of those that are ready.
    queued: bool,
    /// What it has to say apart from data.
    say: Say,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A process on the host waits for the guest's answer.
    Asked,
    Open,
    /// The host's side sends nothing more, and the guest knows.
    HostSilent,
}

#[derive(Clone, Copy, Debug, Default)]
struct Say {
    request: bool,
    response: bool,
    reset: bool,
    credit: bool,
}

/// What a connection has for the guest.
pub(super) enum Next {
    /// This packet, with the first bytes of the scratch buffer where it has data.
    Packet(Packet),
    /// Nothing at the moment.
    Nothing,
}

impl Muxer {
    pub(super) fn new(cid: u64, listener: UnixListener, path: PathBuf) -> Self {
        Self {
            cid,
            listener,
            path,
            connections: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            last_number: 0,
            last_port: HOST_PORTS,
        }
    }

    pub(super) fn listen(&self, sources: &Sources) -> io::Result<()> {
        sources.add(LISTENER, self.listener.as_raw_fd(), EventSet::IN)
    }

    /// Whether another packet of the guest may be looked at: each may need a reset.
    pub(super) fn has_room(&self) -> bool {
        self.resets.len() < RESETS_MAX
    }

    /// Whether there may be something for the guest.
    pub(super) fn has_something(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// What to tell the guest next. `room` is for data, which goes to the front of `scratch`.
    pub(super) fn next(&mut self, room: usize, scratch: &mut [u8]) -> Next {
        if let Some(ports) = self.resets.pop_front() {
            let packet = Packet { ports, operation: Operation::Reset, credit: Credit::default() };
            return Next::Packet(packet);
        }
        let Some(number) = self.ready.pop_front() else { return Next::Nothing };
        let Some(connection) = self.connections.get_mut(&number) else { return Next::Nothing };
        connection.queued = false;
        let operation = connection.next(room, scratch);
        let ports = connection.ports;
        let Some(operation) = operation else { return Next::Nothing };
        let credit = connection.flow.tell();
        match operation {
            Operation::Reset => self.remove(number),
            Operation::Shutdown(flags) if flags == SHUTDOWN_RECEIVE | SHUTDOWN_SEND => self.remove(number),
            _ => self.queue(number),
        }
        Next::Packet(Packet { ports, operation, credit })
    }

    /// The guest's packet; `data` is what it carries.
    pub(super) fn hear(&mut self, packet: Packet, data: &[u8], sources: &Sources) {
        let Packet { ports, operation, credit } = packet;
        let Some(number) = self.by_ports.get(&ports).copied() else {
            match operation {
                Operation::Request => self.open(ports, credit, sources),
                Operation::Reset => {}
                _ => self.reset(ports),
            }
            return;
        };
        let connection = self.connections.get_mut(&number).expect("ports name a connection that is there");
        connection.flow.hear(credit);
        let fine = match operation {
            Operation::Response => connection.answered(),
            Operation::Data(_) => connection.data(data),
            Operation::Shutdown(flags) => connection.shut(flags),
            Operation::CreditUpdate => true,
            Operation::CreditRequest => {
                connection.say.credit = true;
                true
            }
            Operation::Request => false,
            Operation::Reset => return self.remove(number),
        };
        connection.say.reset |= !fine;
        self.queue(number);
    }

    /// Answers what is for nobody.
    pub(super) fn reset(&mut self, ports: Ports) {
        debug_assert!(self.has_room(), "asked before a packet is looked at");
        self.resets.push_back(ports);
    }

    /// A socket has something.
    pub(super) fn on_socket(&mut self, number: u32, events: EventSet) {
        if self.handshakes.contains_key(&number) {
            return self.listen_to(number);
        }
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            connection.readable = true;
        }
        if events.contains(EventSet::OUT) && !connection.drain() {
            connection.say.reset = true;
        }
        self.queue(number);
    }

    /// Takes processes that have connected.
    pub(super) fn accept(&mut self, sources: &Sources) {
        for _ in 0..ACCEPTS_MAX {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return tracing::warn!(%error, "cannot take a connection for the guest"),
            };
            // One that does not say where to makes room for one that may.
            if self.handshakes.len() >= HANDSHAKES_MAX {
                self.handshakes.pop_first();
            }
            let number = self.number();
            let watched = stream
                .set_nonblocking(true)
                .and_then(|()| sources.add(number.into(), stream.as_raw_fd(), watch()));
            match watched {
                Ok(()) => _ = self.handshakes.insert(number, Handshake { stream, line: Vec::new() }),
                Err(error) => tracing::warn!(%error, "cannot watch a connection for the guest"),
            }
        }
    }

    /// Reads what a process on the host says, and asks the guest once it has said it.
    fn listen_to(&mut self, number: u32) {
        let Some(handshake) = self.handshakes.get_mut(&number) else { return };
        let port = match handshake.read() {
            Ok(None) => return,
            Ok(Some(port)) => port,
            // Says nothing that is understood: it is closed without an answer.
            Err(_) => {
                self.handshakes.remove(&number);
                return;
            }
        };
        let Some(Handshake { stream, .. }) = self.handshakes.remove(&number) else { return };
        if self.connections.len() >= CONNECTIONS_MAX {
            return;
        }
        let ports = Ports { host: self.free_port(port), guest: port };
        let say = Say { request: true, ..Say::default() };
        self.insert(number, Connection::new(stream, ports, Phase::Asked, say));
    }

    /// The guest asks for a process on the host.
    fn open(&mut self, ports: Ports, credit: Credit, sources: &Sources) {
        if self.connections.len() >= CONNECTIONS_MAX {
            return self.reset(ports);
        }
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", ports.host));
        let number = self.number();
        // A connection to a local socket is made or refused at once; one whose backlog is full would wait, which
        // `connect_now` does not.
        let stream = connect_now(&path.into())
            .and_then(|stream| sources.add(number.into(), stream.as_raw_fd(), watch()).map(|()| stream));
        match stream {
            Ok(stream) => {
                let say = Say { response: true, ..Say::default() };
                let mut connection = Connection::new(stream, ports, Phase::Open, say);
                connection.flow.hear(credit);
                self.insert(number, connection);
            }
            Err(error) => {
                tracing::debug!(port = ports.host, %error, "a guest asks for a port where nobody listens");
                self.reset(ports);
            }
        }
    }

    fn insert(&mut self, number: u32, connection: Connection) {
        self.by_ports.insert(connection.ports, number);
        self.connections.insert(number, connection);
        self.queue(number);
    }

    /// Closes it. Closing a socket ends its being watched.
    fn remove(&mut self, number: u32) {
        if let Some(connection) = self.connections.remove(&number) {
            self.by_ports.remove(&connection.ports);
        }
    }

    /// Puts it in line, if it may have something for the guest.
    fn queue(&mut self, number: u32) {
        if let Some(connection) = self.connections.get_mut(&number)
            && !connection.queued
            && connection.may_say()
        {
            connection.queued = true;
            self.ready.push_back(number);
        }
    }

    fn number(&mut self) -> u32 {
        loop {
            // Not the listener's.
            self.last_number = self.last_number.checked_add(1).unwrap_or(1);
            let number = self.last_number;
            if !self.connections.contains_key(&number) && !self.handshakes.contains_key(&number) {
                return number;
            }
        }
    }

    /// A port of the host's side that has no connection to this port of the guest's.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            self.last_port = self.last_port.checked_add(1).unwrap_or(HOST_PORTS);
            let host = self.last_port;
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }
}

fn watch() -> EventSet {
    EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED
}

/// Connects without waiting.
fn connect_now(path: &PathBuf) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

impl Handshake {
    /// The port, once the line is whole.
    fn read(&mut self) -> io::Result<Option<u32>> {
        // One byte at a time: what follows the line is the guest's.
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte == *b"\n" => {
                    return handshake(&self.line).map(Some).ok_or(io::ErrorKind::InvalidData.into());
                }
                Ok(_) => self.line.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if self.line.len() >= HANDSHAKE_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
}

impl Connection {
    fn new(stream: UnixStream, ports: Ports, phase: Phase, say: Say) -> Self {
        Self {
            stream,
            ports,
            flow: Flow::default(),
            backlog: VecDeque::new(),
            phase,
            // Edges that came before are not told again.
            readable: true,
            guest_done: 0,
            queued: false,
            say,
        }
    }

    fn may_say(&self) -> bool {
        let Say { request, response, reset, credit } = self.say;
        request
            || response
            || reset
            || credit
            || self.flow.is_update_due()
            || self.is_over()
            || self.may_read()
    }

    fn may_read(&self) -> bool {
        self.readable
            && self.phase == Phase::Open
            && self.guest_done & SHUTDOWN_RECEIVE == 0
            && self.flow.room_at_guest() > 0
    }

    /// The guest has done with it, and all it sent has been taken.
    fn is_over(&self) -> bool {
        self.guest_done == SHUTDOWN_RECEIVE | SHUTDOWN_SEND && self.backlog.is_empty()
    }

    /// What it has for the guest next.
    fn next(&mut self, room: usize, scratch: &mut [u8]) -> Option<Operation> {
        if self.say.reset || self.is_over() {
            return Some(Operation::Reset);
        }
        if std::mem::take(&mut self.say.request) {
            return Some(Operation::Request);
        }
        if std::mem::take(&mut self.say.response) {
            return Some(Operation::Response);
        }
        if self.may_read() && room == 0 {
            // The buffer is used up all the same: a driver whose buffers are too small keeps nobody busy for nothing.
            return Some(Operation::CreditUpdate);
        }
        if self.may_read() {
            let len = scratch.len().min(room).min(self.flow.room_at_guest() as usize);
            match self.stream.read(&mut scratch[..len]) {
                Ok(0) => {
                    self.readable = false;
                    self.phase = Phase::HostSilent;
                    return Some(Operation::Shutdown(self.silence()));
                }
                Ok(count) => {
                    let count = u32::try_from(count).expect("the scratch buffer is small");
                    self.flow.send(count);
                    self.say.credit = false;
                    return Some(Operation::Data(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Some(Operation::Reset),
            }
        }
        let credit = std::mem::take(&mut self.say.credit);
        (credit || self.flow.is_update_due()).then_some(Operation::CreditUpdate)
    }

    /// The host's process sends nothing more. Whether it still reads, only writing to it would tell: it may, until it
    /// has closed its end.
    fn silence(&self) -> u32 {
        let closed = rustix::event::poll(
            &mut [rustix::event::PollFd::new(&self.stream, rustix::event::PollFlags::empty())],
            Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }),
        )
        .is_ok_and(|ready| ready > 0);
        if closed { SHUTDOWN_RECEIVE | SHUTDOWN_SEND } else { SHUTDOWN_SEND }
    }

    /// The guest takes the connection that a process on the host wants.
    fn answered(&mut self) -> bool {
        if self.phase != Phase::Asked || self.say.request {
            return false;
        }
        self.phase = Phase::Open;
        self.readable = true;
        // A new socket has room for a line.
        let line = format!("OK {}\n", self.ports.host);
        self.stream.write_all(line.as_bytes()).is_ok()
    }

    /// The guest's data.
    fn data(&mut self, data: &[u8]) -> bool {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        if self.phase == Phase::Asked
            || self.guest_done & SHUTDOWN_SEND != 0
            || self.flow.receive(len).is_err()
        {
            return false;
        }
        let mut rest = data;
        while self.backlog.is_empty() && !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(count) => {
                    self.flow.forward(u32::try_from(count).expect("no more than was given"));
                    rest = &rest[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        debug_assert!(self.backlog.len() + rest.len() <= BUFFER_BYTES as usize, "credit bounds it");
        self.backlog.extend(rest);
        true
    }

    /// Writes what has waited, as far as it is taken.
    fn drain(&mut self) -> bool {
        while !self.backlog.is_empty() {
            let (front, _) = self.backlog.as_slices();
            match self.stream.write(front) {
                Ok(count) => {
                    self.flow.forward(u32::try_from(count).expect("no more than was given"));
                    self.backlog.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        // Gives the memory back, too: most connections never wait.
        self.backlog = VecDeque::new();
        if self.guest_done & SHUTDOWN_SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        true
    }

    /// The guest will not receive, or send, any more.
    fn shut(&mut self, flags: u32) -> bool {
        if self.phase == Phase::Asked {
            return false;
        }
        self.guest_done |= flags;
        self.drain()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A guest that asks for ports without end gets so many connections and no more.
    #[test]
    fn connections_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.vsock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let sources = Sources::new().unwrap();
        let mut muxer = Muxer::new(3, listener, path.clone());
        let server = UnixListener::bind(dir.path().join("vm.vsock_5")).unwrap();
        let mut accepted: Vec<UnixStream> = Vec::new();
        for guest in 0..CONNECTIONS_MAX as u32 + 10 {
            let packet = Packet {
                ports: Ports { guest, host: 5 },
                operation: Operation::Request,
                credit: Credit::default(),
            };
            muxer.hear(packet, &[], &sources);
            if (guest as usize) < CONNECTIONS_MAX {
                accepted.push(server.accept().unwrap().0);
            }
        }
        assert_eq!(muxer.connections(), CONNECTIONS_MAX);
        let mut resets = 0;
        let mut scratch = [0; 16];
        while muxer.has_something() {
            if let Next::Packet(Packet { operation: Operation::Reset, .. }) = muxer.next(16, &mut scratch) {
                resets += 1;
            }
        }
        assert_eq!(resets, 10);
        // One that goes makes room.
        let ports = Ports { guest: 0, host: 5 };
        muxer.hear(Packet { ports, operation: Operation::Reset, credit: Credit::default() }, &[], &sources);
        assert_eq!(muxer.connections(), CONNECTIONS_MAX - 1);
    }
}
