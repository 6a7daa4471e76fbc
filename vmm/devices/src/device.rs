//! What every device is to the machine, and what it tells it.

use std::{fmt, time::Duration};

use drover_saved_state::{Envelope, StateError};

/// A device's life under the machine's control thread.
///
/// ```text
/// new -> running --pause--> paused --save--> paused --resume--> running
/// new --restore--> paused --resume--> running
///                  paused --reset--> paused, and as new
/// ```
///
/// The vCPUs are out of the guest before `pause` is called and until `resume` has returned; device threads are not.
/// After `pause` the device changes neither guest RAM nor its own state and has no I/O under way, so that state and
/// RAM can be copied and volumes released. All methods may be called from any thread, one at a time.
pub trait Device: fmt::Debug + Send + Sync {
    /// A name for people: logs and errors.
    fn name(&self) -> &str;

    /// Stops on its own accord what it does, and waits until it is done, but not longer than `limit`. Pausing a paused
    /// device does nothing.
    ///
    /// # Errors
    /// [`DeviceError::DrainTimeout`]; the device runs on. [`DeviceError::Fenced`] or [`DeviceError::Failed`] where
    /// requests can no longer be answered, so that the state cannot be saved.
    fn pause(&self, limit: Duration) -> Result<(), DeviceError>;

    /// Goes on, and catches up with what the guest asked for meanwhile. Resuming a running device does nothing.
    ///
    /// # Errors
    /// [`DeviceError::Fenced`] or [`DeviceError::Failed`].
    fn resume(&self) -> Result<(), DeviceError>;

    /// What a reset of the whole machine does to a paused device: it is as new, except for what survives the loss of
    /// everything in RAM (the data of a disk, the date of a clock). It stays paused.
    ///
    /// # Errors
    /// Where it cannot end what it does; the machine cannot start anew then.
    fn reset(&self) -> Result<(), DeviceError>;

    /// The state of a paused device.
    fn save(&self) -> Saved;

    /// Takes over a state. The device is new, nobody has used it, and it is paused afterwards.
    ///
    /// # Errors
    /// [`DeviceError::State`] or [`DeviceError::Incompatible`]; the device is of no further use.
    fn restore(&self, envelope: &Envelope) -> Result<(), DeviceError>;
}

/// What a device has to save.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saved {
    /// This.
    State(Envelope),
    /// Nothing: a new device is as good.
    Stateless,
    /// Something that cannot be moved; the reason is for people.
    NotMigratable(&'static str),
}

/// Why a device did not do as told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Requests did not end in time.
    #[error("{device}: requests are still under way after {} ms", .waited.as_millis())]
    DrainTimeout {
        /// Which device.
        device: String,
        /// How long it was given.
        waited: Duration,
    },
    /// The storage has refused this owner: the VM must stop.
    #[error("{device}: another owner has taken the disk")]
    Fenced {
        /// Which device.
        device: String,
    },
    /// A thread of the device has died, or the host does not give what it needs.
    #[error("{device}: {reason}")]
    Failed {
        /// Which device.
        device: String,
        /// What happened.
        reason: String,
    },
    /// The saved state cannot be read.
    #[error("{device}: cannot read the saved state")]
    State {
        /// Which device.
        device: String,
        /// Why.
        #[source]
        source: StateError,
    },
    /// The saved state is of a device that this one cannot stand in for.
    #[error("{device}: the saved state does not fit: {reason}")]
    Incompatible {
        /// Which device.
        device: String,
        /// What differs.
        reason: String,
    },
}

/// What a device tells the machine unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceEvent {
    /// The guest asked for a reset. A guest without ACPI says so to end itself, too.
    ResetRequested,
    /// The guest turned itself off.
    ShutdownRequested,
    /// The storage has refused this owner: the VM must stop at once. Told once per device; the device has stopped.
    Fenced {
        /// Which device.
        device: String,
    },
    /// The device can no longer work, through no fault of the guest.
    Failed {
        /// Which device.
        device: String,
        /// What happened.
        reason: String,
    },
}

/// Takes devices' events. Called from vCPU and device threads: never waits, never calls back into the device.
pub trait DeviceEvents: fmt::Debug + Send + Sync {
    /// Something happened.
    fn notify(&self, event: DeviceEvent);
}
