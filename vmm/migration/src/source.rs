//! The source's side of a migration: a pure state machine.
//!
//! ```text
//!  Reserved ── HelloAck ─▶ TargetReady ─▶ Copying ── fits ─▶ Switchover ── volumes released ─▶ Committed
//!     │                        │             │ ▲                 │                              │   │
//!     │                        │             └─┘ rounds          │                       Resumed│   │Grant{newer epoch}
//!     └──────────┬─────────────┴──────────┬──────────────────────┘                              ▼   ▼
//!                ▼                        ▼                                               Retired   Granting ─▶ runs here
//!             Aborting: take the volumes back if they were released, mark what was consumed dirty again, resume
//! ```
//!
//! The step from Switchover to Committed and the sending of Commit are one: from the moment in which Commit *may* have
//! left, the source does not run the guest again unless the orchestrator, having fenced the target, grants an epoch
//! newer than the target's. Neither a lost connection nor a refusal by the target changes that.
//!
//! The machine asks for one thing at a time. Effects are executed in order; each of those that [`Effect`] says are
//! answered is answered by exactly one event, except that a newer effect ends a [`Effect::SendRound`] or
//! [`Effect::SendHandover`] that is still going on. Events that no longer matter are ignored.

mod events;
mod plan;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use drover_ids::OwnerEpoch;
use drover_units::{Bytes, Pages};

pub use events::{Effect, Event, Outcome, Step};
pub use plan::{SourcePlan, SourceTimeouts};

use crate::{
    convergence::{self, BandwidthEstimate, Decision, Observation},
    progress::{MigrationProgress, Phase},
    shape::MachineShape,
    wire::{AbortCode, AbortReason, Hello, Ledger, Message, VERSION_MAX, VERSION_MIN},
};

/// How much of the guest has been touched, and must be undone. Each includes the ones before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Untouched,
    Logging,
    Paused,
    Released,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Negotiating { deadline: Instant },
    StartingLog,
    Copying { since: Instant, round: Round },
    Switchover { deadline: Instant, part: SwitchoverPart },
    Committed { deadline: Option<Instant> },
    Granting { epoch: OwnerEpoch },
    Aborting { reason: AbortReason },
    Ended(Outcome),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Round {
    number: u32,
    started: Instant,
    part: RoundPart,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum RoundPart {
    Sending,
    Acknowledging { pages: Pages, wire: Bytes, ledger: Ledger, deadline: Instant },
    Taking { pages: Pages },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SwitchoverPart {
    Pausing,
    Sending,
    AwaitingReady(Ledger),
    Releasing,
}

/// The state machine. See the module.
#[derive(Debug)]
pub struct Source {
    plan: SourcePlan,
    shape: MachineShape,
    state: State,
    began: Instant,
    bandwidth: BandwidthEstimate,
    /// When the guest was told to stop, in the latest switchover.
    stopped: Option<Instant>,
    progress: MigrationProgress,
}

impl Source {
    /// A migration that begins now, and its first effects.
    pub fn new(plan: SourcePlan, shape: MachineShape, now: Instant) -> (Self, Vec<Effect>) {
        let connect = Effect::Connect { limit: plan.timeouts.connect };
        let source = Self {
            plan,
            shape,
            state: State::Connecting,
            began: now,
            bandwidth: BandwidthEstimate::default(),
            stopped: None,
            progress: MigrationProgress::default(),
        };
        (source, vec![connect])
    }

    /// Handles what has happened; says what to do.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        if let State::Ended(_) = self.state {
            return Vec::new();
        }
        let effects = match &self.state {
            State::Committed { .. } | State::Granting { .. } => self.after_commit(now, event),
            State::Aborting { .. } => self.aborting(event),
            _ => self.before_commit(now, event),
        };
        self.progress.phase = self.phase();
        self.progress.total = now.saturating_duration_since(self.began);
        effects
    }

    /// When to call [`step`](Self::step) with [`Event::Tick`] if nothing else happens before. `None`: never.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Negotiating { deadline } | State::Switchover { deadline, .. } => Some(*deadline),
            State::Copying { since, round } => {
                let copying = *since + self.plan.limits.copying_max;
                match round.part {
                    RoundPart::Acknowledging { deadline, .. } => Some(copying.min(deadline)),
                    _ => Some(copying),
                }
            }
            State::Committed { deadline } => *deadline,
            _ => None,
        }
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.state {
            State::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// What is going on. `bytes_sent` counts whole rounds; a driver knows more.
    pub fn progress(&self) -> &MigrationProgress {
        &self.progress
    }

    /// Whether Commit may have been sent. A guest that is paused then must not be resumed by anything but this machine.
    pub fn is_committed(&self) -> bool {
        self.progress.phase >= Phase::Committed && self.progress.phase != Phase::Aborted
    }

    fn phase(&self) -> Phase {
        match &self.state {
            State::Connecting | State::Negotiating { .. } => Phase::Reserved,
            State::StartingLog => Phase::TargetReady,
            State::Copying { .. } => Phase::Copying,
            State::Switchover { .. } => Phase::Switchover,
            State::Committed { .. } | State::Granting { .. } => Phase::Committed,
            State::Ended(Outcome::Abandoned | Outcome::Granted(_)) => Phase::Committed,
            State::Aborting { .. } => Phase::Aborted,
            State::Ended(Outcome::Aborted(_) | Outcome::Stranded { .. }) => Phase::Aborted,
            State::Ended(Outcome::Retired) => Phase::SourceRetired,
        }
    }

    fn before_commit(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        match event {
            Event::Received(Message::Abort(reason)) => {
                self.abort(AbortReason::new(reason.code, format!("the target gave up: {reason}")))
            }
            Event::PeerLost(reason) => self.abort(reason),
            Event::Cancel(why) => self.abort(AbortReason::new(AbortCode::Cancelled, why)),
            Event::Abandon => self.abort(AbortReason::new(AbortCode::Cancelled, "the VM is being stopped")),
            Event::Failed { step, reason } => self.failed(step, reason),
            Event::Tick => self.tick(now),
            event => match self.state {
                State::Copying { .. } => self.copying(now, event),
                State::Switchover { .. } => self.switchover(now, event),
                _ => self.negotiating(now, event),
            },
        }
    }

    fn failed(&mut self, step: Step, reason: String) -> Vec<Effect> {
        let code = if step == Step::Connect { AbortCode::PeerLost } else { AbortCode::Guest };
        self.abort(AbortReason::new(code, reason))
    }

    fn tick(&mut self, now: Instant) -> Vec<Effect> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        let timeouts = &self.plan.timeouts;
        let text = match &self.state {
            State::Copying {
                round: Round { part: RoundPart::Acknowledging { deadline, .. }, number, .. },
                ..
            } if now >= *deadline => {
                format!("the target did not acknowledge round {number} within {:?}", timeouts.acknowledge)
            }
            State::Copying { .. } => format!("copying took longer than {:?}", self.plan.limits.copying_max),
            State::Switchover { .. } => {
                format!("the switchover took longer than {:?}", timeouts.switchover)
            }
            _ => format!("the target did not answer within {:?}", timeouts.negotiate),
        };
        self.abort(AbortReason::new(AbortCode::Timeout, text))
    }

    fn negotiating(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        match (&self.state, event) {
            (State::Connecting, Event::Connected) => {
                self.state = State::Negotiating { deadline: now + self.plan.timeouts.negotiate };
                vec![Effect::Send(Message::Hello(Box::new(Hello {
                    versions: (VERSION_MIN, VERSION_MAX),
                    features: 0,
                    migration: self.plan.migration,
                    source_epoch: self.plan.source_epoch,
                    target_epoch: self.plan.target_epoch,
                    shape: self.shape.clone(),
                })))]
            }
            (State::Negotiating { .. }, Event::Received(Message::HelloAck { version, features })) => {
                if !(VERSION_MIN..=VERSION_MAX).contains(&version) || features != 0 {
                    return self
                        .protocol(&format!("agreed to version {version} with features {features:#x}"));
                }
                self.state = State::StartingLog;
                vec![Effect::StartDirtyLog]
            }
            (State::StartingLog, Event::DirtyLogStarted) => self.begin_round(now, now, 1),
            (_, Event::Received(message)) => self.unexpected(&message),
            _ => Vec::new(),
        }
    }

    fn begin_round(&mut self, now: Instant, since: Instant, number: u32) -> Vec<Effect> {
        self.state =
            State::Copying { since, round: Round { number, started: now, part: RoundPart::Sending } };
        vec![Effect::SendRound { round: number }]
    }

    fn copying(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let State::Copying { since, round } = &mut self.state else { return Vec::new() };
        let since = *since;
        match (&round.part, event) {
            (RoundPart::Sending, Event::RoundSent { pages, wire, ledger }) => {
                let deadline = now + self.plan.timeouts.acknowledge;
                round.part = RoundPart::Acknowledging { pages, wire, ledger, deadline };
                self.progress.bytes_sent = self.progress.bytes_sent.saturating_add(wire);
                Vec::new()
            }
            (
                RoundPart::Acknowledging { pages, wire, ledger: sent, .. },
                Event::Received(Message::RoundAck { round: number, ledger }),
            ) => {
                if number != round.number || ledger != *sent {
                    return self.protocol("acknowledged a round that differs from what was sent");
                }
                self.bandwidth.sample(*wire, now.saturating_duration_since(round.started));
                round.part = RoundPart::Taking { pages: *pages };
                self.progress.rounds = number;
                self.progress.bandwidth = self.bandwidth.get();
                vec![Effect::TakeDirty]
            }
            (RoundPart::Taking { pages: last }, Event::DirtyTaken { pages }) => {
                let (last, number) = (*last, round.number);
                self.decide(now, since, number, [last, pages])
            }
            (_, Event::Received(message)) => self.unexpected(&message),
            _ => Vec::new(),
        }
    }

    fn decide(&mut self, now: Instant, since: Instant, rounds: u32, [last, next]: [Pages; 2]) -> Vec<Effect> {
        let bytes = |pages: Pages| pages.to_bytes().unwrap_or(Bytes::new(u64::MAX));
        let seen = Observation {
            rounds,
            last_round: bytes(last),
            remaining: bytes(next),
            bandwidth: self.bandwidth.get(),
            elapsed: now.saturating_duration_since(since),
        };
        self.progress.bytes_remaining = seen.remaining;
        match convergence::decide(&seen, &self.plan.limits) {
            Decision::AnotherRound => self.begin_round(now, since, rounds.saturating_add(1)),
            Decision::GiveUp(reason) => {
                self.abort(AbortReason::new(AbortCode::NotConverging, reason.to_string()))
            }
            Decision::Switchover { .. } => {
                let limit = self.plan.timeouts.switchover;
                self.stopped = Some(now);
                self.state = State::Switchover { deadline: now + limit, part: SwitchoverPart::Pausing };
                vec![Effect::Pause { limit }]
            }
        }
    }

    fn switchover(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let State::Switchover { deadline, part } = &mut self.state else { return Vec::new() };
        let late = now >= *deadline;
        match (*part, event) {
            (SwitchoverPart::Pausing, Event::Paused) if !late => {
                *part = SwitchoverPart::Sending;
                vec![Effect::SendHandover]
            }
            (SwitchoverPart::Sending, Event::HandoverSent { wire, ledger }) if !late => {
                *part = SwitchoverPart::AwaitingReady(ledger);
                self.progress.bytes_sent = self.progress.bytes_sent.saturating_add(wire);
                Vec::new()
            }
            (SwitchoverPart::AwaitingReady(sent), Event::Received(Message::Ready { ledger })) if !late => {
                if ledger != sent {
                    return self.protocol("is ready with something else than what was sent");
                }
                *part = SwitchoverPart::Releasing;
                vec![Effect::ReleaseVolumes]
            }
            (SwitchoverPart::Releasing, Event::VolumesReleased) if !late => {
                self.state = State::Committed { deadline: Some(now + self.plan.timeouts.confirm) };
                self.progress.bytes_remaining = Bytes::ZERO;
                vec![Effect::Send(Message::Commit { target_epoch: self.plan.target_epoch })]
            }
            (_, Event::Received(message)) if !late => self.unexpected(&message),
            _ if late => self.tick(now),
            _ => Vec::new(),
        }
    }

    fn after_commit(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let target_epoch = self.plan.target_epoch;
        match (&self.state, event) {
            (_, Event::Abandon) => self.end(Outcome::Abandoned, vec![Effect::Close]),
            (State::Committed { .. }, Event::Received(Message::Resumed { target_epoch: epoch }))
                if epoch == target_epoch =>
            {
                self.progress.downtime =
                    self.stopped.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
                self.progress.detail.clear();
                self.end(Outcome::Retired, vec![Effect::Retire, Effect::Close])
            }
            (State::Committed { .. }, Event::Grant(epoch)) if epoch > target_epoch => {
                self.state = State::Granting { epoch };
                vec![Effect::Close, Effect::AcquireVolumes(epoch)]
            }
            (State::Granting { .. }, Event::VolumesAcquired) => vec![Effect::Rollback, Effect::Resume],
            (State::Granting { epoch }, Event::Resumed) => {
                let epoch = *epoch;
                self.progress.detail =
                    format!("the target was fenced; the guest runs here under epoch {epoch}");
                self.end(Outcome::Granted(epoch), Vec::new())
            }
            (State::Granting { .. }, Event::Failed { step: Step::AcquireVolumes | Step::Resume, reason }) => {
                self.state = State::Committed { deadline: None };
                self.progress.grants_failed = self.progress.grants_failed.saturating_add(1);
                self.progress.grant_failure = format!("granted, but the guest cannot run here: {reason}");
                self.problem(self.progress.grant_failure.clone())
            }
            (State::Committed { .. }, event) => self.unconfirmed(now, event),
            _ => Vec::new(),
        }
    }

    /// Nothing changes the state here: a source after Commit can only report.
    fn unconfirmed(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        match event {
            Event::PeerLost(reason) => self.problem(format!("committed, then lost the target: {reason}")),
            Event::Received(Message::Abort(reason)) => {
                self.problem(format!("committed, but the target cannot run the guest: {reason}"))
            }
            Event::Received(message) => {
                self.problem(format!("committed, but the target answered with {:?}", message.kind()))
            }
            Event::Grant(epoch) => self.problem(format!(
                "the grant of epoch {epoch} is not newer than the target's {}",
                self.plan.target_epoch
            )),
            Event::Tick if self.deadline().is_some_and(|deadline| now >= deadline) => {
                self.state = State::Committed { deadline: None };
                self.problem(format!("committed, not confirmed within {:?}", self.plan.timeouts.confirm))
            }
            _ => Vec::new(),
        }
    }

    fn problem(&mut self, detail: String) -> Vec<Effect> {
        self.progress.detail = detail;
        Vec::new()
    }

    fn protocol(&mut self, what: &str) -> Vec<Effect> {
        self.abort(AbortReason::new(AbortCode::Protocol, format!("the target broke the protocol: it {what}")))
    }

    fn unexpected(&mut self, message: &Message) -> Vec<Effect> {
        self.protocol(&format!("sent {:?} out of turn", message.kind()))
    }

    /// Begins to undo. The guest comes first: the peer is told when it runs again.
    fn abort(&mut self, reason: AbortReason) -> Vec<Effect> {
        let reach = self.reach();
        self.progress.detail = reason.to_string();
        self.state = State::Aborting { reason };
        match reach {
            Reach::Untouched => self.aborted(),
            Reach::Logging => {
                let mut effects = vec![Effect::Rollback];
                effects.extend(self.aborted());
                effects
            }
            Reach::Paused => vec![Effect::Rollback, Effect::Resume],
            Reach::Released => vec![Effect::AcquireVolumes(self.plan.source_epoch)],
        }
    }

    fn reach(&self) -> Reach {
        match &self.state {
            State::Connecting | State::Negotiating { .. } => Reach::Untouched,
            State::StartingLog | State::Copying { .. } => Reach::Logging,
            State::Switchover { part: SwitchoverPart::Releasing, .. } => Reach::Released,
            State::Switchover { .. } => Reach::Paused,
            State::Committed { .. } | State::Granting { .. } | State::Aborting { .. } | State::Ended(_) => {
                unreachable!("only what has not committed is undone, and only once")
            }
        }
    }

    fn aborting(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::VolumesAcquired => vec![Effect::Rollback, Effect::Resume],
            Event::Resumed => self.aborted(),
            Event::Failed { step: Step::AcquireVolumes | Step::Resume, reason: failure } => {
                let State::Aborting { reason } = &self.state else { return Vec::new() };
                let reason = reason.clone();
                self.progress.detail = format!("{reason}; then the guest could not be resumed: {failure}");
                let effects = vec![Effect::Send(Message::Abort(reason.clone())), Effect::Close];
                self.end(Outcome::Stranded { reason, failure }, effects)
            }
            _ => Vec::new(),
        }
    }

    fn aborted(&mut self) -> Vec<Effect> {
        let State::Aborting { reason } = &self.state else { return Vec::new() };
        let reason = reason.clone();
        let effects = vec![Effect::Send(Message::Abort(reason.clone())), Effect::Close];
        self.end(Outcome::Aborted(reason), effects)
    }

    fn end(&mut self, outcome: Outcome, effects: Vec<Effect>) -> Vec<Effect> {
        self.state = State::Ended(outcome);
        effects
    }
}
