//! A virtual machine: memory slots, interrupt controllers, dirty log.
#![expect(unsafe_code, reason = "registers guest RAM with KVM")]

use std::sync::{Arc, OnceLock};

use drover_guest_memory::{GuestMemory, HostRegion};
use drover_units::{Bytes, VcpuCount};
use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;

use crate::{CpuBaseline, HypervisorError, Vcpu, VcpuState, VmState, kvm::Device, msi::Routes};

/// Three pages that KVM needs on Intel hosts to emulate real mode (KVM_SET_TSS_ADDR), below the 64 KiB of firmware
/// under 4 GiB and inside the hole that the RAM layout leaves.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One more page for the same purpose (KVM_SET_IDENTITY_MAP_ADDR), right before those.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// The most vCPUs of one machine: xAPIC ids have 8 bits, and 255 is the broadcast.
const MAX_VCPUS: u32 = 255;

/// What a machine may do without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmOptions {
    /// The PC's interval timer (8254). Costs a kernel thread; guests that know their TSC's frequency or have kvm-clock
    /// do without.
    pub pit: bool,
    /// The processor that guests see.
    pub cpu: CpuBaseline,
}

/// A virtual machine. Clones share it.
#[derive(Clone, Debug)]
pub struct Vm {
    pub(crate) shared: Arc<Shared>,
}

/// What vCPUs and interrupt lines keep alive beside the machine's own handle: above all the RAM that the kernel's
/// memory slots point to.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) fd: VmFd,
    pub(crate) device: Arc<Device>,
    pub(crate) options: VmOptions,
    /// The registers of a vCPU's saved state, found out once.
    pub(crate) saved_msrs: OnceLock<Vec<u32>>,
    pub(crate) routes: Routes,
    memory: GuestMemory,
}

impl Vm {
    pub(crate) fn new(
        device: Arc<Device>,
        memory: &GuestMemory,
        options: VmOptions,
    ) -> Result<Self, HypervisorError> {
        let fd = device.kvm.create_vm().map_err(HypervisorError::call("create a virtual machine"))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(HypervisorError::call("place its identity map"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(HypervisorError::call("place its task segment"))?;
        let shared = Shared {
            fd,
            device,
            options,
            saved_msrs: OnceLock::new(),
            routes: Routes::default(),
            memory: memory.clone(),
        };
        for (slot, region) in memory.regions().enumerate() {
            shared
                .set_slot(slot, region, 0)
                .map_err(HypervisorError::call("give the virtual machine its memory"))?;
        }
        // After the memory: a memory slot waits for all readers of what KVM has replaced before, and since Linux 6.18 each
        // interrupt controller that takes its place on a bus leaves such a replacement pending, in no hurry. The other way
        // round a machine waits for milliseconds before its first instruction.
        shared.fd.create_irq_chip().map_err(HypervisorError::call("create interrupt controllers"))?;
        if options.pit {
            let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            shared.fd.create_pit2(config).map_err(HypervisorError::call("create an interval timer"))?;
        }
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Makes the vCPU with this number, one of `of`: both are part of what CPUID tells the guest.
    ///
    /// vCPU 0 starts running; the others wait for the guest to start them.
    ///
    /// # Errors
    /// [`HypervisorError::VcpuCount`], or [`HypervisorError::Call`] where KVM refuses.
    pub fn create_vcpu(&self, number: u32, of: VcpuCount) -> Result<Vcpu, HypervisorError> {
        let max = u32::try_from(self.shared.device.kvm.get_max_vcpus()).unwrap_or(MAX_VCPUS).min(MAX_VCPUS);
        if of.get() > max || number >= of.get() {
            return Err(HypervisorError::VcpuCount { asked: of.get(), max });
        }
        Vcpu::new(&self.shared, number, of)
    }

    /// The state of such a machine and of all its vCPUs before their first instruction: what a reset goes back to.
    ///
    /// # Errors
    /// [`HypervisorError::Call`] where KVM refuses.
    pub fn state_at_power_on(&self, vcpus: VcpuCount) -> Result<(VmState, Vec<VcpuState>), HypervisorError> {
        // Asked of a machine that has never run, since this one has. It has the least memory that there can be.
        let memory = GuestMemory::allocate(Bytes::mib(2)).map_err(|error| HypervisorError::Call {
            attempt: "make a machine to learn a processor's first state from",
            source: std::io::Error::other(error),
        })?;
        let machine = Self::new(Arc::clone(&self.shared.device), &memory, self.shared.options)?;
        let all: Vec<_> =
            (0..vcpus.get()).map(|number| machine.create_vcpu(number, vcpus)).collect::<Result<_, _>>()?;
        let state = machine.save()?;
        let vcpus = all.iter().map(|vcpu| vcpu.save(state.time())).collect::<Result<_, _>>()?;
        Ok((state, vcpus))
    }

    /// Logs, from now on, which pages the guest writes. Does nothing if it does already.
    ///
    /// # Errors
    /// [`HypervisorError::Call`]; no region is logged then.
    pub fn start_dirty_log(&self) -> Result<(), HypervisorError> {
        let result = self.set_all_slots(KVM_MEM_LOG_DIRTY_PAGES);
        if result.is_err() {
            // The cause is already on its way to the caller; logging that stays on costs speed only.
            let _ = self.set_all_slots(0);
        }
        result.map_err(HypervisorError::call("start logging the guest's writes"))
    }

    /// Ends logging. Does nothing if there is none.
    ///
    /// # Errors
    /// [`HypervisorError::Call`]; logging may go on, which costs speed only.
    pub fn stop_dirty_log(&self) -> Result<(), HypervisorError> {
        self.set_all_slots(0).map_err(HypervisorError::call("stop logging the guest's writes"))
    }

    /// The pages of one region (its index in `GuestMemory::regions`) that the guest has written since the last call,
    /// one bit each, starting with the region's first page in bit 0; clears them.
    ///
    /// # Errors
    /// [`HypervisorError::Call`] if there is no such region or no logging.
    pub fn take_dirty_log(&self, region: usize) -> Result<Vec<u64>, HypervisorError> {
        let len = self.shared.memory.regions().nth(region).map_or(0, |region| region.len.get());
        // Too many regions or too long a region means there is none of that number: KVM says so.
        let slot = u32::try_from(region).unwrap_or(u32::MAX);
        let len = usize::try_from(len).unwrap_or(0);
        self.shared
            .fd
            .get_dirty_log(slot, len)
            .map_err(HypervisorError::call("read the log of the guest's writes"))
    }

    fn set_all_slots(&self, flags: u32) -> Result<(), vmm_sys_util::errno::Error> {
        let mut regions = self.shared.memory.regions().enumerate();
        regions.try_for_each(|(slot, region)| self.shared.set_slot(slot, region, flags))
    }
}

impl Shared {
    fn set_slot(
        &self,
        slot: usize,
        region: HostRegion,
        flags: u32,
    ) -> Result<(), vmm_sys_util::errno::Error> {
        let region = kvm_userspace_memory_region {
            slot: u32::try_from(slot).expect("RAM has at most two regions"),
            flags,
            guest_phys_addr: region.start.get(),
            memory_size: region.len.get(),
            userspace_addr: region.host_address.addr() as u64,
        };
        // SAFETY: the addresses are those of `self.memory`, which stays mapped until this value is gone, and every
        // handle to the VM's file (vCPUs, interrupt lines) holds this value.
        unsafe { self.fd.set_user_memory_region(region) }
    }
}
