//! The saved state of a transport with its queues and the device behind it.

use drover_saved_state::{Envelope, PayloadReader, PayloadWriter, SavedState, StateError};

/// Most queues of one device. Ours have at most one per vCPU and two more.
const QUEUES_MAX: usize = 1026;

/// Every register, and the device's own envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MmioState {
    pub(super) status: u32,
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u32,
    pub(super) interrupt_status: u32,
    pub(super) needs_reset: bool,
    pub(super) queues: Vec<QueueRegisters>,
    pub(super) device: Envelope,
}

/// What the driver has set up for one queue, and how far both sides have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    /// Meaningful only while the device is active.
    pub(super) next_available: u16,
    pub(super) next_used: u16,
}

impl SavedState for MmioState {
    const KIND: &'static str = "virtio-mmio";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.u32(self.status);
        payload.u32(self.device_features_select);
        payload.u32(self.driver_features_select);
        payload.u64(self.driver_features);
        payload.u32(self.queue_select);
        payload.u32(self.interrupt_status);
        payload.bool(self.needs_reset);
        payload.count(self.queues.len());
        for queue in &self.queues {
            payload.u16(queue.size);
            payload.bool(queue.ready);
            payload.u64(queue.descriptors);
            payload.u64(queue.available);
            payload.u64(queue.used);
            payload.u16(queue.next_available);
            payload.u16(queue.next_used);
        }
        let mut device = Vec::new();
        self.device.encode(&mut device);
        payload.bytes(&device);
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        let status = payload.u32("status")?;
        let device_features_select = payload.u32("device_features_select")?;
        let driver_features_select = payload.u32("driver_features_select")?;
        let driver_features = payload.u64("driver_features")?;
        let queue_select = payload.u32("queue_select")?;
        let interrupt_status = payload.u32("interrupt_status")?;
        let needs_reset = payload.bool("needs_reset")?;
        let mut queues = Vec::new();
        for _ in 0..payload.count("queues", QUEUES_MAX)? {
            queues.push(QueueRegisters {
                size: payload.u16("queue.size")?,
                ready: payload.bool("queue.ready")?,
                descriptors: payload.u64("queue.descriptors")?,
                available: payload.u64("queue.available")?,
                used: payload.u64("queue.used")?,
                next_available: payload.u16("queue.next_available")?,
                next_used: payload.u16("queue.next_used")?,
            });
        }
        let mut bytes = payload.bytes("device")?;
        let device = Envelope::decode(&mut bytes)?;
        if !bytes.is_empty() {
            return Err(StateError::field("device", "one envelope"));
        }
        Ok(Self {
            status,
            device_features_select,
            driver_features_select,
            driver_features,
            queue_select,
            interrupt_status,
            needs_reset,
            queues,
            device,
        })
    }
}
