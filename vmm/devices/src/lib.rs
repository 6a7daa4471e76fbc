//! Device models. None of them knows KVM: they meet the machine through `drover-bus` and guest RAM through
//! `drover-guest-memory`.
//!
//! Every device is a folder with the same file names:
//!
//! | file | what is in it |
//! |---|---|
//! | `device.rs` | registers and life cycle |
//! | `request.rs` | parsing of what the guest asks for: pure, hostile numbers in, typed values out |
//! | `state.rs` | what is saved and restored |
//! | `worker.rs` | the thread that moves data, where there is one |
//!
//! The machine holds every device as a [`Device`] (pause, save, restore, resume) and most of them also on a bus.
//!
//! Virtio devices come in two halves: a transport ([`VirtioMmio`], or [`VirtioPci`] on a [`PciRoot`]) with registers,
//! queues and interrupts, and a [`VirtioDevice`] behind it ([`VirtioBlk`]). Another transport changes nothing in the
//! devices.
#![forbid(unsafe_code)]

mod device;
mod hotplug;
mod i8042;
mod pci;
mod power;
mod rtc;
mod serial;
mod virtio;

/// Limits of disks and interfaces: drover-rate-limit.
pub use drover_rate_limit as limits;

pub use device::{Device, DeviceError, DeviceEvent, DeviceEvents, Saved};
pub use hotplug::Hotplug;
pub use i8042::I8042;
pub use pci::{Address as PciAddress, PciError, PciFunction, PciRoot};
pub use power::Power;
pub use rtc::{Rtc, WallClock};
pub use serial::{ConsoleSink, Serial};
pub use virtio::{
    ActivateError, Activation, ActiveQueue, Throttle, VirtioDevice, VirtioInterrupt, VirtioKind,
    balloon::{Balloon, BalloonConfig, BalloonStatus, GuestStatistic, GuestStatistics, VirtioBalloon},
    blk::{BLK_QUEUES_MAX, BlkConfig, BlkMetrics, BlkMetricsSnapshot, VirtioBlk},
    console::{ConsoleConfig, ConsolePort, ConsoleSize, VirtioConsole},
    mmio::{MmioConfig, VirtioMmio},
    net::{MacAddress, NetConfig, NetMetrics, NetMetricsSnapshot, NetPort, VirtioNet},
    pci::{PciConfig, VirtioPci},
    rng::{RngConfig, RngMetrics, VirtioRng},
    vsock::{VirtioVsock, VsockConfig},
};
