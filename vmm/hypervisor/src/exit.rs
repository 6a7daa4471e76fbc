//! Why a vCPU stopped running.

use std::fmt;

use drover_units::Gpa;

/// What a vCPU needs before it can go on.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit<'a> {
    /// The guest reads a port: `data` is to be filled. A string instruction reads several times: `data` then holds
    /// several values of `width` bytes, each a read of its own.
    PortRead {
        /// The port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        width: usize,
        /// What the guest will see.
        data: &'a mut [u8],
    },
    /// The guest writes a port; several values of `width` bytes as for reads.
    PortWrite {
        /// The port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        width: usize,
        /// What it writes.
        data: &'a [u8],
    },
    /// The guest reads an address that is not RAM: `data` is to be filled.
    MmioRead {
        /// The address.
        address: Gpa,
        /// What the guest will see; at most 8 bytes.
        data: &'a mut [u8],
    },
    /// The guest writes to an address that is not RAM.
    MmioWrite {
        /// The address.
        address: Gpa,
        /// What it writes; at most 8 bytes.
        data: &'a [u8],
    },
    /// A kick or a signal. Look at why, then run again. Any access reported before is complete now.
    Interrupted,
    /// The guest shut itself down in the processor's sense: a triple fault.
    TripleFault,
    /// The guest asked through a paravirtual interface.
    SystemEvent(SystemEvent),
    /// The vCPU cannot go on.
    Fault(Fault),
}

/// What a guest asked of the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemEvent {
    /// To be switched off.
    Shutdown,
    /// To be started again.
    Reset,
    /// It has crashed.
    Crash,
    /// Something this version does not know.
    Other(u32),
}

/// Why a vCPU cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// KVM met an instruction or a state that it cannot handle (KVM_EXIT_INTERNAL_ERROR).
    Internal {
        /// KVM's number: 1 emulation failed, 2 simultaneous exceptions, 3 delivery, 4 unexpected exit.
        suberror: u32,
        /// Where the guest was.
        rip: u64,
    },
    /// The processor refused the guest's state.
    FailedEntry {
        /// The processor's reason.
        reason: u64,
        /// The host processor.
        cpu: u32,
    },
    /// A memory access that KVM could not resolve.
    Memory {
        /// Where.
        address: Gpa,
    },
    /// An exit that a machine like ours never causes.
    Unexpected(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal { suberror, rip } => {
                let what = match suberror {
                    1 => "cannot emulate an instruction",
                    2 => "met simultaneous exceptions",
                    3 => "cannot deliver an event",
                    4 => "met an exit it does not know",
                    _ => "has an internal error",
                };
                write!(f, "KVM {what} at {rip:#x} (suberror {suberror})")
            }
            Self::FailedEntry { reason, cpu } => {
                write!(f, "the processor refused the guest's state (reason {reason:#x} on host CPU {cpu})")
            }
            Self::Memory { address } => write!(f, "KVM cannot resolve the guest's access to {address}"),
            Self::Unexpected(exit) => write!(f, "unexpected exit: {exit}"),
        }
    }
}
