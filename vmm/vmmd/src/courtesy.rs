//! How much of the processors a migration takes from the guests beside it, the one it moves first of all.
//!
//! Copying RAM is a long computation; vCPUs mostly sleep and must run at once when they wake. On a full host a copying thread
//! of equal weight makes every guest stutter for tens of milliseconds, more than the switchover itself takes. So a migration's
//! thread is nice while it copies, and no longer when the guest stands still and waits for it.

use rustix::{
    process::{Resource, getpid, getpriority_process, getrlimit, setpriority_process},
    thread::{CapabilitySet, capabilities},
};

/// Niceness of a thread that copies: a tenth of a vCPU's weight (sched(7), about 10% for each step).
const COPYING_NICENESS: i32 = 10;

/// Lets guests go first, from now on in this thread.
pub(crate) fn let_guests_go_first() {
    // A host that does not allow it loses the courtesy, not the migration.
    if may_hurry() {
        setpriority_process(None, COPYING_NICENESS).ok();
    }
}

/// Whether a thread that has become nice may become as it was: with the privilege to, or up to a limit that was left to the
/// process when it gave its privileges up. A guest that stands still waits for nobody's neighbours.
fn may_hurry() -> bool {
    let own = getpriority_process(Some(getpid())).unwrap_or(0);
    // The limit counts from 1 to 40 where niceness runs from 19 down to -20 (getrlimit(2)).
    let limit = getrlimit(Resource::Nice).current.unwrap_or(u64::MAX);
    let privileged = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_NICE));
    privileged || u64::try_from(20 - own).is_ok_and(|needed| limit >= needed)
}

/// Takes this thread back to its process's own priority.
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
        let expect = if may_hurry() { before.max(COPYING_NICENESS) } else { before };
        assert_eq!(inside.join().expect("it does not panic"), expect);
        assert_eq!(getpriority_process(None).expect("a thread has a priority"), before);
    }
}
