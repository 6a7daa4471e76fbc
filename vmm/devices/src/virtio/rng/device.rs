//! Life cycle of an entropy device, and its thread.

use std::{
    io,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use drover_saved_state::{Envelope, SavedState};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ids::VIRTIO_ID_RNG,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use vmm_sys_util::{epoll::EventSet, timerfd::TimerFd};

use super::{
    request::{Allowance, PERIOD_MS, REQUEST_BYTES_MAX},
    state::RngState,
};
use crate::{
    ActivateError, Activation, DeviceError, DeviceEvents, VirtioDevice,
    virtio::{
        ring::RingError,
        service::{Context, Service, ServiceThread, Sources},
    },
};

/// A queue of requests that are answered at once needs little room.
const QUEUE_SIZE: u16 = 64;
const TIMER: u64 = 0;

/// What an entropy device is made from.
#[derive(Debug)]
pub struct RngConfig {
    /// For people.
    pub name: String,
    /// Where it tells that it has failed.
    pub events: Arc<dyn DeviceEvents>,
}

/// Counters of an entropy device.
#[derive(Debug, Default)]
pub struct RngMetrics {
    bytes: AtomicU64,
    waits: AtomicU64,
}

impl RngMetrics {
    /// Bytes handed out.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How often the driver had to wait for the next period.
    pub fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }
}

/// A virtio entropy device.
#[derive(Debug)]
pub struct VirtioRng {
    thread: ServiceThread,
    metrics: Arc<RngMetrics>,
}

impl VirtioRng {
    /// A device without a driver.
    pub fn new(config: RngConfig) -> Self {
        Self { thread: ServiceThread::new(config.name, config.events), metrics: Arc::default() }
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<RngMetrics> {
        Arc::clone(&self.metrics)
    }
}

impl VirtioDevice for VirtioRng {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn config_generation(&self) -> u32 {
        0
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::QueueNotReady(0));
        }
        let timer = TimerFd::new()
            .map_err(|error| ActivateError::Host { attempt: "make a timer", source: error.into() })?;
        let metrics = Arc::clone(&self.metrics);
        self.thread.start(activation, Generator { timer, allowance: Allowance::FULL, metrics })
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.thread.reset()
    }

    fn pause(&mut self, limit: Duration) -> Result<(), DeviceError> {
        self.thread.pause(limit)
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.thread.resume()
    }

    fn save(&self) -> Envelope {
        RngState.to_envelope(0)
    }

    fn restore(&mut self, envelope: &Envelope) -> Result<(), DeviceError> {
        let device = self.thread.name().to_owned();
        let RngState =
            RngState::from_envelope(envelope).map_err(|source| DeviceError::State { device, source })?;
        self.thread.start_paused();
        Ok(())
    }
}

/// The thread's work.
struct Generator {
    /// Rings when the next period begins, for a driver that waits for it.
    timer: TimerFd,
    allowance: Allowance,
    metrics: Arc<RngMetrics>,
}

impl Service for Generator {
    fn prepare(&mut self, sources: &Sources) -> io::Result<()> {
        sources.add(TIMER, self.timer.as_raw_fd(), EventSet::IN)
    }

    fn serve(&mut self, at: usize, context: &mut Context) -> Result<(), RingError> {
        let Context { memory, rings, .. } = context;
        let ring = &mut rings[at];
        for _ in 0..ring.budget() {
            let Some(chain) = ring.take()? else { return Ok(()) };
            let Some(granted) = self.allowance.grant(chain.writable_len()) else {
                ring.put_back();
                self.metrics.waits.fetch_add(1, Ordering::Relaxed);
                // Fails for times that are none only.
                let _ = self.timer.reset(Duration::from_millis(PERIOD_MS), None);
                return Ok(());
            };
            let mut bytes = [0; REQUEST_BYTES_MAX];
            let filled = random(&mut bytes[..granted]);
            let written = chain.write(memory, 0, &bytes[..filled])?;
            let head = chain.head();
            self.metrics.bytes.fetch_add(written as u64, Ordering::Relaxed);
            ring.answer(head, u32::try_from(written).expect("a page at most"))?;
        }
        ring.ring();
        Ok(())
    }

    fn on_source(&mut self, _timer: u64, _ready: EventSet, context: &mut Context) -> Result<(), RingError> {
        // It has rung: what there is to read is how often.
        let _ = self.timer.wait();
        self.allowance = Allowance::FULL;
        (0..context.rings.len()).try_for_each(|at| self.serve(at, context))
    }
}

/// Fills `bytes` from the kernel's generator, which never fails once it has been seeded: the host has booted long ago.
/// Returns how many it filled; a signal may cut that short.
fn random(bytes: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "the host gives no random numbers");
                break;
            }
        }
    }
    filled
}
