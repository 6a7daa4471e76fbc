//! What the source's machine asks for, is told, and comes to.

use std::time::Duration;

use drover_ids::OwnerEpoch;
use drover_units::{Bytes, Pages};

use crate::wire::{AbortReason, Ledger, Message};

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Connect to the target. Answer: [`Event::Connected`] or `Failed{Connect}`.
    Connect {
        /// Within this time.
        limit: Duration,
    },
    /// Send a message. No answer; what goes wrong is a [`Event::PeerLost`].
    Send(Message),
    /// Log dirty pages from now on. Answer: [`Event::DirtyLogStarted`] or `Failed{StartDirtyLog}`.
    StartDirtyLog,
    /// Send the pages last taken (in round 1: all RAM), then `RoundEnd`. Answer: [`Event::RoundSent`] or
    /// `Failed{ReadMemory}`.
    SendRound {
        /// Counted from 1.
        round: u32,
    },
    /// Take the dirty pages: they are the next round. Answer: [`Event::DirtyTaken`] or `Failed{TakeDirty}`.
    TakeDirty,
    /// Pause the guest. Answer: [`Event::Paused`] or `Failed{Pause}`.
    Pause {
        /// Within this time.
        limit: Duration,
    },
    /// Save the guest's state, take the dirty pages, send what is left of RAM, the state, and `Handover`. Answer:
    /// [`Event::HandoverSent`] or `Failed{Save | TakeDirty | ReadMemory}`.
    SendHandover,
    /// Release the volumes. Answer: [`Event::VolumesReleased`] or `Failed{ReleaseVolumes}`.
    ReleaseVolumes,
    /// Take the volumes. Answer: [`Event::VolumesAcquired`] or `Failed{AcquireVolumes}`.
    AcquireVolumes(OwnerEpoch),
    /// Mark every page taken so far dirty again and stop the log. No answer.
    Rollback,
    /// Run the guest here. Answer: [`Event::Resumed`] or `Failed{Resume}`.
    Resume,
    /// The guest runs elsewhere. No answer.
    Retire,
    /// Close the connection. No answer.
    Close,
}

/// A step that a guest or the way to it can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`Effect::Connect`].
    Connect,
    /// [`Effect::StartDirtyLog`].
    StartDirtyLog,
    /// Reading guest RAM.
    ReadMemory,
    /// Taking dirty pages.
    TakeDirty,
    /// [`Effect::Pause`].
    Pause,
    /// Saving state.
    Save,
    /// [`Effect::ReleaseVolumes`].
    ReleaseVolumes,
    /// [`Effect::AcquireVolumes`].
    AcquireVolumes,
    /// [`Effect::Resume`].
    Resume,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The connection stands.
    Connected,
    /// Dirty pages are being logged.
    DirtyLogStarted,
    /// A round has been handed to the transport.
    RoundSent {
        /// Pages in it, zero pages included.
        pages: Pages,
        /// Bytes on the wire for it.
        wire: Bytes,
        /// Everything sent before `RoundEnd`.
        ledger: Ledger,
    },
    /// The next round is known.
    DirtyTaken {
        /// Its size.
        pages: Pages,
    },
    /// The guest stands still.
    Paused,
    /// Everything has been handed to the transport.
    HandoverSent {
        /// Bytes on the wire for it.
        wire: Bytes,
        /// Everything sent before `Handover`.
        ledger: Ledger,
    },
    /// The volumes are free.
    VolumesReleased,
    /// The volumes are this guest's.
    VolumesAcquired,
    /// The guest runs here.
    Resumed,
    /// A step failed.
    Failed {
        /// Which.
        step: Step,
        /// Why, for people.
        reason: String,
    },
    /// The peer said something.
    Received(Message),
    /// The peer will say nothing more.
    PeerLost(AbortReason),
    /// Somebody wants the migration to be given up.
    Cancel(String),
    /// The orchestrator has fenced the target and gives the guest back.
    Grant(OwnerEpoch),
    /// The owner of the guest ends without a decision.
    Abandon,
    /// [`Source::deadline`] has passed.
    Tick,
}

/// How a migration ended at the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs at the target.
    Retired,
    /// Given up before Commit; the guest is where it was, running if it had been running.
    Aborted(AbortReason),
    /// Given up before Commit, but the guest could not be set going again: it is paused, perhaps without its volumes.
    Stranded {
        /// Why the migration was given up.
        reason: AbortReason,
        /// Why the guest stands still.
        failure: String,
    },
    /// Committed, and the orchestrator gave the guest back: it runs here under this epoch.
    Granted(OwnerEpoch),
    /// Committed, never confirmed, and the owner did not want to wait: the guest is paused, without its volumes.
    Abandoned,
}
