//! One virtual machine: assembled step by step, run, paused, moved. The embeddable library.
//!
//! ```text
//! Planned --allocate_memory--> MemoryReady --open_volumes--> VolumesOpen --attach_devices--> DevicesReady
//!                                                                                                |
//!                                                      boot (a kernel) or receive (a guest) -----+
//!                                                                                                v
//!                                     Running <--guards gone / pause--> Paused (a PauseGuard is held)
//! ```
//!
//! Each step is a value that the next one consumes, so that a step cannot be left out, and dropping one undoes all of
//! them. The last yields a [`Machine`] and the [`PauseGuard`] that holds it back; dropping the guard starts it:
//!
//! ```no_run
//! # use drover_machine::*;
//! # fn run(
//! #     config: MachineConfig,
//! #     disks: Vec<Disk>,
//! #     ownership: Ownership,
//! #     console: Box<dyn ConsoleSink>,
//! #     events: EventSink,
//! # ) -> Result<(), Box<dyn std::error::Error>> {
//! let (machine, paused) = Planned::new(config)?
//!     .allocate_memory()?
//!     .open_volumes(disks, ownership)?
//!     .attach_devices(&Hypervisor::open()?, console, events)?
//!     .boot(&KernelImage::open("kernel.elf".as_ref())?)?;
//! paused.resume()?;
//!
//! let paused = machine.pause(std::time::Duration::from_secs(1))?;
//! let state = machine.save(&paused)?;
//! # Ok(())
//! # }
//! ```
//!
//! Disks come with [`VolumesOpen`]; other virtio devices with [`VolumesOpen::with_devices`]: [`NewDevice`] says how a kind of
//! device is added. A guest that resets itself starts anew ([`ResetAction`]); one that has been asked to end, by
//! [`Panel::press_power_button`], ends by itself. `examples/boot.rs` boots a Linux guest.
//!
//! Several may hold a machine back at once (a user, a lease that ran out, a migration): it runs when no guard is left.
//! What the machine tells unasked is one [`MachineEvent`], when it ends.
//!
//! Not here: processes and their limits, gRPC, when to migrate (drover-vmmd, drover-migration).
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "this crate drives threads, and bounds its waits by the clock")]

mod address_map;
mod boot;
mod build;
mod config;
mod device_set;
mod error;
mod event;
mod gate;
mod hotplug;
mod machine;
mod new_device;
mod panel;
mod pause;
mod reclaim;
mod restart;
mod slot;
mod state;
mod vcpu_thread;
mod volumes;
mod wiring;

pub use boot::{Initrd, KernelImage};
pub use build::{DevicesReady, MemoryReady, Planned, VolumesOpen};
pub use config::{DeviceBus, MEMORY_MAX, MEMORY_MIN, MachineConfig, VCPUS_MAX};
pub use device_set::DiskInstruments;
pub use drover_devices as devices;
pub use drover_devices::{BLK_QUEUES_MAX as DISK_QUEUES_MAX, BlkMetricsSnapshot, ConsoleSink};
pub use drover_hypervisor::{CpuBaseline, Hypervisor, HypervisorError, Processor};
pub use error::{BuildError, MachineError};
pub use event::{EventSink, MachineEvent};
pub use machine::Machine;
pub use new_device::{DeviceContext, MakeError, NewDevice, VirtioShape};
pub use panel::Panel;
pub use pause::{FreezeFault, Holder, PauseError, PauseGuard};
pub use reclaim::Reclaimed;
pub use restart::ResetAction;
pub use slot::{DISKS_MAX, Slot};
pub use volumes::{Disk, Ownership};
