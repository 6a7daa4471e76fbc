//! Fourth step: everything is there but a guest.

use std::sync::{Arc, Mutex, PoisonError};

use drover_guest_memory::GuestMemory;
use drover_hypervisor::{Vcpu, Vm};
use drover_units::VcpuCount;

use crate::{
    BuildError, DeviceBus, Initrd, KernelImage, Machine, MachineEvent, PauseGuard,
    boot::{self, Boot, acpi::Platform},
    device_set::DeviceSet,
    machine::{GuestPresence, Shared},
    vcpu_thread::{Buses, Ender, VcpuThread},
    volumes::Volumes,
};

/// A machine with RAM, disks, vCPUs and devices.
#[derive(Debug)]
pub struct DevicesReady {
    pub(super) cmdline: String,
    pub(super) bus: DeviceBus,
    pub(super) memory: GuestMemory,
    pub(super) volumes: Volumes,
    pub(super) vm: Vm,
    pub(super) vcpus: Vec<Arc<Mutex<Vcpu>>>,
    pub(super) tsc_khz: Option<u32>,
    pub(super) devices: DeviceSet,
    pub(super) buses: Buses,
    pub(super) ender: Arc<Ender>,
}

impl DevicesReady {
    /// Loads a kernel. The guest starts when the guard is dropped.
    ///
    /// # Errors
    /// [`BuildError::KernelLayout`], [`BuildError::MemoryTooSmall`] about the kernel, [`BuildError::CmdlineTooLong`] about its
    /// command line, [`BuildError::Thread`] where the host gives none.
    pub fn boot(self, kernel: &KernelImage) -> Result<(Machine, PauseGuard), BuildError> {
        self.boot_with(kernel, None)
    }

    /// As [`boot`](Self::boot), with a first file system for the kernel.
    ///
    /// # Errors
    /// Those of [`boot`](Self::boot), and [`BuildError::InitrdTooLarge`].
    pub fn boot_with(
        self,
        kernel: &KernelImage,
        initrd: Option<&Initrd>,
    ) -> Result<(Machine, PauseGuard), BuildError> {
        let boot = self.boot_source(kernel, initrd)?;
        // The threads of the vCPUs wait at the gate for the guard to be dropped. That they come to it takes as long as loading a
        // small kernel, and happens meanwhile.
        self.ender.restart.set_boot(boot.clone());
        let (machine, guard) = self.finish()?;
        if let Err(error) = load(&boot, &machine) {
            // Before the guard, which would let it run.
            drop(machine);
            return Err(error);
        }
        Ok((machine, guard))
    }

    /// Waits for a guest: fill its RAM, then [`Machine::restore`]. Resuming before is an error. A guest that resets itself
    /// later ends the machine.
    ///
    /// # Errors
    /// [`BuildError::Thread`] where the host gives none.
    pub fn receive(self) -> Result<(Machine, PauseGuard), BuildError> {
        self.finish()
    }

    /// As [`receive`](Self::receive), and with what the guest was booted with, so that it can reset itself here too.
    ///
    /// # Errors
    /// Those of [`receive`](Self::receive), and [`BuildError::CmdlineTooLong`].
    pub fn receive_with(
        self,
        kernel: &KernelImage,
        initrd: Option<&Initrd>,
    ) -> Result<(Machine, PauseGuard), BuildError> {
        self.ender.restart.set_boot(self.boot_source(kernel, initrd)?);
        self.finish()
    }

    fn boot_source(&self, kernel: &KernelImage, initrd: Option<&Initrd>) -> Result<Boot, BuildError> {
        let slots: Vec<_> = self.devices.virtio().iter().map(|device| device.slot).collect();
        let announced = if self.bus == DeviceBus::VirtioMmio { &slots[..] } else { &[] };
        let cmdline = boot::cmdline::build(&self.cmdline, announced, self.tsc_khz)?;
        let vcpus = VcpuCount::new(u32::try_from(self.vcpus.len()).expect("checked when it was planned"));
        let platform = Platform { vcpus, slots, bus: self.bus };
        Ok(Boot { kernel: kernel.clone(), initrd: initrd.cloned(), cmdline, platform })
    }

    /// Starts the threads of a machine that has no guest yet.
    fn finish(self) -> Result<(Machine, PauseGuard), BuildError> {
        let buses = Arc::new(self.buses);
        let gate = Arc::clone(&self.ender.gate);
        let mut threads = Vec::with_capacity(self.vcpus.len());
        let mut failed = None;
        for (number, vcpu) in (0_u32..).zip(&self.vcpus) {
            let thread = VcpuThread {
                number,
                vcpu: Arc::clone(vcpu),
                gate: Arc::clone(&gate),
                buses: Arc::clone(&buses),
                ender: Arc::clone(&self.ender),
            };
            match thread.spawn() {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    failed = Some(BuildError::Thread { vcpu: number, source });
                    break;
                }
            }
        }
        let shared = Shared {
            vm: self.vm,
            memory: self.memory,
            vcpus: self.vcpus,
            devices: self.devices,
            volumes: Arc::new(self.volumes),
            gate,
            guest: GuestPresence::awaited(),
            dirty: Mutex::new(None),
            restart: Arc::clone(&self.ender.restart),
            ender: Arc::clone(&self.ender),
        };
        let (machine, guard) = Machine::new(shared, threads);
        let ender = Arc::downgrade(&self.ender);
        let reset_failed = move |reason| {
            if let Some(ender) = ender.upgrade() {
                ender.end(MachineEvent::Failure(reason));
            }
        };
        if failed.is_none()
            && let Err(source) = self.ender.restart.spawn(machine.holder(), reset_failed)
        {
            failed = Some(BuildError::ResetThread { source });
        }
        // Only now, so that the threads there are end with the machine.
        match failed {
            Some(error) => Err(error),
            None => Ok((machine, guard)),
        }
    }
}

/// Puts the guest into a machine that has none.
fn load(boot: &Boot, machine: &Machine) -> Result<(), BuildError> {
    let shared = &machine.shared;
    let entry = boot.load(&shared.memory)?;
    if let Some(first) = shared.vcpus.first() {
        entry.apply(&first.lock().unwrap_or_else(PoisonError::into_inner))?;
    }
    shared.guest.booted();
    Ok(())
}
