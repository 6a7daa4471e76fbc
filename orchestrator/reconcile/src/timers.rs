//! The cluster's timers, and the inequality that fencing by time rests on.
//!
//! ```text
//! agent:          sent ---- pause_after ---- kill_after (T_self)            measured from the moment of sending
//! control plane:      received ------------------- t_fence                  measured from the later moment of receipt
//! ```
//!
//! A node that is silent for `t_fence` has ended its VMs at least `margin` ago, whatever the network did to its last
//! heartbeat. `margin` pays for clocks that do not tick alike and for a kill that takes its time.

use std::time::Duration;

/// When what happens. Only [`Timers::new`] makes one, so that each is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    raw: RawTimers,
}

/// Timers as configured, not yet checked. [`RawTimers::default`] is what Drover comes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawTimers {
    /// Between two heartbeats of an agent.
    pub heartbeat: Duration,
    /// A VM pauses when its lease is this old.
    pub pause_after: Duration,
    /// A VM is ended when its lease is this old (T_self).
    pub kill_after: Duration,
    /// Between the last VM's end and the moment the node is fenced.
    pub margin: Duration,
    /// A node is fenced when no lease has been granted for this long.
    pub t_fence: Duration,
    /// A node takes no work when it has been silent for this long.
    pub suspect: Duration,
}

impl Default for RawTimers {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(500),
            pause_after: Duration::from_secs(2),
            kill_after: Duration::from_secs(3),
            margin: Duration::from_secs(1),
            // Above kill_after + margin = 4 s by one heartbeat, so that one that is merely late does not decide.
            t_fence: Duration::from_millis(4500),
            suspect: Duration::from_millis(1500),
        }
    }
}

/// Timers that would fence a node whose VMs may still run, or that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("timer {field} is {value:?}, and must be {valid} {bound:?}")]
pub struct TimersError {
    /// Which timer.
    pub field: &'static str,
    /// What it is.
    pub value: Duration,
    /// How it must stand to the bound.
    pub valid: &'static str,
    /// The bound.
    pub bound: Duration,
}

/// A heartbeat more often than this is load without use.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);

impl Timers {
    /// Checks the inequalities.
    pub fn new(raw: RawTimers) -> Result<Self, TimersError> {
        let at_least = |field, value: Duration, bound: Duration| {
            if value >= bound { Ok(()) } else { Err(TimersError { field, value, valid: "at least", bound }) }
        };
        let above = |field, value: Duration, bound: Duration| {
            if value > bound { Ok(()) } else { Err(TimersError { field, value, valid: "more than", bound }) }
        };
        at_least("heartbeat", raw.heartbeat, HEARTBEAT_MIN)?;
        // One lost heartbeat must not pause every VM of a node, nor put it under suspicion.
        at_least("pause_after", raw.pause_after, raw.heartbeat.saturating_mul(2))?;
        at_least("suspect", raw.suspect, raw.heartbeat.saturating_mul(2))?;
        above("kill_after", raw.kill_after, raw.pause_after)?;
        above("margin", raw.margin, Duration::ZERO)?;
        above("t_fence", raw.t_fence, raw.kill_after.saturating_add(raw.margin))?;
        above("t_fence", raw.t_fence, raw.suspect)?;
        Ok(Self { raw })
    }

    /// The values.
    pub fn get(&self) -> &RawTimers {
        &self.raw
    }
}

impl Default for Timers {
    fn default() -> Self {
        Self::new(RawTimers::default()).expect("a test checks the defaults")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut RawTimers), expect: Result<(), &str>) {
        let mut raw = RawTimers::default();
        change(&mut raw);
        let got = Timers::new(raw).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(got, expect.map_err(str::to_owned));
    }

    #[test]
    fn the_defaults_are_valid() {
        check(|_| {}, Ok(()));
    }

    #[test]
    fn a_fence_before_the_last_vm_has_ended_is_refused() {
        check(
            |raw| raw.t_fence = Duration::from_secs(4),
            Err("timer t_fence is 4s, and must be more than 4s"),
        );
        check(|raw| raw.margin = Duration::ZERO, Err("timer margin is 0ns, and must be more than 0ns"));
    }

    #[test]
    fn vms_are_paused_before_they_are_ended() {
        check(
            |raw| raw.kill_after = Duration::from_secs(2),
            Err("timer kill_after is 2s, and must be more than 2s"),
        );
    }

    #[test]
    fn one_lost_heartbeat_is_nothing() {
        check(
            |raw| raw.suspect = Duration::from_millis(700),
            Err("timer suspect is 700ms, and must be at least 1s"),
        );
    }
}
