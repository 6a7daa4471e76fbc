//! The saved state of a transport with its queues and the device behind it.

use drover_saved_state::{PayloadReader, PayloadWriter, SavedState, StateError};

use crate::virtio::negotiation::{NegotiationState, QueueSetup, decode_device, encode_device};

/// Every register, and the device's own envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MmioState {
    pub(super) negotiation: NegotiationState,
    pub(super) interrupt_status: u32,
}

impl SavedState for MmioState {
    const KIND: &'static str = "virtio-mmio";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        let negotiation = &self.negotiation;
        payload.u32(negotiation.status);
        payload.u32(negotiation.device_features_select);
        payload.u32(negotiation.driver_features_select);
        payload.u64(negotiation.driver_features);
        payload.u32(negotiation.queue_select);
        payload.u32(self.interrupt_status);
        payload.bool(negotiation.needs_reset);
        QueueSetup::encode_all(&negotiation.queues, payload);
        encode_device(&negotiation.device, payload);
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        let status = payload.u32("status")?;
        let device_features_select = payload.u32("device_features_select")?;
        let driver_features_select = payload.u32("driver_features_select")?;
        let driver_features = payload.u64("driver_features")?;
        let queue_select = payload.u32("queue_select")?;
        let interrupt_status = payload.u32("interrupt_status")?;
        let needs_reset = payload.bool("needs_reset")?;
        let queues = QueueSetup::decode_all(payload)?;
        let device = decode_device(payload)?;
        let negotiation = NegotiationState {
            status,
            device_features_select,
            driver_features_select,
            driver_features,
            queue_select,
            needs_reset,
            queues,
            device,
        };
        Ok(Self { negotiation, interrupt_status })
    }
}
