//! Holding a machine back.
//!
//! ```text
//!            first hold                  done
//! Running -------------> Freezing --------------------> Frozen
//!    ^                      |  ^                          |
//!    |                      |  | next hold tries again    |
//!    |                      +--+--> Partial (in time, not all of it)
//!    |         last hold gone              |              |
//!    +------------- Thawing <--------------+--------------+
//! ```
//!
//! Freezing order: vCPUs, then devices, which answer what the guest has asked for; thawing is the reverse. Any number
//! of holders hold independently; the machine runs when the last one lets go. A freeze that is not complete keeps what
//! it has stopped for as long as its holder wants: whoever must stop a guest (a lease that ran out) stops its vCPUs
//! even where its storage does not answer any more.

use std::{
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use crate::MachineError;

/// What can be frozen.
pub(crate) trait Freeze: Send + Sync {
    /// Stops everything, by the deadline. Called again after a failure: what stands still already is left alone.
    fn freeze(&self, deadline: Instant) -> Result<(), FreezeFault>;
    /// Runs everything again, also after a freeze that was not complete.
    fn thaw(&self) -> Result<(), MachineError>;
}

/// Why a freeze was not complete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FreezeFault {
    /// vCPUs did not come out of the guest in time.
    #[error("{0} vCPUs are still running")]
    Vcpus(usize),
    /// A device did not drain.
    #[error("a device does not stop")]
    Device(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Somebody else is still at it.
    #[error("another pause or resume is still under way")]
    Busy,
}

/// The pauses of one machine.
pub(crate) struct Freezer {
    state: Mutex<State>,
    changed: Condvar,
    target: Box<dyn Freeze>,
}

#[derive(Debug)]
struct State {
    holders: usize,
    phase: Phase,
    /// The machine is being taken apart: nothing thaws any more.
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Freezing,
    Frozen,
    Partial,
    Thawing,
}

/// Keeps a machine paused: no vCPU runs, no device works, guest RAM does not change. Dropping it lets go; see
/// [`resume`](Self::resume).
#[derive(Debug)]
#[must_use = "the machine runs on as soon as the guard is dropped"]
pub struct PauseGuard {
    hold: Hold,
}

/// A pause that is not complete. What could be stopped is stopped, for as long as this lives.
#[derive(Debug, thiserror::Error)]
#[error("cannot pause the machine completely")]
pub struct PauseError {
    hold: Hold,
    #[source]
    fault: FreezeFault,
}

/// Holds a machine back from any thread, beside its owner. Clones are the same. Keeps neither the guest nor its disks
/// alive; its guards do, for as long as they live.
#[derive(Clone, Debug)]
pub struct Holder {
    freezer: Weak<Freezer>,
}

impl Holder {
    pub(crate) fn new(freezer: &Arc<Freezer>) -> Self {
        Self { freezer: Arc::downgrade(freezer) }
    }

    /// As [`Machine::pause`](crate::Machine::pause); `None` if the machine has gone.
    pub fn hold(&self, limit: Duration) -> Option<Result<PauseGuard, PauseError>> {
        Some(self.freezer.upgrade()?.pause(limit))
    }
}

impl PauseError {
    /// What did not stop.
    pub fn fault(&self) -> &FreezeFault {
        &self.fault
    }

    /// Whether no vCPU runs, although devices may still work.
    pub fn vcpus_are_out(&self) -> bool {
        matches!(self.fault, FreezeFault::Device(_))
    }

    /// Tries again.
    ///
    /// # Errors
    /// As [`Machine::pause`](crate::Machine::pause).
    pub fn retry(self, limit: Duration) -> Result<PauseGuard, Self> {
        Freezer::freeze_for(self.hold, limit)
    }
}

impl PauseGuard {
    /// Lets go. If no other guard holds the machine, it runs: devices first, then vCPUs. Dropping the guard does the
    /// same, and logs what this reports.
    ///
    /// # Errors
    /// [`MachineError::NotRestored`] if it waits for a guest's state, [`MachineError::Device`] if a device cannot run.
    pub fn resume(mut self) -> Result<(), MachineError> {
        self.hold.let_go()
    }

    /// Whether this guard holds that machine's freezer.
    pub(crate) fn holds(&self, freezer: &Arc<Freezer>) -> bool {
        self.hold.freezer.as_ref().is_some_and(|mine| Arc::ptr_eq(mine, freezer))
    }
}

/// One holder. `None` once it has let go.
struct Hold {
    freezer: Option<Arc<Freezer>>,
}

impl Hold {
    fn let_go(&mut self) -> Result<(), MachineError> {
        self.freezer.take().map_or(Ok(()), |freezer| freezer.let_go())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "cannot resume the machine");
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}

impl Freezer {
    /// A target that has never run, and the guard that holds it back.
    pub(crate) fn new_frozen(target: Box<dyn Freeze>) -> (Arc<Self>, PauseGuard) {
        let state = State { holders: 1, phase: Phase::Frozen, closed: false };
        let freezer = Arc::new(Self { state: Mutex::new(state), changed: Condvar::new(), target });
        let guard = PauseGuard { hold: Hold { freezer: Some(Arc::clone(&freezer)) } };
        (freezer, guard)
    }

    /// Freezes within `limit`.
    pub(crate) fn pause(self: &Arc<Self>, limit: Duration) -> Result<PauseGuard, PauseError> {
        self.lock().holders += 1;
        Self::freeze_for(Hold { freezer: Some(Arc::clone(self)) }, limit)
    }

    fn freeze_for(hold: Hold, limit: Duration) -> Result<PauseGuard, PauseError> {
        let deadline = Instant::now() + limit;
        let outcome =
            hold.freezer.as_ref().map_or(Err(FreezeFault::Busy), |freezer| freezer.freeze(deadline));
        match outcome {
            Ok(()) => Ok(PauseGuard { hold }),
            Err(fault) => Err(PauseError { hold, fault }),
        }
    }

    /// The caller is a holder.
    fn freeze(&self, deadline: Instant) -> Result<(), FreezeFault> {
        let mut state = self.lock();
        loop {
            match state.phase {
                Phase::Frozen => return Ok(()),
                Phase::Running | Phase::Partial => break,
                Phase::Freezing | Phase::Thawing => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(FreezeFault::Busy);
                    }
                    state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        state.phase = Phase::Freezing;
        drop(state);
        let outcome = self.target.freeze(deadline);
        self.set_phase(if outcome.is_ok() { Phase::Frozen } else { Phase::Partial });
        outcome
    }

    fn let_go(&self) -> Result<(), MachineError> {
        let mut state = self.lock();
        state.holders -= 1;
        // While somebody freezes they hold; a thaw under way was begun when nobody did, and who came since waits for
        // it. If they gave up waiting, there is nothing to undo.
        let thaw =
            state.holders == 0 && matches!(state.phase, Phase::Frozen | Phase::Partial) && !state.closed;
        if !thaw {
            return Ok(());
        }
        state.phase = Phase::Thawing;
        drop(state);
        let outcome = self.target.thaw();
        self.set_phase(Phase::Running);
        outcome
    }

    /// Nothing thaws from now on.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    fn set_phase(&self, phase: Phase) {
        self.lock().phase = phase;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Freezer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, sync::mpsc, thread};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Records what is done to it; freezes as told, at once by default.
    #[derive(Clone, Default)]
    struct Fake {
        done: Arc<Mutex<Vec<&'static str>>>,
        outcomes: Arc<Mutex<VecDeque<Result<(), FreezeFault>>>>,
        /// If there, a freeze waits for a message.
        gate: Arc<Mutex<Option<mpsc::Receiver<()>>>>,
    }

    impl Fake {
        fn done(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.done.lock().unwrap())
        }
    }

    impl Freeze for Fake {
        fn freeze(&self, _deadline: Instant) -> Result<(), FreezeFault> {
            if let Some(gate) = &*self.gate.lock().unwrap() {
                gate.recv().unwrap();
            }
            self.done.lock().unwrap().push("freeze");
            self.outcomes.lock().unwrap().pop_front().unwrap_or(Ok(()))
        }
        fn thaw(&self) -> Result<(), MachineError> {
            self.done.lock().unwrap().push("thaw");
            Ok(())
        }
    }

    fn running() -> (Arc<Freezer>, Fake) {
        let fake = Fake::default();
        let (freezer, guard) = Freezer::new_frozen(Box::new(fake.clone()));
        guard.resume().unwrap();
        assert_eq!(fake.done(), ["thaw"]);
        (freezer, fake)
    }

    #[test]
    fn the_machine_runs_when_the_last_guard_is_gone() {
        let (freezer, fake) = running();
        let user = freezer.pause(LIMIT).unwrap();
        let lease = freezer.pause(LIMIT).unwrap();
        assert_eq!(fake.done(), ["freeze"], "the second finds it frozen");
        drop(user);
        assert!(fake.done().is_empty());
        lease.resume().unwrap();
        assert_eq!(fake.done(), ["thaw"]);
    }

    #[test]
    fn an_incomplete_pause_holds_what_it_stopped_and_can_be_tried_again() {
        let (freezer, fake) = running();
        fake.outcomes.lock().unwrap().push_back(Err(FreezeFault::Device("stuck".into())));
        let incomplete = freezer.pause(LIMIT).unwrap_err();
        assert!(incomplete.vcpus_are_out());
        assert_eq!(fake.done(), ["freeze"]);
        let guard = incomplete.retry(LIMIT).unwrap();
        assert_eq!(fake.done(), ["freeze"]);
        drop(guard);
        assert_eq!(fake.done(), ["thaw"]);
    }

    #[test]
    fn giving_up_an_incomplete_pause_resumes() {
        let (freezer, fake) = running();
        fake.outcomes.lock().unwrap().push_back(Err(FreezeFault::Vcpus(1)));
        let incomplete = freezer.pause(LIMIT).unwrap_err();
        assert!(!incomplete.vcpus_are_out());
        drop(incomplete);
        assert_eq!(fake.done(), ["freeze", "thaw"]);
    }

    #[test]
    fn a_pause_waits_for_another_one_but_not_longer_than_its_limit() {
        let (freezer, fake) = running();
        let (let_it, gate) = mpsc::channel();
        *fake.gate.lock().unwrap() = Some(gate);
        let first = {
            let freezer = Arc::clone(&freezer);
            thread::spawn(move || freezer.pause(LIMIT).unwrap())
        };
        while freezer.lock().phase != Phase::Freezing {
            thread::yield_now();
        }
        let impatient = freezer.pause(Duration::ZERO).unwrap_err();
        assert!(matches!(impatient.fault(), FreezeFault::Busy));
        let_it.send(()).unwrap();
        let second = freezer.pause(LIMIT).unwrap();
        drop(impatient);
        drop(first.join().unwrap());
        assert_eq!(fake.done(), ["freeze"]);
        drop(second);
        assert_eq!(fake.done(), ["thaw"]);
    }

    #[test]
    fn a_machine_that_is_taken_apart_does_not_thaw() {
        let (freezer, fake) = running();
        let guard = freezer.pause(LIMIT).unwrap();
        freezer.close();
        guard.resume().unwrap();
        assert_eq!(fake.done(), ["freeze"]);
    }

    #[test]
    fn a_guard_knows_its_machine() {
        let (one, _) = running();
        let (other, _) = running();
        let guard = one.pause(LIMIT).unwrap();
        assert!(guard.holds(&one) && !guard.holds(&other));
    }
}
