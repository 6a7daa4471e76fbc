//! A split virtqueue (virtio 1.2, section 2.7) whose descriptors form fixed chains of three: a block request's header, data
//! and status. So a chain's number is its state, and there is no free list that a device could corrupt.

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};

use super::transport::QueueAddresses;

/// Entries for which there is memory; 85 requests.
pub(crate) const SIZE_MAX: u16 = 256;
/// Queues for which there is memory.
pub(crate) const QUEUES_MAX: usize = drover_probe_record::bench::QUEUES_MAX as usize;
/// Descriptors of one request.
pub(crate) const CHAIN: u16 = 3;

const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

#[repr(C)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

#[repr(C)]
struct UsedElement {
    id: u32,
    length: u32,
}

/// Each part on a page of its own. The event words follow rings that may be shorter than these, so both are addressed by
/// hand.
#[repr(C, align(4096))]
struct Memory {
    descriptors: [Descriptor; SIZE_MAX as usize],
    available: [u16; 2048],
    used: [u16; 2048],
}

struct SharedMemory(UnsafeCell<[Memory; QUEUES_MAX]>);

// SAFETY: only the one `Queue` of each number and the device reach it, by volatile accesses.
unsafe impl Sync for SharedMemory {}

static MEMORY: SharedMemory = SharedMemory(UnsafeCell::new(
    [const {
        Memory {
            descriptors: [const { Descriptor { address: 0, length: 0, flags: 0, next: 0 } };
                SIZE_MAX as usize],
            available: [0; 2048],
            used: [0; 2048],
        }
    }; QUEUES_MAX],
));

/// A part of a chain.
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) device_writes: bool,
}

/// The driver's side of the queue.
pub(crate) struct Queue {
    number: usize,
    size: u16,
    event_index: bool,
    /// Chains made available, counted as the ring does.
    available: u16,
    /// How many of those the device had been told of when its bell was last considered.
    announced: u16,
    /// Chains taken back.
    used: u16,
}

impl Queue {
    /// The queue of this number. There is memory for [`QUEUES_MAX`], and for one of each number.
    pub(crate) fn new(number: usize, size: u16, event_index: bool) -> Self {
        assert!(number < QUEUES_MAX);
        let queue = Queue { number, size, event_index, available: 0, announced: 0, used: 0 };
        // What an earlier device has left there: flags, indices and wishes.
        for word in [0, 1, 2 + usize::from(size)] {
            store(queue.available_ring().wrapping_add(word), 0);
        }
        for word in [0, 1, 2 + 4 * usize::from(size)] {
            store(queue.used_ring().wrapping_add(word), 0);
        }
        queue
    }

    /// Where its parts are.
    pub(crate) fn addresses(&self) -> QueueAddresses {
        QueueAddresses {
            descriptors: self.descriptors() as u64,
            available: self.available_ring() as u64,
            used: self.used_ring() as u64,
        }
    }

    /// Makes a chain available: its first two segments, or only the first and the last where there is no data.
    pub(crate) fn publish(&mut self, chain: u16, header: &Segment, data: Option<&Segment>, status: &Segment) {
        let first = chain * CHAIN;
        let after_header = if data.is_some() { first + 1 } else { first + 2 };
        self.set_descriptor(first, header, Some(after_header));
        if let Some(data) = data {
            self.set_descriptor(first + 1, data, Some(first + 2));
        }
        self.set_descriptor(first + 2, status, None);
        let slot = self.available_ring().wrapping_add(usize::from(2 + self.available % self.size));
        store(slot, first);
        self.available = self.available.wrapping_add(1);
        fence(Ordering::Release);
        store(self.available_ring().wrapping_add(1), self.available);
    }

    /// Whether the device wants its bell rung for what was published since the last call.
    pub(crate) fn wants_notification(&mut self) -> bool {
        let (old, new) = (self.announced, self.available);
        if old == new {
            return false;
        }
        self.announced = new;
        // The index must be visible before the device's wish is read (section 2.7.13.3).
        fence(Ordering::SeqCst);
        if self.event_index {
            let wished = load(self.used_ring().wrapping_add(2 + 4 * usize::from(self.size)));
            new.wrapping_sub(wished).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            load(self.used_ring()) & NO_NOTIFY == 0
        }
    }

    /// The next chain that the device has finished. What is no chain's number comes as an error.
    pub(crate) fn take_used(&mut self) -> Option<Result<u16, u32>> {
        if !self.has_used() {
            return None;
        }
        fence(Ordering::Acquire);
        let slot =
            self.used_ring().wrapping_add(2 + 4 * usize::from(self.used % self.size)).cast::<UsedElement>();
        // SAFETY: within the used ring; the device has written it and will not again before the index wraps.
        let id = unsafe { (&raw const (*slot).id).read_volatile() };
        self.used = self.used.wrapping_add(1);
        let chain = u16::try_from(id).ok().filter(|&id| id < self.size && id % CHAIN == 0);
        Some(chain.map(|id| id / CHAIN).ok_or(id))
    }

    /// Asks for an interrupt when so many more chains have finished, with the next one where the device knows no event
    /// indices. Returns whether one may sleep until then: not if they have already.
    pub(crate) fn expect_interrupt(&mut self, chains: u16) -> bool {
        let chains = if self.event_index { chains.max(1) } else { 1 };
        if self.event_index {
            store(
                self.available_ring().wrapping_add(2 + usize::from(self.size)),
                self.used.wrapping_add(chains - 1),
            );
        } else {
            store(self.available_ring(), 0);
        }
        fence(Ordering::SeqCst);
        load(self.used_ring().wrapping_add(1)).wrapping_sub(self.used) < chains
    }

    /// Asks for no interrupts, as far as that can be said: with event indices, not moving the index says it.
    pub(crate) fn decline_interrupts(&self) {
        if !self.event_index {
            store(self.available_ring(), NO_INTERRUPT);
        }
    }

    fn has_used(&self) -> bool {
        load(self.used_ring().wrapping_add(1)) != self.used
    }

    fn set_descriptor(&self, index: u16, segment: &Segment, next: Option<u16>) {
        let writes = if segment.device_writes { DEVICE_WRITES } else { 0 };
        let flags = writes | next.map_or(0, |_| NEXT);
        let descriptor =
            Descriptor { address: segment.address, length: segment.length, flags, next: next.unwrap_or(0) };
        let slot = self.descriptors().wrapping_add(usize::from(index));
        // SAFETY: callers pass indices below the queue's size; the device does not look at a chain that is not available.
        unsafe { slot.write_volatile(descriptor) }
    }

    fn descriptors(&self) -> *mut Descriptor {
        self.part(offset_of!(Memory, descriptors)).cast()
    }

    /// Words: flags, index, ring, used event.
    fn available_ring(&self) -> *mut u16 {
        self.part(offset_of!(Memory, available)).cast()
    }

    /// Words: flags, index, ring of two double words each, available event.
    fn used_ring(&self) -> *mut u16 {
        self.part(offset_of!(Memory, used)).cast()
    }

    fn part(&self, offset: usize) -> *mut u8 {
        MEMORY.0.get().cast::<Memory>().wrapping_add(self.number).cast::<u8>().wrapping_add(offset)
    }
}

fn load(word: *const u16) -> u16 {
    // SAFETY: callers pass words of the rings.
    unsafe { word.read_volatile() }
}

fn store(word: *mut u16, value: u16) {
    // SAFETY: as for `load`.
    unsafe { word.write_volatile(value) }
}
