//! Starting anew: what a guest's reset does.
//!
//! ```text
//! a vCPU asks for a reset -> the gate shuts -> this thread pauses the machine
//!                                                 freeze: vCPUs out, devices drained, everything as new, kernel loaded
//!                                                 thaw:   the first vCPU enters the kernel
//! ```
//!
//! It happens inside a freeze, so that whoever else holds the machine back at that moment (a user, a lease, a migration)
//! finds either a guest that has not asked yet or one that has not started yet, and its state can be saved like any other.
//! Disks, their owner and the dirty log stay as they are.

use std::{
    io,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use drover_hypervisor::TimeSample;
use drover_thread_role::{Role, spawn};
use drover_units::VcpuCount;

use crate::{BuildError, Holder, MachineError, boot::Boot, machine::Shared};

/// How long a reset waits for requests under way. Beyond that the storage has stalled, and the machine ends.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// What a machine does when its guest resets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResetAction {
    /// It starts anew, with the same kernel, as a PC does.
    #[default]
    Restart,
    /// It ends with [`MachineEvent::GuestReset`](crate::MachineEvent::GuestReset).
    End,
}

/// The reset of one machine.
#[derive(Debug, Default)]
pub(crate) struct Restart {
    wanted: AtomicBool,
    /// Wakes the thread. Nothing where the machine does not start anew.
    bell: Option<SyncSender<()>>,
    /// What it starts with.
    boot: OnceLock<Boot>,
    /// Until the thread runs.
    listener: Mutex<Option<Receiver<()>>>,
}

impl Restart {
    pub(crate) fn new(action: ResetAction) -> Self {
        match action {
            ResetAction::End => Self::default(),
            ResetAction::Restart => {
                // One is enough: two resets of the same moment are one.
                let (bell, listener) = sync_channel(1);
                Self { bell: Some(bell), listener: Mutex::new(Some(listener)), ..Self::default() }
            }
        }
    }

    /// The machine starts with this from now on.
    pub(crate) fn set_boot(&self, boot: Boot) {
        let _ = self.boot.set(boot);
    }

    /// Asks for a reset; `false` where there is none to be had. The caller has shut the gate.
    pub(crate) fn want(&self) -> bool {
        let Some(bell) = self.bell.as_ref().filter(|_| self.boot.get().is_some()) else { return false };
        self.wanted.store(true, Ordering::SeqCst);
        // Full: it has been rung already.
        let _ = bell.try_send(());
        true
    }

    /// Whether a reset has been asked for and not been carried out.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// Starts the thread that carries resets out, where the machine has any. It ends with the machine.
    pub(crate) fn spawn(&self, machine: Holder, failed: impl Fn(String) + Send + 'static) -> io::Result<()> {
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(listener) = listener.filter(|_| self.boot.get().is_some()) else { return Ok(()) };
        // Little runs in it, and one is there for every machine.
        let builder = thread::Builder::new().name("reset".to_owned()).stack_size(256 << 10);
        let serve = move || {
            while listener.recv().is_ok() {
                match machine.hold(DRAIN_LIMIT) {
                    // The pause has carried it out.
                    Some(Ok(paused)) => {
                        if let Err(error) = paused.resume() {
                            failed(format!("cannot start anew: {error}"));
                        }
                    }
                    Some(Err(incomplete)) => {
                        failed(format!("cannot start anew: {}", incomplete.fault()));
                        drop(incomplete);
                    }
                    None => return,
                }
            }
        };
        // As the one that builds machines does: it makes and loads what that one has made and loaded.
        spawn(Role::Vm, builder, serve).map(drop)
    }
}

impl Shared {
    /// Carries out a reset that was asked for. The machine is frozen.
    pub(crate) fn start_anew_if_wanted(&self) -> Result<(), MachineError> {
        let restart = &self.restart;
        if !restart.wanted.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let boot = restart.boot.get().ok_or(MachineError::NotRestored)?;
        tracing::info!("the guest resets the machine: it starts anew");
        self.devices.reset()?;
        self.forget_ram()?;
        let count = VcpuCount::new(u32::try_from(self.vcpus.len()).expect("checked when it was planned"));
        let (machine, fresh) = self.vm.state_at_power_on(count)?;
        let now = TimeSample::now();
        for ((_, mut vcpu), state) in self.vcpus().zip(&fresh) {
            vcpu.reset(state, &machine, &now)?;
        }
        self.vm.restore(&machine, &now)?;
        let entry = boot.load(&self.memory).map_err(|error| restart_error("load its kernel", error))?;
        if let Some((_, first)) = self.vcpus().next() {
            entry.apply(&first)?;
        }
        Ok(())
    }

    /// RAM as at first: zeros, and not there.
    fn forget_ram(&self) -> Result<(), MachineError> {
        let forgotten = self
            .memory
            .populated()
            .and_then(|pages| pages.runs().iter().try_for_each(|run| self.memory.zero_pages(*run)));
        forgotten.map_err(|error| restart_error("forget its RAM", BuildError::from(error)))
    }
}

fn restart_error(attempt: &'static str, source: BuildError) -> MachineError {
    MachineError::Device { device: "machine".to_owned(), attempt, source: Box::new(source) }
}
