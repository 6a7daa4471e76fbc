//! The KVM device.

use std::{
    ffi::CString,
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use drover_guest_memory::GuestMemory;
use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use crate::{CpuBaseline, HypervisorError, Processor, Vm, VmOptions, cpuid, kick};

/// Where KVM is.
const DEVICE: &str = "/dev/kvm";

/// What every machine of ours needs, in words for the error.
const REQUIRED: [(Cap, &str); 11] = [
    (Cap::UserMemory, "guest memory from user space"),
    (Cap::Irqchip, "in-kernel interrupt controllers"),
    (Cap::Irqfd, "interrupts by event (irqfd)"),
    (Cap::IrqRouting, "interrupts by message (IRQ routing)"),
    (Cap::Ioeventfd, "doorbells by event (ioeventfd)"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::ExtCpuid, "setting CPUID"),
    (Cap::MpState, "processor run states"),
    (Cap::VcpuEvents, "saving pending events"),
    (Cap::Debugregs, "saving debug registers"),
    (Cap::Xsave, "saving extended processor state"),
];

/// The KVM device, and what it says about this host. Clones share it.
#[derive(Clone, Debug)]
pub struct Hypervisor {
    pub(crate) device: Arc<Device>,
}

#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) kvm: Kvm,
    cpuid: OnceLock<CpuId>,
    /// Held by who asks for the above: it takes as long as making a virtual machine, and others had better wait for the answer.
    asking: Mutex<()>,
    msr_indices: OnceLock<Vec<u32>>,
}

impl Hypervisor {
    /// Opens `/dev/kvm` and checks that it can carry a machine.
    ///
    /// # Errors
    /// Each in one sentence that says what to do: [`HypervisorError::NoDevice`], [`HypervisorError::NoPermission`],
    /// [`HypervisorError::Open`], [`HypervisorError::ApiVersion`], [`HypervisorError::MissingCapability`].
    pub fn open() -> Result<Self, HypervisorError> {
        Self::open_at(Path::new(DEVICE))
    }

    /// Like [`open`](Self::open), with the device elsewhere.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_at(path: &Path) -> Result<Self, HypervisorError> {
        let open_error = |source: io::Error| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::NotFound => HypervisorError::NoDevice { path },
                io::ErrorKind::PermissionDenied => HypervisorError::NoPermission { path },
                _ => HypervisorError::Open { path, source },
            }
        };
        let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|error| open_error(error.into()))?;
        let kvm = Kvm::new_with_path(&c_path).map_err(|errno| open_error(errno.into()))?;

        let found = kvm.get_api_version();
        if found != KVM_API_VERSION as i32 {
            return Err(HypervisorError::ApiVersion { found, expected: KVM_API_VERSION });
        }
        if let Some((_, what)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(HypervisorError::MissingCapability { what });
        }
        kick::install_handler()?;
        let device =
            Device { kvm, cpuid: OnceLock::new(), asking: Mutex::new(()), msr_indices: OnceLock::new() };
        Ok(Self { device: Arc::new(device) })
    }

    /// Makes a virtual machine over this RAM.
    ///
    /// # Errors
    /// [`HypervisorError::Call`] where KVM refuses.
    pub fn create_vm(&self, memory: &GuestMemory, options: VmOptions) -> Result<Vm, HypervisorError> {
        Vm::new(Arc::clone(&self.device), memory, options)
    }

    /// Finds out what a machine will have to know of this host, so that one that is being made elsewhere meanwhile does not wait
    /// for it: KVM takes longer over it than over a virtual machine.
    pub fn learn(&self) {
        // Who needs it asks again, and is told why not.
        let _ = self.device.supported_cpuid();
    }

    /// The processor that guests see on this host.
    ///
    /// # Errors
    /// [`HypervisorError::Call`] where KVM does not tell.
    pub fn processor(&self) -> Result<Processor, HypervisorError> {
        self.device.supported_cpuid().map(cpuid::processor)
    }

    /// The processor that guests of this baseline see on this host.
    ///
    /// # Errors
    /// [`HypervisorError::CpuBaseline`] where the host cannot present it, [`HypervisorError::Call`] where KVM does not
    /// tell.
    pub fn processor_as(&self, baseline: CpuBaseline) -> Result<Processor, HypervisorError> {
        Ok(cpuid::processor(&baseline.narrow(self.device.supported_cpuid()?)?))
    }
}

impl Device {
    /// The processor features that KVM can give a guest on this host.
    pub(crate) fn supported_cpuid(&self) -> Result<&CpuId, HypervisorError> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.cpuid.get() {
            return Ok(known);
        }
        let cpuid = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(HypervisorError::call("list the processor features it supports"))?;
        Ok(self.cpuid.get_or_init(|| cpuid))
    }

    /// The model-specific registers that KVM says make up a guest's state.
    pub(crate) fn msr_indices(&self) -> Result<&[u32], HypervisorError> {
        if let Some(known) = self.msr_indices.get() {
            return Ok(known);
        }
        let list = self
            .kvm
            .get_msr_index_list()
            .map_err(HypervisorError::call("list the model-specific registers of a guest"))?;
        Ok(self.msr_indices.get_or_init(|| list.as_slice().to_vec()))
    }

    /// Whether its processors have extended control registers: those without XSAVE have none.
    pub(crate) fn has_xcrs(&self) -> bool {
        self.kvm.check_extension(Cap::Xcrs)
    }

    pub(crate) fn has_tsc_deadline_timer(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_kvm_is_told_what_to_do() {
        let error = Hypervisor::open_at(Path::new("/dev/no-such-kvm")).unwrap_err();
        assert!(matches!(error, HypervisorError::NoDevice { .. }), "{error:?}");
        assert!(error.to_string().contains("modprobe"), "{error}");
    }

    #[test]
    fn a_device_that_is_not_kvm_is_refused() {
        let error = Hypervisor::open_at(Path::new("/dev/null")).unwrap_err();
        assert!(matches!(error, HypervisorError::ApiVersion { found: -1, .. }), "{error:?}");
    }
}
