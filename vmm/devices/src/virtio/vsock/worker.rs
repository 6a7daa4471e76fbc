//! The thread's work: a guest's packets to its connections, and theirs to the guest.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use drover_guest_memory::GuestMemory;
use vmm_sys_util::epoll::EventSet;

use super::{
    muxer::{LISTENER, Muxer, Next},
    request::{DATA_BYTES_MAX, HEADER_LEN, Operation, Parsed, parse},
};
use crate::virtio::{
    ring::{Ring, RingError},
    service::{Context, Service, Sources},
};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;

/// All connections are gone (5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

pub(super) struct Worker {
    muxer: Muxer,
    lost: Arc<AtomicBool>,
    /// Data on its way, from one packet at a time.
    scratch: Vec<u8>,
}

impl Worker {
    pub(super) fn new(muxer: Muxer, lost: Arc<AtomicBool>) -> Self {
        Self { muxer, lost, scratch: vec![0; DATA_BYTES_MAX as usize] }
    }

    /// The guest's packets.
    fn transmit(
        &mut self,
        ring: &mut Ring,
        memory: &GuestMemory,
        sources: &Sources,
    ) -> Result<(), RingError> {
        for _ in 0..ring.budget() {
            if !self.muxer.has_room() {
                // Taken up again when the guest has taken what waits for it.
                return Ok(());
            }
            let Some(chain) = ring.take()? else { return Ok(()) };
            let head = chain.head();
            let mut header = [0; HEADER_LEN];
            if chain.read(memory, 0, &mut header)? < HEADER_LEN {
                return Err(RingError::Request("a packet without a header"));
            }
            match parse(&header, chain.readable_len(), self.muxer.cid)? {
                Parsed::Packet(packet) => {
                    let len = match packet.operation {
                        Operation::Data(len) => len as usize,
                        _ => 0,
                    };
                    let data = &mut self.scratch[..len];
                    chain.read(memory, HEADER_LEN as u64, data)?;
                    self.muxer.hear(packet, data, sources);
                }
                Parsed::Misdirected(ports) => self.muxer.reset(ports),
                Parsed::Ignored => {}
            }
            ring.answer(head, 0)?;
        }
        ring.ring();
        Ok(())
    }

    /// Packets for the guest, as far as it has room.
    fn receive(&mut self, ring: &mut Ring, memory: &GuestMemory) -> Result<(), RingError> {
        for _ in 0..ring.budget() {
            if !self.muxer.has_something() {
                return Ok(());
            }
            let Some(chain) = ring.take()? else { return Ok(()) };
            let head = chain.head();
            let room = chain.writable_len();
            let Some(room) = room.checked_sub(HEADER_LEN as u64) else {
                return Err(RingError::Request("a buffer that has no room for a header"));
            };
            let room = usize::try_from(room).unwrap_or(usize::MAX);
            let Next::Packet(packet) = self.muxer.next(room, &mut self.scratch) else {
                ring.put_back();
                continue;
            };
            let len = match packet.operation {
                Operation::Data(len) => len as usize,
                _ => 0,
            };
            chain.write(memory, 0, &packet.encode(self.muxer.cid))?;
            chain.write(memory, HEADER_LEN as u64, &self.scratch[..len])?;
            ring.answer(head, u32::try_from(HEADER_LEN + len).expect("a packet is small"))?;
        }
        ring.ring();
        Ok(())
    }

    /// Tells the driver that its connections are gone, where they are.
    fn event(&mut self, ring: &mut Ring, memory: &GuestMemory) -> Result<(), RingError> {
        if !self.lost.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Some(chain) = ring.take()? else { return Ok(()) };
        let head = chain.head();
        let written = chain.write(memory, 0, &TRANSPORT_RESET)?;
        ring.answer(head, u32::try_from(written).expect("four"))?;
        self.lost.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// What came in from one side may be for the other, in turn, until nothing moves.
    fn exchange(&mut self, context: &mut Context) -> Result<(), RingError> {
        let Context { memory, rings, .. } = context;
        let had_room = self.muxer.has_room();
        if let Some(ring) = rings.iter_mut().find(|ring| ring.index() == RECEIVE) {
            self.receive(ring, memory)?;
        }
        if !had_room
            && self.muxer.has_room()
            && let Some(ring) = rings.iter().find(|ring| ring.index() == TRANSMIT)
        {
            ring.ring();
        }
        Ok(())
    }
}

impl Service for Worker {
    fn prepare(&mut self, sources: &Sources) -> io::Result<()> {
        self.muxer.listen(sources)
    }

    fn serve(&mut self, at: usize, context: &mut Context) -> Result<(), RingError> {
        let Context { memory, rings, sources, .. } = context;
        let ring = &mut rings[at];
        match ring.index() {
            TRANSMIT => self.transmit(ring, memory, sources)?,
            EVENT => self.event(ring, memory)?,
            _ => {}
        }
        self.exchange(context)
    }

    fn on_source(&mut self, source: u64, ready: EventSet, context: &mut Context) -> Result<(), RingError> {
        if source == LISTENER {
            self.muxer.accept(&context.sources);
        } else {
            let number = u32::try_from(source).expect("sources are numbered by 32 bits");
            self.muxer.on_socket(number, ready);
        }
        self.exchange(context)
    }
}
