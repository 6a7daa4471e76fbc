//! The lease watchdog: a thread that ends this process when its lease does, whatever else has got stuck.
//!
//! It depends on nothing but a timer: the VM's thread may be waiting for hung storage, the runtime may be busy. At the
//! first deadline it tells the VM's thread, which takes the vCPUs out; at the second it ends the process, and with it
//! the volume locks.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use drover_lifecycle::{BootTime, Lease, LeaseVerdict};
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tracing::{error, warn};

use crate::boottime;

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
    lease: Mutex<Option<Lease>>,
    timer: TimerFd,
}

/// What the watchdog does to others.
pub(crate) trait Fencing: Send + 'static {
    /// The vCPUs have to go out. Must not block.
    fn pause_due(&self);
    /// The process ends in a moment. Must not block.
    fn kill_due(&self);
}

impl Watchdog {
    /// Starts the thread, with no lease to watch.
    pub(crate) fn start(fencing: impl Fencing) -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC)?;
        let watchdog = Self { inner: Arc::new(Inner { lease: Mutex::new(None), timer }) };
        let inner = Arc::clone(&watchdog.inner);
        thread::Builder::new().name("lease".to_owned()).spawn(move || inner.watch(&fencing))?;
        Ok(watchdog)
    }

    /// Watches this lease from now on; `None` watches nothing.
    pub(crate) fn set(&self, lease: Option<Lease>) {
        let mut held = self.inner.lease.lock().unwrap_or_else(PoisonError::into_inner);
        *held = lease;
        // Armed under the lock, so that the timer always belongs to the lease.
        match lease {
            Some(lease) => self.inner.arm(lease.pause_at()),
            None => _ = self.inner.timer.unset(),
        }
    }
}

impl Inner {
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
        let held = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing to watch is nothing overdue.
        let Some(lease) = *held else { return LeaseVerdict::Valid };
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

    #[test]
    fn an_overdue_lease_pauses_and_a_renewed_one_does_not() {
        let (sender, told) = mpsc::sync_channel(1);
        let watchdog = Watchdog::start(Told(sender)).expect("started");
        let hour = Duration::from_secs(3600);
        watchdog.set(Some(lease(Duration::from_millis(20), hour)));
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok("pause"));
        // Renewed, then past the first deadline of the old lease: nobody is told.
        watchdog.set(Some(lease(Duration::from_millis(500), hour)));
        watchdog.set(Some(lease(hour, hour * 2)));
        assert!(told.recv_timeout(Duration::from_millis(600)).is_err());
    }
}
