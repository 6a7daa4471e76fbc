//! Giving back memory that the guest does not use.

use std::{
    thread,
    time::{Duration, Instant},
};

use drover_devices::Balloon;
use drover_units::Bytes;

use crate::{Machine, MachineError};

/// Between two looks at how far the guest has come with its list.
const LOOK: Duration = Duration::from_millis(2);

/// What came of asking a guest for its free pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// What it named.
    pub named: Bytes,
    /// What of it was given back: the rest has been written since.
    pub given_back: Bytes,
}

impl Machine {
    /// Asks the guest by its balloon which pages are free, and gives those back that it has not written since. The guest
    /// runs on, but for the moment in which its writes are compared with its list; `limit` bounds the wait for the list,
    /// and again the pause.
    ///
    /// # Errors
    /// [`MachineError::NoHints`] where the guest does not tell, or not in time; [`MachineError::Logging`] while its writes
    /// are logged for somebody else. Nothing has been given back then.
    pub fn reclaim_free_memory(&self, balloon: &Balloon, limit: Duration) -> Result<Reclaimed, MachineError> {
        if self.is_dirty_log_on() {
            return Err(MachineError::Logging);
        }
        // Before the guest is asked: what it writes from then on must not be lost (virtio 1.2, 5.5.6.7).
        self.start_dirty_log()?;
        let reclaimed = self.reclaim_logged(balloon, limit);
        self.stop_dirty_log();
        balloon.finish_hinting();
        reclaimed
    }

    fn reclaim_logged(&self, balloon: &Balloon, limit: Duration) -> Result<Reclaimed, MachineError> {
        if !balloon.start_hinting() {
            return Err(MachineError::NoHints);
        }
        let deadline = Instant::now() + limit;
        let named = loop {
            if let Some(named) = balloon.hinted() {
                break named;
            }
            if Instant::now() >= deadline {
                return Err(MachineError::NoHints);
            }
            thread::sleep(LOOK);
        };
        let paused = self.pause(limit).map_err(MachineError::Pause)?;
        let free = named.without(&self.take_dirty()?);
        for run in free.runs() {
            self.memory().zero_pages(*run).map_err(MachineError::Memory)?;
        }
        paused.resume()?;
        let bytes = |pages: drover_units::Pages| pages.to_bytes().unwrap_or(Bytes::ZERO);
        Ok(Reclaimed { named: bytes(named.count()), given_back: bytes(free.count()) })
    }
}
