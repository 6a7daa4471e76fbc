//! Sockets to the host (virtio 1.2, section 5.10), as many as a test needs: one connection to a port of the host, on which
//! the probe greets, and any that come from there. Whatever is said on one is said back.

use drover_probe_record::MmioDevice;

use crate::ram::Ram;
use crate::virtio::single::{Page, SingleQueue};
use crate::virtio::transport::Transport;

const DEVICE_TYPE: u32 = 19;
const HOST: u64 = 2;
const HEADER: usize = 44;
const STREAM: u16 = 1;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RESET: u16 = 3;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
/// What the host may send before it hears of room.
const ROOM: u32 = 64 << 10;
const BUFFERS: u16 = 4;
const OUR_PORT: u32 = 1024;
const GREETING: &[u8] = b"hello";
const LOOK_US: u64 = 10_000;
/// After a refusal, before the next attempt.
const RETRY_US: u64 = 50_000;
const CONNECTIONS_MAX: usize = 8;

/// One of them: the ports, and what has been taken of its data.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Connection {
    ours: u32,
    hosts: u32,
    taken: u32,
}

/// The driver.
pub(crate) struct Sockets {
    transport: Transport,
    receive: SingleQueue,
    send: SingleQueue,
    events: SingleQueue,
    /// For what comes, for what goes, and for what happens.
    pages: &'static mut [Page],
    connections: [Option<Connection>; CONNECTIONS_MAX],
    cid: u64,
    port: u32,
    /// A request or more is on its way to the host's port.
    asked: bool,
    retry_us: u64,
    sending: bool,
    next_us: u64,
}

impl Sockets {
    /// Starts the device. `port` is the host's that is connected to.
    ///
    /// # Errors
    /// Why there will be no sockets.
    pub(crate) fn start(places: &[MmioDevice], port: u64, ram: &mut Ram) -> Result<Self, &'static str> {
        let transport =
            Transport::find(places, DEVICE_TYPE).ok_or("no sockets are announced on the command line")?;
        transport.negotiate(0)?;
        let cid = transport.config(0);
        let mut queue = |number| SingleQueue::set_up(&transport, number, ram);
        let (receive, send, events) = (queue(0)?, queue(1)?, queue(2)?);
        // SAFETY: a page is any 4096 bytes.
        let pages = unsafe { ram.take::<Page>(usize::from(BUFFERS) + 2) };
        let pages = pages.map_err(|_| "there is too little RAM for its buffers")?;
        let mut sockets = Sockets {
            transport,
            receive,
            send,
            events,
            pages,
            connections: [None; CONNECTIONS_MAX],
            cid,
            port: port as u32,
            asked: false,
            retry_us: 0,
            sending: false,
            next_us: 0,
        };
        sockets.transport.start();
        for slot in 0..BUFFERS {
            sockets.listen(slot);
        }
        sockets.expect_event();
        Ok(sockets)
    }

    /// Connects, answers and says back.
    pub(crate) fn poll(&mut self, now_us: u64) {
        if now_us < self.next_us {
            return;
        }
        self.next_us = now_us + LOOK_US;
        if self.events.take_used().is_some() {
            // The machine has moved: no connection has come with it (section 5.10.6.7).
            self.connections = [None; CONNECTIONS_MAX];
            self.asked = false;
            self.cid = self.transport.config(0);
            self.expect_event();
        }
        loop {
            if self.sending && self.send.take_used().is_none() {
                return;
            }
            self.sending = false;
            if let Some((slot, length)) = self.receive.take_used() {
                self.hear(slot, length as usize, now_us);
                self.listen(slot);
            } else if !self.asked && now_us >= self.retry_us {
                self.asked = true;
                let ours = Connection { ours: OUR_PORT, hosts: self.port, taken: 0 };
                self.say(ours, REQUEST, 0);
            } else {
                return;
            }
        }
    }

    /// When to poll next.
    pub(crate) fn wake_us(&self) -> u64 {
        self.next_us
    }

    fn hear(&mut self, slot: u16, length: usize, now_us: u64) {
        let (incoming, outgoing) = self.pages.split_at_mut(usize::from(BUFFERS));
        let packet = &incoming[usize::from(slot)].0;
        let word =
            |at: usize| u32::from_le_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
        let (hosts, ours, said) =
            (word(16), word(20), (word(24) as usize).min(length.saturating_sub(HEADER)));
        let operation = u16::from_le_bytes([packet[30], packet[31]]);
        let known = self.connections.iter_mut().flatten().find(|one| (one.ours, one.hosts) == (ours, hosts));
        match (operation, known) {
            (DATA, Some(connection)) => {
                connection.taken = connection.taken.wrapping_add(said as u32);
                let connection = *connection;
                outgoing[0].0[HEADER..HEADER + said].copy_from_slice(&packet[HEADER..HEADER + said]);
                self.say(connection, DATA, said);
            }
            (REQUEST, None) => {
                let connection = Connection { ours, hosts, taken: 0 };
                let room = self.connections.iter_mut().find(|place| place.is_none());
                let answer =
                    if room.map(|place| *place = Some(connection)).is_some() { RESPONSE } else { RESET };
                self.say(connection, answer, 0);
            }
            (RESPONSE, None) if (ours, hosts) == (OUR_PORT, self.port) => {
                let connection = Connection { ours, hosts, taken: 0 };
                if let Some(place) = self.connections.iter_mut().find(|place| place.is_none()) {
                    *place = Some(connection);
                }
                outgoing[0].0[HEADER..HEADER + GREETING.len()].copy_from_slice(GREETING);
                self.say(connection, DATA, GREETING.len());
            }
            (RESET | SHUTDOWN, known) => {
                let connection = known.copied();
                self.connections.iter_mut().filter(|one| **one == connection).for_each(|one| *one = None);
                if (ours, hosts) == (OUR_PORT, self.port) {
                    self.asked = false;
                    self.retry_us = now_us + RETRY_US;
                }
                if operation == SHUTDOWN {
                    self.say(Connection { ours, hosts, taken: 0 }, RESET, 0);
                }
            }
            _ => {}
        }
    }

    /// Says something, with so much data that stands behind the header's place already.
    fn say(&mut self, connection: Connection, operation: u16, length: usize) {
        let page = &mut self.pages[usize::from(BUFFERS)].0;
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            page[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&self.cid.to_le_bytes());
        put(&HOST.to_le_bytes());
        put(&connection.ours.to_le_bytes());
        put(&connection.hosts.to_le_bytes());
        put(&(length as u32).to_le_bytes());
        put(&STREAM.to_le_bytes());
        put(&operation.to_le_bytes());
        put(&0_u32.to_le_bytes());
        put(&ROOM.to_le_bytes());
        put(&connection.taken.to_le_bytes());
        let packet = (page.as_ptr() as u64, (HEADER + length) as u32);
        self.send.publish(&self.transport, 0, packet, false);
        self.sending = true;
    }

    fn listen(&mut self, slot: u16) {
        let page = &self.pages[usize::from(slot)];
        self.receive.publish(&self.transport, slot, (page.0.as_ptr() as u64, page.0.len() as u32), true);
    }

    fn expect_event(&mut self) {
        let page = &self.pages[usize::from(BUFFERS) + 1];
        self.events.publish(&self.transport, 0, (page.0.as_ptr() as u64, 4), true);
    }
}
