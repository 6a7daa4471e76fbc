//! The saved state of a transport with its queues and the device behind it.

use drover_saved_state::{PayloadReader, PayloadWriter, SavedState, StateError};

use crate::{
    pci::msix::{ENTRIES_MAX, Entry},
    virtio::negotiation::{NegotiationState, QueueSetup, decode_device, encode_device},
};

/// Everything the guest can change, and the device's own envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PciState {
    /// The guest's part of the configuration space.
    pub(super) config: [u8; 256],
    pub(super) interrupt_status: u8,
    pub(super) config_vector: u16,
    /// By queue.
    pub(super) queue_vectors: Vec<u16>,
    /// Entries with their pending bits.
    pub(super) msix: Vec<(Entry, bool)>,
    pub(super) negotiation: NegotiationState,
}

impl SavedState for PciState {
    const KIND: &'static str = "virtio-pci";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.bytes(&self.config);
        payload.u8(self.interrupt_status);
        payload.u16(self.config_vector);
        payload.count(self.queue_vectors.len());
        self.queue_vectors.iter().for_each(|vector| payload.u16(*vector));
        payload.count(self.msix.len());
        for (entry, pending) in &self.msix {
            payload.u64(entry.address);
            payload.u32(entry.data);
            payload.u32(entry.control);
            payload.bool(*pending);
        }
        let negotiation = &self.negotiation;
        payload.u32(negotiation.status);
        payload.u32(negotiation.device_features_select);
        payload.u32(negotiation.driver_features_select);
        payload.u64(negotiation.driver_features);
        payload.u32(negotiation.queue_select);
        payload.bool(negotiation.needs_reset);
        QueueSetup::encode_all(&negotiation.queues, payload);
        encode_device(&negotiation.device, payload);
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        let config = payload.bytes("config")?;
        let config = config.try_into().map_err(|_| StateError::field("config", "256 bytes"))?;
        let interrupt_status = payload.u8("interrupt_status")?;
        let config_vector = payload.u16("config_vector")?;
        let mut queue_vectors = Vec::new();
        for _ in 0..payload.count("queue_vectors", ENTRIES_MAX)? {
            queue_vectors.push(payload.u16("queue_vector")?);
        }
        let mut msix = Vec::new();
        for _ in 0..payload.count("msix", ENTRIES_MAX)? {
            let entry = Entry {
                address: payload.u64("msix.address")?,
                data: payload.u32("msix.data")?,
                control: payload.u32("msix.control")?,
            };
            msix.push((entry, payload.bool("msix.pending")?));
        }
        let negotiation = NegotiationState {
            status: payload.u32("status")?,
            device_features_select: payload.u32("device_features_select")?,
            driver_features_select: payload.u32("driver_features_select")?,
            driver_features: payload.u64("driver_features")?,
            queue_select: payload.u32("queue_select")?,
            needs_reset: payload.bool("needs_reset")?,
            queues: QueueSetup::decode_all(payload)?,
            device: decode_device(payload)?,
        };
        Ok(Self { config, interrupt_status, config_vector, queue_vectors, msix, negotiation })
    }
}
