//! The block device (virtio 1.2, section 5.2).

use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::NonNull;

use drover_probe_record::{BLOCK_BYTES, Block, MmioDevice};

use super::queue::{CHAIN, QUEUES_MAX, Queue, SIZE_MAX, Segment};
use super::transport::{Place, Transport, VERSION_1, places};
use crate::ram::Ram;
use crate::serial::report_error;

/// The unit of a request's position, bytes.
const SECTOR_BYTES: u64 = 512;

const DEVICE_TYPE: u32 = 2;
const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
const SEVERAL_QUEUES: u64 = 1 << 12;
const EVENT_INDEX: u64 = 1 << 29;
const CONFIG_CAPACITY: usize = 0;
/// Holds the number of queues in bits 16 to 31.
const CONFIG_QUEUES: usize = 32;

/// Of all queues, which share them evenly: the stack has to hold a few copies of so many.
/// Disks for which there is memory.
const DISKS_MAX: usize = 2;
const REQUESTS_MAX: usize = (SIZE_MAX / CHAIN) as usize;
const STATUS_OK: u8 = 0;
const STATUS_IO_ERROR: u8 = 1;
const STATUS_UNSUPPORTED: u8 = 2;
/// No device writes this: a status that was never set shows.
const STATUS_UNSET: u8 = 0xff;

#[repr(C, align(16))]
struct Header {
    operation: u32,
    reserved: u32,
    sector: u64,
}

#[repr(C)]
struct Ends {
    header: Header,
    status: u8,
}

struct SharedEnds(UnsafeCell<[[Ends; REQUESTS_MAX]; DISKS_MAX]>);

// SAFETY: only the one `BlockDevice` of each disk and its device reach its part, the device only while a request is in flight.
unsafe impl Sync for SharedEnds {}

static ENDS: SharedEnds = SharedEnds(UnsafeCell::new(
    [const {
        [const { Ends { header: Header { operation: 0, reserved: 0, sector: 0 }, status: 0 } }; REQUESTS_MAX]
    }; DISKS_MAX],
));

/// RAM for a request's data. A request takes it and its completion gives it back: whoever holds it has it alone.
pub(crate) struct Buffer {
    blocks: NonNull<[Block]>,
}

/// What to do.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    /// From this block on, so many.
    Read { block: u64, count: usize },
    /// To this block on, so many.
    Write { block: u64, count: usize },
    /// Make durable what is complete.
    Flush,
}

/// Why a request failed.
#[derive(Clone, Copy)]
pub(crate) enum Failure {
    /// The device says so.
    Io,
    /// The device does not know the operation.
    Unsupported,
    /// No status that the specification knows.
    Status(u8),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Io => f.write_str("I/O error"),
            Failure::Unsupported => f.write_str("not supported"),
            Failure::Status(status) => write!(f, "unknown status {status:#x}"),
        }
    }
}

/// A finished request.
pub(crate) struct Completion<Job> {
    pub(crate) job: Job,
    pub(crate) buffer: Option<Buffer>,
    pub(crate) outcome: Result<(), Failure>,
}

struct InFlight<Job> {
    job: Job,
    buffer: Option<Buffer>,
}

/// A disk and the requests that it works on, each with the `Job` that it is for.
pub(crate) struct BlockDevice<Job> {
    /// Which of the disks it is.
    disk: usize,
    transport: Transport,
    queues: [Option<Queue>; QUEUES_MAX],
    /// The queue that the next request goes to, if it has room.
    turn: usize,
    /// Of each queue. A request's place is its queue's number times this, plus its chain's.
    chains: usize,
    in_flight: [Option<InFlight<Job>>; REQUESTS_MAX],
    count: usize,
    requests_max: usize,
    blocks: u64,
    flushes: bool,
}

impl Buffer {
    /// Takes RAM for `count` buffers of so many blocks.
    ///
    /// # Errors
    /// MiB that could be had at most.
    pub(crate) fn take(
        ram: &mut Ram,
        count: usize,
        blocks: usize,
    ) -> Result<impl Iterator<Item = Buffer> + use<>, u64> {
        // SAFETY: a block is any 4096 bytes.
        let memory = unsafe { ram.take::<Block>(count * blocks) }?;
        Ok(memory.chunks_exact_mut(blocks).map(|blocks| Buffer { blocks: NonNull::from(blocks) }))
    }

    /// Its blocks.
    pub(crate) fn blocks(&mut self) -> &mut [Block] {
        // SAFETY: RAM of its own, and as its holder has it, no request does.
        unsafe { self.blocks.as_mut() }
    }
}

impl<Job> BlockDevice<Job> {
    /// Starts the first disk among the announced devices, or on the PCI bus where there are none, with so many queues.
    ///
    /// # Errors
    /// There is none, or it cannot be used or has fewer queues; the reasons of others are reported.
    pub(crate) fn start(announced: &[MmioDevice], queues: usize) -> Result<Self, &'static str> {
        Self::start_disk(0, announced, queues)
    }

    /// Starts the disk with this number on the PCI bus, as the second one and with one queue.
    ///
    /// # Errors
    /// It is no disk, or cannot be used.
    pub(crate) fn start_on_pci(number: u32) -> Result<Self, &'static str> {
        match Transport::open_at(Place::Pci(number))? {
            Some((transport, DEVICE_TYPE)) => Self::start_at(1, transport, 1),
            _ => Err("it is no disk"),
        }
    }

    /// Makes the device let go of all memory: it can be taken away.
    pub(crate) fn reset(&self) {
        self.transport.reset();
    }

    /// Starts the second disk among the announced devices, with one queue. The first one must not have all that there are.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub(crate) fn start_second(announced: &[MmioDevice]) -> Result<Self, &'static str> {
        Self::start_disk(1, announced, 1)
    }

    fn start_disk(disk: usize, announced: &[MmioDevice], queues: usize) -> Result<Self, &'static str> {
        let mut disks = 0;
        for place in places(announced) {
            match Transport::open_at(place) {
                Ok(Some((transport, DEVICE_TYPE))) if disks == disk => {
                    return Self::start_at(disk, transport, queues);
                }
                Ok(Some((_, DEVICE_TYPE))) => disks += 1,
                Ok(_) => {}
                Err(why) => report_error(format_args!("{place}: {why}")),
            }
        }
        Err("no such block device is announced on the command line, nor on the PCI bus where none is")
    }

    fn start_at(disk: usize, transport: Transport, queues: usize) -> Result<Self, &'static str> {
        let several = if queues > 1 { SEVERAL_QUEUES } else { 0 };
        let features = transport.negotiate(READ_ONLY | FLUSH | several | EVENT_INDEX | VERSION_1)?;
        if features & READ_ONLY != 0 {
            return Err("it is read-only");
        }
        let there =
            if features & SEVERAL_QUEUES == 0 { 1 } else { transport.config(CONFIG_QUEUES) >> 16 & 0xffff };
        if queues > QUEUES_MAX || there < queues as u64 {
            return Err("it has fewer queues than probe.bench asks for");
        }
        let size_max = transport.queue_size_max(0).min(u32::from(SIZE_MAX)) as u16;
        let size = size_max.checked_ilog2().map_or(0, |log| 1 << log);
        let chains = usize::from(size / CHAIN).min(REQUESTS_MAX / queues);
        if chains == 0 {
            return Err("its queue has no room for a request");
        }
        transport.route_interrupts()?;
        let capacity = transport.config(CONFIG_CAPACITY);
        let mut set_up = [const { None }; QUEUES_MAX];
        for (number, place) in set_up.iter_mut().take(queues).enumerate() {
            // The second disk's memory is the last one's.
            let memory = if disk == 0 { number } else { QUEUES_MAX - 1 };
            let queue = Queue::new(memory, size, features & EVENT_INDEX != 0);
            transport.set_up_queue(number as u32, size, &queue.addresses());
            *place = Some(queue);
        }
        transport.start();
        Ok(BlockDevice {
            disk,
            transport,
            queues: set_up,
            turn: 0,
            chains,
            in_flight: [const { None }; REQUESTS_MAX],
            count: 0,
            requests_max: chains * queues,
            blocks: capacity / (BLOCK_BYTES as u64 / SECTOR_BYTES),
            flushes: features & FLUSH != 0,
        })
    }

    /// Whole blocks on the disk.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether the disk knows flushes; without them a finished write is durable (section 5.2.5.2).
    pub(crate) fn flushes(&self) -> bool {
        self.flushes
    }

    /// Requests that it takes at a time.
    pub(crate) fn requests_max(&self) -> usize {
        self.requests_max
    }

    /// Requests in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.count
    }

    /// Makes a request available; [`notify`](Self::notify) tells the device.
    ///
    /// # Panics
    /// There are [`requests_max`](Self::requests_max) in flight, or a request that moves data comes without a buffer.
    pub(crate) fn submit(&mut self, operation: Operation, buffer: Option<Buffer>, job: Job) {
        const READ: u32 = 0;
        const WRITE: u32 = 1;
        const SYNC: u32 = 4;
        let (number, chain) = self.free_chain().expect("callers count what they have in flight");
        let place = number * self.chains + chain;
        let (kind, block, count) = match operation {
            Operation::Read { block, count } => (READ, block, count),
            Operation::Write { block, count } => (WRITE, block, count),
            Operation::Flush => (SYNC, 0, 0),
        };
        let sector = block * (BLOCK_BYTES as u64 / SECTOR_BYTES);
        let ends = ends(self.disk, place);
        let header = Header { operation: kind, reserved: 0, sector };
        // SAFETY: in bounds; the chain is not in flight, so the device does not look.
        unsafe { ends.write_volatile(Ends { header, status: STATUS_UNSET }) };
        let data = (count > 0).then(|| {
            let blocks = buffer.as_ref().expect("a request that moves data has a buffer").blocks;
            Segment {
                address: blocks.as_ptr().cast::<Block>() as u64,
                length: (count.min(blocks.len()) * BLOCK_BYTES) as u32,
                device_writes: kind == READ,
            }
        });
        let head = Segment { address: ends as u64, length: size_of::<Header>() as u32, device_writes: false };
        let status = Segment { address: status_of(self.disk, place) as u64, length: 1, device_writes: true };
        if let Some(queue) = &mut self.queues[number] {
            queue.publish(chain as u16, &head, data.as_ref(), &status);
        }
        self.in_flight[place] = Some(InFlight { job, buffer });
        self.count += 1;
    }

    /// A free chain of the queue whose turn it is, or of the next one that has any.
    fn free_chain(&mut self) -> Option<(usize, usize)> {
        let queues = self.queues.iter().flatten().count();
        for _ in 0..queues {
            let number = self.turn;
            self.turn = (number + 1) % queues;
            let places = &self.in_flight[number * self.chains..][..self.chains];
            if let Some(chain) = places.iter().position(Option::is_none) {
                return Some((number, chain));
            }
        }
        None
    }

    /// Rings the bells that the device cares for; how many.
    pub(crate) fn notify(&mut self) -> u64 {
        let mut rung = 0;
        for (number, queue) in self.queues.iter_mut().flatten().enumerate() {
            if queue.wants_notification() {
                self.transport.notify(number as u32);
                rung += 1;
            }
        }
        rung
    }

    /// The next finished request.
    pub(crate) fn reap(&mut self) -> Option<Completion<Job>> {
        (0..QUEUES_MAX).find_map(|number| self.reap_from(number))
    }

    fn reap_from(&mut self, number: usize) -> Option<Completion<Job>> {
        loop {
            let place = match self.queues[number].as_mut()?.take_used()? {
                Ok(chain) if usize::from(chain) < self.chains => number * self.chains + usize::from(chain),
                Ok(id) => {
                    report_error(format_args!("disk: the used ring names chain {id}, which was never used"));
                    continue;
                }
                Err(id) => {
                    report_error(format_args!(
                        "disk: the used ring names descriptor {id}, which heads no request"
                    ));
                    continue;
                }
            };
            let Some(InFlight { job, buffer }) = self.in_flight.get_mut(place).and_then(Option::take) else {
                report_error(format_args!("disk: request {place} finished, but was not in flight"));
                continue;
            };
            self.count -= 1;
            // SAFETY: in bounds; the device is done with the chain.
            let status = unsafe { status_of(self.disk, place).read_volatile() };
            let outcome = match status {
                STATUS_OK => Ok(()),
                STATUS_IO_ERROR => Err(Failure::Io),
                STATUS_UNSUPPORTED => Err(Failure::Unsupported),
                other => Err(Failure::Status(other)),
            };
            return Some(Completion { job, buffer, outcome });
        }
    }

    /// To be called after an interrupt, before reaping. Returns whether the device has given up.
    pub(crate) fn acknowledge_interrupt(&self) -> bool {
        self.transport.acknowledge_interrupt()
    }

    /// Asks for an interrupt with the next finished request; `false` if there is one already.
    pub(crate) fn expect_interrupt(&mut self) -> bool {
        self.expect_after(1)
    }

    /// Asks for one interrupt for a quarter of what is in flight, as drivers do that have much in flight: no completion waits
    /// for anything but others that are on their way. `false` if there is so much already.
    pub(crate) fn expect_interrupt_for_many(&mut self) -> bool {
        let queues = self.queues.iter().flatten().count();
        self.expect_after((self.count / 4 / queues) as u16)
    }

    fn expect_after(&mut self, chains: u16) -> bool {
        self.queues.iter_mut().flatten().fold(true, |may, queue| queue.expect_interrupt(chains) && may)
    }

    /// Asks for no interrupts while requests are reaped anyway.
    pub(crate) fn decline_interrupts(&self) {
        self.queues.iter().flatten().for_each(Queue::decline_interrupts);
    }
}

fn ends(disk: usize, place: usize) -> *mut Ends {
    ENDS.0.get().cast::<[Ends; REQUESTS_MAX]>().wrapping_add(disk).cast::<Ends>().wrapping_add(place)
}

fn status_of(disk: usize, place: usize) -> *mut u8 {
    ends(disk, place).cast::<u8>().wrapping_add(core::mem::offset_of!(Ends, status))
}
