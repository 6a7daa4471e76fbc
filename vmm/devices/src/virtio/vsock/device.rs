//! Life cycle of a socket device.

use std::{
    io,
    os::unix::net::UnixListener,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use drover_saved_state::{Envelope, SavedState};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ids::VIRTIO_ID_VSOCK,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

use super::{muxer::Muxer, state::VsockState, worker::Worker};
use crate::{
    ActivateError, Activation, DeviceError, DeviceEvents, VirtioDevice, virtio::service::ServiceThread,
};

const QUEUE_SIZE: u16 = 128;
/// CIDs that belong to no guest (5.10.4): hypervisor, local, host, and the one that means any.
const CID_MIN: u64 = 3;
const CID_MAX: u64 = u32::MAX as u64 - 1;

/// What a socket device is made from.
#[derive(Debug)]
pub struct VsockConfig {
    /// For people.
    pub name: String,
    /// The guest's CID, 3 to 2^32 - 2.
    pub cid: u64,
    /// Where processes on the host connect.
    pub listener: UnixListener,
    /// The path of that: with `_` and a port behind it, where guests' connections go.
    pub path: PathBuf,
    /// Where it tells that it has failed.
    pub events: Arc<dyn DeviceEvents>,
}

/// A virtio socket device.
#[derive(Debug)]
pub struct VirtioVsock {
    thread: ServiceThread,
    cid: u64,
    listener: UnixListener,
    path: PathBuf,
    /// The driver has to be told that its connections are gone.
    lost: Arc<AtomicBool>,
}

impl VirtioVsock {
    /// A device without a driver.
    ///
    /// # Errors
    /// For a CID that is no guest's, and where the host refuses.
    pub fn new(config: VsockConfig) -> io::Result<Self> {
        if !(CID_MIN..=CID_MAX).contains(&config.cid) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a guest's CID is 3 to 2^32 - 2"));
        }
        config.listener.set_nonblocking(true)?;
        Ok(Self {
            thread: ServiceThread::new(config.name, config.events),
            cid: config.cid,
            listener: config.listener,
            path: config.path,
            lost: Arc::default(),
        })
    }
}

impl VirtioDevice for VirtioVsock {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = self.cid.to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(space.len()).min(space.len());
        let there = &space[from..(from.saturating_add(data.len())).min(space.len())];
        data.fill(0);
        data[..there.len()].copy_from_slice(there);
    }

    fn config_generation(&self) -> u32 {
        0
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::QueueNotReady(0));
        }
        let listener = self
            .listener
            .try_clone()
            .map_err(|source| ActivateError::Host { attempt: "share the socket", source })?;
        let muxer = Muxer::new(self.cid, listener, self.path.clone());
        self.thread.start(activation, Worker::new(muxer, Arc::clone(&self.lost)))
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.thread.reset()?;
        // The next driver has no connections to lose.
        self.lost.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn pause(&mut self, limit: Duration) -> Result<(), DeviceError> {
        self.thread.pause(limit)
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.thread.resume()
    }

    fn save(&self) -> Envelope {
        VsockState { cid: self.cid }.to_envelope(0)
    }

    fn restore(&mut self, envelope: &Envelope) -> Result<(), DeviceError> {
        let device = || self.thread.name().to_owned();
        let VsockState { cid } = VsockState::from_envelope(envelope)
            .map_err(|source| DeviceError::State { device: device(), source })?;
        if cid != self.cid {
            let reason = format!("its guest has the CID {cid}, this one {}", self.cid);
            return Err(DeviceError::Incompatible { device: device(), reason });
        }
        self.lost.store(true, Ordering::Relaxed);
        self.thread.start_paused();
        Ok(())
    }
}
