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
//! use std::{io, time::Duration};
//!
//! use drover_machine::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = MachineConfig::new(VcpuCount::new(1), Bytes::mib(128));
//! config.cmdline = "console=ttyS0".to_owned();
//! let (events, ended) = EventSink::pair();
//! let (machine, paused) = Planned::new(config)?
//!     .allocate_memory()?
//!     .open_volumes(vec![Disk::open("disk.raw".as_ref())?], Ownership::standalone())?
//!     .attach_devices(&Hypervisor::open()?, Box::new(ConsoleWriter(io::stdout())), events)?
//!     .boot(&KernelImage::open("kernel.elf".as_ref())?)?;
//! paused.resume()?;
//!
//! // At any time: everything that is not in its RAM or on its disks.
//! let paused = machine.pause(Duration::from_secs(1))?;
//! let state = machine.save(&paused)?;
//! paused.resume()?;
//!
//! eprintln!("ended: {}", ended.recv()?);
//! machine.stop(Duration::from_secs(5))?;
//! # Ok(())
//! # }
//! ```
//!
//! Disks come with [`VolumesOpen`]; other virtio devices with [`VolumesOpen::with_devices`]: [`NewDevice`] says how a kind of
//! device is added. A guest that resets itself starts anew ([`ResetAction`]); one that has been asked to end, by
//! [`Panel::press_power_button`], ends by itself. `examples/boot.rs` is a program that boots
//! a Linux guest.
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
mod console_writer;
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
pub use console_writer::ConsoleWriter;
pub use device_set::DiskInstruments;
pub use drover_devices as devices;
pub use drover_devices::{BLK_QUEUES_MAX as DISK_QUEUES_MAX, BlkMetricsSnapshot, ConsoleSink};
pub use drover_hypervisor::{CpuBaseline, Hypervisor, HypervisorError, Processor};
pub use drover_units::{Bytes, VcpuCount};
pub use error::{BuildError, MachineError};
pub use event::{EventSink, MachineEvent};
pub use hotplug::Detached;
pub use machine::Machine;
pub use new_device::{DeviceContext, MakeError, NewDevice, VirtioShape};
pub use panel::Panel;
pub use pause::{FreezeFault, Holder, PauseError, PauseGuard};
pub use reclaim::Reclaimed;
pub use restart::ResetAction;
pub use slot::{DISKS_MAX, Slot};
pub use volumes::{Disk, Ownership};
