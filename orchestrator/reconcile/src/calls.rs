//! Calls to agents: one at a time for one purpose, each with a deadline, repeated with growing pauses.
//!
//! Nothing here is needed for correctness. A planner that has forgotten its calls issues them again under the same
//! operation ids, and the agents recognise them.

use std::{collections::BTreeMap, time::Duration};

use drover_cluster_state::Moment;
use drover_ids::{MigrationId, NodeId, OwnerEpoch, VmId};

use crate::{AgentAnswer, AgentCommand, CallError, CallId};

/// Calls under way to one node. More would queue there instead of here, where priorities are known.
const CALLS_PER_NODE_MAX: usize = 16;
/// The first pause after a call that failed; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The longest pause between two tries of a call.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A call that was answered well and whose effect does not show in the reports is repeated after this: four times the
/// default heartbeat interval.
const RECHECK: Duration = Duration::from_secs(2);
/// How long the driver's own deadline may be late.
const ANSWER_SLACK: Duration = Duration::from_secs(2);
/// A book nobody has looked at for this long is thrown away.
const BOOK_LIFE: Duration = Duration::from_secs(300);

/// What a call is for. Commands with the same slot are repetitions of one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot {
    pub(crate) vm: VmId,
    pub(crate) node: NodeId,
    pub(crate) epoch: OwnerEpoch,
    pub(crate) verb: Verb,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verb {
    Ensure,
    Stop,
    Press,
    Prepare,
    MigrateOut(MigrationId),
    Cancel(MigrationId),
    Grant,
}

impl Verb {
    pub(crate) fn of(command: &AgentCommand) -> Self {
        match command {
            AgentCommand::EnsureVm { .. } => Self::Ensure,
            AgentCommand::StopVm => Self::Stop,
            AgentCommand::PressPowerButton => Self::Press,
            AgentCommand::PrepareIncoming { .. } => Self::Prepare,
            AgentCommand::MigrateOut { migration, .. } => Self::MigrateOut(*migration),
            AgentCommand::CancelMigration { migration } => Self::Cancel(*migration),
            AgentCommand::GrantEpoch => Self::Grant,
        }
    }

    /// How long the agent may take. Those that start or end a process include building the machine or draining its
    /// disks; the others only admit something.
    pub(crate) fn timeout(self) -> Duration {
        match self {
            Self::Ensure | Self::Stop | Self::Prepare => Duration::from_secs(10),
            Self::Press | Self::MigrateOut(_) | Self::Cancel(_) | Self::Grant => Duration::from_secs(5),
        }
    }
}

/// The history of one slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    in_flight: Option<CallId>,
    /// Calls without an answer, since the last one that had one.
    pub(crate) unanswered: u32,
    /// Definite refusals, ever.
    pub(crate) refused: u32,
    /// The last failure.
    pub(crate) error: String,
    /// The last success.
    pub(crate) answer: Option<AgentAnswer>,
    next_try: Moment,
    used: Moment,
}

#[derive(Debug)]
struct InFlight {
    slot: Slot,
    deadline: Moment,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    next: u64,
    in_flight: BTreeMap<CallId, InFlight>,
    per_node: BTreeMap<NodeId, usize>,
    books: BTreeMap<Slot, Book>,
}

impl Calls {
    /// The history of a slot; empty if there is none.
    pub(crate) fn book(&self, slot: Slot) -> Book {
        self.books.get(&slot).cloned().unwrap_or_default()
    }

    /// Whether the agent has confirmed the end of this epoch.
    pub(crate) fn stopped(&self, vm: VmId, node: NodeId, epoch: OwnerEpoch) -> bool {
        self.books
            .get(&Slot { vm, node, epoch, verb: Verb::Stop })
            .is_some_and(|book| book.answer == Some(AgentAnswer::Stopped))
    }

    /// Starts a call, unless one is under way, its pause is not over, or the node has its hands full.
    pub(crate) fn open(&mut self, slot: Slot, now: Moment) -> Option<CallId> {
        let load = self.per_node.entry(slot.node).or_default();
        let book = self.books.entry(slot).or_default();
        book.used = now;
        if book.in_flight.is_some() || now < book.next_try || *load >= CALLS_PER_NODE_MAX {
            return None;
        }
        *load += 1;
        self.next += 1;
        let id = CallId(self.next);
        book.in_flight = Some(id);
        let deadline = now.after(slot.verb.timeout()).after(ANSWER_SLACK);
        self.in_flight.insert(id, InFlight { slot, deadline });
        Some(id)
    }

    /// Notes an answer. Returns what it was for; `None` if nobody waits for it any more.
    pub(crate) fn close(
        &mut self,
        id: CallId,
        result: Result<AgentAnswer, CallError>,
        now: Moment,
    ) -> Option<Slot> {
        let InFlight { slot, .. } = self.in_flight.remove(&id)?;
        if let Some(load) = self.per_node.get_mut(&slot.node) {
            *load = load.saturating_sub(1);
        }
        let book = self.books.entry(slot).or_default();
        book.in_flight = None;
        book.used = now;
        match result {
            Ok(answer) => {
                book.answer = Some(answer);
                book.unanswered = 0;
                book.next_try = now.after(RECHECK);
            }
            Err(error) => {
                book.error = error.to_string();
                match error {
                    CallError::Unanswered(_) => book.unanswered += 1,
                    CallError::Refused(_) => book.refused += 1,
                }
                book.next_try = now.after(pause(PAUSE_MIN, PAUSE_MAX, book.unanswered + book.refused));
            }
        }
        Some(slot)
    }

    /// Those whose answer is overdue.
    pub(crate) fn overdue(&self, now: Moment) -> Vec<CallId> {
        self.in_flight.iter().filter(|(_, call)| now >= call.deadline).map(|(id, _)| *id).collect()
    }

    /// Throws away what nobody has looked at for long.
    pub(crate) fn forget_old(&mut self, now: Moment) {
        self.books.retain(|_, book| book.in_flight.is_some() || now.since(book.used) < BOOK_LIFE);
        self.per_node.retain(|_, load| *load > 0);
    }
}

/// The pause after the `failures`-th failure in a row: `min`, doubled each time, at most `max`; none after no failure.
pub(crate) fn pause(min: Duration, max: Duration, failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => min.saturating_mul(1 << (n - 1).min(20)).min(max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Slot = Slot {
        vm: VmId::from_u128(1),
        node: NodeId::from_u128(2),
        epoch: OwnerEpoch::new(3),
        verb: Verb::Stop,
    };
    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn one_call_at_a_time_for_one_purpose() {
        let mut calls = Calls::default();
        assert!(calls.open(SLOT, at(0)).is_some());
        assert!(calls.open(SLOT, at(1)).is_none());
        assert!(calls.open(Slot { epoch: OwnerEpoch::new(4), ..SLOT }, at(1)).is_some());
    }

    #[test]
    fn failures_slow_down_the_next_try() {
        let mut calls = Calls::default();
        let id = calls.open(SLOT, at(0)).unwrap();
        calls.close(id, Err(CallError::Unanswered("no route".to_owned())), at(10)).unwrap();
        assert!(calls.open(SLOT, at(209)).is_none());
        let id = calls.open(SLOT, at(210)).unwrap();
        calls.close(id, Err(CallError::Unanswered("no route".to_owned())), at(210)).unwrap();
        assert!(calls.open(SLOT, at(609)).is_none());
        assert!(calls.open(SLOT, at(610)).is_some());
    }

    #[test]
    fn a_late_answer_is_ignored() {
        let mut calls = Calls::default();
        let id = calls.open(SLOT, at(0)).unwrap();
        assert_eq!(calls.overdue(at(12_000)), vec![id]);
        calls.close(id, Err(CallError::Unanswered("overdue".to_owned())), at(12_000)).unwrap();
        assert_eq!(calls.close(id, Ok(AgentAnswer::Stopped), at(12_001)), None);
        assert!(!calls.stopped(SLOT.vm, SLOT.node, SLOT.epoch));
    }

    #[test]
    fn a_node_gets_a_bounded_number_of_calls() {
        let mut calls = Calls::default();
        let open = (0..100)
            .filter(|n| calls.open(Slot { vm: VmId::from_u128(*n), ..SLOT }, at(0)).is_some())
            .count();
        assert_eq!(open, CALLS_PER_NODE_MAX);
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let (min, max) = (Duration::from_millis(200), Duration::from_secs(30));
        let pauses: Vec<u64> = (0..10).map(|n| pause(min, max, n).as_millis() as u64).collect();
        assert_eq!(pauses, [0, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000]);
        assert_eq!(pause(min, max, u32::MAX), max);
    }
}
