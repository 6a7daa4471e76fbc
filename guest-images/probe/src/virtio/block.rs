//! The block device (virtio 1.2, section 5.2).

use core::cell::UnsafeCell;
use core::fmt;
use core::ptr::NonNull;

use drover_probe_record::{BLOCK_BYTES, Block, MmioDevice};

use super::queue::{CHAIN, Queue, SIZE_MAX, Segment};
use super::transport::{Transport, VERSION_1};
use crate::apic;
use crate::gate::DEVICE_VECTOR;
use crate::ram::Ram;
use crate::serial::report_error;

/// The unit of a request's position, bytes.
const SECTOR_BYTES: u64 = 512;

const DEVICE_TYPE: u32 = 2;
const READ_ONLY: u64 = 1 << 5;
const FLUSH: u64 = 1 << 9;
const EVENT_INDEX: u64 = 1 << 29;
const CONFIG_CAPACITY: usize = 0;

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

struct SharedEnds(UnsafeCell<[Ends; REQUESTS_MAX]>);

// SAFETY: only the one `BlockDevice` and the device reach them, the device only while a request is in flight.
unsafe impl Sync for SharedEnds {}

static ENDS: SharedEnds = SharedEnds(UnsafeCell::new(
    [const { Ends { header: Header { operation: 0, reserved: 0, sector: 0 }, status: 0 } }; REQUESTS_MAX],
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
    transport: Transport,
    queue: Queue,
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
    /// Starts the first disk among the announced devices.
    ///
    /// # Errors
    /// There is none, or it cannot be used; the reasons of others are reported.
    pub(crate) fn start(places: &[MmioDevice]) -> Result<Self, &'static str> {
        for place in places {
            match Transport::open(place) {
                Ok(Some((transport, DEVICE_TYPE))) => return Self::start_at(transport, place.irq),
                Ok(_) => {}
                Err(why) => report_error(format_args!("{place}: {why}")),
            }
        }
        Err("no virtio-mmio block device is announced on the command line")
    }

    fn start_at(transport: Transport, interrupt: u32) -> Result<Self, &'static str> {
        let features = transport.negotiate(READ_ONLY | FLUSH | EVENT_INDEX | VERSION_1)?;
        if features & READ_ONLY != 0 {
            return Err("it is read-only");
        }
        let size_max = transport.queue_size_max().min(u32::from(SIZE_MAX)) as u16;
        let size = size_max.checked_ilog2().map_or(0, |log| 1 << log);
        let requests_max = usize::from(size / CHAIN);
        if requests_max == 0 {
            return Err("its queue has no room for a request");
        }
        apic::route(interrupt, DEVICE_VECTOR)?;
        let capacity = transport.config(CONFIG_CAPACITY);
        let queue = Queue::new(size, features & EVENT_INDEX != 0);
        transport.start(size, &queue.addresses());
        Ok(BlockDevice {
            transport,
            queue,
            in_flight: [const { None }; REQUESTS_MAX],
            count: 0,
            requests_max,
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
        let free = self.in_flight[..self.requests_max].iter().position(Option::is_none);
        let chain = free.expect("callers count what they have in flight");
        let (kind, block, count) = match operation {
            Operation::Read { block, count } => (READ, block, count),
            Operation::Write { block, count } => (WRITE, block, count),
            Operation::Flush => (SYNC, 0, 0),
        };
        let sector = block * (BLOCK_BYTES as u64 / SECTOR_BYTES);
        let ends = ENDS.0.get().cast::<Ends>().wrapping_add(chain);
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
        let status = Segment { address: status_of(chain) as u64, length: 1, device_writes: true };
        self.queue.publish(chain as u16, &head, data.as_ref(), &status);
        self.in_flight[chain] = Some(InFlight { job, buffer });
        self.count += 1;
    }

    /// Rings the bell, if the device cares; whether it did.
    pub(crate) fn notify(&mut self) -> bool {
        let wanted = self.queue.wants_notification();
        if wanted {
            self.transport.notify();
        }
        wanted
    }

    /// The next finished request.
    pub(crate) fn reap(&mut self) -> Option<Completion<Job>> {
        loop {
            let chain = match self.queue.take_used()? {
                Ok(chain) => usize::from(chain),
                Err(id) => {
                    report_error(format_args!(
                        "disk: the used ring names descriptor {id}, which heads no request"
                    ));
                    continue;
                }
            };
            let Some(InFlight { job, buffer }) = self.in_flight.get_mut(chain).and_then(Option::take) else {
                report_error(format_args!("disk: request {chain} finished, but was not in flight"));
                continue;
            };
            self.count -= 1;
            // SAFETY: in bounds; the device is done with the chain.
            let status = unsafe { status_of(chain).read_volatile() };
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
        self.queue.expect_interrupt(1)
    }

    /// Asks for one interrupt for a quarter of what is in flight, as drivers do that have much in flight: no completion waits
    /// for anything but others that are on their way. `false` if there is so much already.
    pub(crate) fn expect_interrupt_for_many(&mut self) -> bool {
        self.queue.expect_interrupt((self.count / 4) as u16)
    }

    /// Asks for no interrupts while requests are reaped anyway.
    pub(crate) fn decline_interrupts(&self) {
        self.queue.decline_interrupts();
    }
}

fn status_of(chain: usize) -> *mut u8 {
    let ends = ENDS.0.get().cast::<Ends>().wrapping_add(chain);
    ends.cast::<u8>().wrapping_add(core::mem::offset_of!(Ends, status))
}
