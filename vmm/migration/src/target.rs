//! The target's side of a migration: a pure state machine.
//!
//! ```text
//!  Reserved ── Hello fits ─▶ Receiving ── Handover, all consumed ─▶ Restoring ─▶ Ready ── Commit ─▶ Acquiring ─▶ Resuming
//!     │                          │                                      │          │                   │           │
//!     └────────────┬─────────────┴──────────────────┬───────────────────┴──────────┘                   ▼           ▼
//!                  ▼                                ▼                                        Failed (never runs)  Running
//!              Discarded: the guest never ran here
//! ```
//!
//! The guest must not run here before Commit has been received, and not even then before its volumes have been taken
//! under the target's epoch. After Commit the source stands still whatever happens, so the machine goes on even if the
//! connection is gone.
//!
//! Effects are executed in order, and each of those that [`Effect`] says are answered is answered by exactly one event
//! before anything else is asked.

use std::time::{Duration, Instant};

use drover_ids::{MigrationId, OwnerEpoch};
use drover_saved_state::{ENVELOPES_MAX, Envelope};
use drover_units::{Bytes, Pages};

use crate::{
    progress::{MigrationProgress, Phase},
    shape::MachineShape,
    wire::{AbortCode, AbortReason, Hello, Ledger, Message, Stamp, VERSION_MAX, VERSION_MIN},
};

/// All saved states of one machine together: a thousand vCPUs' and every device's with room to spare.
pub const STATE_BYTES_MAX: Bytes = Bytes::mib(64);

/// How long each part may take before the target gives up and discards the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetTimeouts {
    /// Until a source has opened with a Hello. The orchestrator tells the source where to go once the target listens.
    pub reserved: Duration,
    /// Between a connection and its Hello.
    pub hello: Duration,
    /// Between two frames while RAM is received. A source is silent only while its guest is being paused.
    pub idle: Duration,
    /// From Ready to Commit. Longer than any source's switchover may take, so that it is the source that gives up.
    pub commit: Duration,
}

impl Default for TargetTimeouts {
    fn default() -> Self {
        Self {
            reserved: Duration::from_secs(60),
            hello: Duration::from_secs(5),
            idle: Duration::from_secs(30),
            commit: Duration::from_secs(30),
        }
    }
}

/// The migration that the orchestrator announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPlan {
    /// Which attempt this is.
    pub migration: MigrationId,
    /// The epoch under which the guest will run here.
    pub target_epoch: OwnerEpoch,
    /// When to give up.
    pub timeouts: TargetTimeouts,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a message. No answer: that it did not arrive shows where the next frame was due.
    Send(Message),
    /// Write the pages of the frame just received to guest RAM. No answer unless it fails: `Failed{WriteMemory}`.
    ApplyPages,
    /// Restore the guest's state. Answer: [`Event::Restored`] or `Failed{Restore}`.
    Restore(Vec<Envelope>),
    /// Take the volumes. Answer: [`Event::VolumesAcquired`] or `Failed{AcquireVolumes}`.
    AcquireVolumes(OwnerEpoch),
    /// Run the guest. Answer: [`Event::Resumed`] or `Failed{Resume}`.
    Resume,
    /// The guest will never run here: give back what it holds. No answer.
    Discard,
    /// Close the connection. No answer.
    Close,
}

/// A step that the guest can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`Effect::ApplyPages`].
    WriteMemory,
    /// [`Effect::Restore`].
    Restore,
    /// [`Effect::AcquireVolumes`].
    AcquireVolumes,
    /// [`Effect::Resume`].
    Resume,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message arrived in the frame with this stamp.
    Received {
        /// The frame's header.
        stamp: Stamp,
        /// The message.
        message: Message,
    },
    /// Guest RAM arrived.
    PagesReceived {
        /// The frame's header.
        stamp: Stamp,
        /// Pages in the frame, zero pages included.
        pages: Pages,
    },
    /// The guest has its state.
    Restored,
    /// The volumes are this guest's.
    VolumesAcquired,
    /// The guest runs.
    Resumed,
    /// A step failed.
    Failed {
        /// Which.
        step: Step,
        /// Why, for people.
        reason: String,
    },
    /// The peer will say nothing more.
    PeerLost(AbortReason),
    /// Somebody wants the migration to be given up.
    Cancel(String),
    /// [`Target::deadline`] has passed.
    Tick,
}

/// How a migration ended at the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest runs here.
    Running,
    /// The guest never ran here and holds nothing.
    Discarded {
        /// Why.
        reason: AbortReason,
        /// Whether this peer had shown itself as the awaited source. If not, the guest is untouched, nothing has been
        /// discarded, and another connection may be the right one.
        by_source: bool,
    },
    /// The guest was given to this target, which could not run it and never will: the source stands still too.
    Failed {
        /// Why.
        reason: AbortReason,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Reserved { deadline: Instant },
    Receiving { idle: Instant, received: Received },
    Restoring { consumed: Ledger },
    Ready { deadline: Instant },
    Acquiring,
    Resuming,
    Ended(Outcome),
}

/// What has arrived besides RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Received {
    rounds: u32,
    states: Vec<Envelope>,
    state_bytes: Bytes,
}

/// The state machine. See the module.
#[derive(Debug)]
pub struct Target {
    plan: TargetPlan,
    shape: MachineShape,
    state: State,
    began: Instant,
    consumed: Ledger,
    progress: MigrationProgress,
}

impl Target {
    /// Waits for the Hello of a source that has just connected.
    pub fn new(plan: TargetPlan, shape: MachineShape, now: Instant) -> Self {
        let deadline = now + plan.timeouts.hello;
        Self {
            plan,
            shape,
            state: State::Reserved { deadline },
            began: now,
            consumed: Ledger::default(),
            progress: MigrationProgress::default(),
        }
    }

    /// Handles what has happened; says what to do.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        if let State::Ended(_) = self.state {
            return Vec::new();
        }
        let effects = match &self.state {
            State::Acquiring | State::Resuming => self.after_commit(event),
            _ => self.before_commit(now, event),
        };
        self.progress.phase = self.phase();
        self.progress.total = now.saturating_duration_since(self.began);
        effects
    }

    /// When to call [`step`](Self::step) with [`Event::Tick`] if nothing else happens before. `None`: never.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Reserved { deadline } | State::Ready { deadline } => Some(*deadline),
            State::Receiving { idle, .. } => Some(*idle),
            State::Restoring { .. } | State::Acquiring | State::Resuming | State::Ended(_) => None,
        }
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.state {
            State::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// What is going on. The driver adds the bytes.
    pub fn progress(&self) -> &MigrationProgress {
        &self.progress
    }

    fn phase(&self) -> Phase {
        match &self.state {
            State::Reserved { .. } => Phase::Reserved,
            State::Receiving { received, .. }
                if self.consumed.pages == Pages::ZERO && received.rounds == 0 =>
            {
                Phase::TargetReady
            }
            State::Receiving { received, .. } if received.states.is_empty() => Phase::Copying,
            State::Receiving { .. } | State::Restoring { .. } | State::Ready { .. } => Phase::Switchover,
            State::Acquiring | State::Resuming => Phase::Committed,
            State::Ended(Outcome::Failed { .. }) => Phase::Committed,
            State::Ended(Outcome::Running) => Phase::SourceRetired,
            State::Ended(Outcome::Discarded { .. }) => Phase::Aborted,
        }
    }

    fn before_commit(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        match event {
            Event::Received { message: Message::Abort(reason), .. } => {
                let reason = AbortReason::new(reason.code, format!("the source gave up: {reason}"));
                self.discard(reason, false)
            }
            Event::PeerLost(reason) => {
                let tell = reason.code == AbortCode::Protocol;
                self.discard(reason, tell)
            }
            Event::Cancel(why) => self.discard(AbortReason::new(AbortCode::Cancelled, why), true),
            Event::Failed { reason, .. } => self.discard(AbortReason::new(AbortCode::Guest, reason), true),
            Event::Tick => self.tick(now),
            event => match self.state {
                State::Reserved { .. } => self.reserved(now, event),
                State::Receiving { .. } => self.receiving(now, event),
                _ => self.restored(now, event),
            },
        }
    }

    fn tick(&mut self, now: Instant) -> Vec<Effect> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        let timeouts = &self.plan.timeouts;
        let (what, limit) = match self.state {
            State::Reserved { .. } => ("introduce itself", timeouts.hello),
            State::Ready { .. } => ("commit", timeouts.commit),
            _ => ("send anything", timeouts.idle),
        };
        let text = format!("the source did not {what} within {limit:?}");
        self.discard(AbortReason::new(AbortCode::Timeout, text), true)
    }

    fn reserved(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let Event::Received { stamp, message: Message::Hello(hello) } = event else {
            return self.protocol("began with something else than a Hello");
        };
        match self.negotiate(&hello) {
            Err(reason) => self.end_before_commit(reason, hello.migration == self.plan.migration, true),
            Ok(version) => {
                self.consumed.enter(&stamp, Pages::ZERO);
                let idle = now + self.plan.timeouts.idle;
                self.state = State::Receiving { idle, received: Received::default() };
                vec![Effect::Send(Message::HelloAck { version, features: 0 })]
            }
        }
    }

    /// The version to speak.
    fn negotiate(&self, hello: &Hello) -> Result<u16, AbortReason> {
        let incompatible = |text| Err(AbortReason::new(AbortCode::Incompatible, text));
        let (plan, (oldest, newest)) = (&self.plan, hello.versions);
        if hello.migration != plan.migration {
            return incompatible(format!("migration {} is not awaited here", hello.migration));
        }
        if hello.target_epoch != plan.target_epoch || hello.source_epoch >= hello.target_epoch {
            return incompatible(format!(
                "the epochs do not fit: the source goes from {} to {}, the target expects {}",
                hello.source_epoch, hello.target_epoch, plan.target_epoch
            ));
        }
        let version = newest.min(VERSION_MAX);
        if version < oldest.max(VERSION_MIN) {
            return incompatible(format!(
                "the source speaks versions {oldest} to {newest}, the target {VERSION_MIN} to {VERSION_MAX}"
            ));
        }
        match self.shape.accepts(&hello.shape) {
            Ok(()) => Ok(version),
            Err(mismatch) => incompatible(mismatch.to_string()),
        }
    }

    fn receiving(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let State::Receiving { idle, received } = &mut self.state else { return Vec::new() };
        *idle = now + self.plan.timeouts.idle;
        let consumed = self.consumed;
        match event {
            Event::PagesReceived { stamp, pages } => {
                if !received.states.is_empty() {
                    return self.protocol("sent guest RAM after saved state");
                }
                self.consumed.enter(&stamp, pages);
                vec![Effect::ApplyPages]
            }
            Event::Received { stamp, message: Message::RoundEnd { round, ledger } } => {
                if ledger != consumed || round != received.rounds.saturating_add(1) {
                    return self.differs(&ledger);
                }
                if round == 1 && self.shape.ram().to_pages() != Some(consumed.pages) {
                    return self.protocol("did not send all of guest RAM in the first round");
                }
                received.rounds = round;
                self.progress.rounds = round;
                self.consumed.enter(&stamp, Pages::ZERO);
                vec![Effect::Send(Message::RoundAck { round, ledger: consumed })]
            }
            Event::Received { stamp, message: Message::State(envelopes) } => {
                let bytes = envelopes.iter().fold(received.state_bytes, |sum, envelope| {
                    sum.saturating_add(Bytes::new(envelope.payload().len() as u64))
                });
                if bytes > STATE_BYTES_MAX || received.states.len() + envelopes.len() > ENVELOPES_MAX {
                    return self.protocol("sent more saved state than a machine can have");
                }
                received.state_bytes = bytes;
                received.states.extend(envelopes);
                self.consumed.enter(&stamp, Pages::ZERO);
                Vec::new()
            }
            Event::Received { message: Message::Handover { ledger, envelopes }, .. } => {
                if received.rounds == 0 {
                    return self.protocol("handed over before guest RAM was complete");
                }
                if ledger != consumed || usize::try_from(envelopes) != Ok(received.states.len()) {
                    return self.differs(&ledger);
                }
                let states = std::mem::take(&mut received.states);
                self.state = State::Restoring { consumed };
                vec![Effect::Restore(states)]
            }
            Event::Received { message, .. } => self.unexpected(&message),
            _ => Vec::new(),
        }
    }

    fn differs(&mut self, sent: &Ledger) -> Vec<Effect> {
        let text = format!("what was sent was not what was consumed: {sent:?} against {:?}", self.consumed);
        self.discard(AbortReason::new(AbortCode::Protocol, text), true)
    }

    fn restored(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        match (&self.state, event) {
            (State::Restoring { consumed }, Event::Restored) => {
                let ledger = *consumed;
                self.state = State::Ready { deadline: now + self.plan.timeouts.commit };
                vec![Effect::Send(Message::Ready { ledger })]
            }
            (State::Ready { .. }, Event::Received { message: Message::Commit { target_epoch }, .. }) => {
                if target_epoch != self.plan.target_epoch {
                    return self.protocol("committed under an epoch that is not the target's");
                }
                self.state = State::Acquiring;
                vec![Effect::AcquireVolumes(target_epoch)]
            }
            (_, Event::Received { message, .. }) => self.unexpected(&message),
            (_, Event::PagesReceived { .. }) => self.protocol("sent guest RAM after the hand-over"),
            _ => Vec::new(),
        }
    }

    fn after_commit(&mut self, event: Event) -> Vec<Effect> {
        match (&self.state, event) {
            (State::Acquiring, Event::VolumesAcquired) => {
                self.state = State::Resuming;
                vec![Effect::Resume]
            }
            (State::Resuming, Event::Resumed) => {
                self.state = State::Ended(Outcome::Running);
                vec![Effect::Send(Message::Resumed { target_epoch: self.plan.target_epoch }), Effect::Close]
            }
            (_, Event::Failed { reason, .. }) => {
                let reason = AbortReason::new(AbortCode::Guest, reason);
                self.progress.detail = format!("committed, but the guest cannot run here: {reason}");
                self.state = State::Ended(Outcome::Failed { reason: reason.clone() });
                vec![Effect::Discard, Effect::Send(Message::Abort(reason)), Effect::Close]
            }
            // The source stands still for good: neither a lost connection nor a cancel may leave the guest nowhere.
            _ => Vec::new(),
        }
    }

    fn protocol(&mut self, what: &str) -> Vec<Effect> {
        let text = format!("the source broke the protocol: it {what}");
        self.discard(AbortReason::new(AbortCode::Protocol, text), true)
    }

    fn unexpected(&mut self, message: &Message) -> Vec<Effect> {
        self.protocol(&format!("sent {:?} out of turn", message.kind()))
    }

    fn discard(&mut self, reason: AbortReason, tell: bool) -> Vec<Effect> {
        let by_source = !matches!(self.state, State::Reserved { .. });
        self.end_before_commit(reason, by_source, tell)
    }

    fn end_before_commit(&mut self, reason: AbortReason, by_source: bool, tell: bool) -> Vec<Effect> {
        self.progress.detail = reason.to_string();
        let mut effects = Vec::new();
        if by_source {
            effects.push(Effect::Discard);
        }
        if tell {
            effects.push(Effect::Send(Message::Abort(reason.clone())));
        }
        effects.push(Effect::Close);
        self.state = State::Ended(Outcome::Discarded { reason, by_source });
        effects
    }
}

#[cfg(test)]
mod tests;
