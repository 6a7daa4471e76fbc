//! A VM's network interfaces, and the limits of its devices.

use drover_cluster_state::{
    BalloonSpec, Cid, DISK_QUEUES_MAX, DeviceBus, Extras, Hardware, Limit, Limits, Nic, OnReset, Rate,
};
use drover_ids::VmId;
use drover_reconcile::admission::{AdmissionError, DeviceRequest, HardwareRequest};
use drover_wire::{control::v1 as wire, node::v1 as node, vm::v1 as vm};

/// The devices of a VM that a client wants.
pub(super) fn request(
    nics: Vec<wire::Nic>,
    limits_of: Vec<wire::VolumeLimits>,
    hardware: HardwareRequest,
) -> Result<DeviceRequest, AdmissionError> {
    let volume = |message: wire::VolumeLimits| -> Result<_, AdmissionError> {
        Ok((message.volume, limits("spec.volume_limits", message.limits)?))
    };
    Ok(DeviceRequest {
        nics: nics.into_iter().map(nic).collect::<Result<_, _>>()?,
        volume_limits: limits_of.into_iter().map(volume).collect::<Result<_, _>>()?,
        hardware,
    })
}

/// What kind of machine a client wants.
pub(super) fn hardware_request(spec: &wire::VmSpec) -> Result<HardwareRequest, AdmissionError> {
    let queues = u16::try_from(spec.disk_queues).ok().filter(|queues| *queues <= DISK_QUEUES_MAX);
    let bus = match vm::DeviceBus::try_from(spec.bus) {
        Ok(vm::DeviceBus::Unspecified) => DeviceBus::AsNeeded,
        Ok(vm::DeviceBus::VirtioMmio) => DeviceBus::Mmio,
        Ok(vm::DeviceBus::VirtioPci) => DeviceBus::Pci,
        Err(_) => return Err(invalid("spec.bus", format!("it is {}", spec.bus), "a bus of DeviceBus")),
    };
    let on_reset = match vm::GuestReset::try_from(spec.on_reset) {
        Ok(vm::GuestReset::Unspecified) => OnReset::Restart,
        Ok(vm::GuestReset::End) => OnReset::End,
        Err(_) => {
            let problem = format!("it is {}", spec.on_reset);
            return Err(invalid("spec.on_reset", problem, "an action of GuestReset"));
        }
    };
    Ok(HardwareRequest {
        disk_queues: queues.ok_or_else(|| {
            let valid = format!("at most {DISK_QUEUES_MAX}; 0 is 1");
            invalid("spec.disk_queues", format!("there are {}", spec.disk_queues), &valid)
        })?,
        initrd: spec.initrd.clone(),
        bus,
        on_reset,
        extras: extras(spec.devices.as_ref())?,
    })
}

fn extras(message: Option<&vm::VirtioDevices>) -> Result<Extras, AdmissionError> {
    let Some(vm::VirtioDevices { rng, console, balloon, vsock }) = message else {
        return Ok(Extras::default());
    };
    let cid = |vsock: &vm::VsockDevice| {
        if !vsock.socket_path.is_empty() {
            let problem = "the agent says where the socket is".to_owned();
            return Err(invalid("spec.devices.vsock.socket_path", problem, "no path"));
        }
        Cid::new(vsock.cid).ok_or_else(|| {
            invalid("spec.devices.vsock.cid", format!("it is {}", vsock.cid), "3 to 4294967294")
        })
    };
    Ok(Extras {
        rng: *rng,
        console: *console,
        balloon: balloon.map(|balloon| BalloonSpec { keep_on_oom: balloon.keep_on_oom }),
        vsock: vsock.as_ref().map(cid).transpose()?,
    })
}

/// Devices beside disks and interfaces, for a client and for an agent.
pub(super) fn extras_message(hardware: &Hardware) -> Option<vm::VirtioDevices> {
    let Extras { rng, console, balloon, vsock } = hardware.extras;
    (hardware.extras != Extras::default()).then(|| vm::VirtioDevices {
        rng,
        console,
        balloon: balloon.map(|balloon| vm::BalloonDevice { keep_on_oom: balloon.keep_on_oom }),
        vsock: vsock.map(|cid| vm::VsockDevice { cid: cid.get().into(), socket_path: String::new() }),
    })
}

pub(super) fn bus(hardware: &Hardware) -> vm::DeviceBus {
    match hardware.bus {
        DeviceBus::AsNeeded => vm::DeviceBus::Unspecified,
        DeviceBus::Mmio => vm::DeviceBus::VirtioMmio,
        DeviceBus::Pci => vm::DeviceBus::VirtioPci,
    }
}

pub(super) fn on_reset(hardware: &Hardware) -> vm::GuestReset {
    match hardware.on_reset {
        OnReset::Restart => vm::GuestReset::Unspecified,
        OnReset::End => vm::GuestReset::End,
    }
}

/// An interface that a client wants.
pub(crate) fn nic(message: wire::Nic) -> Result<Nic, AdmissionError> {
    let invalid = |problem: String, valid: &str| invalid("spec.nics", problem, valid);
    let fixed_mac = match message.mac.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|error| invalid(format!("{error}"), "such an address, or none"))?),
    };
    let queue_pairs = u16::try_from(message.queue_pairs).ok().filter(|pairs| *pairs <= 64);
    let mtu = u16::try_from(message.mtu).ok().filter(|mtu| *mtu == 0 || *mtu >= 68);
    Ok(Nic {
        fixed_mac,
        network: message.network,
        queue_pairs: queue_pairs.ok_or_else(|| {
            invalid(format!("there are {} pairs of queues", message.queue_pairs), "at most 64")
        })?,
        mtu: mtu.ok_or_else(|| invalid(format!("the MTU is {}", message.mtu), "68 to 65535, or 0"))?,
        limits: limits("spec.nics", message.limits)?,
        place: 0,
    })
}

fn invalid(field: &'static str, problem: String, valid: &str) -> AdmissionError {
    AdmissionError::Invalid { field, problem, valid: valid.to_owned() }
}

/// Limits that a client sets; none where there is no message.
pub(crate) fn limits(field: &'static str, message: Option<vm::Limits>) -> Result<Limits, AdmissionError> {
    let rate = |message: Option<vm::Rate>| {
        let rate = message.map(|rate| Rate::new(rate.per_second, (rate.burst > 0).then_some(rate.burst)));
        rate.transpose().map_err(|error| invalid(field, error.to_string(), "1 to 2^50"))
    };
    let limit = |message: Option<vm::Limit>| -> Result<Limit, AdmissionError> {
        let vm::Limit { requests, bytes } = message.unwrap_or_default();
        Ok(Limit { requests: rate(requests)?, bytes: rate(bytes)? })
    };
    let vm::Limits { total, inbound, outbound } = message.unwrap_or_default();
    Ok(Limits { total: limit(total)?, inbound: limit(inbound)?, outbound: limit(outbound)? })
}

/// Limits for whoever enforces or shows them; nothing where there are none.
pub(crate) fn limits_message(limits: Limits) -> Option<vm::Limits> {
    let rate = |rate: Rate| vm::Rate { per_second: rate.per_second(), burst: rate.burst() };
    let limit = |limit: Limit| {
        (limit != Limit::default())
            .then(|| vm::Limit { requests: limit.requests.map(rate), bytes: limit.bytes.map(rate) })
    };
    (!limits.is_unlimited()).then(|| vm::Limits {
        total: limit(limits.total),
        inbound: limit(limits.inbound),
        outbound: limit(limits.outbound),
    })
}

/// An interface for a client.
pub(super) fn shown(vm: VmId, (n, nic): (usize, &Nic)) -> wire::Nic {
    wire::Nic {
        mac: nic.mac(vm, n).to_string(),
        network: nic.network.clone(),
        queue_pairs: nic.queue_pairs.into(),
        mtu: nic.mtu.into(),
        limits: limits_message(nic.limits),
    }
}

/// An interface for an agent.
pub(super) fn for_agent(vm: VmId, (n, nic): (usize, &Nic)) -> node::Nic {
    node::Nic {
        mac: nic.mac(vm, n).to_string(),
        network: nic.network.clone(),
        queue_pairs: nic.queue_pairs.into(),
        mtu: nic.mtu.into(),
        limits: limits_message(nic.limits),
        place: nic.place.into(),
    }
}
