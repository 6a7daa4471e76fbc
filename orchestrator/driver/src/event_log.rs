//! The bounded log of what has happened in the cluster, as the store has it.

use std::{collections::VecDeque, fmt};

use drover_cluster_state::{ClusterEvent, Revision};

/// Most events that are kept; a busy hour of a large cluster.
pub const EVENTS_MAX: usize = 10_000;
/// Events in one transaction are told apart by this many bits; the store takes fewer writes than that.
const INDEX_BITS: u32 = 10;

/// Where an event stands: grows with every event, not always by one.
///
/// It is the revision of the transaction that wrote the event, followed by the event's place in it: the store gives
/// it, so that events which are written at the same time have one order for everybody, and a restart changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequence(u64);

impl Sequence {
    /// Of the event number `index` of the transaction with this revision.
    pub(crate) fn at(revision: Revision, index: u64) -> Self {
        Self((revision.get() << INDEX_BITS) | (index & ((1 << INDEX_BITS) - 1)))
    }

    /// Wraps a number that was handed out before.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An event with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedEvent {
    /// Where it stands.
    pub sequence: Sequence,
    /// What happened.
    pub event: ClusterEvent,
    /// The id it is stored under.
    pub(crate) id: String,
}

/// The place to go on from is not in the log (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {after} is not in the log: it has been dropped, or never was; the oldest is {oldest}")]
pub struct OutOfRange {
    /// What was asked for.
    pub after: Sequence,
    /// The oldest event there is.
    pub oldest: Sequence,
}

/// The latest events, oldest first.
#[derive(Debug, Default)]
pub struct EventLog {
    events: VecDeque<LoggedEvent>,
}

impl EventLog {
    /// Events after `after`, oldest first; all of them if it is zero.
    ///
    /// # Errors
    /// [`OutOfRange`] if there is no event `after`, so that some between may have been dropped.
    pub fn after(&self, after: Sequence) -> Result<impl Iterator<Item = &LoggedEvent>, OutOfRange> {
        let start = match self.events.binary_search_by_key(&after, |event| event.sequence) {
            Ok(place) => place + 1,
            Err(_) if after == Sequence::default() => 0,
            Err(_) => {
                let oldest = self.events.front().map_or(Sequence::default(), |event| event.sequence);
                return Err(OutOfRange { after, oldest });
            }
        };
        Ok(self.events.range(start..))
    }

    /// The newest event's place; zero if there is none.
    pub fn newest(&self) -> Sequence {
        self.events.back().map_or(Sequence::default(), |event| event.sequence)
    }

    /// Takes in an event that the store has. Returns whether it was news: one that is not newer than the newest is
    /// known already.
    pub(crate) fn push(&mut self, event: LoggedEvent) -> bool {
        let news = event.sequence > self.newest() || self.events.is_empty();
        if news {
            self.events.push_back(event);
        }
        news
    }

    /// Removes what exceeds the bound and returns the ids of it, at most `limit` of them and only if there are that
    /// many: they are to be removed from the store too, which is cheaper in bulk.
    pub(crate) fn trim(&mut self, limit: usize) -> Vec<String> {
        if self.events.len() < EVENTS_MAX + limit {
            return Vec::new();
        }
        self.events.drain(..limit).map(|event| event.id).collect()
    }
}

#[cfg(test)]
mod tests {
    use drover_cluster_state::WallTime;

    use super::*;

    fn event(revision: u64, index: u64) -> LoggedEvent {
        let event = ClusterEvent {
            at: WallTime::default(),
            kind: "vm.running".into(),
            subject_id: String::new(),
            subject_name: String::new(),
            message: String::new(),
        };
        LoggedEvent {
            sequence: Sequence::at(Revision::new(revision), index),
            event,
            id: format!("{revision}-{index}"),
        }
    }

    fn ids(log: &EventLog, after: Sequence) -> Result<Vec<&str>, OutOfRange> {
        Ok(log.after(after)?.map(|event| event.id.as_str()).collect())
    }

    #[test]
    fn events_are_ordered_by_revision_then_place() {
        let mut log = EventLog::default();
        let news = [(3, 0), (3, 1), (3, 1), (3, 0), (7, 0)]
            .map(|(revision, index)| log.push(event(revision, index)));
        assert_eq!(news, [true, true, false, false, true]);
        assert_eq!(ids(&log, Sequence::default()), Ok(vec!["3-0", "3-1", "7-0"]));
        assert_eq!(ids(&log, Sequence::at(Revision::new(3), 0)), Ok(vec!["3-1", "7-0"]));
        assert_eq!(ids(&log, log.newest()), Ok(vec![]));
    }

    #[test]
    fn an_unknown_place_is_out_of_range() {
        let mut log = EventLog::default();
        assert_eq!(ids(&log, Sequence::default()), Ok(vec![]));
        log.push(event(3, 0));
        let oldest = Sequence::at(Revision::new(3), 0);
        for after in [Sequence::new(1), Sequence::at(Revision::new(9), 0)] {
            assert_eq!(ids(&log, after), Err(OutOfRange { after, oldest }));
        }
    }

    #[test]
    fn the_log_is_bounded_and_names_what_it_drops() {
        let mut log = EventLog::default();
        for revision in 1..EVENTS_MAX as u64 + 10 {
            log.push(event(revision, 0));
            assert!(log.trim(10).is_empty());
        }
        log.push(event(EVENTS_MAX as u64 + 10, 0));
        let dropped = log.trim(10);
        assert_eq!((dropped.len(), dropped.first().map(String::as_str)), (10, Some("1-0")));
        assert_eq!(log.events.len(), EVENTS_MAX);
        assert!(log.after(Sequence::at(Revision::new(10), 0)).is_err());
        assert!(log.after(Sequence::at(Revision::new(11), 0)).is_ok());
    }
}
