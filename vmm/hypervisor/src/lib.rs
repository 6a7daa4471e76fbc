//! KVM behind typed handles. The only crate that knows KVM (invariant B1).
//!
//! [`Hypervisor`] is the device, [`Vm`] a virtual machine with its RAM and in-kernel interrupt controllers, [`Vcpu`] one
//! of its processors. A vCPU thread binds its vCPU and runs it ([`BoundVcpu::run`]), answering each [`Exit`]; any other
//! thread ends a run with the vCPU's [`Kicker`].
//!
//! State that must move with a guest comes out as [`VmState`] and [`VcpuState`], which encode to bytes and decode from
//! bytes that may be hostile: a bad length, an unknown section or a missing one is a [`StateError`]. What the values
//! mean is for KVM to accept or refuse.
//!
//! Handles keep guest RAM mapped: every [`Vm`], [`Vcpu`] and [`IrqFd`] shares what the kernel's memory slots point to.
//!
//! Not here: what a machine consists of, when it pauses, what its devices are (drover-machine, drover-devices).
#![deny(unsafe_code)]

mod baseline;
mod cpuid;
mod error;
mod exit;
mod feature_names;
mod irq;
mod kick;
mod kvm;
mod msi;
mod msrs;
mod plain;
mod sections;
mod time;
mod tsc;
mod vcpu;
mod vcpu_state;
mod vm;
mod vm_state;
mod xsave;

pub use baseline::{CpuBaseline, UnknownBaseline};
pub use cpuid::Processor;
pub use error::{HypervisorError, StateError};
pub use exit::{Exit, Fault, SystemEvent};
pub use irq::{Gsi, IoEvent, IoEventAddress, IrqFd};
pub use kick::Kicker;
pub use kvm::Hypervisor;
pub use msi::{Message, MsiFd};
pub use time::TimeSample;
pub use vcpu::{BoundVcpu, LongModeEntry, ProtectedModeEntry, Vcpu};
pub use vcpu_state::VcpuState;
pub use vm::{Vm, VmOptions};
pub use vm_state::VmState;
