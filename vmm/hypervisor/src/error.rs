//! What can go wrong between us and KVM.

use std::{io, path::PathBuf};

/// Why the hypervisor refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HypervisorError {
    /// The host's processor lacks features of a baseline.
    #[error(
        "this host cannot present the CPU baseline {baseline}: its processor, or its KVM, lacks {missing}"
    )]
    CpuBaseline {
        /// Which.
        baseline: &'static str,
        /// Names of features.
        missing: String,
    },
    /// There is no KVM device.
    #[error(
        "{} does not exist: load the KVM module (`modprobe kvm_amd` or `modprobe kvm_intel`) and, inside a virtual \
         machine, enable nested virtualisation",
        path.display()
    )]
    NoDevice {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The device may not be opened by this user.
    #[error(
        "no permission to open {}: add this user to the group that owns it (`usermod -aG kvm $USER`) and log in again",
        path.display()
    )]
    NoPermission {
        /// The device.
        path: PathBuf,
    },
    /// The device cannot be opened for another reason.
    #[error("cannot open {}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// The device speaks another version of the interface.
    #[error(
        "KVM speaks API version {found}, this program speaks version {expected}: update the host's kernel"
    )]
    ApiVersion {
        /// What the kernel says.
        found: i32,
        /// What we speak.
        expected: u32,
    },
    /// The kernel lacks something that every machine needs.
    #[error("the host's KVM does not support {what}: update the host's kernel")]
    MissingCapability {
        /// In words.
        what: &'static str,
    },
    /// More vCPUs than this host can give one machine.
    #[error("{asked} vCPUs are not possible: this host gives one machine 1 to {max}")]
    VcpuCount {
        /// What was asked for.
        asked: u32,
        /// The host's limit.
        max: u32,
    },
    /// An interrupt line to a pin that the I/O APIC does not have.
    #[error("there is no interrupt pin {gsi}: the pins are 0 to {}", crate::irq::IO_APIC_PINS - 1)]
    NoSuchPin {
        /// What was asked for.
        gsi: u32,
    },
    /// More message-signalled interrupts than KVM's table holds.
    #[error("a machine has at most {max} message-signalled interrupts")]
    TooManyMsis {
        /// The limit.
        max: u32,
    },
    /// A call that should work did not.
    #[error("KVM cannot {attempt}")]
    Call {
        /// What was tried.
        attempt: &'static str,
        /// The host's answer.
        #[source]
        source: io::Error,
    },
    /// A saved state does not fit.
    #[error("cannot use the saved state")]
    State(#[from] StateError),
}

impl HypervisorError {
    pub(crate) fn call(attempt: &'static str) -> impl FnOnce(vmm_sys_util::errno::Error) -> Self {
        move |errno| Self::Call { attempt, source: errno.into() }
    }
}

/// What is wrong with a saved state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The bytes end inside a section.
    #[error("the state ends early, at byte {at}")]
    Truncated {
        /// Where.
        at: usize,
    },
    /// A section this version does not know.
    #[error("section {id} is unknown to this version")]
    UnknownSection {
        /// Its number.
        id: u16,
    },
    /// A section is there twice.
    #[error("section {id} is there twice")]
    RepeatedSection {
        /// Its number.
        id: u16,
    },
    /// A section that must be there is not.
    #[error("section {id} is missing")]
    MissingSection {
        /// Its number.
        id: u16,
    },
    /// A section has an impossible length.
    #[error("section {id} has {found} bytes, which is not possible: {expected}")]
    SectionLength {
        /// Its number.
        id: u16,
        /// Its length.
        found: usize,
        /// What would be.
        expected: &'static str,
    },
    /// The guest uses processor features that this host lacks.
    #[error(
        "the guest uses processor features that this host lacks: CPUID {function:#x}.{index} {register} bits {bits:#010x}"
    )]
    CpuFeatures {
        /// CPUID leaf.
        function: u32,
        /// Its sub-leaf.
        index: u32,
        /// The register.
        register: &'static str,
        /// The bits that are missing.
        bits: u32,
    },
    /// The guest's time-stamp counter runs at a rate that this host cannot give.
    #[error("the guest's TSC runs at {guest_khz} kHz, this host's at {host_khz} kHz, and it cannot scale")]
    TscFrequency {
        /// The guest's.
        guest_khz: u32,
        /// This host's.
        host_khz: u32,
    },
    /// The guest's time-stamp counter cannot be put where it belongs.
    #[error(
        "the guest's TSC would jump by {misplaced} ticks: this host's KVM gives every guest the host's own counter"
    )]
    TscFixed {
        /// Where it is, less where it should be.
        misplaced: i64,
    },
    /// A model-specific register that this host does not accept.
    #[error("this host does not accept the guest's model-specific register {index:#x}")]
    MsrRefused {
        /// The register.
        index: u32,
    },
}
