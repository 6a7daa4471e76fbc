//! The lease watchdog: a thread that ends this process when its lease does, whatever else has got stuck.
//!
//! It depends on nothing but a timer: the VM's thread may be waiting for hung storage, the runtime may be busy. At the
//! first deadline it tells the VM's thread, which takes the vCPUs out; at the second it ends the process, and with it
//! the volume locks.
//!
//! Renewals come straight here, for the same reason: a VM thread that builds a machine on slow storage, or waits for a
//! disk to drain, must not let a lease run out that has been renewed. The VM's thread looks here for the newest one.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use drover_ids::OwnerEpoch;
use drover_lifecycle::{BootTime, Lease, LeaseVerdict, Refusal, State, Verb};
use drover_thread_role::{Role, spawn};
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tracing::{error, warn};

use crate::{boottime, order::Renewal};

/// Exit status of a process whose lease ran out.
pub(crate) const EXIT_SELF_FENCED: i32 = 3;

/// How long the report of the end may take to leave the process before it ends regardless. Part of the margin between
/// T_self and T_fence, which is a second.
const LAST_WORDS: Duration = Duration::from_millis(50);

/// The timer of the lease. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Watchdog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    watched: Mutex<Option<Watched>>,
    timer: TimerFd,
}

/// A VM that is here, or that is being built.
#[derive(Clone, Copy, Debug)]
struct Watched {
    epoch: OwnerEpoch,
    /// `None`: not limited by time, until it is renewed for the first time.
    lease: Option<Lease>,
}

/// What the watchdog does to others.
pub(crate) trait Fencing: Send + 'static {
    /// The vCPUs have to go out. Must not block.
    fn pause_due(&self);
    /// The process ends in a moment. Must not block.
    fn kill_due(&self);
}

impl Watchdog {
    /// Makes one with nothing to watch. It works once its thread has been [started](Self::start).
    pub(crate) fn new() -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC)?;
        Ok(Self { inner: Arc::new(Inner { watched: Mutex::new(None), timer }) })
    }

    /// Starts the thread.
    pub(crate) fn start(&self, fencing: impl Fencing) -> io::Result<()> {
        let inner = Arc::clone(&self.inner);
        let builder = thread::Builder::new().name("lease".to_owned());
        spawn(Role::Lease, builder, move || inner.watch(&fencing))?;
        Ok(())
    }

    /// Watches a VM from before it is built, so that its lease can be renewed while that takes time.
    pub(crate) fn begin(&self, epoch: OwnerEpoch, lease: Option<Lease>) {
        self.inner.change(|watched| *watched = Some(Watched { epoch, lease }));
    }

    /// The VM belongs to this epoch from now on.
    pub(crate) fn owned_by(&self, epoch: OwnerEpoch) {
        let mut watched = self.inner.lock();
        if let Some(watched) = watched.as_mut() {
            watched.epoch = epoch;
        }
    }

    /// Watches nothing any more: what has ended needs no lease.
    pub(crate) fn clear(&self) {
        self.inner.change(|watched| *watched = None);
    }

    /// Renews the lease. Never waits for the VM's thread.
    ///
    /// # Errors
    /// For another epoch than the VM's, where there is no VM, and once the process has to end.
    pub(crate) fn renew(&self, renewal: Renewal) -> Result<(), Refusal> {
        let verb = Verb::ExtendLease;
        let Renewal { epoch, lease } = renewal;
        self.inner.change(|watched| {
            let Some(watched) = watched else {
                return Err(Refusal::WrongState { verb, state: State::Empty, needs: "a VM" });
            };
            let current = watched.epoch;
            if epoch < current {
                return Err(Refusal::StaleEpoch { given: epoch, current });
            }
            if epoch > current {
                return Err(Refusal::FutureEpoch { given: epoch, current });
            }
            if watched.lease.is_some_and(|held| held.verdict(boottime::now()) == LeaseVerdict::KillDue) {
                return Err(Refusal::Ending { verb });
            }
            watched.lease = Some(watched.lease.map_or(lease, |held| held.renewed(lease)));
            Ok(())
        })
    }

    /// The newest lease and whose it is.
    pub(crate) fn held(&self) -> Option<Renewal> {
        let Watched { epoch, lease } = (*self.inner.lock())?;
        lease.map(|lease| Renewal { epoch, lease })
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Option<Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is watched. Armed under the lock, so that the timer always belongs to the lease.
    fn change<T>(&self, change: impl FnOnce(&mut Option<Watched>) -> T) -> T {
        let mut watched = self.lock();
        let result = change(&mut watched);
        match watched.and_then(|watched| watched.lease) {
            Some(lease) => self.arm(lease.pause_at()),
            None => _ = self.timer.unset(),
        }
        result
    }

    /// Lets the timer expire at `at`, or at once if that is past.
    fn arm(&self, at: BootTime) {
        let expiration = Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(at.as_ns())));
        if let Err(error) = self.timer.set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME) {
            // Without a timer nothing would stop this VM when its lease ends.
            error!(%error, "cannot arm the lease timer: ending the process");
            std::process::exit(EXIT_SELF_FENCED);
        }
    }

    fn watch(&self, fencing: &impl Fencing) {
        loop {
            if let Err(error) = self.timer.wait() {
                error!(%error, "cannot wait for the lease timer: ending the process");
                std::process::exit(EXIT_SELF_FENCED);
            }
            match self.verdict() {
                LeaseVerdict::Valid => {}
                LeaseVerdict::PauseDue => {
                    fencing.pause_due();
                    aside(|| warn!("the lease is overdue: the VM pauses"));
                }
                LeaseVerdict::KillDue => {
                    fencing.kill_due();
                    aside(|| error!("the lease has run out: the process ends"));
                    thread::sleep(LAST_WORDS);
                    std::process::exit(EXIT_SELF_FENCED);
                }
            }
        }
    }

    /// What is due now, with the timer armed for what comes next. Under the lock, so that the timer always belongs to the lease;
    /// what is due is done without it.
    fn verdict(&self) -> LeaseVerdict {
        let watched = self.lock();
        // Nothing to watch is nothing overdue.
        let Some(lease) = watched.and_then(|watched| watched.lease) else { return LeaseVerdict::Valid };
        let verdict = lease.verdict(boottime::now());
        match verdict {
            // Renewed while the timer expired.
            LeaseVerdict::Valid => self.arm(lease.pause_at()),
            LeaseVerdict::PauseDue => self.arm(lease.kill_at()),
            LeaseVerdict::KillDue => {}
        }
        verdict
    }
}

/// Logs on a thread of its own. The log is a file, and whatever holds that up (a state directory that hangs, a writer that is
/// stuck) must not hold up the end of a VM that another host is about to start. A message that cannot be written is lost.
fn aside(log: impl FnOnce() + Send + 'static) {
    let logging = thread::Builder::new().name("lease-log".to_owned()).spawn(log);
    drop(logging);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, SyncSender};

    use super::*;

    struct Told(SyncSender<&'static str>);

    impl Fencing for Told {
        fn pause_due(&self) {
            let _ = self.0.send("pause");
        }
        fn kill_due(&self) {
            let _ = self.0.send("kill");
        }
    }

    fn lease(pause_in: Duration, kill_in: Duration) -> Lease {
        let at = |duration: Duration| BootTime::from_ns(boottime::now().as_ns() + duration.as_nanos() as u64);
        Lease::new(at(pause_in), at(kill_in)).expect("a valid lease")
    }

    fn renewal(epoch: u64, lease: Lease) -> Renewal {
        Renewal { epoch: OwnerEpoch::new(epoch), lease }
    }

    #[test]
    fn an_overdue_lease_pauses_and_a_renewed_one_does_not() {
        let (sender, told) = mpsc::sync_channel(1);
        let watchdog = Watchdog::new().expect("a timer");
        watchdog.start(Told(sender)).expect("started");
        let hour = Duration::from_secs(3600);
        watchdog.begin(OwnerEpoch::new(1), Some(lease(Duration::from_millis(20), hour)));
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok("pause"));
        // Renewed, then past the first deadline of the old lease: nobody is told.
        watchdog.begin(OwnerEpoch::new(1), Some(lease(Duration::from_millis(500), hour)));
        watchdog.renew(renewal(1, lease(hour, hour * 2))).expect("renewed");
        assert!(told.recv_timeout(Duration::from_millis(600)).is_err());
    }

    #[test]
    fn only_the_vms_own_epoch_renews() {
        let watchdog = Watchdog::new().expect("a timer");
        let hour = lease(Duration::from_secs(3600), Duration::from_secs(7200));
        let check = |epoch, expect: &str| {
            let answer = watchdog.renew(renewal(epoch, hour));
            assert_eq!(answer.map_err(|refusal| refusal.to_string()).err().unwrap_or_default(), expect);
        };
        assert!(watchdog.renew(renewal(2, hour)).is_err(), "there is no VM");
        watchdog.begin(OwnerEpoch::new(2), None);
        check(2, "");
        assert!(matches!(watchdog.renew(renewal(1, hour)), Err(Refusal::StaleEpoch { .. })));
        assert!(matches!(watchdog.renew(renewal(3, hour)), Err(Refusal::FutureEpoch { .. })));
        watchdog.owned_by(OwnerEpoch::new(3));
        check(3, "");
        assert_eq!(watchdog.held().map(|held| held.epoch.get()), Some(3));
        watchdog.clear();
        assert!(watchdog.renew(renewal(3, hour)).is_err(), "the VM has ended");
    }
}
