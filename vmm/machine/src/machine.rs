//! A machine that has been built.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use drover_block::Owner;
use drover_guest_memory::{DirtyPages, DirtyTracker, GuestMemory};
use drover_hypervisor::{Vcpu, Vm};
use drover_saved_state::Envelope;
use drover_units::VcpuCount;

use crate::{
    Holder, MachineError, MachineEvent, Panel, PauseError, PauseGuard, VirtioShape,
    device_set::DeviceSet,
    gate::{Gate, StillInside},
    pause::{Freeze, FreezeFault, Freezer},
    restart::Restart,
    state,
    vcpu_thread::{Ender, with_causes},
    volumes::Volumes,
};

/// How long taking a machine apart waits for vCPUs. They come out within microseconds; one that the kernel does not
/// let go of must not keep the process from ending.
const DISMISS_LIMIT: Duration = Duration::from_secs(5);

/// One virtual machine: see the [crate's documentation](crate) for its life.
///
/// All methods may be called from any thread. Dropping it stops the guest where it stands and releases its disks;
/// [`stop`](Self::stop) does that in good order.
#[derive(Debug)]
pub struct Machine {
    pub(crate) shared: Arc<Shared>,
    freezer: Arc<Freezer>,
    threads: Vec<JoinHandle<()>>,
}

/// What the machine and the pauses that may outlive it have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) vm: Vm,
    pub(crate) memory: GuestMemory,
    pub(crate) vcpus: Vec<Arc<Mutex<Vcpu>>>,
    pub(crate) devices: DeviceSet,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) guest: GuestPresence,
    pub(crate) dirty: Mutex<Option<DirtyTracker>>,
    pub(crate) restart: Arc<Restart>,
    pub(crate) ender: Arc<Ender>,
}

/// Whether there is a guest to run.
#[derive(Debug)]
pub(crate) struct GuestPresence {
    /// A kernel was loaded, or a state restored.
    present: AtomicBool,
    /// A state was restored and the guest has not run since.
    restored: AtomicBool,
}

impl GuestPresence {
    /// A guest is to come.
    pub(crate) fn awaited() -> Self {
        Self { present: AtomicBool::new(false), restored: AtomicBool::new(false) }
    }

    /// A kernel is loaded.
    pub(crate) fn booted(&self) {
        self.present.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    /// The vCPUs with their numbers. To be used while the machine is frozen, when no thread holds them.
    pub(crate) fn vcpus(&self) -> impl Iterator<Item = (u16, MutexGuard<'_, Vcpu>)> {
        (0_u16..).zip(self.vcpus.iter().map(|vcpu| vcpu.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn dirty(&self) -> MutexGuard<'_, Option<DirtyTracker>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The frozen and thawed side of a machine.
struct Guest(Arc<Shared>);

impl Freeze for Guest {
    fn freeze(&self, deadline: Instant) -> Result<(), FreezeFault> {
        self.0.gate.close(deadline).map_err(|StillInside(count)| FreezeFault::Vcpus(count))?;
        self.0.devices.pause(deadline)?;
        if let Err(error) = self.0.start_anew_if_wanted() {
            // The guest as it was is gone, and there is no other.
            self.0.ender.end(MachineEvent::Failure(format!("cannot start anew: {}", with_causes(&error))));
        }
        Ok(())
    }

    fn thaw(&self) -> Result<(), MachineError> {
        let guest = &self.0.guest;
        if !guest.present.load(Ordering::SeqCst) {
            return Err(MachineError::NotRestored);
        }
        if self.0.restart.is_wanted() {
            // The freeze before was not complete. The guest has given up what it was: it must not run on.
            let reason = "cannot start anew: a device does not stop".to_owned();
            self.0.ender.end(MachineEvent::Failure(reason));
        }
        for vcpu in &self.0.vcpus {
            // One that did not come out of the guest did not stand still, and is held by its thread.
            if let Ok(vcpu) = vcpu.try_lock() {
                vcpu.note_pause()?;
            }
        }
        self.0.devices.resume()?;
        if guest.restored.swap(false, Ordering::SeqCst) {
            self.0.devices.pulse_lines()?;
        }
        self.0.gate.open();
        Ok(())
    }
}

impl Machine {
    pub(crate) fn new(shared: Shared, threads: Vec<JoinHandle<()>>) -> (Self, PauseGuard) {
        let shared = Arc::new(shared);
        let (freezer, guard) = Freezer::new_frozen(Box::new(Guest(Arc::clone(&shared))));
        (Self { shared, freezer, threads }, guard)
    }

    /// Guest RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.shared.memory
    }

    /// Number of vCPUs.
    pub fn vcpus(&self) -> VcpuCount {
        VcpuCount::new(u32::try_from(self.shared.vcpus.len()).expect("checked when it was planned"))
    }

    /// Its virtio devices, by their slots. A guest moves to a machine where this is the same, save that the other may know
    /// newer versions of states.
    pub fn virtio_devices(&self) -> Vec<VirtioShape> {
        self.shared.devices.virtio()
    }

    /// Why the machine has ended, if it has. It does not run again.
    pub fn ended(&self) -> Option<MachineEvent> {
        self.shared.gate.ended()
    }

    /// Its console input and counters, for whoever does not own it.
    pub fn panel(&self) -> Panel {
        self.shared.devices.panel().clone()
    }

    /// A way to hold it back for whoever does not own it.
    pub fn holder(&self) -> Holder {
        Holder::new(&self.freezer)
    }

    /// Stops the vCPUs, then drains the devices. Returns when none of them touches guest RAM any more. Others may hold
    /// the machine too; it runs again when the last guard is gone. `limit` bounds the wait for all of it: other pauses,
    /// vCPUs, and the requests that devices have under way.
    ///
    /// # Errors
    /// [`PauseError`] where not everything stopped. What did stop stays so until the error is dropped.
    pub fn pause(&self, limit: Duration) -> Result<PauseGuard, PauseError> {
        self.freezer.pause(limit)
    }

    /// Everything about the guest that is not in its RAM or on its disks.
    ///
    /// # Errors
    /// [`MachineError::Hypervisor`] or [`MachineError::Device`] where a part cannot be saved,
    /// [`MachineError::NotRestored`] where there is no guest, [`MachineError::Ended`] where there is none any more.
    ///
    /// # Panics
    /// If the guard is another machine's.
    pub fn save(&self, paused: &PauseGuard) -> Result<Vec<Envelope>, MachineError> {
        self.check(paused);
        if let Some(event) = self.ended() {
            return Err(MachineError::Ended(event));
        }
        if !self.shared.guest.present.load(Ordering::SeqCst) {
            return Err(MachineError::NotRestored);
        }
        state::save(&self.shared)
    }

    /// Receives a guest: the counterpart of [`save`](Self::save), in a machine of the same shape that was built for it
    /// ([`DevicesReady::receive`](crate::DevicesReady::receive)), with the guest's RAM already in place. Touches no
    /// disk. A machine that failed here is of no further use.
    ///
    /// # Errors
    /// [`MachineError::NotIncoming`] if it has a guest; the others say which state does not fit, is missing, or is not
    /// wanted.
    ///
    /// # Panics
    /// If the guard is another machine's.
    pub fn restore(&self, paused: &PauseGuard, states: &[Envelope]) -> Result<(), MachineError> {
        self.check(paused);
        let guest = &self.shared.guest;
        if guest.present.load(Ordering::SeqCst) {
            return Err(MachineError::NotIncoming);
        }
        state::restore(&self.shared, states)?;
        guest.restored.store(true, Ordering::SeqCst);
        guest.present.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Logs, from the return of this call on, every page that a vCPU, a device or the VMM writes. If there is a log
    /// already, it starts anew.
    ///
    /// # Errors
    /// [`MachineError::Hypervisor`] where the host cannot; nothing is logged then.
    pub fn start_dirty_log(&self) -> Result<(), MachineError> {
        let mut dirty = self.shared.dirty();
        self.shared.vm.start_dirty_log()?;
        if dirty.is_some() {
            for region in 0..self.shared.memory.regions().len() {
                self.shared.vm.take_dirty_log(region)?;
            }
        }
        *dirty = Some(DirtyTracker::new(&self.shared.memory));
        Ok(())
    }

    pub(crate) fn is_dirty_log_on(&self) -> bool {
        self.shared.dirty().is_some()
    }

    /// The pages written since the log was started or last taken. None where there is no log.
    ///
    /// # Errors
    /// [`MachineError::Hypervisor`] where the host's log cannot be read: pages may be lost to it, start anew.
    pub fn take_dirty(&self) -> Result<DirtyPages, MachineError> {
        let mut dirty = self.shared.dirty();
        let Some(tracker) = dirty.as_mut() else {
            return Ok(DirtyPages::new());
        };
        for region in 0..self.shared.memory.regions().len() {
            tracker.merge_kvm_log(region, &self.shared.vm.take_dirty_log(region)?);
        }
        Ok(tracker.take())
    }

    /// Puts pages back into the log, as if they had just been written. Does nothing where there is no log.
    pub fn mark_dirty(&self, pages: &DirtyPages) {
        if let Some(tracker) = self.shared.dirty().as_mut() {
            tracker.mark(pages);
        }
    }

    /// Ends logging. A failure costs speed only and is logged.
    pub fn stop_dirty_log(&self) {
        if self.shared.dirty().take().is_some()
            && let Err(error) = self.shared.vm.stop_dirty_log()
        {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "the guest's writes are still logged");
        }
    }

    /// Flushes and gives up every disk, so that somebody else can take it.
    ///
    /// # Errors
    /// [`MachineError::Disk`] for the first that could not be given up; the others have been.
    ///
    /// # Panics
    /// If the guard is another machine's.
    pub fn release_volumes(&self, paused: &PauseGuard) -> Result<(), MachineError> {
        self.check(paused);
        Ok(self.shared.volumes.release()?)
    }

    /// Takes every disk for this owner, or none.
    ///
    /// # Errors
    /// [`MachineError::Disk`] for the one that is somebody else's.
    ///
    /// # Panics
    /// If the guard is another machine's.
    pub fn acquire_volumes(&self, paused: &PauseGuard, owner: &Owner) -> Result<(), MachineError> {
        self.check(paused);
        Ok(self.shared.volumes.acquire(owner)?)
    }

    /// Ends the machine: stops its vCPUs, drains its devices, flushes and releases its disks.
    ///
    /// # Errors
    /// [`MachineError::Stop`] where devices did not drain, [`MachineError::Disk`] where a disk could not be flushed or
    /// released. The machine is gone all the same, and what could be released is.
    pub fn stop(self, limit: Duration) -> Result<(), MachineError> {
        // The guards of others no longer matter: nothing thaws after this.
        self.freezer.close();
        let drained = Guest(Arc::clone(&self.shared)).freeze(Instant::now() + limit);
        let released = self.shared.volumes.release();
        drained.map_err(MachineError::Stop)?;
        Ok(released?)
    }

    pub(crate) fn check(&self, paused: &PauseGuard) {
        assert!(paused.holds(&self.freezer), "a guard works for the machine that gave it");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.freezer.close();
        let gate = &self.shared.gate;
        gate.dismiss();
        if let Err(StillInside(count)) = gate.close(Instant::now() + DISMISS_LIMIT) {
            // Joining them would hang this thread too; they hold what they use.
            tracing::error!(count, "vCPUs do not come out of the guest: their threads are left behind");
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked outside the guest");
            }
        }
        // Here and not with the last handle: a guard somewhere must not keep the disks from their next owner.
        if let Err(error) = self.shared.volumes.release().map_err(MachineError::from) {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "a disk is given up without its last flush");
        }
    }
}
