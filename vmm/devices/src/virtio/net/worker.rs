//! The thread of one pair of queues.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::Arc,
};

use drover_guest_memory::{GuestMemory, Received, Segment, receive, send};
use drover_rate_limit::{Cost, Direction};
use drover_tap::HEADER_LEN;
use virtio_bindings::virtio_net::{VIRTIO_NET_ERR, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_OK};
use vmm_sys_util::epoll::EventSet;

use super::{
    filter::{Filter, LOOKED_AT, MacAddress},
    metrics::add,
    offloads, request,
    shared::Shared,
};
use crate::virtio::{
    ring::{Ring, RingError},
    service::{Context, Service, Sources},
    throttle::Gate,
};

/// Longest packet with its header: what IP can say of its length, an Ethernet header, a tag.
const PACKET_MAX: usize = HEADER_LEN + 14 + 4 + 65_535;
/// Where the header says in how many buffers a packet is.
const NUM_BUFFERS: usize = 10;

/// Positions of a pair's queues among those of its thread; the control queue is with the first pair.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
pub(super) const QUEUES: usize = 2;

/// What else a thread waits for.
const PORT: u64 = 0;
const RECEIVE_TIMER: u64 = 1;
const TRANSMIT_TIMER: u64 = 2;

/// One pair of queues and its queue of the tap.
pub(super) struct Pair {
    shared: Arc<Shared>,
    index: u16,
    receive_gate: Gate,
    transmit_gate: Gate,
    /// Whether a packet may go into several buffers.
    mergeable: bool,
    /// Room for the longest packet that may come: buffers are taken from the ring until there is as much.
    room_wanted: usize,
    /// The tap may have a packet.
    readable: bool,
    /// Buffers taken from the receive ring, and the segments of all of them.
    held: VecDeque<Held>,
    segments: VecDeque<Segment>,
    room: usize,
    /// Copies of what the control queue changes.
    version: u32,
    filter: Filter,
    mac: MacAddress,
    /// Scratch, kept for its memory.
    outgoing: Vec<Segment>,
    answers: Vec<(u16, u32)>,
}

/// A chain of the receive ring.
#[derive(Clone, Copy, Debug)]
struct Held {
    head: u16,
    segments: usize,
    len: usize,
}

impl Pair {
    pub(super) fn new(shared: Arc<Shared>, index: u16, gates: [Gate; 2], features: u64) -> Self {
        let [receive_gate, transmit_gate] = gates;
        let mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        // Without them a packet is at most as long as the wire allows, which one page holds, or a jumbo frame.
        let large = features & offloads::GUEST_LARGE != 0;
        let room_wanted = if large { PACKET_MAX } else { PACKET_MAX.min(16 << 10) };
        let settings = shared.lock().clone();
        Self {
            version: shared.version(),
            shared,
            index,
            receive_gate,
            transmit_gate,
            mergeable,
            room_wanted,
            readable: true,
            held: VecDeque::new(),
            segments: VecDeque::new(),
            room: 0,
            filter: settings.filter,
            mac: settings.mac,
            outgoing: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// Takes packets from the tap until it is empty, the driver has no room, a limit is reached, or others should have
    /// their turn.
    fn receive(&mut self, context: &mut Context) -> Result<(), RingError> {
        let Context { memory, rings, .. } = context;
        let ring = &mut rings[RECEIVE];
        self.look_at_settings();
        for _ in 0..ring.budget() {
            if !self.readable || !self.receive_gate.is_open() || !self.shared.is_active(self.index) {
                return Ok(());
            }
            if !self.hold(ring, memory)? || !self.receive_gate.admit_unknown(Direction::Inbound) {
                return Ok(());
            }
            self.receive_one(ring)?;
        }
        ring.ring();
        Ok(())
    }

    /// Takes buffers from the ring until there is room for any packet. Says whether there is any room.
    fn hold(&mut self, ring: &mut Ring, memory: &GuestMemory) -> Result<bool, RingError> {
        while self.held.is_empty() || (self.mergeable && self.room < self.room_wanted) {
            let Some(chain) = ring.take()? else { break };
            if chain.readable_len() > 0 || chain.writable().is_empty() {
                return Err(RingError::Request("a receive buffer that is not only to be written to"));
            }
            let mut len = 0;
            for buffer in chain.writable() {
                self.segments.push_back(memory.segment(buffer.start, buffer.len as usize)?);
                len += buffer.len as usize;
            }
            self.held.push_back(Held { head: chain.head(), segments: chain.writable().len(), len });
            self.room += len;
        }
        Ok(!self.held.is_empty())
    }

    fn receive_one(&mut self, ring: &mut Ring) -> Result<(), RingError> {
        let port = self.shared.ports[usize::from(self.index)].as_fd();
        let first = self.held.front().map_or(0, |held| held.segments);
        let offered = if self.mergeable { self.segments.len() } else { first };
        match receive(port, self.segments.iter().take(offered)) {
            Ok(Received::Packet(len)) if len > HEADER_LEN && self.is_wanted() => {
                let bytes = (len - HEADER_LEN) as u64;
                self.receive_gate.charge(Cost { direction: Direction::Inbound, bytes });
                add(&self.shared.metrics.packets_received, 1);
                add(&self.shared.metrics.bytes_received, bytes);
                self.deliver(ring, len)
            }
            Ok(Received::Packet(_)) => {
                add(&self.shared.metrics.filtered, 1);
                Ok(())
            }
            Ok(Received::TooLong) => {
                add(&self.shared.metrics.too_long, 1);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            // Empty; or taken out of use, or down: there will be an event when that has changed.
            Err(_) => {
                self.readable = false;
                self.receive_gate.forget();
                Ok(())
            }
        }
    }

    /// Whether the packet that has just been read passes the driver's filter.
    fn is_wanted(&self) -> bool {
        if self.filter.passes_everything() {
            return true;
        }
        let mut start = [0; LOOKED_AT];
        let mut done = 0;
        for (segment, offset, len) in parts(&self.segments, HEADER_LEN, LOOKED_AT) {
            segment.read(offset, &mut start[done..done + len]).expect("a part of the segment");
            done += len;
        }
        self.filter.passes(self.mac, &start)
    }

    /// Gives the driver the packet of `len` bytes that is in the first of its buffers.
    fn deliver(&mut self, ring: &mut Ring, len: usize) -> Result<(), RingError> {
        let mut left = len;
        self.answers.clear();
        for held in &self.held {
            let here = left.min(held.len);
            self.answers.push((held.head, u32::try_from(here).expect("at most the longest packet")));
            left -= here;
            if left == 0 {
                break;
            }
        }
        let count = u16::try_from(self.answers.len()).expect("at most the queue's size").to_le_bytes();
        let mut done = 0;
        for (segment, offset, len) in parts(&self.segments, NUM_BUFFERS, count.len()) {
            segment.write(offset, &count[done..done + len]).expect("a part of the segment");
            done += len;
        }
        for held in self.held.drain(..self.answers.len()) {
            self.segments.drain(..held.segments);
            self.room -= held.len;
        }
        ring.answer_all(&self.answers)
    }

    /// Gives the host's network what the driver sends, until there is nothing, a limit is reached, or others should have
    /// their turn.
    fn transmit(&mut self, context: &mut Context) -> Result<(), RingError> {
        let Context { memory, rings, .. } = context;
        let ring = &mut rings[TRANSMIT];
        for _ in 0..ring.budget() {
            if !self.transmit_gate.is_open() || !self.shared.is_active(self.index) {
                return Ok(());
            }
            let Some(chain) = ring.take()? else { return Ok(()) };
            let (head, len) = (chain.head(), chain.readable_len());
            if chain.writable_len() > 0 {
                return Err(RingError::Request("a packet to send that is to be written to"));
            }
            if len <= HEADER_LEN as u64 || len > PACKET_MAX as u64 {
                add(&self.shared.metrics.refused, 1);
                ring.answer(head, 0)?;
                continue;
            }
            let bytes = len - HEADER_LEN as u64;
            if !self.transmit_gate.admit(Cost { direction: Direction::Outbound, bytes }) {
                ring.put_back();
                return Ok(());
            }
            self.outgoing.clear();
            for buffer in ring.chain().readable() {
                self.outgoing.push(memory.segment(buffer.start, buffer.len as usize)?);
            }
            self.send(bytes);
            ring.answer(head, 0)?;
        }
        ring.ring();
        Ok(())
    }

    fn send(&self, bytes: u64) {
        let metrics = &self.shared.metrics;
        match send(self.shared.ports[usize::from(self.index)].as_fd(), self.outgoing.iter()) {
            Ok(_) => {
                add(&metrics.packets_sent, 1);
                add(&metrics.bytes_sent, bytes);
            }
            // A header that makes no sense, an interface that is down or full: lost, as on any wire.
            Err(error) => {
                add(&metrics.refused, 1);
                tracing::trace!(interface = self.shared.name, %error, "a packet was not taken");
            }
        }
    }

    fn control(&mut self, context: &mut Context) -> Result<(), RingError> {
        let Context { memory, rings, .. } = context;
        let ring = &mut rings[QUEUES];
        for _ in 0..ring.budget() {
            let Some(chain) = ring.take()? else { return Ok(()) };
            let head = chain.head();
            let command = request::parse(chain, memory)?;
            let done = command.is_some_and(|command| self.shared.execute(command));
            let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR } as u8;
            if ring.chain().write(memory, 0, &[answer])? == 0 {
                return Err(RingError::Request("a command without room for its answer"));
            }
            ring.answer(head, 1)?;
        }
        ring.ring();
        Ok(())
    }

    /// Takes over what the control queue has changed.
    fn look_at_settings(&mut self) {
        let version = self.shared.version();
        if version != self.version {
            let settings = self.shared.lock();
            self.filter.clone_from(&settings.filter);
            self.mac = settings.mac;
            self.version = version;
        }
    }
}

/// Where `len` bytes from `offset` on are, as far as they are there.
fn parts(
    segments: &VecDeque<Segment>,
    offset: usize,
    len: usize,
) -> impl Iterator<Item = (&Segment, usize, usize)> {
    let (mut skip, mut left) = (offset, len);
    segments
        .iter()
        .map(move |segment| {
            let from = skip.min(segment.len());
            skip -= from;
            let here = left.min(segment.len() - from);
            left -= here;
            (segment, from, here)
        })
        .skip_while(|(_, _, len)| *len == 0)
        .take_while(|(_, _, len)| *len > 0)
}

impl Service for Pair {
    fn prepare(&mut self, sources: &Sources) -> io::Result<()> {
        let port = self.shared.ports[usize::from(self.index)].as_fd().as_raw_fd();
        // Once for each time that packets come: they may have to wait for room or for a limit.
        sources.add(PORT, port, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        sources.add(RECEIVE_TIMER, self.receive_gate.timer(), EventSet::IN)?;
        sources.add(TRANSMIT_TIMER, self.transmit_gate.timer(), EventSet::IN)
    }

    fn serve(&mut self, at: usize, context: &mut Context) -> Result<(), RingError> {
        match at {
            RECEIVE => self.receive(context),
            TRANSMIT => self.transmit(context),
            _ => self.control(context),
        }
    }

    fn on_source(&mut self, source: u64, _ready: EventSet, context: &mut Context) -> Result<(), RingError> {
        match source {
            RECEIVE_TIMER => {
                self.receive_gate.on_timer();
                self.receive(context)
            }
            TRANSMIT_TIMER => {
                self.transmit_gate.on_timer();
                self.transmit(context)
            }
            _ => {
                self.readable = true;
                self.receive(context)
            }
        }
    }

    fn quiesce(&mut self, context: &mut Context) -> Result<(), RingError> {
        // The last taken first: they were taken in order, and used in order.
        for _ in self.held.drain(..) {
            context.rings[RECEIVE].put_back();
        }
        self.segments.clear();
        self.room = 0;
        self.receive_gate.forget();
        self.transmit_gate.forget();
        self.receive_gate.open();
        self.transmit_gate.open();
        Ok(())
    }
}
