//! Who may run guest code, and when nobody does.
//!
//! vCPU threads [`enter`](Gate::enter) and hold a [`Pass`] while they run the guest. Whoever wants them out closes the
//! gate and waits. The machine ends once: from then on nobody enters again.
//!
//! Nothing here knows KVM: getting a thread out of the guest is the `kick` that the gate was made with.

use std::{
    fmt,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use crate::MachineEvent;

/// The gate between vCPU threads and the guest.
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether threads inside should come out. Set before they are kicked, so that a thread that was interrupted for
    /// any reason finds it.
    out: AtomicBool,
    kick: Box<dyn Fn() + Send + Sync>,
}

#[derive(Debug)]
struct State {
    open: bool,
    inside: usize,
    ended: Option<MachineEvent>,
    dismissed: bool,
}

/// Threads that did not come out in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StillInside(pub(crate) usize);

/// Permission to run guest code. Dropping it says that this thread is out.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    gate: &'a Gate,
}

impl Gate {
    /// A closed gate. `kick` makes every thread inside look at [`wants_out`](Self::wants_out) soon.
    pub(crate) fn new(kick: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            state: Mutex::new(State { open: false, inside: 0, ended: None, dismissed: false }),
            changed: Condvar::new(),
            out: AtomicBool::new(true),
            kick: Box::new(kick),
        }
    }

    /// Waits until the gate is open. `None`: the thread is dismissed and should end.
    pub(crate) fn enter(&self) -> Option<Pass<'_>> {
        let mut state = self.lock();
        loop {
            if state.dismissed {
                return None;
            }
            if state.open && state.ended.is_none() {
                state.inside += 1;
                return Some(Pass { gate: self });
            }
            state = self.wait(state);
        }
    }

    /// Whether a thread inside should come out. To be asked after every interruption.
    pub(crate) fn wants_out(&self) -> bool {
        self.out.load(Ordering::SeqCst)
    }

    /// Lets threads in, unless the machine has ended.
    pub(crate) fn open(&self) {
        let mut state = self.lock();
        state.open = true;
        if state.ended.is_none() && !state.dismissed {
            self.out.store(false, Ordering::SeqCst);
        }
        self.changed.notify_all();
    }

    /// Lets nobody in any more, and waits until nobody is inside.
    pub(crate) fn close(&self, deadline: Instant) -> Result<(), StillInside> {
        let mut state = self.lock();
        state.open = false;
        self.send_out(&state);
        while state.inside > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(StillInside(state.inside));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Lets nobody in any more, without waiting until nobody is inside: the caller may be.
    pub(crate) fn shut(&self) {
        let mut state = self.lock();
        state.open = false;
        self.send_out(&state);
    }

    /// The machine has ended. Returns whether this was the first to say so. Does not wait: the caller may be inside.
    pub(crate) fn end(&self, event: MachineEvent) -> bool {
        let mut state = self.lock();
        if state.ended.is_some() {
            return false;
        }
        state.ended = Some(event);
        self.send_out(&state);
        true
    }

    /// Why the machine has ended, if it has.
    pub(crate) fn ended(&self) -> Option<MachineEvent> {
        self.lock().ended.clone()
    }

    /// Sends every thread away for good.
    pub(crate) fn dismiss(&self) {
        let mut state = self.lock();
        state.dismissed = true;
        self.send_out(&state);
        self.changed.notify_all();
    }

    fn send_out(&self, state: &MutexGuard<'_, State>) {
        self.out.store(true, Ordering::SeqCst);
        if state.inside > 0 {
            (self.kick)();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one assignment: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.lock().inside -= 1;
        self.gate.changed.notify_all();
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::AtomicUsize,
            mpsc::{Receiver, channel},
        },
        thread,
        time::Duration,
    };

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// A gate, and threads that behave like vCPU threads: inside they spin until they should come out.
    fn with_threads(count: usize) -> (Arc<Gate>, Receiver<&'static str>, Vec<thread::JoinHandle<()>>) {
        let gate = Arc::new(Gate::new(|| {}));
        let (say, heard) = channel();
        let threads = (0..count)
            .map(|_| {
                let (gate, say) = (Arc::clone(&gate), say.clone());
                thread::spawn(move || {
                    while let Some(_pass) = gate.enter() {
                        say.send("in").unwrap();
                        while !gate.wants_out() {
                            thread::yield_now();
                        }
                    }
                    say.send("gone").unwrap();
                })
            })
            .collect();
        (gate, heard, threads)
    }

    #[test]
    fn closing_returns_when_everyone_is_out_and_opening_lets_them_in_again() {
        let (gate, heard, threads) = with_threads(3);
        for _ in 0..2 {
            gate.open();
            (0..3).for_each(|_| assert_eq!(heard.recv().unwrap(), "in"));
            gate.close(soon()).unwrap();
            assert_eq!(gate.lock().inside, 0);
        }
        gate.dismiss();
        (0..3).for_each(|_| assert_eq!(heard.recv().unwrap(), "gone"));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_thread_that_does_not_come_out_is_counted() {
        let gate = Gate::new(|| {});
        gate.open();
        let pass = gate.enter().unwrap();
        assert_eq!(gate.close(Instant::now()), Err(StillInside(1)));
        drop(pass);
        assert_eq!(gate.close(Instant::now()), Ok(()));
    }

    #[test]
    fn who_is_inside_is_kicked_and_who_is_not_is_left_alone() {
        let kicks = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&kicks);
        let gate = Gate::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        gate.close(Instant::now()).unwrap();
        assert_eq!(kicks.load(Ordering::SeqCst), 0);
        gate.open();
        let _pass = gate.enter().unwrap();
        assert!(!gate.wants_out());
        assert!(gate.close(Instant::now()).is_err());
        assert_eq!(kicks.load(Ordering::SeqCst), 1);
        assert!(gate.wants_out());
    }

    #[test]
    fn a_machine_ends_once_and_nobody_enters_again() {
        let (gate, heard, threads) = with_threads(2);
        gate.open();
        (0..2).for_each(|_| assert_eq!(heard.recv().unwrap(), "in"));
        assert!(gate.end(MachineEvent::GuestShutdown));
        assert!(!gate.end(MachineEvent::Fenced));
        assert_eq!(gate.ended(), Some(MachineEvent::GuestShutdown));
        gate.close(soon()).unwrap();
        gate.open();
        assert!(gate.wants_out(), "opening does not bring an ended machine back");
        gate.dismiss();
        (0..2).for_each(|_| assert_eq!(heard.recv().unwrap(), "gone"));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn a_thread_that_panics_inside_is_out() {
        let gate = Arc::new(Gate::new(|| {}));
        gate.open();
        let inside = Arc::clone(&gate);
        let thread = thread::spawn(move || {
            let _pass = inside.enter().unwrap();
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        gate.close(Instant::now()).unwrap();
    }
}
