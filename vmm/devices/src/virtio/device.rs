//! What a virtio device is to its transport, and what the transport gives it.

use std::{
    fmt, io,
    sync::{Arc, Mutex},
    time::Duration,
};

use drover_guest_memory::GuestMemory;
use drover_saved_state::Envelope;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::DeviceError;

/// A virtio device without its transport: no registers, no addresses, no interrupt lines.
///
/// ```text
/// new --activate--> active --reset--> new        pause and resume at any time, save and restore while paused
/// ```
///
/// The transport calls it under its own lock, one method at a time.
pub trait VirtioDevice: fmt::Debug + Send {
    /// Which kind of device (section 5).
    fn device_id(&self) -> u32;

    /// Features that can be negotiated, ring features included. Does not change.
    fn features(&self) -> u64;

    /// Largest size of each queue: powers of two. Does not change.
    fn queue_sizes(&self) -> &[u16];

    /// Fills `data` from the configuration space; beyond its end with zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes what the driver writes to the configuration space. Most devices have no field that a driver may write:
    /// such a write is ignored (2.5.1), which is what this does where a device has none.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// A number that is another one after the configuration space has changed (4.2.2.1), on every host the same for the
    /// same content.
    fn config_generation(&self) -> u32;

    /// Starts work: the driver is ready. Starts paused where the device is.
    ///
    /// # Errors
    /// Where the host does not give what is needed; the device is as before.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Ends all work and gives back what [`activate`](Self::activate) was given, once requests under way have ended.
    ///
    /// # Errors
    /// [`DeviceError::DrainTimeout`]; the device is still active.
    fn reset(&mut self) -> Result<(), DeviceError>;

    /// As [`Device::pause`](crate::Device::pause).
    ///
    /// # Errors
    /// The same.
    fn pause(&mut self, limit: Duration) -> Result<(), DeviceError>;

    /// As [`Device::resume`](crate::Device::resume).
    ///
    /// # Errors
    /// The same.
    fn resume(&mut self) -> Result<(), DeviceError>;

    /// The state of a paused device that is not in its queues. The transport saves those.
    fn save(&self) -> Envelope;

    /// Takes over a state; [`activate`](Self::activate) follows where the device was active. Pauses.
    ///
    /// # Errors
    /// [`DeviceError::State`] or [`DeviceError::Incompatible`].
    fn restore(&mut self, envelope: &Envelope) -> Result<(), DeviceError>;
}

/// What an active device works with.
#[derive(Debug)]
pub struct Activation {
    /// What was negotiated: a subset of [`VirtioDevice::features`].
    pub features: u64,
    /// The queues the driver has made ready.
    pub queues: Vec<ActiveQueue>,
    /// Guest RAM.
    pub memory: GuestMemory,
    /// How to interrupt the guest.
    pub interrupt: Arc<dyn VirtioInterrupt>,
}

/// A queue in use.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Its number.
    pub index: u16,
    /// The rings; checked to lie in RAM. The transport looks at it only while the device is paused.
    pub queue: Arc<Mutex<Queue>>,
    /// Counts the driver's notifications.
    pub doorbell: EventFd,
}

/// How a device interrupts its driver, whatever the transport. Called from device threads; never waits.
pub trait VirtioInterrupt: fmt::Debug + Send + Sync {
    /// There is something new in the used ring of this queue.
    fn queue_used(&self, queue: u16);
    /// The configuration space has changed.
    fn config_changed(&self);
    /// The driver has broken the rules so that the device cannot go on until it is reset (section 2.1.2).
    fn needs_reset(&self);
}

/// Why a device could not start work.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver has not made ready the queues it needs.
    #[error("queue {0} is not ready")]
    QueueNotReady(u16),
    /// The host refused.
    #[error("cannot {attempt}")]
    Host {
        /// What was tried.
        attempt: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}
