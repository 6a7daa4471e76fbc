//! The machine on KVM, as the VM's thread and a migration drive it.
//!
//! A machine of drover-machine runs when nobody holds a guard on it. Here is the one guard of this process: the lease,
//! a command and a migration never pause at the same time, because one thread or one migration has the machine.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use drover_block::Backend;

use drover_guest_memory::{DirtyPages, GuestMemory};
use drover_ids::OwnerEpoch;
use drover_lifecycle::StopReason;
use drover_machine::{
    BuildError, DevicesReady, DiskInstruments, EventSink, HypervisorError, Initrd, KernelImage, Machine,
    MachineConfig, MachineEvent, Ownership, PauseError, PauseGuard, Planned, Reclaimed, VirtioShape,
    devices::{Throttle, VirtioKind},
};
use drover_migration::{
    GuestError, MigratableGuest,
    shape::{CpuShape, DeviceShape, MachineShape},
};
use drover_saved_state::Envelope;
use drover_units::PAGE_SIZE;
use tracing::{info, warn};

use crate::{
    clusters::Clusters,
    console::{Console, GuestOutput, SerialOutput},
    courtesy,
    devices::{self, Handles},
    disks,
    files::Files,
    hosted::{DiskInstrument, EndSink, HostedVm, Hypervisor, Instrument, Instruments, NicInstrument, Owner},
    jail,
    order::{Change, DiskConfig, DiskPlace, InvalidField, NewPart, StallPolicy, VmConfig},
    refused::{Refused, chain},
    stall::{self, Watched},
    status::Status,
    suspend,
};

/// Stack of the thread that makes one system call.
const POPULATE_STACK_BYTES: usize = 64 << 10;

/// Builds machines on this host's KVM.
#[derive(Debug)]
pub(crate) struct Kvm {
    console: Arc<Console>,
    pub(super) instruments: Instruments,
    pub(super) status: Arc<Status>,
    /// Also a thread's that opens a volume.
    pub(super) clusters: Arc<Mutex<Clusters>>,
    pub(super) files: Files,
    device: KvmDevice,
}

/// The way to KVM.
#[derive(Debug)]
pub(crate) enum KvmDevice {
    /// Opened when a machine is built.
    WhenNeeded,
    /// Opened before the process could open nothing more.
    Open(drover_machine::Hypervisor),
    /// It could not be opened then, for this reason.
    Missing(String),
}

impl KvmDevice {
    /// Opened for a machine that is about to be built. Where that fails, the machine's builder says why.
    pub(crate) fn now_or_when_needed() -> Self {
        drover_machine::Hypervisor::open().map_or(Self::WhenNeeded, Self::Open)
    }

    /// The device, if it is open.
    pub(crate) fn device(&self) -> Option<&drover_machine::Hypervisor> {
        match self {
            Self::Open(device) => Some(device),
            Self::WhenNeeded | Self::Missing(_) => None,
        }
    }
}

/// A machine and whether it is held back.
#[derive(Debug)]
pub(crate) struct KvmVm {
    pub(super) machine: Machine,
    pub(super) held: Held,
    pub(super) owner: drover_block::Owner,
    cpu: CpuShape,
    /// Its disks, in order.
    pub(super) backends: Vec<Weak<dyn Backend>>,
    handles: Handles,
    pub(super) stall: StallPolicy,
}

/// A machine without a guest, on this processor.
struct Assembled {
    ready: DevicesReady,
    parts: Parts,
}

/// What is kept of it.
struct Parts {
    cpu: CpuShape,
    /// The disks, in order. Whoever looks at them does not keep them open.
    backends: Vec<Weak<dyn Backend>>,
    nics: Vec<NicInstrument>,
    handles: Handles,
}

#[derive(Debug)]
pub(super) enum Held {
    /// It runs.
    No,
    /// Nothing of it runs.
    Whole(PauseGuard),
    /// The vCPUs are out, and a device does not become quiet.
    Partly(PauseError),
}

impl Kvm {
    /// Machines whose serial port writes to this console, and that are read and typed on by these instruments.
    pub(crate) fn new(
        console: Arc<Console>,
        instruments: Instruments,
        status: Arc<Status>,
        (files, device): (Files, KvmDevice),
    ) -> Self {
        let clusters = Arc::new(Mutex::new(Clusters::new(Arc::clone(&status))));
        Self { console, instruments, status, clusters, files, device }
    }

    fn device(&self) -> Result<drover_machine::Hypervisor, Refused> {
        match &self.device {
            KvmDevice::WhenNeeded => Ok(drover_machine::Hypervisor::open().map_err(BuildError::from)?),
            KvmDevice::Open(device) => Ok(device.clone()),
            KvmDevice::Missing(reason) => Err(Refused::Precondition(reason.clone())),
        }
    }

    /// What the guest is booted with.
    fn boot_files(&self, config: &VmConfig) -> Result<(KernelImage, Option<Initrd>), Refused> {
        let path = config.kernel.as_path();
        let file = self.files.read(path);
        let file = file.map_err(|source| BuildError::OpenKernel { path: path.to_owned(), source })?;
        let kernel = KernelImage::of_file(file, path)?;
        let initrd = config.initrd.as_deref().map(|path| {
            let file = self.files.read(path);
            let file = file.map_err(|source| BuildError::OpenInitrd { path: path.to_owned(), source })?;
            Initrd::of_file(file, path)
        });
        Ok((kernel, initrd.transpose()?))
    }

    fn assemble(
        &mut self,
        config: &VmConfig,
        ownership: Ownership,
        ended: EndSink,
    ) -> Result<Assembled, Refused> {
        let planned = Planned::new(MachineConfig {
            vcpus: config.vcpus,
            memory: config.memory,
            cmdline: config.cmdline.clone(),
            bus: config.platform.bus,
            on_reset: config.platform.on_reset,
            cpu: config.platform.cpu,
        })?;
        let hypervisor = self.device()?;
        let began = Instant::now();
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.fit(config.vcpus.get());
        let disks = disks::open(&config.disks, &mut clusters, &self.files)?;
        drop(clusters);
        if !disks.is_empty() {
            info!(took_us = began.elapsed().as_micros(), "volumes opened");
        }
        let backends = disks.iter().map(|disk| Arc::downgrade(&disk.backend)).collect();
        if let Ownership::Take(owner) = &ownership
            && !disks.is_empty()
        {
            let began = Instant::now();
            disks::acquire(&disks, owner)?;
            info!(took_us = began.elapsed().as_micros(), "volumes acquired");
        }
        let began = Instant::now();
        let handles = Handles::default();
        let serial = Box::new(SerialOutput::new(Arc::clone(&self.console), handles.clone()));
        let output = GuestOutput::new(Arc::clone(&self.console));
        let events = EventSink::new(move |event| ended(stop_reason(&event), event.to_string()));
        let (others, nics) = devices::from_config(config, &handles, (output, &self.files))?;
        let with_memory = planned.allocate_memory()?;
        if let Ownership::Take(_) = &ownership {
            populate_meanwhile(with_memory.memory());
        }
        let ready = with_memory
            .open_volumes(disks, ownership)?
            .with_disk_slots(config.disks.iter().map(|disk| disk.slot).collect())
            .with_devices(others)
            .attach_devices(&hypervisor, serial, events)?;
        let processor = hypervisor.processor_as(config.platform.cpu).map_err(BuildError::from)?;
        let cpu = CpuShape { vendor: processor.vendor, features: processor.features };
        info!(took_us = began.elapsed().as_micros(), "devices attached");
        Ok(Assembled { ready, parts: Parts { cpu, backends, nics, handles } })
    }

    fn finish(
        &self,
        config: &VmConfig,
        owner: drover_block::Owner,
        Parts { cpu, backends, nics, handles }: Parts,
        (machine, guard): (Machine, PauseGuard),
    ) -> Result<KvmVm, Refused> {
        let volumes: Vec<_> = config.disks.iter().map(|disk| disk.volume).collect();
        // A file of this host answers, or the host has worse problems.
        if config.disks.iter().any(|disk| matches!(disk.place, DiskPlace::Rbd(_))) {
            let watched = Watched {
                disks: volumes.iter().copied().zip(backends.iter().cloned()).collect(),
                holder: machine.holder(),
                policy: config.stall,
                status: Arc::clone(&self.status),
            };
            stall::watch(watched)
                .map_err(|error| Refused::Failed(format!("cannot start a thread: {error}")))?;
        }
        let panel = machine.panel();
        let counters = panel.disk_counters().iter().zip(panel.disk_throttles());
        let disk = |(disk, (metrics, throttle)): (&DiskConfig, (&Arc<_>, &Arc<Throttle>))| {
            throttle.set_limits(disk.limits);
            let counters = DiskInstruments { metrics: Arc::clone(metrics), throttle: Arc::clone(throttle) };
            DiskInstrument { volume: disk.volume, slot: disk.slot, counters }
        };
        let disks = config.disks.iter().zip(counters).map(disk).collect();
        let holder = machine.holder();
        self.instruments.connect(Instrument { panel, holder, disks, nics, handles: handles.clone() });
        let stall = config.stall;
        Ok(KvmVm { machine, held: Held::Whole(guard), owner, cpu, backends, handles, stall })
    }
}

impl Hypervisor for Kvm {
    type Machine = KvmVm;

    fn build(&mut self, config: &VmConfig, owner: Owner, ended: EndSink) -> Result<KvmVm, Refused> {
        let owner = volume_owner(owner);
        // Before anything is taken: the likeliest mistake of all is the kernel's name.
        let (kernel, initrd) = self.boot_files(config)?;
        let Assembled { ready, parts } = self.assemble(config, Ownership::Take(owner), ended)?;
        self.finish(config, owner, parts, ready.boot_with(&kernel, initrd.as_ref())?)
    }

    fn build_incoming(&mut self, config: &VmConfig, owner: Owner, ended: EndSink) -> Result<KvmVm, Refused> {
        let Assembled { ready, parts } = self.assemble(config, Ownership::Later, ended)?;
        let received = match self.boot_files(config) {
            Ok((kernel, initrd)) => ready.receive_with(&kernel, initrd.as_ref())?,
            // The guest brings what it runs. Only its next reset needs the kernel, and ends it here without one.
            Err(error) => {
                warn!(error = chain(&error), "the guest cannot be reset here");
                ready.receive()?
            }
        };
        self.finish(config, volume_owner(owner), parts, received)
    }

    fn change(&mut self, vm: &mut KvmVm, change: &Change) -> Result<(), Refused> {
        match change {
            Change::Attach(part) => match &**part {
                NewPart::Disk(disk) => self.attach_disk(vm, disk),
                NewPart::Nic(nic) => self.attach_nic(vm, nic),
            },
            Change::Detach(device) => self.detach(vm, *device),
        }
    }
}

impl KvmVm {
    /// The guard, for what only a paused machine can do.
    fn guard(&self, tried: &str) -> Result<&PauseGuard, GuestError> {
        match &self.held {
            Held::Whole(guard) => Ok(guard),
            Held::No | Held::Partly(_) => Err(GuestError::new(format!("{tried}: the machine is not paused"))),
        }
    }
}

impl HostedVm for KvmVm {
    fn start(&mut self) -> Result<(), GuestError> {
        self.resume()
    }

    fn last_owners(&self) -> Result<Vec<Option<drover_block::Owner>>, GuestError> {
        let tried = "read who last took a volume";
        self.backends
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|backend| !backend.info().read_only)
            .map(|backend| backend.last_owner().map_err(|error| GuestError::because(tried, error)))
            .collect()
    }

    fn reclaim(&mut self, limit: Duration) -> Result<Reclaimed, GuestError> {
        let tried = "reclaim the guest's free memory";
        let balloon = self.handles.balloon().ok_or_else(|| GuestError::new("the VM has no balloon"))?;
        suspend::wait_loaded(self.machine.memory(), suspend::LOADED_SOON)?;
        self.machine.reclaim_free_memory(&balloon, limit).map_err(|error| GuestError::because(tried, error))
    }

    fn end(self, limit: Duration) -> Result<(), GuestError> {
        let Self { machine, held, .. } = self;
        let stopped = machine.stop(limit);
        // Only now: what held a machine that has been taken apart has nothing to let go of.
        drop(held);
        stopped.map_err(|error| GuestError::because("stop the machine", error))
    }
}

impl MigratableGuest for KvmVm {
    fn shape(&self) -> MachineShape {
        MachineShape {
            vm: self.owner.vm,
            vcpus: self.machine.vcpus(),
            memory: self.machine.memory().layout().ranges().iter().map(Into::into).collect(),
            page_size: PAGE_SIZE as u32,
            devices: self.machine.virtio_devices().iter().map(device_shape).collect(),
            cpu: self.cpu.clone(),
        }
    }

    fn memory(&self) -> &GuestMemory {
        self.machine.memory()
    }

    fn start_dirty_log(&mut self) -> Result<(), GuestError> {
        courtesy::let_guests_go_first();
        suspend::wait_loaded(self.machine.memory(), suspend::LOADED_LIMIT)?;
        self.machine.start_dirty_log().map_err(|error| GuestError::because("log dirty pages", error))
    }

    fn take_dirty(&mut self) -> Result<DirtyPages, GuestError> {
        self.machine.take_dirty().map_err(|error| GuestError::because("take the dirty pages", error))
    }

    fn mark_dirty(&mut self, pages: &DirtyPages) {
        self.machine.mark_dirty(pages);
    }

    fn stop_dirty_log(&mut self) {
        self.machine.stop_dirty_log();
    }

    fn pause(&mut self, limit: Duration) -> Result<(), GuestError> {
        courtesy::hurry();
        let paused = match std::mem::replace(&mut self.held, Held::No) {
            Held::Whole(guard) => Ok(guard),
            Held::Partly(incomplete) => incomplete.retry(limit),
            Held::No => self.machine.pause(limit),
        };
        match paused {
            Ok(guard) => {
                self.held = Held::Whole(guard);
                Ok(())
            }
            Err(incomplete) => {
                let why = chain(incomplete.fault());
                self.held = Held::Partly(incomplete);
                Err(GuestError::because("pause the machine", why))
            }
        }
    }

    fn save(&mut self) -> Result<Vec<Envelope>, GuestError> {
        let tried = "save the machine's state";
        self.machine.save(self.guard(tried)?).map_err(|error| GuestError::because(tried, error))
    }

    fn release_volumes(&mut self) -> Result<(), GuestError> {
        let tried = "release the volumes";
        let began = Instant::now();
        let released = self.machine.release_volumes(self.guard(tried)?);
        info!(took_us = began.elapsed().as_micros(), "volumes released");
        released.map_err(|error| GuestError::because(tried, error))
    }

    fn acquire_volumes(&mut self, epoch: OwnerEpoch) -> Result<(), GuestError> {
        let tried = "acquire the volumes";
        let owner = drover_block::Owner { epoch, ..self.owner };
        let guard = self.guard(tried)?;
        let began = Instant::now();
        disks::while_held_for_a_moment(|| self.machine.acquire_volumes(guard, &owner))
            .map_err(|error| GuestError::because(tried, error))?;
        info!(took_us = began.elapsed().as_micros(), "volumes acquired");
        self.owner = owner;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        let resumed = match std::mem::replace(&mut self.held, Held::No) {
            Held::Whole(guard) => guard.resume(),
            // Lets go, like a guard; what cannot run then ends the machine with an event of its own.
            Held::Partly(_) | Held::No => Ok(()),
        };
        resumed.map_err(|error| GuestError::because("resume the machine", error))
    }

    fn restore(&mut self, states: &[Envelope]) -> Result<(), GuestError> {
        courtesy::hurry();
        let tried = "restore the guest's state";
        self.machine.restore(self.guard(tried)?, states).map_err(|error| GuestError::because(tried, error))
    }

    // In both cases the machine is dropped next, and until then it is held.
    fn retire(&mut self) {}

    fn discard(&mut self) {}
}

/// A disk is known by its volume, and where it is by the order of the disks; anything else by its slot, too.
fn device_shape(device: &VirtioShape) -> DeviceShape {
    let identity = match device.kind {
        VirtioKind::Block => device.identity.clone(),
        _ => format!("{}/{}", device.slot, device.identity),
    };
    DeviceShape { kind: device.state.clone(), identity, version: device.state_version }
}

/// Has RAM's first page allocated while the machine around it is made. A thread of its own, for a fraction of a millisecond; it may
/// do what its parent may. Where there is none, the page is allocated when the kernel is loaded.
fn populate_meanwhile(memory: &GuestMemory) {
    let memory = memory.clone();
    let builder = std::thread::Builder::new().name("populate".to_owned()).stack_size(POPULATE_STACK_BYTES);
    let _ = builder.spawn(move || memory.populate_first());
}

fn volume_owner(owner: Owner) -> drover_block::Owner {
    drover_block::Owner { vm: owner.vm, node: owner.node, epoch: owner.epoch, pid: jail::host_pid() }
}

fn stop_reason(event: &MachineEvent) -> StopReason {
    match event {
        MachineEvent::GuestShutdown | MachineEvent::GuestReset => StopReason::GuestShutdown,
        MachineEvent::Fault(_) => StopReason::GuestFault,
        MachineEvent::Fenced => StopReason::Fenced,
        _ => StopReason::VmmFailure,
    }
}

impl From<BuildError> for Refused {
    fn from(error: BuildError) -> Self {
        let text = chain(&error);
        let invalid = |field: &str| Self::Invalid(InvalidField::new(format!("{field}: {text}")));
        match error {
            BuildError::Vcpus { .. } => invalid("config.vcpus"),
            BuildError::MemorySize { .. } | BuildError::MemoryTooSmall { .. } => {
                invalid("config.memory_bytes")
            }
            BuildError::InvalidCmdline { .. } | BuildError::CmdlineTooLong { .. } => {
                invalid("config.cmdline")
            }
            BuildError::TooManyDisks { .. } => invalid("config.disks"),
            BuildError::TooManyDevices { .. }
            | BuildError::NoSuchSlot { .. }
            | BuildError::SlotTaken { .. } => invalid("config"),
            BuildError::NotAKernel { .. } | BuildError::KernelLayout { .. } => invalid("config.kernel_path"),
            BuildError::InitrdTooLarge { .. } => invalid("config.memory_bytes"),
            BuildError::OpenInitrd { .. } => Self::Precondition(format!("config.initrd_path: {text}")),
            BuildError::Hypervisor(HypervisorError::CpuBaseline { .. }) => {
                Self::Precondition(format!("config.platform.cpu_baseline: {text}"))
            }
            BuildError::OpenKernel { .. } => Self::Precondition(format!("config.kernel_path: {text}")),
            BuildError::Disk { .. } => Self::Precondition(format!("config.disks: {text}")),
            // This host runs no machines at all; the text says what to do about it.
            BuildError::Hypervisor(
                HypervisorError::NoDevice { .. }
                | HypervisorError::NoPermission { .. }
                | HypervisorError::MissingCapability { .. },
            ) => Self::Precondition(text),
            _ => Self::Failed(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use drover_units::Bytes;
    use tonic::{Code, Status};

    use super::*;

    #[test]
    fn every_end_has_its_reason() {
        let check = |event, reason| assert_eq!(stop_reason(&event), reason, "{event}");
        check(MachineEvent::GuestShutdown, StopReason::GuestShutdown);
        check(MachineEvent::GuestReset, StopReason::GuestShutdown);
        check(MachineEvent::Fault("triple fault".to_owned()), StopReason::GuestFault);
        check(MachineEvent::Failure("disk0".to_owned()), StopReason::VmmFailure);
        check(MachineEvent::Fenced, StopReason::Fenced);
    }

    #[test]
    fn what_the_caller_can_mend_names_its_field() {
        let check = |error: BuildError, code, field: &str| {
            let status = Status::from(Refused::from(error));
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().starts_with(field), "{status}");
        };
        let path = std::path::PathBuf::from("/pool/images/probe");
        let small = Bytes::mib(2);
        check(BuildError::MemorySize { asked: small }, Code::InvalidArgument, "config.memory_bytes");
        let too_small =
            BuildError::MemoryTooSmall { path: path.clone(), memory: small, needed: Bytes::mib(9) };
        check(too_small, Code::InvalidArgument, "config.memory_bytes");
        check(
            BuildError::NotAKernel { path, reason: "it is a poem" },
            Code::InvalidArgument,
            "config.kernel_path",
        );
        check(BuildError::TooManyDisks { asked: 99 }, Code::InvalidArgument, "config.disks");
    }
}
