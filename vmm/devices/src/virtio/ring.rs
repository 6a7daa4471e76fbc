//! One queue as a device's thread works with it.

use std::sync::{
    Arc, MutexGuard, PoisonError,
    atomic::{Ordering, fence},
};

use drover_guest_memory::{GuestMemory, MemoryError};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, Malformed};
use crate::{ActiveQueue, VirtioInterrupt};

/// Takes chains, answers them, and interrupts the driver where it wants that.
#[derive(Debug)]
pub(in crate::virtio) struct Ring {
    queue: ActiveQueue,
    memory: GuestMemory,
    interrupt: Arc<dyn VirtioInterrupt>,
    chain: Chain,
    /// Answers that the driver has not been told of.
    unannounced: u16,
}

/// Why the rings cannot be served any more: the driver has broken the rules.
#[derive(Debug, thiserror::Error)]
pub(in crate::virtio) enum RingError {
    /// Rings that are not as they must be.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A chain that is none.
    #[error(transparent)]
    Chain(#[from] Malformed),
    /// A buffer that is not RAM.
    #[error("a buffer that is not RAM: {0}")]
    Memory(#[from] MemoryError),
    /// A request that breaks the device's own rules.
    #[error("{0}")]
    Request(&'static str),
}

impl Ring {
    pub(in crate::virtio) fn new(
        queue: ActiveQueue,
        memory: GuestMemory,
        interrupt: Arc<dyn VirtioInterrupt>,
    ) -> Self {
        // An indirect table may be as long as the largest queue.
        let chain = Chain::with_capacity(lock(&queue).max_size());
        Self { queue, memory, interrupt, chain, unannounced: 0 }
    }

    /// The queue's number.
    pub(in crate::virtio) fn index(&self) -> u16 {
        self.queue.index
    }

    /// Counts the driver's notifications.
    pub(in crate::virtio) fn doorbell(&self) -> &EventFd {
        &self.queue.doorbell
    }

    /// Rings for itself: what is left in the queue is looked at again, after everything else has had its turn.
    pub(in crate::virtio) fn ring(&self) {
        // Fails only where the counter is full, and then it rings already.
        let _ = self.queue.doorbell.write(1);
    }

    /// How many chains may be taken before others have their turn.
    pub(in crate::virtio) fn budget(&self) -> u16 {
        lock(&self.queue).size()
    }

    /// The next chain. `None`: there is none, and the driver will ring when there is.
    pub(in crate::virtio) fn take(&mut self) -> Result<Option<&Chain>, RingError> {
        let ram = self.memory.as_vm_memory();
        let mut queue = lock(&self.queue);
        let length_max = queue.max_size();
        loop {
            let next = queue.iter(ram)?.next();
            if let Some(chain) = next {
                let head = chain.head_index();
                self.chain.fill(head, chain, length_max)?;
                return Ok(Some(&self.chain));
            }
            if !queue.enable_notification(ram)? {
                return Ok(None);
            }
        }
    }

    /// The chain taken last.
    pub(in crate::virtio) fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Puts back the chain that was just taken; called again, the one before it.
    pub(in crate::virtio) fn put_back(&mut self) {
        lock(&self.queue).go_to_previous_position();
    }

    /// Answers a chain: so many bytes of it have been written.
    pub(in crate::virtio) fn answer(&mut self, head: u16, written: u32) -> Result<(), RingError> {
        self.answer_all(&[(head, written)])
    }

    /// Answers several chains, which the driver sees together: a packet in several buffers is one (5.1.6.4). At most as
    /// many as the queue has.
    pub(in crate::virtio) fn answer_all(&mut self, answers: &[(u16, u32)]) -> Result<(), RingError> {
        let ram = self.memory.as_vm_memory();
        let mut queue = lock(&self.queue);
        let mut next = queue.next_used();
        for (head, written) in answers {
            let mut element = [0; 8];
            element[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
            element[4..].copy_from_slice(&written.to_le_bytes());
            // The ring was checked to lie in RAM when the device was activated.
            let at = queue.used_ring() + 4 + 8 * u64::from(next % queue.size());
            ram.write_slice(&element, GuestAddress(at)).map_err(QueueError::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        ram.store(next.to_le(), GuestAddress(queue.used_ring() + 2), Ordering::Release)
            .map_err(QueueError::GuestMemory)?;
        queue.set_next_used(next);
        self.unannounced = self.unannounced.saturating_add(u16::try_from(answers.len()).unwrap_or(u16::MAX));
        Ok(())
    }

    /// Interrupts the driver for what has been answered, where it wants that (2.7.7).
    pub(in crate::virtio) fn publish(&mut self) -> Result<(), RingError> {
        let answered = std::mem::take(&mut self.unannounced);
        if answered == 0 {
            return Ok(());
        }
        let ram = self.memory.as_vm_memory();
        let queue = lock(&self.queue);
        // The driver must see the answers before we see what it waits for, and the other way round.
        fence(Ordering::SeqCst);
        let load = |at: u64| -> Result<u16, QueueError> {
            ram.load(GuestAddress(at), Ordering::Relaxed).map(u16::from_le).map_err(QueueError::GuestMemory)
        };
        let wanted = if queue.event_idx_enabled() {
            let event = load(queue.avail_ring() + 4 + 2 * u64::from(queue.size()))?;
            // Whether the answer that it waits for is one of these.
            queue.next_used().wrapping_sub(event).wrapping_sub(1) < answered
        } else {
            u32::from(load(queue.avail_ring())?) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        drop(queue);
        if wanted {
            self.interrupt.queue_used(self.queue.index);
        }
        Ok(())
    }
}

fn lock(queue: &ActiveQueue) -> MutexGuard<'_, Queue> {
    queue.queue.lock().unwrap_or_else(PoisonError::into_inner)
}
