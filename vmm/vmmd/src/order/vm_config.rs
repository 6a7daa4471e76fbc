//! The machine that is asked for.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use drover_ids::{NodeId, VmId, VolumeId};
use drover_machine::{
    CpuBaseline, DISK_QUEUES_MAX, DISKS_MAX, DeviceBus, MEMORY_MAX, MEMORY_MIN, ResetAction, Slot, VCPUS_MAX,
    devices::limits::Limits,
};
use drover_units::{Bytes, PAGE_SIZE, VcpuCount};
use drover_wire::vm::v1 as wire;

use super::{
    devices::DevicesConfig,
    fields::{InvalidField, invalid, parsed},
    limits::limits,
    nic::{NicConfig, nics},
    storage::{DiskPlace, StallPolicy, rbd_image},
};

/// Longest name, bytes: what fits a DNS label four times, and a line of a table.
const NAME_BYTES_MAX: usize = 255;
/// Longest command line that a client may give, bytes: far above what the machine can append its devices to, so that
/// the machine's own limit is the one that is felt, and small enough to be handled without a thought (B9).
const CMDLINE_BYTES_MAX: usize = 4096;

/// A machine that can be built, as far as its description tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmConfig {
    pub(crate) vm: VmId,
    pub(crate) name: String,
    pub(crate) node: NodeId,
    pub(crate) vcpus: VcpuCount,
    pub(crate) memory: Bytes,
    pub(crate) kernel: PathBuf,
    pub(crate) cmdline: String,
    pub(crate) disks: Vec<DiskConfig>,
    pub(crate) stall: StallPolicy,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) platform: Platform,
    pub(crate) nics: Vec<NicConfig>,
    pub(crate) devices: DevicesConfig,
}

/// What kind of machine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Platform {
    pub(crate) bus: DeviceBus,
    pub(crate) cpu: CpuBaseline,
    pub(crate) on_reset: ResetAction,
}

/// A volume in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskConfig {
    pub(crate) volume: VolumeId,
    pub(crate) place: DiskPlace,
    pub(crate) read_only: bool,
    pub(crate) queues: u16,
    pub(crate) limits: Limits,
    pub(crate) slot: Slot,
}

impl TryFrom<wire::VmConfig> for VmConfig {
    type Error = InvalidField;

    fn try_from(message: wire::VmConfig) -> Result<Self, InvalidField> {
        if message.name.is_empty() || message.name.len() > NAME_BYTES_MAX {
            return Err(invalid("config.name", message.name, &format!("1 to {NAME_BYTES_MAX} bytes")));
        }
        let vcpus = VcpuCount::new(message.vcpus);
        if vcpus == VcpuCount::ZERO || vcpus > VCPUS_MAX {
            return Err(invalid("config.vcpus", vcpus, &format!("1 to {VCPUS_MAX}")));
        }
        let cmdline = message.cmdline;
        if cmdline.len() > CMDLINE_BYTES_MAX || !cmdline.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            let expected = format!("at most {CMDLINE_BYTES_MAX} printable ASCII characters");
            return Err(invalid("config.cmdline", cmdline, &expected));
        }
        Ok(Self {
            vm: parsed("config.vm_id", &message.vm_id)?,
            name: message.name,
            node: parsed("config.node_id", &message.node_id)?,
            vcpus,
            memory: memory(message.memory_bytes)?,
            kernel: absolute("config.kernel_path", message.kernel_path)?,
            cmdline,
            disks: disks(message.disks)?,
            stall: message.stall.unwrap_or_default().try_into()?,
            platform: platform(&message.platform.unwrap_or_default(), !message.initrd_path.is_empty())?,
            initrd: match message.initrd_path.as_str() {
                "" => None,
                _ => Some(absolute("config.initrd_path", message.initrd_path)?),
            },
            nics: nics(message.nics)?,
            devices: message.devices.unwrap_or_default().try_into()?,
        })
    }
}

fn platform(message: &wire::Platform, has_initrd: bool) -> Result<Platform, InvalidField> {
    let bus = match wire::DeviceBus::try_from(message.bus) {
        // Kernels that need an initrd are those of distributions, which are at home on PCI.
        Ok(wire::DeviceBus::Unspecified) if has_initrd => DeviceBus::VirtioPci,
        Ok(wire::DeviceBus::Unspecified | wire::DeviceBus::VirtioMmio) => DeviceBus::VirtioMmio,
        Ok(wire::DeviceBus::VirtioPci) => DeviceBus::VirtioPci,
        Err(_) => return Err(invalid("config.platform.bus", message.bus, "a bus of DeviceBus")),
    };
    let cpu = match message.cpu_baseline.as_str() {
        "" => CpuBaseline::HOST,
        name => parsed("config.platform.cpu_baseline", name)?,
    };
    let on_reset = match wire::GuestReset::try_from(message.on_reset) {
        Ok(wire::GuestReset::Unspecified) => ResetAction::Restart,
        Ok(wire::GuestReset::End) => ResetAction::End,
        Err(_) => {
            return Err(invalid("config.platform.on_reset", message.on_reset, "an action of GuestReset"));
        }
    };
    Ok(Platform { bus, cpu, on_reset })
}

fn memory(bytes: u64) -> Result<Bytes, InvalidField> {
    let memory = Bytes::new(bytes);
    if memory < MEMORY_MIN || memory > MEMORY_MAX || !bytes.is_multiple_of(PAGE_SIZE) {
        let expected = format!("{MEMORY_MIN} to {MEMORY_MAX}, a multiple of {PAGE_SIZE} bytes");
        return Err(invalid("config.memory_bytes", bytes, &expected));
    }
    Ok(memory)
}

fn disks(messages: Vec<wire::Disk>) -> Result<Vec<DiskConfig>, InvalidField> {
    if messages.len() > DISKS_MAX {
        let found = format!("{} disks", messages.len());
        return Err(invalid("config.disks", found, &format!("at most {DISKS_MAX}")));
    }
    let mut volumes = BTreeSet::new();
    let mut places = BTreeSet::new();
    let mut slots = BTreeSet::new();
    let mut disks = Vec::with_capacity(messages.len());
    for (n, message) in messages.into_iter().enumerate() {
        let field = format!("config.disks[{n}]");
        let disk = disk(&field, message, n)?;
        if !slots.insert(disk.slot) {
            let place = disk.slot.number() + 1;
            return Err(invalid(&format!("{field}.place"), place, "a place that no other disk has"));
        }
        if !volumes.insert(disk.volume) {
            let expected = "each volume attached at most once";
            return Err(invalid(&format!("{field}.volume_id"), disk.volume, expected));
        }
        if !places.insert(disk.place.to_string()) {
            let (part, expected) = match &disk.place {
                DiskPlace::File(_) => ("path", "a path that no other disk has"),
                DiskPlace::Rbd(_) => ("rbd.image", "an image that no other disk has"),
            };
            return Err(invalid(&format!("{field}.{part}"), &disk.place, expected));
        }
        disks.push(disk);
    }
    Ok(disks)
}

/// A disk; `n` is its place, counted from 0, where it does not say one.
pub(super) fn disk(field: &str, message: wire::Disk, n: usize) -> Result<DiskConfig, InvalidField> {
    Ok(DiskConfig {
        volume: parsed(&format!("{field}.volume_id"), &message.volume_id)?,
        place: match message.rbd {
            Some(image) => DiskPlace::Rbd(rbd_image(field, image)?),
            None => DiskPlace::File(absolute(&format!("{field}.path"), message.path)?),
        },
        read_only: message.read_only,
        queues: queues(field, message.queues)?,
        limits: limits(&format!("{field}.limits"), message.limits)?,
        slot: Slot::new(place(field, (message.place, n), DISKS_MAX)?),
    })
}

/// Which of so many places it is, counted from 0: the one that it says, or the `n`th.
pub(super) fn place(field: &str, (said, n): (u32, usize), count: usize) -> Result<u8, InvalidField> {
    let index = if said == 0 { Some(n) } else { usize::try_from(said - 1).ok() };
    let index = index.filter(|index| *index < count).and_then(|index| u8::try_from(index).ok());
    index
        .ok_or_else(|| invalid(&format!("{field}.place"), said, &format!("1 to {count}, or 0 for its order")))
}

fn queues(field: &str, asked: u32) -> Result<u16, InvalidField> {
    let expected = || format!("at most {DISK_QUEUES_MAX}; 0 is 1");
    match u16::try_from(asked) {
        Ok(count) if count <= DISK_QUEUES_MAX => Ok(count.max(1)),
        _ => Err(invalid(&format!("{field}.queues"), asked, &expected())),
    }
}

pub(super) fn absolute(field: &str, path: String) -> Result<PathBuf, InvalidField> {
    if !Path::new(&path).is_absolute() || path.contains('\0') {
        return Err(invalid(field, path, "an absolute path"));
    }
    Ok(path.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> wire::VmConfig {
        let id = |n: u128| VmId::from_u128(n).to_string();
        let disk = |n: u128| wire::Disk {
            volume_id: id(n),
            path: format!("/pool/volumes/{n}.raw"),
            read_only: false,
            rbd: None,
            queues: 0,
            limits: None,
            place: 0,
        };
        wire::VmConfig {
            vm_id: id(1),
            name: "web".to_owned(),
            vcpus: 2,
            memory_bytes: 64 << 20,
            kernel_path: "/pool/images/probe".to_owned(),
            cmdline: "probe.heartbeat=10".to_owned(),
            disks: vec![disk(2), disk(3)],
            node_id: id(4),
            ..wire::VmConfig::default()
        }
    }

    fn rbd() -> wire::RbdImage {
        let access = wire::RbdAccess {
            mon_hosts: "[v2:127.0.0.1:6789/0]".to_owned(),
            ceph_pool: "vms".to_owned(),
            user: "drover-vms".to_owned(),
            key: "c2VjcmV0".to_owned(),
            ..wire::RbdAccess::default()
        };
        wire::RbdImage { access: Some(access), image: "volume-1".to_owned() }
    }

    #[test]
    fn an_image_in_a_cluster_is_a_disk_whose_key_does_not_show() {
        let mut message = config();
        message.disks[0].rbd = Some(rbd());
        let config = VmConfig::try_from(message).expect("valid");
        let shown = format!("{config:?}");
        assert!(shown.contains("volume-1") && !shown.contains("c2VjcmV0"), "{shown}");
    }

    #[test]
    fn what_cannot_be_built_is_refused_by_field() {
        let check = |change: fn(&mut wire::VmConfig), field: &str| {
            let mut message = config();
            change(&mut message);
            let error = VmConfig::try_from(message).expect_err(field).to_string();
            assert!(error.starts_with(field), "{error}");
            assert!(error.contains("expected"), "{error}");
        };
        assert!(VmConfig::try_from(config()).is_ok());
        check(|vm| vm.vm_id.clear(), "config.vm_id");
        check(|vm| vm.name.clear(), "config.name");
        check(|vm| vm.name = "n".repeat(256), "config.name");
        check(|vm| vm.vcpus = 0, "config.vcpus");
        check(|vm| vm.vcpus = 256, "config.vcpus");
        check(|vm| vm.memory_bytes = 0, "config.memory_bytes");
        check(|vm| vm.memory_bytes += 512, "config.memory_bytes");
        check(|vm| vm.memory_bytes = !4095, "config.memory_bytes");
        check(|vm| vm.kernel_path = "probe".to_owned(), "config.kernel_path");
        check(|vm| vm.cmdline = "a\nb".to_owned(), "config.cmdline");
        check(|vm| vm.cmdline = "a".repeat(4097), "config.cmdline");
        check(|vm| vm.disks[1].volume_id = vm.disks[0].volume_id.clone(), "config.disks[1].volume_id");
        check(|vm| vm.disks[1].path = vm.disks[0].path.clone(), "config.disks[1].path");
        check(|vm| vm.disks[0].place = 2, "config.disks[1].place");
        check(|vm| vm.disks[0].place = 17, "config.disks[0].place");
        check(|vm| vm.disks[0].path = "volumes/x.raw".to_owned(), "config.disks[0].path");
        check(|vm| vm.disks[0].rbd = Some(wire::RbdImage::default()), "config.disks[0].rbd.access");
        check(|vm| vm.disks.iter_mut().for_each(|disk| disk.rbd = Some(rbd())), "config.disks[1].rbd.image");
        check(
            |vm| vm.disks[1].rbd = Some(wire::RbdImage { image: "a/b".to_owned(), ..rbd() }),
            "config.disks[1].rbd.image",
        );
        check(
            |vm| vm.stall = Some(wire::StallPolicy { deadline_ms: 1, action: 0 }),
            "config.stall.deadline_ms",
        );
        check(|vm| vm.stall = Some(wire::StallPolicy { deadline_ms: 0, action: 9 }), "config.stall.action");
        check(|vm| vm.disks = vec![vm.disks[0].clone(); DISKS_MAX + 1], "config.disks");
        check(|vm| vm.initrd_path = "initrd.img".to_owned(), "config.initrd_path");
        check(
            |vm| vm.platform = Some(wire::Platform { bus: 9, ..Default::default() }),
            "config.platform.bus",
        );
        check(
            |vm| vm.platform = Some(wire::Platform { on_reset: 9, ..Default::default() }),
            "config.platform.on_reset",
        );
        check(
            |vm| vm.platform = Some(wire::Platform { cpu_baseline: "486".to_owned(), ..Default::default() }),
            "config.platform.cpu_baseline",
        );
        check(|vm| vm.node_id = "here".to_owned(), "config.node_id");
    }

    #[test]
    fn a_machine_is_what_its_guest_needs_unless_it_says_otherwise() {
        let check = |change: fn(&mut wire::VmConfig), bus, cpu: &str, on_reset| {
            let mut message = config();
            change(&mut message);
            let found = VmConfig::try_from(message).expect("valid").platform;
            assert_eq!((found.bus, found.cpu.name(), found.on_reset), (bus, cpu, on_reset));
        };
        check(|_| {}, DeviceBus::VirtioMmio, "host", ResetAction::Restart);
        check(|vm| vm.initrd_path = "/initrd".to_owned(), DeviceBus::VirtioPci, "host", ResetAction::Restart);
        check(
            |vm| {
                vm.initrd_path = "/initrd".to_owned();
                let cpu_baseline = "x86-64-v2".to_owned();
                vm.platform = Some(wire::Platform { bus: 1, cpu_baseline, on_reset: 1 });
            },
            DeviceBus::VirtioMmio,
            "x86-64-v2",
            ResetAction::End,
        );
    }

    #[test]
    fn a_hostile_text_is_not_repeated_at_length() {
        let mut message = config();
        message.cmdline = "\u{1}".repeat(1 << 20);
        let error = VmConfig::try_from(message).expect_err("refused").to_string();
        assert!(error.len() < 400, "{}", error.len());
    }
}
