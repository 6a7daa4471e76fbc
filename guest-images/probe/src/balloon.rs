//! A balloon (virtio 1.2, section 5.5) with what the probe needs of a driver: it gives pages and takes them back as the host
//! asks, tells a statistic, and reports memory as free once.

use drover_probe_record::MmioDevice;

use crate::ram::Ram;
use crate::virtio::single::{Page, SingleQueue};
use crate::virtio::transport::Transport;

const DEVICE_TYPE: u32 = 5;
const STATISTICS: u64 = 1 << 1;
const HINTS: u64 = 1 << 3;
const REPORTS: u64 = 1 << 5;
/// Of the configuration: what the host wants, what there is.
const TARGET: usize = 0;
const ACTUAL: usize = 4;
/// Page numbers in one buffer.
const BATCH: usize = 256;
/// VIRTIO_BALLOON_S_MEMFREE, then VIRTIO_BALLOON_S_MEMTOT.
const TAGS: [u16; 2] = [4, 5];
const STATISTIC_BYTES: usize = 10;
const LOOK_US: u64 = 10_000;
/// In whatever is neither in the balloon nor reported.
const FILL: u8 = 0xa5;

/// The driver.
pub(crate) struct Balloon {
    transport: Transport,
    inflate: SingleQueue,
    deflate: SingleQueue,
    statistics: SingleQueue,
    reports: SingleQueue,
    numbers: &'static mut [u32],
    told: &'static mut [Page],
    /// What it can give; the first `actual` of them are given.
    pages: &'static mut [Page],
    actual: usize,
    /// Pages on their way, to the balloon or from it.
    moving: Option<(usize, bool)>,
    next_us: u64,
}

impl Balloon {
    /// Starts the device with memory to give, of which a quarter is reported as free at once.
    ///
    /// # Errors
    /// Why there will be no balloon.
    pub(crate) fn start(places: &[MmioDevice], mib: u64, ram: &mut Ram) -> Result<Self, &'static str> {
        let transport =
            Transport::find(places, DEVICE_TYPE).ok_or("no balloon is announced on the command line")?;
        let wanted = STATISTICS | HINTS | REPORTS;
        if transport.negotiate(wanted)? & wanted != wanted {
            return Err("it has no statistics, or no reports of free pages");
        }
        let mut queue = |number| SingleQueue::set_up(&transport, number, ram);
        let (inflate, deflate, statistics) = (queue(0)?, queue(1)?, queue(2)?);
        queue(3)?;
        let reports = queue(4)?;
        let too_little = |_| "there is too little RAM to give away";
        // SAFETY: both are any bits.
        let numbers = unsafe { ram.take::<u32>(BATCH) }.map_err(too_little)?;
        // SAFETY: as above.
        let told = unsafe { ram.take::<Page>(1) }.map_err(too_little)?;
        // SAFETY: as above.
        let pages = unsafe { ram.take::<Page>((mib as usize) << 8) }.map_err(too_little)?;
        pages.iter_mut().for_each(|page| page.0.fill(FILL));
        let mut balloon = Balloon {
            transport,
            inflate,
            deflate,
            statistics,
            reports,
            numbers,
            told,
            pages,
            actual: 0,
            moving: None,
            next_us: 0,
        };
        balloon.transport.start();
        balloon.tell();
        let free = balloon.pages.len() / 4;
        let bytes = (
            balloon.pages.as_ptr() as u64 + ((balloon.pages.len() - free) << 12) as u64,
            (free << 12) as u32,
        );
        balloon.reports.publish(&balloon.transport, 0, bytes, true);
        Ok(balloon)
    }

    /// Does what the host wants.
    pub(crate) fn poll(&mut self, now_us: u64) {
        if now_us < self.next_us {
            return;
        }
        self.next_us = now_us + LOOK_US;
        if self.statistics.take_used().is_some() {
            self.tell();
        }
        while self.move_some() {}
    }

    /// When to poll next.
    pub(crate) fn wake_us(&self) -> u64 {
        self.next_us
    }

    /// Whether something has come of it, so that it is worth another look.
    fn move_some(&mut self) -> bool {
        if let Some((count, given)) = self.moving {
            let queue = if given { &mut self.inflate } else { &mut self.deflate };
            if queue.take_used().is_none() {
                return false;
            }
            self.moving = None;
            if given {
                self.actual += count;
            } else {
                self.actual -= count;
                let back = &mut self.pages[self.actual..self.actual + count];
                back.iter_mut().for_each(|page| page.0.fill(FILL));
            }
            self.transport.set_config(ACTUAL, self.actual as u32);
        }
        let target = (self.transport.config_half(TARGET) as usize).min(self.pages.len());
        if target == self.actual {
            return false;
        }
        let given = target > self.actual;
        let count = target.abs_diff(self.actual).min(BATCH);
        let first = if given { self.actual } else { self.actual - count };
        let base = self.pages.as_ptr() as usize >> 12;
        for (place, page) in self.numbers.iter_mut().zip(base + first..base + first + count) {
            *place = page as u32;
        }
        let numbers = (self.numbers.as_ptr() as u64, (count * 4) as u32);
        let queue = if given { &mut self.inflate } else { &mut self.deflate };
        queue.publish(&self.transport, 0, numbers, false);
        self.moving = Some((count, given));
        true
    }

    fn tell(&mut self) {
        let total = self.pages.len() << 12;
        let free = total - (self.actual << 12);
        let places = self.told[0].0.chunks_exact_mut(STATISTIC_BYTES);
        for ((place, tag), value) in places.zip(TAGS).zip([free, total]) {
            place[..2].copy_from_slice(&tag.to_le_bytes());
            place[2..].copy_from_slice(&(value as u64).to_le_bytes());
        }
        let told = (self.told.as_ptr() as u64, (TAGS.len() * STATISTIC_BYTES) as u32);
        self.statistics.publish(&self.transport, 0, told, false);
    }
}
