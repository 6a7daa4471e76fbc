//! Whether I/O may pass, and how much is under way, in one word.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{BlockError, OwnershipError};

const OPEN: u64 = 1 << 63;
const FENCED: u64 = 1 << 62;
const COUNT: u64 = FENCED - 1;

/// Stands before the storage: requests enter while the image is owned and leave when they are reaped. Closing succeeds
/// only when none is inside, so no request can slip through beside a release.
#[derive(Debug, Default)]
pub struct Gate(AtomicU64);

impl Gate {
    /// Lets a request in.
    ///
    /// # Errors
    /// [`BlockError::NotOwner`] where the gate is closed, [`BlockError::Fenced`] where it is fenced.
    pub fn enter(&self) -> Result<(), BlockError> {
        let admit = |word| if word & (OPEN | FENCED) == OPEN { Some(word + 1) } else { None };
        match self.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, admit) {
            Ok(_) => Ok(()),
            Err(word) if word & FENCED != 0 => Err(BlockError::Fenced),
            Err(_) => Err(BlockError::NotOwner),
        }
    }

    /// A request that entered has been answered.
    pub fn leave(&self) {
        let before = self.0.fetch_sub(1, Ordering::Release);
        debug_assert_ne!(before & COUNT, 0, "only what entered leaves");
    }

    /// Lets requests in from now on, unless the gate has been fenced.
    pub fn open(&self) {
        self.0.fetch_or(OPEN, Ordering::Release);
    }

    /// Lets nothing in any more.
    ///
    /// # Errors
    /// [`OwnershipError::InFlight`] while requests are inside.
    pub fn close(&self) -> Result<(), OwnershipError> {
        let close = |word| if word & COUNT == 0 { Some(word & !OPEN) } else { None };
        match self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, close) {
            Ok(_) => Ok(()),
            Err(word) => Err(OwnershipError::InFlight(word & COUNT)),
        }
    }

    /// For ever refuses what comes, as [`BlockError::Fenced`].
    pub fn fence(&self) {
        self.0.fetch_or(FENCED, Ordering::Release);
    }

    /// Whether it has been fenced.
    pub fn is_fenced(&self) -> bool {
        self.0.load(Ordering::Acquire) & FENCED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_closes_only_behind_the_last_request() {
        let gate = Gate::default();
        assert!(matches!(gate.enter(), Err(BlockError::NotOwner)));
        gate.open();
        gate.enter().unwrap();
        assert!(matches!(gate.close(), Err(OwnershipError::InFlight(1))));
        gate.enter().expect("a refused close leaves it open");
        gate.leave();
        gate.leave();
        gate.close().unwrap();
        assert!(matches!(gate.enter(), Err(BlockError::NotOwner)));
    }

    #[test]
    fn a_fenced_gate_never_opens_again() {
        let gate = Gate::default();
        gate.open();
        gate.fence();
        assert!(matches!(gate.enter(), Err(BlockError::Fenced)));
        gate.close().unwrap();
        gate.open();
        assert!(matches!(gate.enter(), Err(BlockError::Fenced)));
    }
}
