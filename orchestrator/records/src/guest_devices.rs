//! Stored form of a VM's devices.

use drover_cluster_state::{
    BalloonSpec, Cid, DeviceBus, Extras, GuestDevices, Hardware, Limit, Limits, Mac, Nic, OnReset, Rate,
};
use drover_ids::VolumeId;
use drover_wire::{store::v1 as stored, vm::v1 as vm};

use crate::{
    RecordError,
    fields::{id, id_bytes, invalid, optional_name},
};

/// The fields of a stored VM that say what kind of machine it is.
pub(crate) fn put_hardware(hardware: &Hardware, message: &mut stored::VmSpec) {
    let Hardware { disk_queues, initrd, bus, on_reset, extras } = hardware;
    message.devices = extras_message(extras);
    message.disk_queues = (*disk_queues).into();
    message.initrd = initrd.as_ref().map(ToString::to_string).unwrap_or_default();
    message.set_bus(match bus {
        DeviceBus::AsNeeded => vm::DeviceBus::Unspecified,
        DeviceBus::Mmio => vm::DeviceBus::VirtioMmio,
        DeviceBus::Pci => vm::DeviceBus::VirtioPci,
    });
    message.set_on_reset(match on_reset {
        OnReset::Restart => vm::GuestReset::Unspecified,
        OnReset::End => vm::GuestReset::End,
    });
}

pub(crate) fn hardware(message: &stored::VmSpec) -> Result<Hardware, RecordError> {
    let bus = match vm::DeviceBus::try_from(message.bus) {
        Ok(vm::DeviceBus::Unspecified) => DeviceBus::AsNeeded,
        Ok(vm::DeviceBus::VirtioMmio) => DeviceBus::Mmio,
        Ok(vm::DeviceBus::VirtioPci) => DeviceBus::Pci,
        Err(_) => return Err(invalid("vm.spec.bus", message.bus)),
    };
    let on_reset = match vm::GuestReset::try_from(message.on_reset) {
        Ok(vm::GuestReset::Unspecified) => OnReset::Restart,
        Ok(vm::GuestReset::End) => OnReset::End,
        Err(_) => return Err(invalid("vm.spec.on_reset", message.on_reset)),
    };
    let disk_queues = u16::try_from(message.disk_queues);
    Ok(Hardware {
        disk_queues: disk_queues.map_err(|_| invalid("vm.spec.disk_queues", message.disk_queues))?,
        initrd: optional_name("vm.spec.initrd", &message.initrd)?,
        bus,
        on_reset,
        extras: extras(message.devices.as_ref())?,
    })
}

fn extras_message(extras: &Extras) -> Option<vm::VirtioDevices> {
    let Extras { rng, console, balloon, vsock } = *extras;
    (*extras != Extras::default()).then(|| vm::VirtioDevices {
        rng,
        console,
        balloon: balloon.map(|balloon| vm::BalloonDevice { keep_on_oom: balloon.keep_on_oom }),
        vsock: vsock.map(|cid| vm::VsockDevice { cid: cid.get().into(), socket_path: String::new() }),
    })
}

fn extras(message: Option<&vm::VirtioDevices>) -> Result<Extras, RecordError> {
    let Some(vm::VirtioDevices { rng, console, balloon, vsock }) = message else {
        return Ok(Extras::default());
    };
    let cid = |vsock: &vm::VsockDevice| {
        Cid::new(vsock.cid).ok_or_else(|| invalid("vm.spec.devices.vsock.cid", vsock.cid))
    };
    Ok(Extras {
        rng: *rng,
        console: *console,
        balloon: balloon.map(|balloon| BalloonSpec { keep_on_oom: balloon.keep_on_oom }),
        vsock: vsock.as_ref().map(cid).transpose()?,
    })
}

/// The fields of a stored VM that say what its devices are.
pub(crate) fn to_messages(devices: &GuestDevices) -> (Vec<stored::Nic>, Vec<stored::DiskLimits>) {
    let nic = |nic: &Nic| stored::Nic {
        mac: nic.fixed_mac.map(|mac| mac.bytes().to_vec()).unwrap_or_default(),
        network: nic.network.clone(),
        queue_pairs: nic.queue_pairs.into(),
        mtu: nic.mtu.into(),
        limits: limits_message(nic.limits),
        place: nic.place.into(),
    };
    let disk = |(volume, limits): (&VolumeId, &Limits)| stored::DiskLimits {
        volume_id: id_bytes(volume.as_u128()),
        limits: limits_message(*limits),
    };
    (devices.nics.iter().map(nic).collect(), devices.disk_limits.iter().map(disk).collect())
}

pub(crate) fn from_messages(
    nics: Vec<stored::Nic>,
    disks: Vec<stored::DiskLimits>,
    hardware: Hardware,
) -> Result<GuestDevices, RecordError> {
    let small = |field, value| u16::try_from(value).map_err(|_| invalid(field, "more than 65535"));
    let nic = |message: stored::Nic| -> Result<Nic, RecordError> {
        let mac = match &message.mac[..] {
            [] => None,
            bytes => {
                let mac = bytes.try_into().ok().and_then(Mac::new);
                Some(mac.ok_or_else(|| invalid("nic.mac", "not the address of an interface"))?)
            }
        };
        Ok(Nic {
            fixed_mac: mac,
            network: message.network,
            queue_pairs: small("nic.queue_pairs", message.queue_pairs)?,
            mtu: small("nic.mtu", message.mtu)?,
            limits: limits(message.limits)?,
            place: place(message.place)?,
        })
    };
    let disk = |message: stored::DiskLimits| -> Result<(VolumeId, Limits), RecordError> {
        let volume = id("disk_limits.volume_id", &message.volume_id, VolumeId::from_u128)?;
        Ok((volume, limits(message.limits)?))
    };
    Ok(GuestDevices {
        nics: nics.into_iter().map(nic).collect::<Result<_, _>>()?,
        disk_limits: disks.into_iter().map(disk).collect::<Result<_, _>>()?,
        hardware,
        ..GuestDevices::default()
    })
}

/// The fields of a stored VM that say where its disks are.
pub(crate) fn put_places(devices: &GuestDevices, message: &mut stored::VmSpec) {
    let place = |(volume, place): (&VolumeId, &u8)| stored::DiskPlace {
        volume_id: id_bytes(volume.as_u128()),
        place: (*place).into(),
    };
    message.disk_places = devices.disk_places.iter().map(place).collect();
    message.seed_place = devices.seed_place.into();
}

pub(crate) fn take_places(
    devices: &mut GuestDevices,
    (places, seed): (Vec<stored::DiskPlace>, u32),
) -> Result<(), RecordError> {
    for message in places {
        let volume = id("disk_places.volume_id", &message.volume_id, VolumeId::from_u128)?;
        devices.disk_places.insert(volume, place(message.place)?);
    }
    devices.seed_place = place(seed)?;
    Ok(())
}

fn place(place: u32) -> Result<u8, RecordError> {
    u8::try_from(place).map_err(|_| invalid("place", place))
}

fn limits_message(limits: Limits) -> Option<vm::Limits> {
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

fn limits(message: Option<vm::Limits>) -> Result<Limits, RecordError> {
    let rate = |message: Option<vm::Rate>| {
        let rate = message.map(|rate| Rate::new(rate.per_second, (rate.burst > 0).then_some(rate.burst)));
        rate.transpose().map_err(|error| invalid("limits", error))
    };
    let limit = |message: Option<vm::Limit>| -> Result<Limit, RecordError> {
        let vm::Limit { requests, bytes } = message.unwrap_or_default();
        Ok(Limit { requests: rate(requests)?, bytes: rate(bytes)? })
    };
    let vm::Limits { total, inbound, outbound } = message.unwrap_or_default();
    Ok(Limits { total: limit(total)?, inbound: limit(inbound)?, outbound: limit(outbound)? })
}
