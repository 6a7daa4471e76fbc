//! Measures the disk: keeps requests of one kind in flight and counts what comes back, as `probe.bench` asks.
//!
//! ```text
//! WarmingUp ──after a while──▶ Starting ──benchstart is reported──▶ Counting ──time is over──▶ Over (bench is reported)
//! ```

use drover_probe_record::bench::{BenchWork, Latencies, WARM_UP_MS, Wait};
use drover_probe_record::{BLOCK_BYTES, BenchFigures, Event, MmioDevice};

use crate::first::Identity;
use crate::gate::device_interrupts;
use crate::instructions::tsc;
use crate::ram::Ram;
use crate::serial::{report, report_error};
use crate::virtio::block::{BlockDevice, Buffer, Completion, Operation};

/// The vCPU that serves the disk.
const VCPU: usize = 0;
const BUFFERS_MAX: usize = drover_probe_record::command_line::QUEUE_DEPTH_MAX as usize;

/// A request: when it was submitted.
struct Submitted {
    us: u64,
}

#[derive(Clone, Copy)]
enum Phase {
    WarmingUp { until_us: u64 },
    Starting,
    Counting { since_us: u64 },
    Over,
}

/// The worker.
pub(crate) struct Bench {
    device: BlockDevice<Submitted>,
    work: BenchWork,
    spare: [Option<Buffer>; BUFFERS_MAX],
    /// Requests that fit the span.
    places: u64,
    /// The place of the next sequential request.
    next_place: u64,
    random: u64,
    phase: Phase,
    latencies: Latencies,
    failed: u64,
    kicks: u64,
    interrupts: u32,
    interrupts_before: u32,
}

impl Bench {
    /// Starts the device; the first [`poll`](Self::poll) submits.
    ///
    /// # Errors
    /// Why nothing will be measured.
    pub(crate) fn start(
        devices: &[MmioDevice],
        work: &BenchWork,
        ram: &mut Ram,
        identity: Identity,
        now_us: u64,
    ) -> Result<Bench, &'static str> {
        let device = BlockDevice::start(devices, work.queues as usize)?;
        if device.requests_max() < work.queue_depth as usize {
            return Err("its queue is shorter than probe.bench asks for");
        }
        let disk_bytes = device.blocks() * BLOCK_BYTES as u64;
        let span_bytes = if work.span_bytes == 0 { disk_bytes } else { work.span_bytes };
        let places = span_bytes / work.request_bytes;
        if span_bytes > disk_bytes || places == 0 {
            return Err("it is smaller than the span of probe.bench");
        }
        let mut spare = [const { None }; BUFFERS_MAX];
        let blocks = work.request_bytes as usize / BLOCK_BYTES;
        let buffers = Buffer::take(ram, work.queue_depth as usize, blocks);
        let buffers = buffers.map_err(|_| "there is too little RAM for its buffers")?;
        let mut random = identity.incarnation | 1;
        for (room, mut buffer) in spare.iter_mut().zip(buffers) {
            // Neither zeroes nor anything that a store could compress.
            for word in buffer.blocks().as_flattened_mut().chunks_exact_mut(8) {
                word.copy_from_slice(&next_random(&mut random).to_le_bytes());
            }
            *room = Some(buffer);
        }
        Ok(Bench {
            device,
            work: *work,
            spare,
            places,
            next_place: 0,
            random,
            phase: Phase::WarmingUp { until_us: now_us + WARM_UP_MS * 1000 },
            latencies: Latencies::default(),
            failed: 0,
            kicks: 0,
            interrupts: 0,
            interrupts_before: 0,
        })
    }

    /// Takes what has finished and submits as much again.
    pub(crate) fn poll(&mut self, now_us: u64) {
        let interrupts = device_interrupts(VCPU);
        if interrupts != self.interrupts {
            self.interrupts = interrupts;
            if self.device.acknowledge_interrupt() {
                report_error(format_args!("bench: the device has failed and wants a reset"));
            }
        }
        self.device.decline_interrupts();
        while let Some(completion) = self.device.reap() {
            self.finished(completion, now_us);
        }
        self.advance(now_us);
        if !matches!(self.phase, Phase::Over) {
            self.submit(now_us);
        }
    }

    /// Submits nothing new from now on.
    pub(crate) fn stop(&mut self) {
        self.phase = Phase::Over;
    }

    /// Whether nothing more will be reported.
    pub(crate) fn has_reported(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Whether nothing is in flight after [`stop`](Self::stop), or after the end.
    pub(crate) fn is_stopped(&self) -> bool {
        matches!(self.phase, Phase::Over) && self.device.in_flight() == 0
    }

    /// When to poll next, if no interrupt comes first.
    pub(crate) fn wake_us(&self) -> u64 {
        if self.work.wait == Wait::Poll && self.device.in_flight() > 0 {
            return 0;
        }
        match self.phase {
            Phase::WarmingUp { until_us } => until_us,
            Phase::Starting => 0,
            Phase::Counting { since_us } => since_us + self.work.ms * 1000,
            Phase::Over => u64::MAX,
        }
    }

    /// Asks for an interrupt; `false` if there are completions to take already.
    pub(crate) fn may_sleep(&mut self) -> bool {
        self.device.expect_interrupt_for_many()
    }

    fn finished(&mut self, completion: Completion<Submitted>, now_us: u64) {
        if let Some(room) = self.spare.iter_mut().find(|room| room.is_none()) {
            *room = completion.buffer;
        }
        if let Err(failure) = completion.outcome {
            report_error(format_args!("bench: a request failed: {failure}"));
        }
        if matches!(self.phase, Phase::Counting { .. }) {
            match completion.outcome {
                Ok(()) => self.latencies.record(now_us.saturating_sub(completion.job.us)),
                Err(_) => self.failed += 1,
            }
        }
    }

    fn advance(&mut self, now_us: u64) {
        self.phase = match self.phase {
            Phase::WarmingUp { until_us } if now_us >= until_us => {
                // A report takes about a millisecond, which is not to be counted: the next turn has its own time.
                report(&Event::BenchStart { tsc: tsc() });
                Phase::Starting
            }
            Phase::Starting => {
                self.kicks = 0;
                self.interrupts_before = self.interrupts;
                Phase::Counting { since_us: now_us }
            }
            Phase::Counting { since_us } if now_us >= since_us + self.work.ms * 1000 => {
                report(&Event::Bench(self.figures(now_us - since_us)));
                Phase::Over
            }
            phase => phase,
        };
    }

    fn figures(&self, us: u64) -> BenchFigures {
        let Bench { latencies, failed, kicks, .. } = self;
        BenchFigures {
            ops: latencies.count(),
            failed: *failed,
            bytes: latencies.count() * self.work.request_bytes,
            us,
            p50_us: latencies.per_mille(500),
            p99_us: latencies.per_mille(990),
            p999_us: latencies.per_mille(999),
            max_us: latencies.max_us(),
            kicks: *kicks,
            interrupts: u64::from(self.interrupts.wrapping_sub(self.interrupts_before)),
        }
    }

    /// All that may be in flight, then one notification for the lot.
    fn submit(&mut self, now_us: u64) {
        let blocks = self.work.request_bytes as usize / BLOCK_BYTES;
        while let Some(buffer) = self.spare.iter_mut().find_map(Option::take) {
            let block = self.next_place() * blocks as u64;
            let operation = if self.work.pattern.writes() {
                Operation::Write { block, count: blocks }
            } else {
                Operation::Read { block, count: blocks }
            };
            self.device.submit(operation, Some(buffer), Submitted { us: now_us });
        }
        self.kicks += self.device.notify();
    }

    fn next_place(&mut self) -> u64 {
        if self.work.pattern.is_random() {
            return next_random(&mut self.random) % self.places;
        }
        let place = self.next_place;
        self.next_place = (place + 1) % self.places;
        place
    }
}

/// Xorshift (Marsaglia, Journal of Statistical Software 8, 2003): places need to be spread, not to be unpredictable.
fn next_random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
