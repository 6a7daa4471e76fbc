//! A clock that a test turns.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use drover_cluster_state::{Moment, Now, WallTime};

use crate::Clock;

/// Stands still until it is advanced. Clones are the same clock.
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    millis: Arc<AtomicU64>,
}

impl ManualClock {
    /// Moves both times on.
    pub fn advance(&self, by: Duration) {
        self.millis.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Now {
        let millis = self.millis.load(Ordering::Relaxed);
        Now { moment: Moment::from_millis(millis), wall: WallTime::from_unix_millis(millis) }
    }
}
