//! How much of the processors a migration takes from the guests beside it, the one it moves first of all.
//!
//! Copying RAM is a long computation; vCPUs mostly sleep and must run at once when they wake. On a full host a copying thread
//! of equal weight makes every guest stutter for tens of milliseconds, more than the switchover itself takes. So a migration's
//! thread is nice while it copies, and no longer when the guest stands still and waits for it.

use rustix::process::{getpid, getpriority_process, setpriority_process};

/// Niceness of a thread that copies: a tenth of a vCPU's weight (sched(7), about 10% for each step).
const COPYING_NICENESS: i32 = 10;

/// Lets guests go first, from now on in this thread.
pub(crate) fn let_guests_go_first() {
    // A host that does not allow it loses the courtesy, not the migration.
    setpriority_process(None, COPYING_NICENESS).ok();
}

/// Takes this thread back to its process's own priority. Becoming less nice is a privilege (CAP_SYS_NICE): without it the
/// switchover competes at the copying priority.
pub(crate) fn hurry() {
    if let Ok(own) = getpriority_process(Some(getpid())) {
        setpriority_process(None, own).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn only_the_thread_that_copies_is_nice() {
        let before = getpriority_process(None).expect("a thread has a priority");
        let inside = thread::spawn(|| {
            let_guests_go_first();
            getpriority_process(None).expect("a thread has a priority")
        });
        assert_eq!(inside.join().expect("it does not panic"), before.max(COPYING_NICENESS));
        assert_eq!(getpriority_process(None).expect("a thread has a priority"), before);
    }
}
