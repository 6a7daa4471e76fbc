//! Loads a kernel and writes what PVH hands to it.

use drover_devices::PciRoot;
use drover_guest_memory::GuestMemory;
use drover_hypervisor::ProtectedModeEntry;
use drover_units::Gpa;
use linux_loader::{
    cmdline::Cmdline,
    configurator::{BootConfigurator, BootParams, pvh::PvhBootConfigurator},
    loader::{
        KernelLoader,
        elf::{
            Elf, PvhBootCapability,
            start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info},
        },
    },
};
use vm_memory::GuestAddress;

use crate::{
    BuildError, DeviceBus, Initrd, KernelImage,
    address_map::{CMDLINE, CONVENTIONAL_RAM_END, KERNEL_START, MEMORY_MAP, MODULES, PCI_CONFIG, START_INFO},
    boot::{
        acpi::{self, Platform},
        cmdline,
    },
};

/// What `hvm_start_info` begins with ("xEn3" with the 0x80 bit of the "E" set), and its version with a memory map.
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;
/// Kinds of memory in the map, as in E820 tables.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// What a guest starts with.
pub(crate) struct Boot<'a> {
    pub(crate) kernel: &'a mut KernelImage,
    pub(crate) initrd: Option<&'a mut Initrd>,
    pub(crate) cmdline: &'a Cmdline,
    pub(crate) platform: Platform,
}

/// Puts kernel, command line, memory map, tables and start info into RAM. Returns how the first vCPU begins.
pub(crate) fn load(memory: &GuestMemory, boot: Boot<'_>) -> Result<ProtectedModeEntry, BuildError> {
    let Boot { kernel: image, initrd, cmdline, platform } = boot;
    let needed = image.memory_needed();
    if memory.size() < needed {
        return Err(BuildError::MemoryTooSmall {
            path: image.path().to_owned(),
            memory: memory.size(),
            needed,
        });
    }
    let path = image.path().to_owned();
    let loaded = Elf::load(memory.as_vm_memory(), None, image.file_mut(), None)
        .map_err(|error| BuildError::KernelLayout { path: path.clone(), reason: error.to_string() })?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BuildError::NoPvhNote { path });
    };
    let initrd = match initrd {
        None => None,
        Some(initrd) => {
            let start = initrd.load(memory, Gpa::new(needed.get()))?;
            Some(hvm_modlist_entry { paddr: start.get(), size: initrd.len().get(), ..Default::default() })
        }
    };
    cmdline::write(cmdline, memory, CMDLINE)?;
    let tables = acpi::write(memory, &platform)?;
    write_start_info(memory, platform.bus, tables, initrd)?;
    Ok(ProtectedModeEntry { rip: Gpa::new(entry.0), ebx: START_INFO })
}

fn write_start_info(
    memory: &GuestMemory,
    bus: DeviceBus,
    tables: Gpa,
    initrd: Option<hvm_modlist_entry>,
) -> Result<(), BuildError> {
    let mut map = memory_map(memory);
    if bus == DeviceBus::VirtioPci {
        // A kernel takes a window for configuration space only where the map has it as reserved.
        map.push(hvm_memmap_table_entry {
            addr: PCI_CONFIG.get(),
            size: PciRoot::ECAM_LEN,
            type_: RESERVED,
            reserved: 0,
        });
    }
    let start_info = hvm_start_info {
        rsdp_paddr: tables.get(),
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { MODULES.get() } else { 0 },
        magic: START_INFO_MAGIC,
        version: START_INFO_VERSION,
        cmdline_paddr: CMDLINE.get(),
        memmap_paddr: MEMORY_MAP.get(),
        memmap_entries: u32::try_from(map.len()).expect("the map has a few entries"),
        ..Default::default()
    };
    let mut params = BootParams::new(&start_info, GuestAddress(START_INFO.get()));
    params.set_sections(&map, GuestAddress(MEMORY_MAP.get()));
    if let Some(initrd) = initrd {
        params.set_modules(&[initrd], GuestAddress(MODULES.get()));
    }
    PvhBootConfigurator::write_bootparams(&params, memory.as_vm_memory())
        .map_err(|error| BuildError::BootStructures { what: "start info", reason: error.to_string() })
}

/// RAM as the guest may use it: without the hole below 1 MiB that PCs have.
fn memory_map(memory: &GuestMemory) -> Vec<hvm_memmap_table_entry> {
    let entry = |start: Gpa, end: Gpa, type_| {
        let size = end.saturating_sub(start).get();
        hvm_memmap_table_entry { addr: start.get(), size, type_, reserved: 0 }
    };
    let mut map = vec![
        entry(Gpa::ZERO, CONVENTIONAL_RAM_END, RAM),
        entry(CONVENTIONAL_RAM_END, KERNEL_START, RESERVED),
    ];
    map.extend(
        memory.layout().ranges().iter().map(|range| entry(range.start.max(KERNEL_START), range.end(), RAM)),
    );
    map
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use drover_units::{Bytes, VcpuCount};
    use vm_memory::{ByteValued, Bytes as _};

    use super::*;
    use crate::boot::image::tests::elf;

    fn image(bytes: &[u8]) -> (tempfile::NamedTempFile, KernelImage) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let image = KernelImage::open(file.path()).unwrap();
        (file, image)
    }

    fn no_cmdline() -> Cmdline {
        cmdline::build("probe.seed=1", &[], None).unwrap()
    }

    fn load_kernel(memory: &GuestMemory, kernel: &mut KernelImage) -> Result<ProtectedModeEntry, BuildError> {
        let platform = Platform { vcpus: VcpuCount::new(1), slots: Vec::new(), bus: DeviceBus::VirtioMmio };
        load(memory, Boot { kernel, initrd: None, cmdline: &no_cmdline(), platform })
    }

    #[test]
    fn the_map_covers_all_ram_and_leaves_the_holes() {
        let memory = GuestMemory::anonymous(Bytes::gib(4));
        let map: Vec<_> = memory_map(&memory).iter().map(|e| (e.addr, e.size, e.type_)).collect();
        assert_eq!(
            map,
            [
                (0, 0xa_0000, RAM),
                (0xa_0000, 0x6_0000, RESERVED),
                (0x10_0000, 0xbff0_0000, RAM),
                (1 << 32, 1 << 30, RAM)
            ]
        );
    }

    #[test]
    fn memory_below_what_the_kernel_needs_is_refused_with_the_size() {
        let (_file, mut image) = image(&elf(&[(0x10_0000, 16, 0x20_0000)]));
        let memory = GuestMemory::anonymous(Bytes::mib(2));
        match load_kernel(&memory, &mut image).unwrap_err() {
            BuildError::MemoryTooSmall { needed, .. } => assert_eq!(needed, Bytes::mib(3)),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_kernel_without_a_pvh_note_is_refused() {
        let (_file, mut image) = image(&elf(&[(0x10_0000, 16, 16)]));
        let memory = GuestMemory::anonymous(Bytes::mib(2));
        let error = load_kernel(&memory, &mut image).unwrap_err();
        assert!(matches!(error, BuildError::NoPvhNote { .. }), "{error}");
    }

    #[test]
    fn the_start_info_points_to_map_and_command_line() {
        let memory = GuestMemory::anonymous(Bytes::mib(4));
        cmdline::write(&no_cmdline(), &memory, CMDLINE).unwrap();
        let initrd = hvm_modlist_entry { paddr: 0x20_0000, size: 5, ..Default::default() };
        write_start_info(&memory, DeviceBus::VirtioPci, Gpa::new(0xe_0000), Some(initrd)).unwrap();
        let mut info = hvm_start_info::default();
        memory.read(START_INFO, info.as_mut_slice()).unwrap();
        assert_eq!((info.magic, info.version, info.memmap_entries), (START_INFO_MAGIC, 1, 4));
        assert_eq!((info.rsdp_paddr, info.nr_modules), (0xe_0000, 1));
        let mut module = hvm_modlist_entry::default();
        memory.read(Gpa::new(info.modlist_paddr), module.as_mut_slice()).unwrap();
        assert_eq!((module.paddr, module.size), (0x20_0000, 5));
        let mut text = [0; 13];
        memory.as_vm_memory().read_slice(&mut text, GuestAddress(info.cmdline_paddr)).unwrap();
        assert_eq!(&text, b"probe.seed=1\0");
    }
}
