//! Life cycle of a balloon.

use std::{io, sync::Arc, time::Duration};

use drover_guest_memory::RamLayout;
use drover_saved_state::{Envelope, SavedState};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ids::VIRTIO_ID_BALLOON,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    config::{
        F_DEFLATE_ON_OOM, F_FREE_PAGE_HINT, F_PAGE_POISON, F_REPORTING, F_STATS, HINT_DONE, HINT_STOP, Space,
    },
    shared::{Balloon, Shared},
    state::BalloonState,
    worker::{INFLATE, Worker},
};
use crate::{
    ActivateError, Activation, DeviceError, DeviceEvents, VirtioDevice, virtio::service::ServiceThread,
};

/// Linux reports 32 runs of free pages in a chain, and names as many hints as the queue has room for.
const QUEUE_SIZE: u16 = 128;

/// What a balloon is made from.
#[derive(Debug)]
pub struct BalloonConfig {
    /// For people.
    pub name: String,
    /// Where the machine's RAM is.
    pub ram: RamLayout,
    /// The guest may take pages out of the balloon rather than kill a process for want of memory.
    pub deflate_on_oom: bool,
    /// Where it tells that it has failed.
    pub events: Arc<dyn DeviceEvents>,
}

/// A virtio memory balloon.
#[derive(Debug)]
pub struct VirtioBalloon {
    thread: ServiceThread,
    balloon: Balloon,
    features: u64,
    /// The driver has to be told that a session of hints is over, once the device runs.
    announce: bool,
}

impl VirtioBalloon {
    /// A balloon without a driver, to be empty.
    ///
    /// # Errors
    /// Where the host has no more descriptors.
    pub fn new(config: BalloonConfig) -> io::Result<Self> {
        let always = [
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            F_STATS,
            F_FREE_PAGE_HINT,
            F_PAGE_POISON,
            F_REPORTING,
        ];
        let sometimes = config.deflate_on_oom.then_some(F_DEFLATE_ON_OOM);
        let features = always.into_iter().chain(sometimes).fold(0, |features, bit| features | 1 << bit);
        let shared = Shared::new(config.ram, EventFd::new(EFD_NONBLOCK)?);
        let thread = ServiceThread::new(config.name, config.events);
        Ok(Self { thread, balloon: Balloon(Arc::new(shared)), features, announce: false })
    }

    /// The host's side.
    pub fn balloon(&self) -> Balloon {
        self.balloon.clone()
    }
}

impl VirtioDevice for VirtioBalloon {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 5]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.balloon.0.lock().space.read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.balloon.0.lock().space.write(offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.balloon.0.lock().generation
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::QueueNotReady(INFLATE));
        }
        let has = |feature: u32| activation.features & 1 << feature != 0;
        let shared = Arc::clone(&self.balloon.0);
        let mut inner = shared.lock();
        inner.hinting = has(F_FREE_PAGE_HINT);
        inner.poisons = has(F_PAGE_POISON);
        let interrupt = Arc::clone(&activation.interrupt);
        inner.interrupt = Some(interrupt);
        drop(inner);
        self.thread.start(activation, Worker { shared, told: None, wanted: false })
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.thread.reset()?;
        // A new driver starts with an empty balloon (5.5.5).
        let mut inner = self.balloon.0.lock();
        inner.interrupt = None;
        inner.hints = None;
        inner.space = Space { target: inner.space.target, actual: 0, hint_command: HINT_DONE, poison: 0 };
        Ok(())
    }

    fn pause(&mut self, limit: Duration) -> Result<(), DeviceError> {
        self.thread.pause(limit)
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.thread.resume()?;
        if std::mem::take(&mut self.announce) {
            self.balloon.0.lock().changed();
        }
        Ok(())
    }

    fn save(&self) -> Envelope {
        let Space { target, actual, hint_command, poison } = self.balloon.0.lock().space;
        BalloonState { target, actual, hint_command, poison }.to_envelope(0)
    }

    fn restore(&mut self, envelope: &Envelope) -> Result<(), DeviceError> {
        let device = || self.thread.name().to_owned();
        let state = BalloonState::from_envelope(envelope)
            .map_err(|source| DeviceError::State { device: device(), source })?;
        if state.target > self.balloon.0.pages_max() {
            let reason = format!("{} pages should be in its balloon, and there are fewer", state.target);
            return Err(DeviceError::Incompatible { device: device(), reason });
        }
        let BalloonState { target, actual, hint_command, poison } = state;
        // A session was of the machine that has been left: its driver waits to hear that it is over.
        self.announce = !matches!(hint_command, HINT_STOP | HINT_DONE);
        let hint_command = if self.announce { HINT_DONE } else { hint_command };
        let mut inner = self.balloon.0.lock();
        inner.space = Space { target, actual, hint_command, poison };
        drop(inner);
        self.thread.start_paused();
        Ok(())
    }
}
