//! What PVH hands to a kernel: the start info, in EBX as the kernel is entered in 32-bit mode.

use drover_guest_memory::GuestMemory;
use drover_units::Gpa;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::ByteValued;

use super::memory_map::Range;
use crate::{
    BuildError,
    address_map::{CMDLINE, MEMORY_MAP, MODULES, START_INFO},
    boot::initrd::Loaded,
};

/// What `hvm_start_info` begins with ("xEn3" with the 0x80 bit of the "E" set), and its version with a memory map.
const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;

/// Writes start info, memory map and list of modules.
pub(super) fn write(
    memory: &GuestMemory,
    map: &[Range],
    tables: Gpa,
    initrd: Option<Loaded>,
) -> Result<(), BuildError> {
    let write = |at: Gpa, bytes: &[u8]| {
        memory
            .write(at, bytes)
            .map_err(|error| BuildError::BootStructures { what: "start info", reason: error.to_string() })
    };
    let mut entries = Vec::new();
    for range in map {
        let (addr, size, type_) = (range.start.get(), range.len.get(), range.usage as u32);
        entries.extend_from_slice(hvm_memmap_table_entry { addr, size, type_, reserved: 0 }.as_slice());
    }
    write(MEMORY_MAP, &entries)?;
    if let Some(Loaded { start, len }) = initrd {
        let module = hvm_modlist_entry { paddr: start.get(), size: len.get(), ..Default::default() };
        write(MODULES, module.as_slice())?;
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
    write(START_INFO, start_info.as_slice())
}

#[cfg(test)]
mod tests {
    use drover_units::Bytes;

    use super::*;
    use crate::{DeviceBus, boot::memory_map};

    #[test]
    fn the_start_info_points_to_everything() {
        let memory = GuestMemory::anonymous(Bytes::mib(4));
        let map = memory_map::ranges(&memory, DeviceBus::VirtioPci);
        let initrd = Loaded { start: Gpa::new(0x20_0000), len: Bytes::new(5) };
        write(&memory, &map, Gpa::new(0xe_0000), Some(initrd)).unwrap();
        let mut info = hvm_start_info::default();
        memory.read(START_INFO, info.as_mut_slice()).unwrap();
        assert_eq!((info.magic, info.version, info.memmap_entries), (START_INFO_MAGIC, 1, 4));
        assert_eq!((info.rsdp_paddr, info.nr_modules, info.cmdline_paddr), (0xe_0000, 1, CMDLINE.get()));
        let mut module = hvm_modlist_entry::default();
        memory.read(Gpa::new(info.modlist_paddr), module.as_mut_slice()).unwrap();
        assert_eq!((module.paddr, module.size), (0x20_0000, 5));
        let mut second = hvm_memmap_table_entry::default();
        memory.read(Gpa::new(info.memmap_paddr + 24), second.as_mut_slice()).unwrap();
        assert_eq!((second.addr, second.type_), (0xa_0000, 2));
    }
}
