//! What a driver and a device agree on, whatever the transport between them: status, features and queues (section 3.1).
//!
//! ```text
//! reset (status 0) -> ACKNOWLEDGE, DRIVER -> FEATURES_OK -> queues set up -> DRIVER_OK: active
//!      ^                                                                        |
//!      +---- the driver writes 0 to its status; waits until the device has ended ---+
//! ```
//!
//! A transport parses accesses to its registers and calls this; it keeps addresses, doorbells and interrupts itself.

use std::sync::{Arc, Mutex, PoisonError};

use drover_guest_memory::GuestMemory;
use drover_saved_state::{Envelope, PayloadReader, PayloadWriter, StateError};
use virtio_bindings::{
    virtio_config::{
        VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
        VIRTIO_F_VERSION_1,
    },
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};
use virtio_queue::{Queue, QueueState, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::{Activation, ActiveQueue, DeviceError, VirtioDevice, VirtioInterrupt};

/// Most queues of one device. Ours have at most one per vCPU and two more.
const QUEUES_MAX: usize = 1026;

/// Every device of version 2 offers it and every driver accepts it (6.1).
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// A transport's interrupts, as the negotiation needs them.
pub(super) trait TransportInterrupt: VirtioInterrupt + 'static {
    /// Whether the device waits for its reset.
    fn is_reset_needed(&self) -> bool;
    /// Forgets everything: the device has been reset.
    fn clear(&self);
}

/// A device, and how far it has come with its driver.
#[derive(Debug)]
pub(super) struct Negotiation<I> {
    name: String,
    memory: GuestMemory,
    interrupt: Arc<I>,
    bells: Arc<[EventFd]>,
    device: Box<dyn VirtioDevice>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueSetup>,
    /// By number; there while the device is active.
    active: Vec<Option<Arc<Mutex<Queue>>>>,
}

/// What the driver has set up for one queue, and how far both sides have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct QueueSetup {
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    /// Meaningful only while the device is active.
    pub(super) next_available: u16,
    pub(super) next_used: u16,
}

/// All of it, saved, with the device's own envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NegotiationState {
    pub(super) status: u32,
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u32,
    pub(super) needs_reset: bool,
    pub(super) queues: Vec<QueueSetup>,
    pub(super) device: Envelope,
}

impl<I: TransportInterrupt> Negotiation<I> {
    /// Nothing is agreed on yet. `bells` has one event per queue.
    pub(super) fn new(
        name: String,
        memory: GuestMemory,
        interrupt: Arc<I>,
        bells: Arc<[EventFd]>,
        device: Box<dyn VirtioDevice>,
    ) -> Self {
        let queues = new_queues(device.as_ref());
        Self {
            name,
            memory,
            interrupt,
            bells,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            active: vec![None; queues.len()],
            queues,
            device,
        }
    }

    pub(super) fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }

    pub(super) fn device_mut(&mut self) -> &mut dyn VirtioDevice {
        self.device.as_mut()
    }

    /// What the driver reads of its status.
    pub(super) fn status(&self) -> u32 {
        let needs_reset = if self.interrupt.is_reset_needed() { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 };
        self.status | needs_reset
    }

    pub(super) fn device_features_select(&self) -> u32 {
        self.device_features_select
    }

    pub(super) fn select_device_features(&mut self, select: u32) {
        self.device_features_select = select;
    }

    /// The selected word of what is offered; beyond the last, zero.
    pub(super) fn device_features(&self) -> u32 {
        word(self.device.features() | VERSION_1, self.device_features_select)
    }

    pub(super) fn driver_features_select(&self) -> u32 {
        self.driver_features_select
    }

    pub(super) fn select_driver_features(&mut self, select: u32) {
        self.driver_features_select = select;
    }

    /// The selected word of what has been asked for.
    pub(super) fn driver_features(&self) -> u32 {
        word(self.driver_features, self.driver_features_select)
    }

    /// Changes the selected word, while that can be negotiated.
    pub(super) fn set_driver_features(&mut self, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            set_word(&mut self.driver_features, self.driver_features_select, value);
        }
    }

    pub(super) fn queue_select(&self) -> u32 {
        self.queue_select
    }

    pub(super) fn select_queue(&mut self, select: u32) {
        self.queue_select = select;
    }

    /// The selected queue, if there is one of that number.
    pub(super) fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(self.queue_select as usize)
    }

    /// The largest size of the selected queue. Zero says that there is no such queue.
    pub(super) fn queue_size_max(&self) -> u16 {
        self.device.queue_sizes().get(self.queue_select as usize).copied().unwrap_or(0)
    }

    /// Changes the selected queue, unless the device is active already.
    pub(super) fn configure_queue(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK == 0
            && let Some(queue) = self.queues.get_mut(self.queue_select as usize)
        {
            change(queue);
        }
    }

    /// The driver's write of its status: 0 resets, other bits are only ever added.
    pub(super) fn set_status(&mut self, status: u32) {
        if status == 0 {
            return self.reset_for_driver();
        }
        // NEEDS_RESET is ours.
        let added = status & !self.status & !VIRTIO_CONFIG_S_NEEDS_RESET & 0xff;
        let mut accepted = self.status | added;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.are_features_acceptable() {
            tracing::warn!(
                device = self.name,
                features = self.driver_features,
                "the driver asks for features that were not offered"
            );
            accepted &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 && accepted & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            accepted &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        self.status = accepted;
        if added & accepted & VIRTIO_CONFIG_S_DRIVER_OK != 0
            && let Err(reason) = self.activate()
        {
            tracing::warn!(device = self.name, reason, "cannot start the device for its driver");
            self.interrupt.needs_reset();
        }
    }

    fn reset_for_driver(&mut self) {
        if let Err(error) = self.reset() {
            // The status stays as it is, by which the driver sees that the device has not been reset (2.1.1).
            tracing::error!(device = self.name, %error, "the driver's reset has to wait");
        }
    }

    /// Back to where nothing is agreed on.
    pub(super) fn reset(&mut self) -> Result<(), DeviceError> {
        self.device.reset()?;
        self.queues = new_queues(self.device.as_ref());
        self.active.fill(None);
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.interrupt.clear();
        Ok(())
    }

    /// Starts the device with the queues that are set up. The error is for the log.
    fn activate(&mut self) -> Result<(), String> {
        let mut queues = Vec::new();
        let mut active = vec![None; self.queues.len()];
        for (index, setup) in self.queues.iter().enumerate() {
            if !setup.ready {
                continue;
            }
            let max = self.device.queue_sizes()[index];
            let queue = setup
                .build(max, self.driver_features, &self.memory)
                .map_err(|reason| format!("queue {index}: {reason}"))?;
            let queue = Arc::new(Mutex::new(queue));
            active[index] = Some(Arc::clone(&queue));
            let doorbell = self.bells[index].try_clone().map_err(|error| error.to_string())?;
            queues.push(ActiveQueue {
                index: u16::try_from(index).expect("a device has few queues"),
                queue,
                doorbell,
            });
        }
        let interrupt: Arc<dyn VirtioInterrupt> = Arc::clone(&self.interrupt) as _;
        let memory = self.memory.clone();
        let features = self.driver_features;
        let activation = Activation { features, queues, memory, interrupt };
        self.device.activate(activation).map_err(|error| error.to_string())?;
        self.active = active;
        Ok(())
    }

    fn are_features_acceptable(&self) -> bool {
        let offered = self.device.features() | VERSION_1;
        self.driver_features & !offered == 0 && self.driver_features & VERSION_1 != 0
    }

    /// The state of a paused device.
    pub(super) fn save(&self) -> NegotiationState {
        let queues = self.queues.iter().zip(&self.active).map(|(setup, active)| match active {
            None => *setup,
            Some(queue) => {
                let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                QueueSetup { next_available: queue.next_avail(), next_used: queue.next_used(), ..*setup }
            }
        });
        NegotiationState {
            status: self.status,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            needs_reset: self.interrupt.is_reset_needed(),
            queues: queues.collect(),
            device: self.device.save(),
        }
    }

    /// Whether a state is one of this device, as far as can be told without its rings, which
    /// [`restore`](Self::restore) checks.
    pub(super) fn check(&self, state: &NegotiationState) -> Result<(), DeviceError> {
        let sizes = self.device.queue_sizes();
        if state.queues.len() != sizes.len() {
            let (queues, ours) = (state.queues.len(), sizes.len());
            return Err(self.incompatible(format!("it has {queues} queues, the device {ours}")));
        }
        let unknown = state.driver_features & !(self.device.features() | VERSION_1);
        if unknown != 0 {
            let reason =
                format!("its driver uses the features {unknown:#x}, which this device does not offer");
            return Err(self.incompatible(reason));
        }
        Ok(())
    }

    /// Takes over a checked state. The transport has restored its interrupts before.
    pub(super) fn restore(&mut self, state: NegotiationState) -> Result<(), DeviceError> {
        self.device.restore(&state.device)?;
        self.status = state.status;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.driver_features = state.driver_features;
        self.queue_select = state.queue_select;
        self.queues = state.queues;
        // A device that waits for its reset was not at work, and its rings may be anything.
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && !state.needs_reset {
            self.activate().map_err(|reason| self.incompatible(reason))?;
        }
        Ok(())
    }

    fn incompatible(&self, reason: String) -> DeviceError {
        DeviceError::Incompatible { device: self.name.clone(), reason }
    }
}

fn new_queues(device: &dyn VirtioDevice) -> Vec<QueueSetup> {
    device.queue_sizes().iter().map(|size| QueueSetup { size: *size, ..Default::default() }).collect()
}

impl QueueSetup {
    /// The queue, where it is one.
    fn build(&self, size_max: u16, features: u64, memory: &GuestMemory) -> Result<Queue, String> {
        let state = QueueState {
            max_size: size_max,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        let queue = Queue::try_from(state).map_err(|error| error.to_string())?;
        if !queue.is_valid(memory.as_vm_memory()) {
            return Err("its rings are not in RAM".to_owned());
        }
        Ok(queue)
    }

    pub(super) fn encode_all(queues: &[Self], payload: &mut PayloadWriter) {
        payload.count(queues.len());
        for queue in queues {
            payload.u16(queue.size);
            payload.bool(queue.ready);
            payload.u64(queue.descriptors);
            payload.u64(queue.available);
            payload.u64(queue.used);
            payload.u16(queue.next_available);
            payload.u16(queue.next_used);
        }
    }

    pub(super) fn decode_all(payload: &mut PayloadReader<'_>) -> Result<Vec<Self>, StateError> {
        let mut queues = Vec::new();
        for _ in 0..payload.count("queues", QUEUES_MAX)? {
            queues.push(Self {
                size: payload.u16("queue.size")?,
                ready: payload.bool("queue.ready")?,
                descriptors: payload.u64("queue.descriptors")?,
                available: payload.u64("queue.available")?,
                used: payload.u64("queue.used")?,
                next_available: payload.u16("queue.next_available")?,
                next_used: payload.u16("queue.next_used")?,
            });
        }
        Ok(queues)
    }
}

/// The device's envelope inside its transport's.
pub(super) fn encode_device(device: &Envelope, payload: &mut PayloadWriter) {
    let mut bytes = Vec::new();
    device.encode(&mut bytes);
    payload.bytes(&bytes);
}

/// What [`encode_device`] wrote.
pub(super) fn decode_device(payload: &mut PayloadReader<'_>) -> Result<Envelope, StateError> {
    let mut bytes = payload.bytes("device")?;
    let device = Envelope::decode(&mut bytes)?;
    if !bytes.is_empty() {
        return Err(StateError::field("device", "one envelope"));
    }
    Ok(device)
}

/// One 32-bit word of a 64-bit feature set; words beyond it are zero.
fn word(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_word(features: &mut u64, select: u32, value: u32) {
    match select {
        0 => *features = *features & !0xffff_ffff | u64::from(value),
        1 => *features = *features & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}
