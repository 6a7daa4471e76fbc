//! Which of a function's messages an event of the device is.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use crate::{VirtioInterrupt, pci::msix::Msix, virtio::negotiation::TransportInterrupt};

/// "No vector" (4.1.4.3).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Interrupt status bits (4.1.4.5): a queue, the configuration.
const STATUS_QUEUE: u8 = 1;
const STATUS_CONFIG: u8 = 2;

/// Shared by the registers and the device's threads, without a lock.
#[derive(Debug)]
pub(super) struct PciInterrupt {
    pub(super) msix: Msix,
    /// For drivers that poll: there is no pin, and with MSI-X nobody reads it.
    status: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    needs_reset: AtomicBool,
}

impl PciInterrupt {
    pub(super) fn new(msix: Msix, queues: usize) -> Self {
        Self {
            msix,
            status: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            needs_reset: AtomicBool::new(false),
        }
    }

    /// The interrupt status, which reading clears.
    pub(super) fn take_status(&self) -> u8 {
        self.status.swap(0, Ordering::AcqRel)
    }

    pub(super) fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// A queue's vector; of a queue that there is not, none.
    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors.get(usize::from(queue)).map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Takes a vector that the table has; any other becomes none, by which the driver sees that it was refused
    /// (4.1.5.1.2.1).
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.checked(vector), Ordering::Release);
    }

    /// The same for a queue.
    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.checked(vector), Ordering::Release);
        }
    }

    /// What was saved.
    pub(super) fn restore(&self, status: u8, needs_reset: bool) {
        self.status.store(status, Ordering::Release);
        self.needs_reset.store(needs_reset, Ordering::Release);
    }

    fn checked(&self, vector: u16) -> u16 {
        if usize::from(vector) < self.msix.len() { vector } else { NO_VECTOR }
    }

    fn raise(&self, bit: u8, vector: u16) {
        if self.msix.is_enabled() {
            self.msix.pulse(vector);
        } else {
            self.status.fetch_or(bit, Ordering::AcqRel);
        }
    }
}

impl VirtioInterrupt for PciInterrupt {
    fn queue_used(&self, queue: u16) {
        self.raise(STATUS_QUEUE, self.queue_vector(queue));
    }
    fn config_changed(&self) {
        self.raise(STATUS_CONFIG, self.config_vector());
    }
    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.config_changed();
    }
}

impl TransportInterrupt for PciInterrupt {
    fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }
    fn clear(&self) {
        self.restore(0, false);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        self.queue_vectors.iter().for_each(|vector| vector.store(NO_VECTOR, Ordering::Release));
    }
}
