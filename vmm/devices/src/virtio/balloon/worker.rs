//! The thread's work: a balloon's queues.

use std::{io, os::fd::AsRawFd, sync::Arc};

use drover_guest_memory::GuestMemory;
use drover_units::{PAGE_SIZE, Pages};
use vmm_sys_util::epoll::EventSet;

use super::{
    request::{
        BATCH, GuestStatistics, NUMBER_LEN, STATISTICS_BYTES_MAX, check_free, numbers_len, runs, whole_pages,
    },
    shared::{Shared, give_back},
};
use crate::virtio::{
    ring::{Ring, RingError},
    service::{Context, Service, Sources},
};

pub(super) const INFLATE: u16 = 0;
pub(super) const DEFLATE: u16 = 1;
pub(super) const STATISTICS: u16 = 2;
pub(super) const HINTS: u16 = 3;
pub(super) const REPORTS: u16 = 4;

const WANTED: u64 = 0;
const PAGE: drover_units::Bytes = drover_units::Bytes::new(PAGE_SIZE);

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    /// The chain by which the driver has told its statistics; answering it asks for the next.
    pub(super) told: Option<u16>,
    /// Statistics were asked for before there was a chain to answer.
    pub(super) wanted: bool,
}

impl Worker {
    fn inflate(&self, ring: &mut Ring, memory: &GuestMemory) -> Result<(), RingError> {
        let mut piece = [0; BATCH * NUMBER_LEN as usize];
        for _ in 0..ring.budget() {
            let Some(chain) = ring.take()? else { return Ok(()) };
            let head = chain.head();
            let len = numbers_len(chain.readable_len())?;
            let mut given = Pages::ZERO;
            let mut strange = 0;
            for offset in (0..len).step_by(piece.len()) {
                let count = chain.read(memory, offset, &mut piece)?;
                strange += runs(
                    &piece[..count],
                    |start| memory.contains(start, PAGE),
                    |run| given = given.saturating_add(give_back(memory, run)),
                );
            }
            let mut inner = self.shared.lock();
            inner.inflated = inner.inflated.saturating_add(given);
            inner.strange = inner.strange.saturating_add(strange);
            drop(inner);
            ring.answer(head, 0)?;
        }
        ring.ring();
        Ok(())
    }

    /// Nothing has to be done for pages that come back: the first touch brings memory.
    fn deflate(ring: &mut Ring) -> Result<(), RingError> {
        for _ in 0..ring.budget() {
            let Some(chain) = ring.take()? else { return Ok(()) };
            let head = chain.head();
            numbers_len(chain.readable_len())?;
            ring.answer(head, 0)?;
        }
        ring.ring();
        Ok(())
    }

    fn statistics(&mut self, ring: &mut Ring, memory: &GuestMemory) -> Result<(), RingError> {
        for _ in 0..ring.budget() {
            let Some(chain) = ring.take()? else { return Ok(()) };
            let head = chain.head();
            let mut bytes = [0; STATISTICS_BYTES_MAX];
            let count = chain.read(memory, 0, &mut bytes)?;
            let statistics = GuestStatistics::parse(&bytes[..count]);
            // The driver has one chain; of more than one, the last is kept.
            if let Some(before) = self.told.replace(head) {
                ring.answer(before, 0)?;
            }
            if count > 0 {
                let mut inner = self.shared.lock();
                inner.statistics = statistics;
                inner.statistics_received += 1;
            }
            if std::mem::take(&mut self.wanted) {
                self.ask(ring)?;
            }
        }
        ring.ring();
        Ok(())
    }

    /// Asks the driver for its next statistics.
    fn ask(&mut self, ring: &mut Ring) -> Result<(), RingError> {
        match self.told.take() {
            Some(head) => ring.answer(head, 0),
            None => {
                self.wanted = true;
                Ok(())
            }
        }
    }

    fn hints(&self, ring: &mut Ring, memory: &GuestMemory) -> Result<(), RingError> {
        for _ in 0..ring.budget() {
            let Some(chain) = ring.take()? else { return Ok(()) };
            let head = chain.head();
            check_free(chain.writable_len())?;
            let mut command = [0; 4];
            let is_command = chain.read(memory, 0, &mut command)? == command.len();
            let mut inner = self.shared.lock();
            if let Some(hints) = &mut inner.hints {
                if is_command {
                    hints.command(u32::from_le_bytes(command));
                }
                chain.writable().iter().copied().filter_map(whole_pages).for_each(|run| hints.add(run));
            }
            drop(inner);
            ring.answer(head, 0)?;
        }
        ring.ring();
        Ok(())
    }

    fn reports(&self, ring: &mut Ring, memory: &GuestMemory) -> Result<(), RingError> {
        for _ in 0..ring.budget() {
            let Some(chain) = ring.take()? else { return Ok(()) };
            let head = chain.head();
            check_free(chain.writable_len())?;
            let keep = self.shared.lock().keeps_free_pages();
            let mut given = Pages::ZERO;
            let mut strange = 0;
            for run in chain.writable().iter().copied().filter_map(whole_pages) {
                if !memory.contains(run.start, run.bytes()) {
                    strange += run.pages.get();
                } else if !keep {
                    given = given.saturating_add(give_back(memory, run));
                }
            }
            let mut inner = self.shared.lock();
            inner.reported = inner.reported.saturating_add(given);
            inner.strange = inner.strange.saturating_add(strange);
            drop(inner);
            ring.answer(head, 0)?;
        }
        ring.ring();
        Ok(())
    }
}

impl Service for Worker {
    fn prepare(&mut self, sources: &Sources) -> io::Result<()> {
        sources.add(WANTED, self.shared.wanted.as_raw_fd(), EventSet::IN)
    }

    fn serve(&mut self, at: usize, context: &mut Context) -> Result<(), RingError> {
        let Context { memory, rings, .. } = context;
        let ring = &mut rings[at];
        match ring.index() {
            INFLATE => self.inflate(ring, memory),
            DEFLATE => Self::deflate(ring),
            STATISTICS => self.statistics(ring, memory),
            HINTS => self.hints(ring, memory),
            REPORTS => self.reports(ring, memory),
            _ => Ok(()),
        }
    }

    fn on_source(&mut self, _wanted: u64, _ready: EventSet, context: &mut Context) -> Result<(), RingError> {
        let _ = self.shared.wanted.read();
        match context.rings.iter_mut().find(|ring| ring.index() == STATISTICS) {
            Some(ring) => self.ask(ring),
            None => Ok(()),
        }
    }

    /// Whoever goes on from here, or elsewhere, has no chain of the driver's in hand: it tells its statistics anew.
    fn quiesce(&mut self, context: &mut Context) -> Result<(), RingError> {
        match context.rings.iter_mut().find(|ring| ring.index() == STATISTICS) {
            Some(ring) => self.told.take().map_or(Ok(()), |head| ring.answer(head, 0)),
            None => Ok(()),
        }
    }
}
