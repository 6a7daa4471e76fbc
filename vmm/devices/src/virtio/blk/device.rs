//! Life cycle of a disk and its workers.

use std::{
    fmt, mem,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use drover_block::{Backend, QueueConfig};
use drover_saved_state::{Envelope, SavedState};
use drover_thread_role::{Role, spawn};
use drover_units::Sectors;
use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_WRITE_ZEROES,
    },
    virtio_ids::VIRTIO_ID_BLOCK,
};
use virtio_queue::QueueT;

use super::{
    announcer::Announcer,
    config::{self, Shape},
    metrics::BlkMetrics,
    state::BlkState,
    worker::{ID_LEN, Setup, Worker},
};
use crate::{
    ActivateError, Activation, ActiveQueue, DeviceError, DeviceEvents, Throttle, VirtioDevice,
    virtio::{
        control::{Control, Doing, Order},
        throttle::Gate,
    },
};

/// Largest size of a queue. What Linux and others use: deep enough for any storage, 12 KiB of rings.
const QUEUE_SIZE: u16 = 256;

/// Most queues of a disk: one for each vCPU of a large VM. Each is a thread and two descriptors.
pub const BLK_QUEUES_MAX: u16 = 64;

/// How long requests under way may take before a reset gives up waiting for them. Storage that is alive
/// answers within seconds; a control plane has answered otherwise by then.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// What a disk is made from.
#[derive(Debug)]
pub struct BlkConfig {
    /// For people, for instance `disk0`.
    pub name: String,
    /// How the driver finds the disk again: GET_ID, `/dev/disk/by-id/virtio-…`. Its first 20 bytes count.
    pub id: String,
    /// How many queues the driver may use, each with a thread of its own. Taken as 1 to [`BLK_QUEUES_MAX`].
    pub queues: u16,
    /// Where it learns that the VM must stop.
    pub events: Arc<dyn DeviceEvents>,
}

/// A virtio block device.
pub struct VirtioBlk {
    name: String,
    id: [u8; ID_LEN],
    /// One entry per queue.
    queue_sizes: Vec<u16>,
    backend: Arc<dyn Backend>,
    events: Arc<dyn DeviceEvents>,
    metrics: Arc<BlkMetrics>,
    throttle: Arc<Throttle>,
    announcer: Arc<Announcer>,
    /// Written data may wait for a flush: what the driver reads, and may change where it has asked for that.
    writeback: bool,
    /// What follows from it for the workers, and from what was negotiated.
    write_through: Arc<AtomicBool>,
    /// What was negotiated, while the device is active.
    features: u64,
    /// What the driver of a restored disk has been told of its size.
    restored: Option<Sectors>,
    paused: bool,
    workers: Vec<Running>,
}

/// A worker's thread and its orders.
struct Running {
    control: Arc<Control>,
    thread: thread::JoinHandle<()>,
}

impl fmt::Debug for VirtioBlk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioBlk")
            .field("name", &self.name)
            .field("backend", &self.backend)
            .field("paused", &self.paused)
            .field("workers", &self.workers.len())
            .finish_non_exhaustive()
    }
}

impl VirtioBlk {
    /// A disk over a backend. The backend must be owned before the driver uses the disk; the device neither acquires
    /// nor releases it.
    pub fn new(config: BlkConfig, backend: Arc<dyn Backend>) -> Self {
        let mut id = [0; ID_LEN];
        let len = config.id.len().min(ID_LEN);
        id[..len].copy_from_slice(&config.id.as_bytes()[..len]);
        let announcer = Arc::new(Announcer::default());
        let listener = Arc::clone(&announcer);
        backend.set_resize_listener(Box::new(move |capacity| listener.tell(capacity)));
        Self {
            name: config.name,
            id,
            queue_sizes: vec![QUEUE_SIZE; config.queues.clamp(1, BLK_QUEUES_MAX).into()],
            backend,
            events: config.events,
            metrics: Arc::default(),
            throttle: Arc::default(),
            announcer,
            writeback: true,
            write_through: Arc::default(),
            features: 0,
            restored: None,
            paused: false,
            workers: Vec::new(),
        }
    }

    /// The disk's counters.
    pub fn metrics(&self) -> Arc<BlkMetrics> {
        Arc::clone(&self.metrics)
    }

    /// The disk's limits: none at first. A read is inbound; writes, flushes, discards and writes of zeros are outbound,
    /// and only reads and writes have bytes.
    pub fn throttle(&self) -> Arc<Throttle> {
        Arc::clone(&self.throttle)
    }

    fn start(&self, activation: &Activation, queue: ActiveQueue) -> Result<Running, ActivateError> {
        let refused = |attempt| move |source| ActivateError::Host { attempt, source };
        let order = if self.paused { Order::Pause } else { Order::Run };
        let control = Arc::new(Control::new(order).map_err(refused("make an event"))?);
        let depth = queue.queue.lock().unwrap_or_else(PoisonError::into_inner).size();
        let backend =
            self.backend.queue(QueueConfig { depth }).map_err(refused("open a queue to the storage"))?;
        let has = |feature| has(activation.features, feature);
        let setup = Setup {
            name: self.name.clone(),
            id: self.id,
            write_through: Arc::clone(&self.write_through),
            piece_bytes_max: has(VIRTIO_BLK_F_SIZE_MAX).then_some(config::PIECE_BYTES_MAX),
            discard: has(VIRTIO_BLK_F_DISCARD),
            write_zeroes: has(VIRTIO_BLK_F_WRITE_ZEROES),
            memory: activation.memory.clone(),
            interrupt: Arc::clone(&activation.interrupt),
            metrics: Arc::clone(&self.metrics),
            events: Arc::clone(&self.events),
            gate: Gate::new(Arc::clone(&self.throttle)).map_err(refused("make a timer"))?,
            control: Arc::clone(&control),
        };
        // Linux cuts a thread's name off after 15 bytes.
        let name = format!("{}/{}", self.name, queue.index);
        let worker = Worker::new(setup, queue, backend);
        let waiting = worker.waiting().map_err(refused("wait for events"))?;
        // The order it was made with counts as the first.
        control.give(order);
        let builder = thread::Builder::new().name(name).stack_size(STACK_BYTES);
        let thread =
            spawn(Role::Device, builder, move || worker.run(&waiting)).map_err(refused("start a thread"))?;
        Ok(Running { control, thread })
    }

    /// Waits until no worker runs, for `limit` at each queue, and says what one of them has to say.
    fn wait(&self, limit: Duration) -> Result<(), DeviceError> {
        let device = || self.name.clone();
        for worker in &self.workers {
            match worker.control.wait(limit) {
                Doing::Paused | Doing::Stopped => {}
                Doing::Running => {
                    return Err(DeviceError::DrainTimeout { device: device(), waited: limit });
                }
                Doing::Fenced => return Err(DeviceError::Fenced { device: device() }),
                Doing::Died => {
                    let reason = "the thread of its queue has died".to_owned();
                    return Err(DeviceError::Failed { device: device(), reason });
                }
            }
        }
        Ok(())
    }

    fn give(&self, order: Order) {
        for worker in &self.workers {
            worker.control.give(order);
        }
    }

    /// The id as the saved state has it: without padding.
    fn id(&self) -> &[u8] {
        let len = self.id.iter().position(|byte| *byte == 0).unwrap_or(ID_LEN);
        &self.id[..len]
    }

    fn segments_max(&self) -> u16 {
        config::segments_max(&self.backend.info(), QUEUE_SIZE)
    }

    fn queues(&self) -> u16 {
        u16::try_from(self.queue_sizes.len()).expect("at most BLK_QUEUES_MAX")
    }

    fn shape(&self) -> Shape {
        let (queues, writeback) = (self.queues(), self.writeback);
        Shape { info: self.backend.info(), queue_size: QUEUE_SIZE, queues, writeback }
    }

    /// When a write is answered (5.2.6.2): with a cache that the driver can turn off, as it says; otherwise early only
    /// for a driver that knows flushes.
    fn apply_writeback(&self) {
        let may_wait = if has(self.features, VIRTIO_BLK_F_CONFIG_WCE) {
            self.writeback
        } else {
            has(self.features, VIRTIO_BLK_F_FLUSH)
        };
        self.write_through.store(!may_wait, Ordering::Relaxed);
    }
}

fn has(features: u64, feature: u32) -> bool {
    features & 1 << feature != 0
}

/// A worker recurses nowhere and keeps its buffers on the heap; the rest is for the panic machinery and logging.
const STACK_BYTES: usize = 256 << 10;

impl VirtioDevice for VirtioBlk {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        config::features(&self.backend.info(), self.queues())
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config::read(&self.shape(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // What was written before is durable with the next write or flush, as on any disk whose cache is turned off.
        if has(self.features, VIRTIO_BLK_F_CONFIG_WCE)
            && let Some(writeback) = config::written_writeback(offset, data)
        {
            self.writeback = writeback;
            self.apply_writeback();
        }
    }

    fn config_generation(&self) -> u32 {
        config::generation(&self.backend.info())
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        debug_assert!(self.workers.is_empty(), "a device is reset before it is activated again");
        let queues = mem::take(&mut activation.queues);
        if queues.is_empty() {
            return Err(ActivateError::QueueNotReady(0));
        }
        self.features = activation.features;
        // A driver that can turn the cache off and knows no flush starts with it off (5.2.5.2); a restored one has
        // said what it wants.
        if self.restored.is_none() {
            self.writeback = has(self.features, VIRTIO_BLK_F_FLUSH);
        }
        self.apply_writeback();
        for queue in queues {
            match self.start(&activation, queue) {
                Ok(worker) => self.workers.push(worker),
                Err(error) => {
                    if let Err(error) = self.reset() {
                        tracing::error!(disk = self.name, %error, "a queue's worker does not end");
                    }
                    return Err(error);
                }
            }
        }
        let known = self.restored.take().unwrap_or_else(|| self.backend.info().capacity);
        self.announcer.start(&activation.interrupt, known);
        // A change since the driver last looked, or since the line above.
        self.announcer.tell(self.backend.info().capacity);
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.give(Order::Stop);
        // One that has lost its disk or its life has nothing more to answer.
        if let Err(error @ DeviceError::DrainTimeout { .. }) = self.wait(DRAIN_LIMIT) {
            return Err(error);
        }
        self.announcer.stop();
        self.writeback = true;
        self.features = 0;
        for worker in self.workers.drain(..) {
            // A panic has been reported where it happened.
            let _ = worker.thread.join();
        }
        Ok(())
    }

    fn pause(&mut self, limit: Duration) -> Result<(), DeviceError> {
        if self.paused {
            return Ok(());
        }
        self.give(Order::Pause);
        match self.wait(limit) {
            Ok(()) => {
                self.paused = true;
                self.announcer.pause();
                Ok(())
            }
            Err(error) => {
                self.give(Order::Run);
                Err(error)
            }
        }
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        for worker in &self.workers {
            let device = self.name.clone();
            match worker.control.doing() {
                Doing::Fenced => return Err(DeviceError::Fenced { device }),
                Doing::Died => {
                    let reason = "the thread of its queue has died".to_owned();
                    return Err(DeviceError::Failed { device, reason });
                }
                Doing::Running | Doing::Paused | Doing::Stopped => {}
            }
        }
        self.paused = false;
        self.announcer.resume(self.backend.info().capacity);
        self.give(Order::Run);
        Ok(())
    }

    fn save(&self) -> Envelope {
        let info = self.backend.info();
        BlkState {
            // What the driver knows: whoever resumes tells it the rest.
            capacity: self.announcer.told().unwrap_or(info.capacity),
            block_size: info.block_size,
            read_only: info.read_only,
            segments_max: self.segments_max(),
            id: self.id().to_vec(),
            optimal_io: info.optimal_io,
            discard: info.discard,
            write_zeroes: info.write_zeroes,
            queues: self.queues(),
            writeback: self.writeback,
        }
        .to_envelope(0)
    }

    fn restore(&mut self, envelope: &Envelope) -> Result<(), DeviceError> {
        let device = || self.name.clone();
        let state = BlkState::from_envelope(envelope)
            .map_err(|source| DeviceError::State { device: device(), source })?;
        state
            .fits(&self.shape(), self.segments_max(), self.id())
            .map_err(|reason| DeviceError::Incompatible { device: device(), reason })?;
        self.restored = Some(state.capacity);
        self.writeback = state.writeback;
        self.announcer.pause();
        self.paused = true;
        Ok(())
    }
}

impl Drop for VirtioBlk {
    fn drop(&mut self) {
        if let Err(error) = self.reset() {
            // The thread keeps what it uses; the process is about to end anyhow.
            tracing::error!(disk = self.name, %error, "a disk was dropped with requests under way");
        }
    }
}
