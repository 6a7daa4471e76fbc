//! What a machine is to be, checked once.

use drover_units::{Bytes, VcpuCount};

use drover_hypervisor::CpuBaseline;

use crate::{BuildError, ResetAction};

/// Least memory of a machine. Anything that boots by PVH needs its boot structures below 1 MiB and a kernel above.
pub const MEMORY_MIN: Bytes = Bytes::mib(2);
/// Most memory of a machine; see [`drover_guest_memory::MAX_RAM`].
pub const MEMORY_MAX: Bytes = drover_guest_memory::MAX_RAM;
/// Most vCPUs of a machine. The hypervisor may allow less.
pub const VCPUS_MAX: VcpuCount = VcpuCount::new(255);

/// What a machine is to be, as somebody asked for it. [`Planned::new`](crate::Planned::new) checks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Virtual processors: 1 to [`VCPUS_MAX`].
    pub vcpus: VcpuCount,
    /// RAM: [`MEMORY_MIN`] to [`MEMORY_MAX`], whole pages.
    pub memory: Bytes,
    /// The kernel's command line. The machine appends what it alone knows: where its devices are, its TSC's frequency.
    pub cmdline: String,
    /// How the guest reaches its devices.
    pub bus: DeviceBus,
    /// What its reset does.
    pub on_reset: ResetAction,
    /// The processor that it sees.
    pub cpu: CpuBaseline,
}

/// How the guest reaches its devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceBus {
    /// Each in a window of its own, announced on the kernel's command line and in ACPI. The smallest machine.
    #[default]
    VirtioMmio,
    /// On a PCI bus, with message-signalled interrupts. What stock kernels have drivers for.
    VirtioPci,
}

impl MachineConfig {
    /// A machine of this size: an empty command line, the smallest bus, the host's processor.
    pub fn new(vcpus: VcpuCount, memory: Bytes) -> Self {
        Self {
            vcpus,
            memory,
            cmdline: String::new(),
            bus: DeviceBus::default(),
            on_reset: ResetAction::default(),
            cpu: CpuBaseline::HOST,
        }
    }

    pub(crate) fn check(&self) -> Result<(), BuildError> {
        let vcpus = self.vcpus;
        if vcpus == VcpuCount::ZERO || vcpus > VCPUS_MAX {
            return Err(BuildError::Vcpus { asked: vcpus, max: VCPUS_MAX });
        }
        if self.memory < MEMORY_MIN || self.memory > MEMORY_MAX || self.memory.to_pages().is_none() {
            return Err(BuildError::MemorySize { asked: self.memory });
        }
        crate::boot::cmdline::check_given(&self.cmdline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(vcpus: u32, memory: u64, cmdline: &str, expect: Option<&str>) {
        let config = MachineConfig {
            cmdline: cmdline.to_owned(),
            ..MachineConfig::new(VcpuCount::new(vcpus), Bytes::new(memory))
        };
        let error = config.check().err().map(|error| error.to_string());
        match (&error, expect) {
            (None, None) => {}
            (Some(error), Some(start)) if error.starts_with(start) => {}
            _ => panic!("{config:?}: {error:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn every_rule_names_its_field() {
        check(1, 2 << 20, "", None);
        check(255, 4 << 40, "quiet", None);
        check(0, 2 << 20, "", Some("vcpus: 0"));
        check(256, 2 << 20, "", Some("vcpus: 256"));
        check(1, (2 << 20) - 4096, "", Some("memory: "));
        check(1, (2 << 20) + 1, "", Some("memory: "));
        check(1, u64::MAX, "", Some("memory: "));
        check(1, 2 << 20, "tab\there", Some("cmdline: "));
        check(1, 2 << 20, "null\0", Some("cmdline: "));
        check(1, 2 << 20, &"x".repeat(2048), Some("cmdline: "));
    }
}
