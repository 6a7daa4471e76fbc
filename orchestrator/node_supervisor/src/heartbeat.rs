//! When to register, when to send a heartbeat, and what lease the answers have bought.

use std::time::Duration;

use crate::{BootTime, Lease, Timers};

/// Pause between attempts to register.
const REGISTER_PAUSE: Duration = Duration::from_millis(250);

/// The conversation with the control plane.
#[derive(Clone, Debug)]
pub(crate) struct Heartbeats {
    link: Link,
    timers: Option<Timers>,
    lease: Option<Lease>,
    sequence: u64,
    /// A heartbeat is due before its interval is over: something has changed.
    urgent: bool,
    /// The last answer named VMs that must end.
    reaping: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// Not known to the control plane; the next attempt is due then.
    Unregistered {
        next: BootTime,
    },
    Registering,
    /// Known; the next heartbeat is due then.
    Idle {
        next: BootTime,
    },
    InFlight {
        sequence: u64,
        sent: BootTime,
    },
}

/// What to send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Register,
    Heartbeat { sequence: u64 },
}

impl Default for Heartbeats {
    fn default() -> Self {
        Self {
            link: Link::Unregistered { next: BootTime::default() },
            timers: None,
            lease: None,
            sequence: 0,
            urgent: false,
            reaping: false,
        }
    }
}

impl Heartbeats {
    pub(crate) const fn lease(&self) -> Option<Lease> {
        self.lease
    }

    /// The lease, if it still allows VMs to run.
    pub(crate) fn valid_lease(&self, now: BootTime) -> Option<Lease> {
        self.lease.filter(|lease| now < lease.pause_at)
    }

    pub(crate) const fn is_reaping(&self) -> bool {
        self.reaping
    }

    /// Something has changed that the control plane should know at once.
    pub(crate) fn hurry(&mut self) {
        self.urgent = true;
    }

    /// What is due, marked as sent at `now`.
    pub(crate) fn due(&mut self, now: BootTime) -> Option<Due> {
        match self.link {
            Link::Unregistered { next } if now >= next => {
                self.link = Link::Registering;
                Some(Due::Register)
            }
            Link::Idle { next } if now >= next || self.urgent => {
                self.urgent = false;
                self.sequence += 1;
                self.link = Link::InFlight { sequence: self.sequence, sent: now };
                Some(Due::Heartbeat { sequence: self.sequence })
            }
            _ => None,
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<BootTime> {
        match self.link {
            Link::Unregistered { next } | Link::Idle { next } => Some(next),
            Link::Registering | Link::InFlight { .. } => None,
        }
    }

    pub(crate) fn registered(&mut self, now: BootTime, timers: Timers) {
        self.timers = Some(timers);
        if self.link == Link::Registering {
            self.link = Link::Idle { next: now };
        }
    }

    pub(crate) fn register_failed(&mut self, now: BootTime) {
        if self.link == Link::Registering {
            self.link = Link::Unregistered { next: now.plus(REGISTER_PAUSE) };
        }
    }

    /// Gives back the lease if the answer has extended it.
    pub(crate) fn answered(&mut self, sequence: u64, granted: bool, reaping: bool) -> Option<Lease> {
        let (sent, timers) = match (self.link, self.timers) {
            (Link::InFlight { sequence: expected, sent }, Some(timers)) if expected == sequence => {
                (sent, timers)
            }
            // Of another time: the present state is in a later answer.
            _ => return None,
        };
        self.link = Link::Idle { next: sent.plus(timers.heartbeat()) };
        self.reaping = reaping;
        if !granted {
            return None;
        }
        self.lease = Some(timers.lease_from(sent));
        self.lease
    }

    pub(crate) fn failed(&mut self, now: BootTime, sequence: u64, unknown: bool) {
        match (self.link, self.timers) {
            (Link::InFlight { sequence: expected, .. }, Some(timers)) if expected == sequence => {
                // What was urgent has not arrived, but a server that is down is not asked in a tight loop.
                self.link = if unknown {
                    Link::Unregistered { next: now.plus(REGISTER_PAUSE) }
                } else {
                    Link::Idle { next: now.plus(timers.heartbeat() / 2) }
                };
                self.urgent = false;
            }
            _ => {}
        }
    }
}
