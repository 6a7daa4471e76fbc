//! The machine in the hands of other threads.

use std::{io, sync::mpsc, thread, time::Duration};

use drover_thread_role::{Role, spawn};

use crate::hosted::QUIESCE_LIMIT;

/// How long the end of a machine may take: becoming quiet, and then as much again as closing disks ever takes with a cluster
/// that answers. One that does not could keep it for ever: librbd closes no image, and gives up no lock, without the cluster.
pub(super) const END_LIMIT: Duration = Duration::from_secs(QUIESCE_LIMIT.as_secs() + 3);

/// Starts a thread that works on the machine. Where there can be no thread, the machine comes back.
pub(super) fn lend<M: Send + 'static>(
    (role, name): (Role, &str),
    machine: M,
    work: impl FnOnce(M) + Send + 'static,
) -> Result<(), (M, io::Error)> {
    // The machine follows once the thread is there, since one that cannot be started keeps what it was given.
    let (sender, receiver) = mpsc::sync_channel(1);
    let body = move || {
        if let Ok(machine) = receiver.recv() {
            work(machine);
        }
    };
    match spawn(role, thread::Builder::new().name(name.to_owned()), body) {
        Ok(_) => {
            let sent = sender.send(machine);
            debug_assert!(sent.is_ok(), "the thread waits for the machine");
            Ok(())
        }
        Err(error) => Err((machine, error)),
    }
}

/// It was not done in time. The thread goes on with it, and ends with the process at the latest.
#[derive(Debug)]
pub(crate) struct Overdue;

/// Has a thread do something with the machine, or a part of it, and waits for it, but not for ever.
pub(crate) fn within<M: Send + 'static, T: Send + 'static>(
    name: &str,
    limit: Duration,
    machine: M,
    work: impl FnOnce(M) -> T + Send + Clone + 'static,
) -> Result<T, Overdue> {
    let (done, result) = mpsc::sync_channel(1);
    let theirs = work.clone();
    let body = move |machine| {
        // Nobody takes it any more if it is late.
        let _ = done.send(theirs(machine));
    };
    // It does what the VM's own thread would do.
    match lend((Role::Vm, name), machine, body) {
        Ok(()) => result.recv_timeout(limit).map_err(|_| Overdue),
        // Without a thread the wait has no limit, and the host has worse problems.
        Err((machine, _)) => Ok(work(machine)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_in_time_is_had_and_what_is_not_goes_on_alone() {
        assert!(matches!(within("quick", Duration::from_secs(60), 7, |n| n + 1), Ok(8)));
        let (go, wait) = mpsc::channel::<()>();
        let (told, heard) = mpsc::channel();
        let slow = move |wait: mpsc::Receiver<()>| {
            let _ = wait.recv();
            let _ = told.send("done");
        };
        assert!(within("slow", Duration::from_millis(10), wait, slow).is_err());
        go.send(()).expect("it still waits");
        assert_eq!(heard.recv_timeout(Duration::from_secs(60)), Ok("done"));
    }
}
