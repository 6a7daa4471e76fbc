//! What can go wrong with a machine: while it is built, and once it is there.

use std::{io, path::PathBuf};

use drover_block::OwnershipError;
use drover_bus::BusError;
use drover_guest_memory::MemoryError;
use drover_hypervisor::HypervisorError;
use drover_saved_state::StateError;
use drover_units::{Bytes, VcpuCount};

use crate::{DISKS_MAX, FreezeFault, MEMORY_MAX, MEMORY_MIN, MachineEvent, Slot};

/// Why a machine could not be built. Nothing of it is left: memory is gone, volumes are released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The number of vCPUs.
    #[error("vcpus: {asked} is not possible, a machine has 1 to {max}")]
    Vcpus {
        /// What was asked for.
        asked: VcpuCount,
        /// The most there can be.
        max: VcpuCount,
    },
    /// The memory's size.
    #[error(
        "memory: {asked} is not possible, a machine has whole 4 KiB pages from {MEMORY_MIN} to {MEMORY_MAX}"
    )]
    MemorySize {
        /// What was asked for.
        asked: Bytes,
    },
    /// Characters that a command line cannot have.
    #[error("cmdline: {reason}")]
    InvalidCmdline {
        /// Which.
        reason: String,
    },
    /// The command line, with what the machine appends, is too long.
    #[error("cmdline: {given} are too long: with what the machine appends it may have {max}")]
    CmdlineTooLong {
        /// Length of what was given.
        given: Bytes,
        /// The limit for all of it.
        max: Bytes,
    },
    /// More disks than there are places for.
    #[error("disks: {asked} are too many, a machine has at most {DISKS_MAX}")]
    TooManyDisks {
        /// What was asked for.
        asked: usize,
    },
    /// More virtio devices than the machine's bus has slots.
    #[error("devices: {asked} are too many, the machine's bus has {count} slots")]
    TooManyDevices {
        /// What was asked for, disks included.
        asked: usize,
        /// How many there are.
        count: u8,
    },
    /// A slot that the machine's bus does not have.
    #[error("devices: there is no slot {asked}, the machine's bus has slots 0 to {}", count - 1)]
    NoSuchSlot {
        /// What was asked for.
        asked: Slot,
        /// How many there are.
        count: u8,
    },
    /// A slot that another device has.
    #[error("devices: slot {asked} is taken by another device")]
    SlotTaken {
        /// What was asked for.
        asked: Slot,
    },
    /// A disk could not be acquired.
    #[error("disks: cannot acquire '{disk}'")]
    Disk {
        /// Which.
        disk: String,
        /// Why not.
        #[source]
        source: OwnershipError,
    },
    /// The kernel cannot be read.
    #[error("kernel: cannot read {}", path.display())]
    OpenKernel {
        /// Its file.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The initial RAM disk cannot be read.
    #[error("initrd: cannot read {}", path.display())]
    OpenInitrd {
        /// Its file.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The initial RAM disk does not fit beside the kernel.
    #[error("initrd: {} of {len} does not fit into low RAM above the kernel: give the machine more memory", path.display())]
    InitrdTooLarge {
        /// Its file.
        path: PathBuf,
        /// Its length.
        len: Bytes,
    },
    /// The kernel is something else.
    #[error("kernel: {} is neither an ELF kernel nor a bzImage: {reason}", path.display())]
    NotAKernel {
        /// Its file.
        path: PathBuf,
        /// What gave it away.
        reason: &'static str,
    },
    /// The kernel wants to be where it cannot.
    #[error("kernel: {} cannot be loaded: {reason}", path.display())]
    KernelLayout {
        /// Its file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The kernel does not fit.
    #[error("memory: {memory} is too small for {}, which needs {needed}", path.display())]
    MemoryTooSmall {
        /// The kernel's file.
        path: PathBuf,
        /// What the machine has.
        memory: Bytes,
        /// What it would need.
        needed: Bytes,
    },
    /// What the boot protocol hands to the kernel cannot be written.
    #[error("cannot write the {what} into guest memory: {reason}")]
    BootStructures {
        /// Which part.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// Guest memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The hypervisor refused.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// Two devices claim the same place.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A device cannot be made.
    #[error("cannot make the {device}")]
    Device {
        /// Which.
        device: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The host gives no thread for resets.
    #[error("cannot start the thread that carries out resets")]
    ResetThread {
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The host gives no thread.
    #[error("cannot start a thread for vCPU {vcpu}")]
    Thread {
        /// Whose.
        vcpu: u32,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
}

/// Why a machine that has been built could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// The machine has ended and does not run again.
    #[error("the machine has ended: {0}")]
    Ended(MachineEvent),
    /// A machine that was built to receive a guest has not received one.
    #[error("the machine waits for a guest's state and cannot run without it")]
    NotRestored,
    /// A machine that has a guest was to receive another.
    #[error("the machine has a guest already: only a machine built to receive one takes a state")]
    NotIncoming,
    /// The guest's writes are being logged for somebody else.
    #[error("the guest's writes are being logged already: try again when its migration is over")]
    Logging,
    /// The guest does not say which pages are free.
    #[error("the guest does not say which of its pages are free")]
    NoHints,
    /// The machine cannot be paused for a moment.
    #[error(transparent)]
    Pause(#[from] crate::PauseError),
    /// Guest memory cannot be changed.
    #[error(transparent)]
    Memory(MemoryError),
    /// The hypervisor refused.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// Its bus is not made for that.
    #[error("devices neither come to this machine nor go while it runs: its bus is not PCI")]
    NotHotPluggable,
    /// A device that comes needs a slot of its own.
    #[error("a device that comes to a machine says which slot it comes to")]
    NoSlot,
    /// There is a device, or there is no such slot.
    #[error("slot {0} is not free")]
    SlotNotFree(Slot),
    /// A state is malformed or not for this machine.
    #[error("cannot use the saved state of '{kind}' {instance}")]
    State {
        /// Which.
        kind: String,
        /// Of how many.
        instance: u16,
        /// Why not.
        #[source]
        source: StateError,
    },
    /// A state that nothing in this machine takes.
    #[error("nothing in this machine takes the saved state of '{kind}' {instance}")]
    UnknownState {
        /// Which.
        kind: String,
        /// Of how many.
        instance: u16,
    },
    /// A part of this machine for which there is no state.
    #[error("there is no saved state for '{kind}' {instance}")]
    MissingState {
        /// Which.
        kind: String,
        /// Of how many.
        instance: u16,
    },
    /// A device could not do something.
    #[error("the {device} cannot {attempt}")]
    Device {
        /// Which.
        device: String,
        /// What was tried.
        attempt: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something did not stop in time.
    #[error("cannot stop the machine in good order")]
    Stop(#[source] FreezeFault),
    /// A disk could not be acquired or released.
    #[error("cannot {attempt} the disk '{disk}'")]
    Disk {
        /// Which.
        disk: String,
        /// "acquire" or "release".
        attempt: &'static str,
        /// Why not.
        #[source]
        source: OwnershipError,
    },
}
