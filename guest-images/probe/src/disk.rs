//! Work on the disk: take up the sequence where the disk ends it, then write on, flush, acknowledge, and read back.
//!
//! ```text
//! Recovering ──every slot read──▶ Writing ◀──all that was not acknowledged is written anew──┐
//!                                    └──────────a write or flush fails──────────────────────┘
//! ```

mod recovering;
mod watch;
mod writing;

use drover_probe_record::recovery::Recovered;
use drover_probe_record::stamp::Slots;
use drover_probe_record::{DiskState, DiskWork, Event, MmioDevice, VisitorState};

use self::recovering::Recovering;
use self::watch::Watch;
use self::writing::Writing;
use crate::first::Identity;
use crate::instructions::tsc;
use crate::ram::Ram;
use crate::serial::report;
use crate::virtio::block::{BlockDevice, Buffer};

/// Flush and read-back beside the writes.
const REQUESTS_BESIDE_WRITES: usize = 2;
/// The most writes in flight, plus those.
const BUFFERS_MAX: usize = 66;
/// After a failed request, before the next attempt: long enough not to flood, short enough to go on soon.
const RETRY_US: u64 = 100_000;

/// Blocks that one buffer holds: recovery reads that many at a time.
const RECOVERY_BLOCKS: usize = 16;

/// What a request is for.
#[derive(Clone, Copy)]
enum Job {
    Recover { slot: u64, count: usize },
    Write { seq: u64 },
    Flush,
    ReadBack { seq: u64 },
}

enum Phase {
    Recovering(Recovering),
    Writing(Writing),
}

/// The device and what requests to it need.
struct Io {
    device: BlockDevice<Job>,
    spare: [Option<Buffer>; BUFFERS_MAX],
}

/// The worker.
pub(crate) struct Disk {
    io: Io,
    watch: Watch,
    phase: Phase,
    settings: Settings,
    stopping: bool,
}

/// Which disk it is, to whoever reads the reports.
#[derive(Clone, Copy)]
enum Voice {
    First,
    /// One that comes and goes, with its number on the bus.
    Visitor(u32),
}

impl Voice {
    fn recovered(self, recovered: &Recovered) {
        let Recovered { max_seq, next_seq, blocks, bad, .. } = *recovered;
        report(&match self {
            Voice::First => Event::Disk { state: DiskState::Recovered, max_seq, next_seq, blocks, bad },
            Voice::Visitor(device) => {
                Event::Visitor { state: VisitorState::Came, device, seq: next_seq - 1, bad }
            }
        });
    }

    fn acknowledged(self, seq: u64, bad: u64) {
        report(&match self {
            Voice::First => Event::Ack { seq, tsc: tsc() },
            Voice::Visitor(device) => Event::Visitor { state: VisitorState::Kept, device, seq, bad },
        });
    }

    fn verified(self, reads: u64, bad: u64) {
        if let Voice::First = self {
            report(&Event::Verify { reads, bad });
        }
    }
}

/// What does not change.
#[derive(Clone, Copy)]
struct Settings {
    voice: Voice,
    slots: Slots,
    iops: u64,
    queue_depth: u64,
    incarnation: u64,
}

impl Io {
    fn take_buffer(&mut self) -> Option<Buffer> {
        self.spare.iter_mut().find_map(Option::take)
    }

    fn give_back(&mut self, buffer: Option<Buffer>) {
        if let Some(room) = self.spare.iter_mut().find(|room| room.is_none()) {
            *room = buffer;
        }
    }
}

impl Disk {
    /// Starts the device and begins to recover.
    ///
    /// # Errors
    /// Why there will be no work on the disk.
    pub(crate) fn start(
        places: &[MmioDevice],
        work: &DiskWork,
        ram: &mut Ram,
        identity: Identity,
    ) -> Result<Disk, &'static str> {
        Self::on(Voice::First, BlockDevice::start(places, 1)?, work, ram, identity)
    }

    /// The same on the disk with this number on the PCI bus, beside the first one.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub(crate) fn visit(
        number: u32,
        work: &DiskWork,
        ram: &mut Ram,
        identity: Identity,
    ) -> Result<Disk, &'static str> {
        Self::on(Voice::Visitor(number), BlockDevice::start_on_pci(number)?, work, ram, identity)
    }

    fn on(
        voice: Voice,
        device: BlockDevice<Job>,
        work: &DiskWork,
        ram: &mut Ram,
        identity: Identity,
    ) -> Result<Disk, &'static str> {
        let Identity { seed, incarnation } = identity;
        if device.blocks() < work.slots {
            return Err("it has fewer blocks of 4 KiB than its work asks for");
        }
        let writes_max = device.requests_max().saturating_sub(REQUESTS_BESIDE_WRITES).max(1);
        let queue_depth = work.queue_depth.min(writes_max as u64);
        let slots = Slots { seed, count: work.slots };
        let too_little = |_| "there is too little RAM for its buffers";
        let mut spare = [const { None }; BUFFERS_MAX];
        let buffers = Buffer::take(ram, queue_depth as usize + 1, RECOVERY_BLOCKS).map_err(too_little)?;
        spare.iter_mut().zip(buffers).for_each(|(room, buffer)| *room = Some(buffer));
        // SAFETY: a sequence number is any 64 bits.
        let table = unsafe { ram.take::<u64>(work.slots as usize) }.map_err(too_little)?;
        Ok(Disk {
            io: Io { device, spare },
            watch: Watch::default(),
            phase: Phase::Recovering(Recovering::new(voice, slots, table)),
            settings: Settings { voice, slots, iops: work.iops, queue_depth, incarnation },
            stopping: false,
        })
    }

    /// Takes what has finished and submits what is due.
    pub(crate) fn poll(&mut self, now_us: u64) {
        self.watch.before_reaping(&self.io.device);
        self.io.device.decline_interrupts();
        let mut reaped = false;
        while let Some(completion) = self.io.device.reap() {
            reaped = true;
            match &mut self.phase {
                Phase::Recovering(recovering) => recovering.finished(&mut self.io, completion, now_us),
                Phase::Writing(writing) => writing.finished(&mut self.io, completion, now_us),
            }
        }
        self.watch.after_reaping(reaped, self.io.device.in_flight(), now_us);
        if let Phase::Recovering(recovering) = &mut self.phase
            && let Some(recovered) = recovering.recovered()
        {
            self.phase = Phase::Writing(Writing::new(&self.settings, &recovered, now_us));
        }
        match &mut self.phase {
            Phase::Recovering(_) if self.stopping => {}
            Phase::Recovering(recovering) => recovering.submit(&mut self.io, now_us),
            Phase::Writing(writing) => writing.submit(&mut self.io, now_us, self.stopping),
        }
        self.io.device.notify();
    }

    /// Submits nothing new from now on but what makes finished writes durable.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether everything has come to its end after [`stop`](Self::stop).
    pub(crate) fn is_stopped(&self) -> bool {
        let settled = match &self.phase {
            Phase::Recovering(_) => true,
            Phase::Writing(writing) => writing.is_settled(),
        };
        self.stopping && settled && self.io.device.in_flight() == 0
    }

    /// Makes the device let go of all memory. What was under way is forgotten.
    pub(crate) fn reset(&self) {
        self.io.device.reset();
    }

    /// When to poll next, if no interrupt comes first.
    pub(crate) fn wake_us(&self) -> u64 {
        let work = match &self.phase {
            Phase::Recovering(recovering) => recovering.wake_us(),
            Phase::Writing(writing) => writing.wake_us(),
        };
        work.min(self.watch.wake_us())
    }

    /// Asks for an interrupt with the next completion; `false` if there is one to take already.
    pub(crate) fn may_sleep(&mut self) -> bool {
        let may = self.io.device.expect_interrupt();
        self.watch.sleeping(may);
        may
    }
}
