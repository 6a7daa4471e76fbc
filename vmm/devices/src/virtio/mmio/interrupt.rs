//! The one interrupt line of a device, and the register that says what it was for.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use drover_bus::IrqLine;
use virtio_bindings::virtio_mmio as mmio;

use crate::{VirtioInterrupt, virtio::negotiation::TransportInterrupt};

/// Shared by the registers and the device's threads, without a lock.
#[derive(Debug)]
pub(super) struct MmioInterrupt {
    line: Arc<dyn IrqLine>,
    status: AtomicU32,
    needs_reset: AtomicBool,
}

impl MmioInterrupt {
    pub(super) fn new(line: Arc<dyn IrqLine>) -> Self {
        Self { line, status: AtomicU32::new(0), needs_reset: AtomicBool::new(false) }
    }

    /// InterruptStatus.
    pub(super) fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// InterruptACK: the driver has handled these.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Back to the beginning: by a reset, or to what was saved.
    pub(super) fn set(&self, status: u32, needs_reset: bool) {
        self.status.store(status, Ordering::Release);
        self.needs_reset.store(needs_reset, Ordering::Release);
    }

    /// Pulses once more for what the driver has not acknowledged: a pulse that is lost with its VMM costs nothing then.
    pub(super) fn repeat(&self) {
        if self.status() != 0 {
            self.pulse();
        }
    }

    fn raise(&self, bit: u32) {
        // Before the pulse: the driver's handler reads the register first.
        self.status.fetch_or(bit, Ordering::AcqRel);
        self.pulse();
    }

    fn pulse(&self) {
        if let Err(error) = self.line.pulse() {
            tracing::error!(%error, "cannot interrupt the guest");
        }
    }
}

impl VirtioInterrupt for MmioInterrupt {
    fn queue_used(&self, _queue: u16) {
        self.raise(mmio::VIRTIO_MMIO_INT_VRING);
    }
    fn config_changed(&self) {
        self.raise(mmio::VIRTIO_MMIO_INT_CONFIG);
    }
    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(mmio::VIRTIO_MMIO_INT_CONFIG);
    }
}

impl TransportInterrupt for MmioInterrupt {
    fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }
    fn clear(&self) {
        self.set(0, false);
    }
}
