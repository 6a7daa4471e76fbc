//! Create, start, stop and delete a VM.

use std::{collections::BTreeSet, ops::RangeInclusive, sync::Arc, time::Duration};

use drover_cloud_init::Seed;
use drover_cluster_state::{
    ClusterEvent, ClusterState, Constraints, Desired, GuestDevices, Image, Key, Name, NameKind, NameRecord,
    NumaPolicy, Operation, OperationKind, OperationState, Ownership, Record, Restarts, StallPolicy,
    StopCause, Stored, Subject, Txn, Vm, VmSpec, Volume, VolumeAttachment, VolumeState, WallTime, event_kind,
};
use drover_ids::{Generation, OperationId, VmId, VolumeId};
use drover_units::{Bytes, PAGE_SIZE, VcpuCount};

use super::{
    AdmissionError, Admitted, DeviceRequest, RequestIdentity, find_vm, is_about,
    limits::{resolve_devices, resolve_hardware},
    project::admit_to_project,
    repeated, require_idle, running_operation,
    storage::{require_settled, require_settled_volumes},
};

/// Most vCPUs of a VM: xAPIC ids are 8 bits wide, and two of them are not for CPUs.
const VCPUS_MAX: u32 = 254;
/// Most disks of a VM: each takes one of the interrupt lines that a VM without PCI has to spare.
pub(super) const VOLUMES_MAX: usize = 8;
/// Longest command line, bytes: Linux takes 2048, and the VMM adds a device per disk.
const CMDLINE_LEN_MAX: usize = 1536;
/// Most memory of a VM: what 46 bits of guest-physical address, the least that any CPU of the last ten years has, leave
/// below the devices.
const MEMORY_MAX: Bytes = Bytes::gib(16 << 10);
/// How long storage may take until it is said to have stalled, as vmmd has it: anything shorter would call load a stall, and
/// after an hour nobody is waiting any more.
const STALL_DEADLINES: RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(3600);

/// A request for a new VM, as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVm {
    /// Its name.
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory, bytes.
    pub memory_bytes: u64,
    /// Boot image, by name.
    pub image: String,
    /// Kernel command line.
    pub cmdline: String,
    /// Volumes, by name or id.
    pub volumes: Vec<String>,
    /// Empty: no group.
    pub anti_affinity_group: String,
    /// Higher is restarted first.
    pub priority: u32,
    /// What cloud-init in the guest is told.
    pub cloud_init: Option<Arc<Seed>>,
    /// Its network interfaces, and what its devices may do.
    pub devices: DeviceRequest,
    /// Where it may run, beyond what it takes.
    pub constraints: Constraints,
    /// What becomes of it when its storage does not answer. `None`: what its pools say.
    pub stall: Option<StallPolicy>,
    /// Whether it is to run at once.
    pub start: bool,
}

/// Admits a new VM: its record, its name, its volumes' attachment and its operation, all in one transaction.
pub fn create_vm(
    state: &ClusterState,
    request: &CreateVm,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let id = identity.vm();
    if let Some(earlier) = repeated(state, identity, |o| is_about(o, &OperationKind::VmCreate, id))? {
        return Ok(earlier);
    }
    let mut txn = Txn::new();
    let spec = resolve_spec(state, request, &mut txn)?;
    require_name_free(state, &spec.name)?;
    admit_to_project(state, &mut txn, &spec, 1)?;
    for volume in find_volumes(state, &request.volumes)? {
        let attached = Volume { attached: Some(id), ..volume.value.clone() };
        txn.update(volume.revision, Record::Volume(attached));
    }
    let operation = identity.operation();
    let name = spec.name.clone();
    let kind = OperationKind::VmCreate;
    txn.create(Record::Operation(Operation::new(operation, kind, Subject::Vm(id), name, now)));
    let desired = if request.start { Desired::Running } else { Desired::Stopped };
    create_records(&mut txn, id, spec, desired, operation, now);
    Ok(Admitted { operation, txn: Some(txn) })
}

/// What a request's names mean. Nothing else is checked of them than that they are there.
pub(super) fn resolve_spec(
    state: &ClusterState,
    request: &CreateVm,
    txn: &mut Txn,
) -> Result<VmSpec, AdmissionError> {
    let name = parse_name("spec.name", &request.name)?;
    let image = find_image(state, "spec.image", &request.image)?;
    check_shape(request, image)?;
    let volumes = find_volumes(state, &request.volumes)?;
    // Narrows the race with the image's removal; who wins it nevertheless gets a start that fails and says why.
    txn.require(Key::Image(image.name.clone()), image);
    let attach =
        |v: &&Stored<Volume>| VolumeAttachment { volume: v.id, pool: v.pool.clone(), read_only: false };
    Ok(VmSpec {
        name,
        vcpus: VcpuCount::new(request.vcpus),
        memory: Bytes::new(request.memory_bytes),
        image: image.name.clone(),
        image_pool: image.pool.clone(),
        cmdline: request.cmdline.clone(),
        volumes: volumes.iter().map(attach).collect(),
        anti_affinity_group: match request.anti_affinity_group.as_str() {
            "" => None,
            group => Some(parse_name("spec.anti_affinity_group", group)?),
        },
        priority: request.priority,
        cloud_init: request.cloud_init.clone(),
        devices: {
            let attached: Vec<_> = volumes.iter().map(|volume| (volume.id, volume.name.as_str())).collect();
            let hardware = resolve_hardware(state, &request.devices.hardware, &image.pool, txn)?;
            GuestDevices { hardware, ..resolve_devices(&request.devices, &attached)? }
        },
        constraints: request.constraints.clone(),
        stall: request.stall,
    })
}

pub(super) fn require_name_free(state: &ClusterState, name: &Name) -> Result<(), AdmissionError> {
    match state.names.get(&(NameKind::Vm, name.clone())) {
        None => Ok(()),
        Some(holder) => Err(AdmissionError::NameTaken {
            field: "spec.name",
            kind: "VM",
            name: name.to_string(),
            holder: holder.holder.to_string(),
        }),
    }
}

/// A VM's record and its name's.
pub(super) fn create_records(
    txn: &mut Txn,
    id: VmId,
    spec: VmSpec,
    desired: Desired,
    operation: OperationId,
    now: WallTime,
) {
    let vm = Vm {
        id,
        spec,
        generation: Generation::new(1),
        desired,
        stop_cause: (desired != Desired::Running).then_some(StopCause::Requested),
        suspended_on: None,
        ownership: Ownership::new(),
        restarts: Restarts::default(),
        operation: Some(operation),
        created_at: now,
    };
    let name = vm.spec.name.clone();
    txn.create(Record::Name(NameRecord { kind: NameKind::Vm, name, holder: Subject::Vm(id) }));
    txn.event(event(now, event_kind::VM_CREATED, &vm, describe(&vm.spec)));
    txn.create(Record::Vm(vm));
}

/// Admits the start of a VM.
pub fn start_vm(
    state: &ClusterState,
    vm: &str,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let vm = find_vm(state, "vm", vm)?;
    if let Some(earlier) = repeated(state, identity, |o| is_about(o, &OperationKind::VmStart, vm.id))? {
        return Ok(earlier);
    }
    require_not_deleted(vm)?;
    require_idle(state, vm)?;
    if vm.desired == Desired::Running {
        let problem = format!("VM '{}' is already to run ({:?})", vm.spec.name, state.vm_phase(vm));
        return Err(AdmissionError::wrong_state("vm", problem, "a stopped VM"));
    }
    let mut admitted = admit(state, vm, OperationKind::VmStart, Desired::Running, identity, now);
    if let Some(txn) = &mut admitted.txn {
        require_settled_volumes(state, vm, txn)?;
    }
    Ok(admitted)
}

/// Longest that a guest may be waited for.
const GRACEFUL_MS_MAX: u32 = 3_600_000;

/// Admits the stop of a VM, whose guest has so many milliseconds to shut itself down. Takes the place of an operation that
/// would have it run.
pub fn stop_vm(
    state: &ClusterState,
    (vm, graceful_ms): (&str, u32),
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let vm = find_vm(state, "vm", vm)?;
    let kind = OperationKind::VmStop { graceful_ms };
    if let Some(earlier) = repeated(state, identity, |o| is_about(o, &kind, vm.id))? {
        return Ok(earlier);
    }
    if graceful_ms > GRACEFUL_MS_MAX {
        let valid = format!("at most {GRACEFUL_MS_MAX}, or 0 for at once");
        return Err(AdmissionError::invalid("graceful_ms", format!("it is {graceful_ms}"), valid));
    }
    require_not_deleted(vm)?;
    // Whoever has no more time for its guest takes the place of who had.
    let graceful =
        |operation: &Operation| matches!(operation.kind, OperationKind::VmStop { graceful_ms: 1.. });
    let hastened =
        graceful_ms == 0 && running_operation(state, vm).is_some_and(|operation| graceful(operation));
    if vm.desired == Desired::Stopped && !hastened {
        require_idle(state, vm)?;
        if vm.suspended_on.is_some() {
            let kind = OperationKind::VmStop { graceful_ms: 0 };
            return Ok(admit(state, &without_memory(vm), kind, Desired::Stopped, identity, now));
        }
        let problem = format!("VM '{}' is already to be stopped", vm.spec.name);
        return Err(AdmissionError::wrong_state("vm", problem, "a running VM"));
    }
    // Unless somebody resumes it at this moment.
    if vm.suspended_on.is_some_and(|node| vm.ownership.candidates().all(|owner| owner.node != node)) {
        return Ok(admit(state, &without_memory(vm), kind, Desired::Stopped, identity, now));
    }
    Ok(admit(state, vm, kind, Desired::Stopped, identity, now))
}

/// A suspended VM is stopped by forgetting its memory.
fn without_memory(vm: &Stored<Vm>) -> Stored<Vm> {
    Stored { value: Vm { suspended_on: None, ..vm.value.clone() }, ..vm.clone() }
}

/// Refuses what would leave a suspended VM's memory with devices, or contents of disks, that it does not know.
pub(super) fn require_not_suspended(vm: &Vm) -> Result<(), AdmissionError> {
    if vm.suspended_on.is_none() {
        return Ok(());
    }
    let problem =
        format!("VM '{}' is suspended, and its memory fits its devices and disks as they are", vm.spec.name);
    let valid = "a VM that runs, or is stopped: stopping a suspended VM discards its memory";
    Err(AdmissionError::wrong_state("vm", problem, valid))
}

/// Admits the removal of a VM, running or not. Its volumes stay. Takes the place of whatever works on it.
pub fn delete_vm(
    state: &ClusterState,
    vm: &str,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    // A repetition after the VM has gone still finds its operation.
    let id = find_vm(state, "vm", vm).map(|vm| vm.id);
    let is_same = |operation: &Operation| match &id {
        Ok(id) => is_about(operation, &OperationKind::VmDelete, *id),
        Err(_) => operation.kind == OperationKind::VmDelete && named(operation, vm),
    };
    if let Some(earlier) = repeated(state, identity, is_same)? {
        return Ok(earlier);
    }
    let vm = find_vm(state, "vm", vm)?;
    require_not_deleted(vm)?;
    Ok(admit(state, vm, OperationKind::VmDelete, Desired::Deleted, identity, now))
}

/// Changes what is wanted of a VM, with an operation that follows it; an earlier one gives way.
fn admit(
    state: &ClusterState,
    vm: &Stored<Vm>,
    kind: OperationKind,
    desired: Desired,
    identity: &RequestIdentity,
    now: WallTime,
) -> Admitted {
    let operation = identity.operation();
    let mut txn = Txn::new();
    if let Some(earlier) = running_operation(state, vm) {
        let reason = format!("{kind} was asked for meanwhile (operation {operation})");
        let ended = earlier.ended(OperationState::Cancelled, reason, now);
        txn.update(earlier.revision, Record::Operation(ended));
    }
    let mut changed = vm.value.clone();
    changed.desired = desired;
    changed.generation = changed.generation.next();
    changed.operation = Some(operation);
    changed.stop_cause = (desired != Desired::Running).then_some(StopCause::Requested);
    if desired == Desired::Running {
        // Somebody has looked at it: earlier failures no longer slow its start.
        changed.restarts.failures = 0;
    }
    let name = vm.spec.name.clone();
    txn.create(Record::Operation(Operation::new(operation, kind, Subject::Vm(vm.id), name, now)));
    txn.update(vm.revision, Record::Vm(changed));
    Admitted { operation, txn: Some(txn) }
}

fn require_not_deleted(vm: &Vm) -> Result<(), AdmissionError> {
    if vm.desired != Desired::Deleted {
        return Ok(());
    }
    let problem = format!("VM '{}' is being deleted", vm.spec.name);
    Err(AdmissionError::wrong_state("vm", problem, "a VM that is to stay"))
}

fn named(operation: &Operation, text: &str) -> bool {
    operation.subject_name.as_str() == text || operation.subject.to_string() == text
}

fn describe(spec: &VmSpec) -> String {
    format!(
        "{} vCPU(s), {}, image '{}', {} volume(s)",
        spec.vcpus,
        spec.memory,
        spec.image,
        spec.volumes.len()
    )
}

fn event(at: WallTime, kind: &'static str, vm: &Vm, message: String) -> ClusterEvent {
    ClusterEvent {
        at,
        kind: kind.into(),
        subject_id: vm.id.to_string(),
        subject_name: vm.spec.name.to_string(),
        message,
    }
}

pub(super) fn parse_name(field: &'static str, text: &str) -> Result<Name, AdmissionError> {
    Name::new(text).map_err(|error| AdmissionError::Invalid {
        field,
        problem: error.to_string(),
        valid: "a name such as 'web-1'".to_owned(),
    })
}

pub(super) fn find_image<'a>(
    state: &'a ClusterState,
    field: &'static str,
    text: &str,
) -> Result<&'a Stored<Image>, AdmissionError> {
    let image = Name::new(text).ok().and_then(|name| state.images.get(&name));
    image
        .ok_or_else(|| AdmissionError::not_found(field, "image", text, state.images.keys().map(Name::as_str)))
}

fn check_shape(request: &CreateVm, image: &Image) -> Result<(), AdmissionError> {
    if request.vcpus == 0 || request.vcpus > VCPUS_MAX {
        return Err(AdmissionError::invalid(
            "spec.vcpus",
            format!("it is {}", request.vcpus),
            format!("1 to {VCPUS_MAX}"),
        ));
    }
    let memory = Bytes::new(request.memory_bytes);
    let exact = request.memory_bytes;
    if memory < image.min_memory {
        let problem = format!("{memory} ({exact} bytes) is less than image '{}' needs", image.name);
        let valid = format!("at least {} ({} bytes)", image.min_memory, image.min_memory.get());
        return Err(AdmissionError::invalid("spec.memory_bytes", problem, valid));
    }
    if memory == Bytes::ZERO || memory > MEMORY_MAX || memory.to_pages().is_none() {
        let valid = format!("a multiple of {PAGE_SIZE}, more than 0, at most {MEMORY_MAX}");
        return Err(AdmissionError::invalid("spec.memory_bytes", format!("it is {exact} bytes"), valid));
    }
    if request.cmdline.len() > CMDLINE_LEN_MAX {
        let problem = format!("it has {} bytes", request.cmdline.len());
        return Err(AdmissionError::invalid(
            "spec.cmdline",
            problem,
            format!("at most {CMDLINE_LEN_MAX} bytes"),
        ));
    }
    if !request.cmdline.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
        return Err(AdmissionError::invalid(
            "spec.cmdline",
            "it has a character that is not printable ASCII",
            "printable ASCII",
        ));
    }
    check_binding(&request.constraints)?;
    check_stall("spec.stall.deadline_ms", request.stall)?;
    // The seed is a disk as well.
    let volumes_max = VOLUMES_MAX - usize::from(request.cloud_init.is_some());
    if request.volumes.len() > volumes_max {
        let problem = format!("there are {}", request.volumes.len());
        return Err(AdmissionError::invalid("spec.volumes", problem, format!("at most {volumes_max}")));
    }
    Ok(())
}

/// Refuses deadlines that vmmd would refuse: it could not be started.
pub(super) fn check_stall(field: &'static str, stall: Option<StallPolicy>) -> Result<(), AdmissionError> {
    match stall.and_then(|stall| stall.deadline) {
        Some(deadline) if !STALL_DEADLINES.contains(&deadline) => Err(AdmissionError::invalid(
            field,
            format!("it is {}", deadline.as_millis()),
            format!(
                "{} to {}, or 0 for the default",
                STALL_DEADLINES.start().as_millis(),
                STALL_DEADLINES.end().as_millis()
            ),
        )),
        _ => Ok(()),
    }
}

/// Placement finds room on one NUMA node, for dedicated threads and for hugepages; vmmd does not bind a VM to them. A VM
/// that must have them would only seem to.
fn check_binding(constraints: &Constraints) -> Result<(), AdmissionError> {
    let what = match constraints {
        Constraints { hugepages: Some(_), .. } => "hugepages as guest memory",
        Constraints { pinned: true, .. } => "a host thread of its own for each vCPU",
        Constraints { numa: NumaPolicy::Single, .. } => "memory and vCPUs bound to one NUMA node",
        _ => return Ok(()),
    };
    let problem = format!("vmmd of this version cannot give a VM {what}");
    let valid = "a VM without; `drover placement explain` says where one with it would have room";
    Err(AdmissionError::wrong_state("spec.constraints", problem, valid))
}

fn find_volumes<'a>(
    state: &'a ClusterState,
    texts: &[String],
) -> Result<Vec<&'a Stored<Volume>>, AdmissionError> {
    const FIELD: &str = "spec.volumes";
    let mut seen = BTreeSet::new();
    let mut volumes = Vec::with_capacity(texts.len());
    for text in texts {
        let volume = find_volume(state, FIELD, text)?;
        if !seen.insert(volume.id) {
            let problem = format!("volume '{}' is listed twice", volume.name);
            return Err(AdmissionError::invalid(FIELD, problem, "each volume once"));
        }
        if let Some(holder) = volume.attached {
            let vm = state.vms.get(&holder).map_or_else(|| holder.to_string(), |vm| vm.spec.name.to_string());
            return Err(AdmissionError::VolumeAttached { field: FIELD, volume: volume.name.clone(), vm });
        }
        if volume.state != VolumeState::Ready {
            let problem = format!("volume '{}' is not ready ({:?})", volume.name, volume.state);
            return Err(AdmissionError::wrong_state(FIELD, problem, "a volume that is ready"));
        }
        require_settled(state, FIELD, volume)?;
        volumes.push(volume);
    }
    Ok(volumes)
}

pub(super) fn find_volume<'a>(
    state: &'a ClusterState,
    field: &'static str,
    text: &str,
) -> Result<&'a Stored<Volume>, AdmissionError> {
    let by_id = text.parse::<VolumeId>().ok().and_then(|id| state.volumes.get(&id));
    by_id.or_else(|| state.volume_named(text)).ok_or_else(|| {
        AdmissionError::not_found(field, "volume", text, state.volumes.values().map(|v| v.name.as_str()))
    })
}
