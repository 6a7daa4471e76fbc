//! A virtual processor: made, set up for its first instruction, run.
#![expect(unsafe_code, reason = "reads the page shared with KVM, whose unions the exit reason tells apart")]

use std::{io, marker::PhantomData, sync::Arc};

use drover_units::{Gpa, VcpuCount};
use kvm_bindings::{
    CpuId, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run, kvm_segment,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::{
    Exit, Fault, HypervisorError, Kicker, SystemEvent,
    cpuid::{self, Topology},
    vm::Shared,
};

/// A virtual processor.
///
/// Any thread may hold it, save it or restore it; to run, it is bound to the thread that runs it.
#[derive(Debug)]
pub struct Vcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) shared: Arc<Shared>,
    pub(crate) topology: Topology,
    pub(crate) cpuid: CpuId,
    kicker: Kicker,
}

/// The first instruction of a guest that is entered in 32-bit protected mode without paging, as PVH guests are: flat
/// segments, interrupts off, and EBX with an address for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtectedModeEntry {
    /// Address of the first instruction; below 4 GiB.
    pub rip: Gpa,
    /// What EBX holds.
    pub ebx: Gpa,
}

/// The first instruction of a guest that is entered in 64-bit mode, as Linux's boot protocol has it: flat segments (0x10
/// code, 0x18 data), paging on, interrupts off, and RSI with an address for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongModeEntry {
    /// Address of the first instruction.
    pub rip: Gpa,
    /// What RSI holds.
    pub rsi: Gpa,
    /// The uppermost page table, which maps what it is entered with to itself.
    pub page_table: Gpa,
    /// Four segment descriptors: two empty ones, code, data.
    pub gdt: Gpa,
}

impl Vcpu {
    pub(crate) fn new(shared: &Arc<Shared>, number: u32, of: VcpuCount) -> Result<Self, HypervisorError> {
        let mut fd = shared
            .fd
            .create_vcpu(u64::from(number))
            .map_err(HypervisorError::call("create a virtual processor"))?;
        let topology = Topology {
            vcpu: number,
            vcpus: of.get(),
            tsc_khz: fd.get_tsc_khz().ok().filter(|&khz| khz > 0),
            tsc_deadline: shared.device.has_tsc_deadline_timer(),
        };
        let cpuid = cpuid::for_vcpu(&shared.options.cpu.narrow(shared.device.supported_cpuid()?)?, topology)?;
        fd.set_cpuid2(&cpuid).map_err(HypervisorError::call("set a virtual processor's features"))?;
        let kicker = Kicker::new(fd.get_kvm_run());
        Ok(Self { fd, shared: Arc::clone(shared), topology, cpuid, kicker })
    }

    /// The guest's TSC frequency in kHz, where KVM knows it.
    pub fn tsc_khz(&self) -> Option<u32> {
        self.topology.tsc_khz
    }

    /// Ends runs of this vCPU, from any thread.
    pub fn kicker(&self) -> Kicker {
        self.kicker.clone()
    }

    /// Lets a guest that keeps time by kvm-clock know that it stood still, so that its watchdogs do not take the time for a
    /// hang of its own (KVM_KVMCLOCK_CTRL). For a vCPU that does not run, before it does again. Returns whether it will be
    /// told: a guest without that clock is not, nor is any where KVM does not do this.
    ///
    /// # Errors
    /// [`HypervisorError::Call`] where KVM refuses for another reason.
    pub fn note_pause(&self) -> Result<bool, HypervisorError> {
        match self.fd.kvmclock_ctrl() {
            Ok(()) => Ok(true),
            Err(errno) if [libc::EINVAL, libc::ENOTTY].contains(&errno.errno()) => Ok(false),
            Err(errno) => Err(HypervisorError::call("tell a guest that it was paused")(errno)),
        }
    }

    /// Sets the registers for a guest's first instruction.
    ///
    /// The state at entry is that of the PVH boot protocol (Xen, docs/misc/pvh.pandoc, "HVM direct boot").
    ///
    /// # Errors
    /// [`HypervisorError::Call`] where KVM refuses.
    pub fn enter_protected_mode(&self, entry: ProtectedModeEntry) -> Result<(), HypervisorError> {
        let mut sregs = self.fd.get_sregs().map_err(HypervisorError::call("read a processor's state"))?;
        let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, db: 1, g: 1, ..Default::default() };
        // Types: 0xb execute/read accessed, 0x3 read/write accessed, 0xb (system) busy 32-bit TSS. Selectors mean
        // nothing until the guest loads its own descriptor table; they only have to differ.
        sregs.cs = kvm_segment { selector: 0x8, type_: 0xb, ..flat };
        let data = kvm_segment { selector: 0x10, type_: 0x3, ..flat };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment { selector: 0x18, type_: 0xb, limit: 0x67, present: 1, ..Default::default() };
        // PE and ET; everything else off.
        sregs.cr0 = 0x11;
        sregs.cr4 = 0;
        sregs.efer = 0;
        self.fd.set_sregs(&sregs).map_err(HypervisorError::call("set a processor's state"))?;

        let mut regs = kvm_bindings::kvm_regs::default();
        // Bit 1 of RFLAGS is always set.
        (regs.rip, regs.rbx, regs.rflags) = (entry.rip.get(), entry.ebx.get(), 2);
        self.fd.set_regs(&regs).map_err(HypervisorError::call("set a processor's registers"))
    }

    /// Sets the registers for a guest's first instruction in 64-bit mode.
    ///
    /// # Errors
    /// [`HypervisorError::Call`] where KVM refuses.
    pub fn enter_long_mode(&self, entry: LongModeEntry) -> Result<(), HypervisorError> {
        let mut sregs = self.fd.get_sregs().map_err(HypervisorError::call("read a processor's state"))?;
        let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
        // Types as for 32-bit mode; the TSS has to be there and is not used.
        sregs.cs = kvm_segment { selector: 0x10, type_: 0xb, l: 1, ..flat };
        let data = kvm_segment { selector: 0x18, type_: 0x3, db: 1, ..flat };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment { selector: 0x20, type_: 0xb, limit: 0x67, present: 1, ..Default::default() };
        (sregs.gdt.base, sregs.gdt.limit) = (entry.gdt.get(), 4 * 8 - 1);
        sregs.cr3 = entry.page_table.get();
        // PAE; then LME and LMA; then PE, ET and PG.
        sregs.cr4 = 1 << 5;
        sregs.efer = 1 << 8 | 1 << 10;
        sregs.cr0 = 1 << 31 | 0x11;
        self.fd.set_sregs(&sregs).map_err(HypervisorError::call("set a processor's state"))?;
        let mut regs = kvm_bindings::kvm_regs::default();
        (regs.rip, regs.rsi, regs.rflags) = (entry.rip.get(), entry.rsi.get(), 2);
        self.fd.set_regs(&regs).map_err(HypervisorError::call("set a processor's registers"))
    }

    /// Makes this thread the one that runs the vCPU.
    ///
    /// # Errors
    /// [`HypervisorError::Call`] if the thread cannot take the signal that interrupts.
    pub fn bind(&mut self) -> Result<BoundVcpu<'_>, HypervisorError> {
        self.kicker.bind_to_this_thread()?;
        Ok(BoundVcpu { vcpu: self, _this_thread: PhantomData })
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // Before `fd` unmaps the page that kicks write to.
        self.kicker.detach();
    }
}

/// A vCPU that this thread runs. Dropping it ends the binding.
#[derive(Debug)]
pub struct BoundVcpu<'a> {
    vcpu: &'a mut Vcpu,
    _this_thread: PhantomData<*mut ()>,
}

impl Drop for BoundVcpu<'_> {
    fn drop(&mut self) {
        self.vcpu.kicker.unbind();
    }
}

/// An exit without what it borrows, or where to find that.
enum Kind {
    Port,
    Mmio,
    InternalError,
    Other(Exit<'static>),
}

impl BoundVcpu<'_> {
    /// Runs the guest until it needs something, or until a kick.
    ///
    /// A port or MMIO access that an exit reports is complete only with the next call: save the vCPU's state only
    /// after [`Exit::Interrupted`].
    ///
    /// # Errors
    /// [`HypervisorError::Call`] where KVM cannot run this vCPU at all.
    pub fn run(&mut self) -> Result<Exit<'_>, HypervisorError> {
        let kind = match self.vcpu.fd.run() {
            Ok(exit) => classify(exit),
            Err(errno) => match errno.errno() {
                libc::EINTR => {
                    self.vcpu.kicker.rearm();
                    Kind::Other(Exit::Interrupted)
                }
                // A vCPU that waits to be started woke up without having been.
                libc::EAGAIN => Kind::Other(Exit::Interrupted),
                _ => return Err(HypervisorError::call("run a virtual processor")(errno)),
            },
        };
        match kind {
            Kind::Port => self.port_exit(),
            Kind::Mmio => Ok(self.mmio_exit()),
            Kind::InternalError => Ok(self.internal_error()),
            Kind::Other(exit) => Ok(exit),
        }
    }

    fn port_exit(&mut self) -> Result<Exit<'_>, HypervisorError> {
        let mapped = self.vcpu.shared.fd.run_size();
        let run = self.vcpu.fd.get_kvm_run();
        // SAFETY: the exit reason is KVM_EXIT_IO, for which the kernel fills this member.
        let io = unsafe { run.__bindgen_anon_1.io };
        let len = io.count as usize * usize::from(io.size);
        let start = usize::try_from(io.data_offset).unwrap_or(usize::MAX);
        if start.checked_add(len).is_none_or(|end| end > mapped) || io.size == 0 {
            let source = io::Error::from(io::ErrorKind::InvalidData);
            return Err(HypervisorError::Call { attempt: "say where a port access's data is", source });
        }
        let first = std::ptr::from_mut::<kvm_run>(run).cast::<u8>().wrapping_add(start);
        // SAFETY: the range lies in the page mapping of `mapped` bytes that starts at `run`, as just checked; nothing
        // else refers to it while `self` is borrowed, and the kernel writes there only during a run.
        let data = unsafe { std::slice::from_raw_parts_mut(first, len) };
        let (port, width) = (io.port, usize::from(io.size));
        Ok(if u32::from(io.direction) == kvm_bindings::KVM_EXIT_IO_IN {
            Exit::PortRead { port, width, data }
        } else {
            Exit::PortWrite { port, width, data }
        })
    }

    fn mmio_exit(&mut self) -> Exit<'_> {
        // SAFETY: the exit reason is KVM_EXIT_MMIO, for which the kernel fills this member.
        let mmio = unsafe { &mut self.vcpu.fd.get_kvm_run().__bindgen_anon_1.mmio };
        let address = Gpa::new(mmio.phys_addr);
        let len = (mmio.len as usize).min(mmio.data.len());
        let data = &mut mmio.data[..len];
        if mmio.is_write != 0 { Exit::MmioWrite { address, data } } else { Exit::MmioRead { address, data } }
    }

    fn internal_error(&mut self) -> Exit<'static> {
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which the kernel fills this member.
        let suberror = unsafe { self.vcpu.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        let rip = self.vcpu.fd.get_regs().map_or(0, |regs| regs.rip);
        Exit::Fault(Fault::Internal { suberror, rip })
    }
}

fn classify(exit: VcpuExit<'_>) -> Kind {
    Kind::Other(match exit {
        VcpuExit::IoIn(..) | VcpuExit::IoOut(..) => return Kind::Port,
        VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..) => return Kind::Mmio,
        VcpuExit::InternalError => return Kind::InternalError,
        VcpuExit::Intr => Exit::Interrupted,
        VcpuExit::Shutdown => Exit::TripleFault,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Exit::SystemEvent(SystemEvent::Shutdown),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Exit::SystemEvent(SystemEvent::Reset),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => Exit::SystemEvent(SystemEvent::Crash),
        VcpuExit::SystemEvent(other, _) => Exit::SystemEvent(SystemEvent::Other(other)),
        VcpuExit::FailEntry(reason, cpu) => Exit::Fault(Fault::FailedEntry { reason, cpu }),
        VcpuExit::MemoryFault { gpa, .. } => Exit::Fault(Fault::Memory { address: Gpa::new(gpa) }),
        other => Exit::Fault(Fault::Unexpected(format!("{other:?}"))),
    })
}
