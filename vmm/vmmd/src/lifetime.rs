//! When the process ends.
//!
//! - After its VM has ended, once Stop has been answered, or [`LINGER`] later: long enough for the agent to read how.
//!   [`FENCED_LINGER`] where it was fenced: whoever did that has given it up, and another host runs the VM.
//! - On SIGTERM or SIGINT, which are a Stop by this host.
//! - If nothing has been created for [`EMPTY_MAX`]: whoever spawned it is gone.
//! - At once when the lease runs out (see [`crate::watchdog`]), or when a thread panics.

use std::time::Duration;

use drover_lifecycle::StopReason;
use drover_wire::vm::v1 as wire;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{sleep, timeout},
};
use tracing::{error, info};

use crate::{hosted::HostedVm, status::is_terminal, vm_thread::VmHandle};

/// How long a process stays after the end of its VM if nobody stops it.
const LINGER: Duration = Duration::from_secs(10);
/// How long a fenced process stays. An agent that still follows it has its last word within milliseconds.
const FENCED_LINGER: Duration = Duration::from_secs(1);
/// How long a process may stay without a VM. An agent creates one within milliseconds of the spawn.
const EMPTY_MAX: Duration = Duration::from_secs(60);
/// How long a signalled process may take to end its VM; longer than the machine's own limit for becoming quiet.
const SIGNALLED_MAX: Duration = Duration::from_secs(20);
/// How long calls under way may take when the process ends.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);

/// How long disk images may take to close when the process ends. A cluster that answers takes milliseconds.
pub(crate) const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Exit status of a process that was signalled and could not end its VM in time.
pub(crate) const EXIT_NOT_QUIET: i32 = 4;
/// Exit status of a process with a bug, as for any Rust program.
pub(crate) const EXIT_PANICKED: i32 = 101;

/// The signals that end the process.
#[derive(Debug)]
pub(crate) struct Lifetime {
    terminate: Signal,
    interrupt: Signal,
}

impl Lifetime {
    /// Catches the signals from now on.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns when the process has to end.
    pub(crate) async fn over<M: HostedVm>(mut self, vm: VmHandle<M>) {
        tokio::select! {
            signal = self.signalled() => end_by_signal(&vm, signal).await,
            () = never_used(&vm) => info!("nothing has been created: ending"),
            () = vm_ended(&vm) => {
                tokio::select! {
                    () = vm.end_acknowledged() => {}
                    () = sleep(linger(vm.status().info().stop_reason())) => {}
                    _ = self.signalled() => {}
                }
            }
        }
    }

    async fn signalled(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn linger(reason: wire::StopReason) -> Duration {
    match reason {
        wire::StopReason::Fenced => FENCED_LINGER,
        _ => LINGER,
    }
}

async fn end_by_signal<M: HostedVm>(vm: &VmHandle<M>, signal: &str) {
    info!(signal, "ending the VM");
    vm.end(StopReason::Command, format!("the process received {signal}"));
    if timeout(SIGNALLED_MAX, vm_ended(vm)).await.is_err() {
        error!("the VM did not become quiet: ending the process regardless");
        std::process::exit(EXIT_NOT_QUIET);
    }
}

/// Returns once the VM has ended.
async fn vm_ended<M: HostedVm>(vm: &VmHandle<M>) {
    // The status lives as long as its handles, of which we hold one.
    let _ = vm.status().subscribe().wait_for(is_terminal).await;
}

/// Returns once nothing has been created for too long, and never otherwise.
async fn never_used<M: HostedVm>(vm: &VmHandle<M>) {
    let mut info = vm.status().subscribe();
    let used = info.wait_for(|info| info.state() != wire::VmState::Empty);
    if timeout(EMPTY_MAX, used).await.is_ok() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_fenced_does_not_stay_for_an_agent_that_may_be_gone() {
        assert_eq!(linger(wire::StopReason::Fenced), FENCED_LINGER);
        assert_eq!(linger(wire::StopReason::GuestShutdown), LINGER);
        assert!(FENCED_LINGER < LINGER);
    }
}
