//! What a machine tells its owner without being asked.

use std::{
    fmt,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
};

/// Why a machine has ended. Sent once; its vCPUs have stopped or are about to, and never run again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MachineEvent {
    /// The guest switched itself off.
    GuestShutdown,
    /// The guest asked to be reset.
    GuestReset,
    /// The guest failed: a triple fault, or something KVM cannot carry out.
    Fault(String),
    /// The machine failed, through no fault of the guest: a device, or a panic in a vCPU thread.
    Failure(String),
    /// A disk's storage has refused this machine for a newer owner.
    Fenced,
}

impl fmt::Display for MachineEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestShutdown => f.write_str("the guest switched itself off"),
            Self::GuestReset => f.write_str("the guest asked to be reset"),
            Self::Fault(what) | Self::Failure(what) => f.write_str(what),
            Self::Fenced => f.write_str("a disk belongs to a newer owner"),
        }
    }
}

/// Takes a machine's event. Called once, from one of the machine's threads; must not wait for the machine.
#[derive(Clone)]
pub struct EventSink(Arc<dyn Fn(MachineEvent) + Send + Sync>);

impl EventSink {
    /// Events go to this function.
    pub fn new(take: impl Fn(MachineEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    /// Events go to the other end of a channel.
    pub fn pair() -> (Self, Receiver<MachineEvent>) {
        let (sender, events) = mpsc::channel();
        (Self::channel(sender), events)
    }

    /// Events go to this channel; once nobody listens they are dropped.
    pub fn channel(sender: Sender<MachineEvent>) -> Self {
        Self::new(move |event| {
            let _ = sender.send(event);
        })
    }

    pub(crate) fn send(&self, event: MachineEvent) {
        (self.0)(event);
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSink")
    }
}
