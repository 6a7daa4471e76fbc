//! What Linux's 64-bit boot protocol hands to a kernel (Documentation/arch/x86/boot.rst): the boot parameters, in RSI as the
//! kernel is entered in 64-bit mode with its first 4 GiB mapped to themselves.

use drover_guest_memory::GuestMemory;
use drover_units::Gpa;

use super::{bzimage::HEADER_AT, initrd::Loaded, memory_map::Range};
use crate::{
    BuildError,
    address_map::{BOOT_PARAMS, CMDLINE, GDT, PAGE_TABLES},
};

/// Fields of the boot parameters (Documentation/arch/x86/zero-page.rst, and the setup header within it).
const ACPI_RSDP: usize = 0x070;
const EXT_RAMDISK_IMAGE: usize = 0x0c0;
const EXT_RAMDISK_SIZE: usize = 0x0c4;
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_LEN: usize = 20;
const E820_ENTRIES_MAX: usize = 128;
/// A loader that has no number of its own.
const LOADER_UNKNOWN: u8 = 0xff;
/// The protocol that we speak to a kernel that brings no header.
const VERSION_2_12: u16 = 0x020c;

/// Segments of the boot protocol's selectors, 0x10 (code, 64-bit) and 0x18 (data), behind two empty ones.
const SEGMENTS: [u64; 4] = [0, 0, 0x00af_9a00_0000_ffff, 0x00cf_9200_0000_ffff];

/// A page table entry: present, writable; and that of a 2 MiB page.
const PRESENT_WRITABLE: u64 = 0b11;
const HUGE: u64 = 1 << 7;
const PAGE: u64 = 0x1000;
/// Entries of a table.
const ENTRIES: u64 = 512;
/// Directories of 1 GiB each.
const DIRECTORIES: u64 = 4;

/// Writes boot parameters, segments and page tables. `header` is the setup header of a bzImage; a vmlinux brings none.
pub(super) fn write(
    memory: &GuestMemory,
    header: Option<&[u8]>,
    map: &[Range],
    tables: Gpa,
    initrd: Option<Loaded>,
) -> Result<(), BuildError> {
    let write = |what, at: Gpa, bytes: &[u8]| {
        memory
            .write(at, bytes)
            .map_err(|error| BuildError::BootStructures { what, reason: error.to_string() })
    };
    write("boot parameters", BOOT_PARAMS, &boot_params(header, map, tables, initrd))?;
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    write("segment descriptors", GDT, &words(&SEGMENTS))?;
    write("page tables", PAGE_TABLES, &words(&page_tables()))
}

fn boot_params(header: Option<&[u8]>, map: &[Range], tables: Gpa, initrd: Option<Loaded>) -> Vec<u8> {
    let mut params = vec![0; PAGE as usize];
    let mut put = |at: usize, bytes: &[u8]| params[at..at + bytes.len()].copy_from_slice(bytes);
    match header {
        Some(header) => put(HEADER_AT as usize, header),
        None => {
            put(BOOT_FLAG, &0xaa55_u16.to_le_bytes());
            put(HEADER_MAGIC, b"HdrS");
            put(VERSION, &VERSION_2_12.to_le_bytes());
        }
    }
    put(TYPE_OF_LOADER, &[LOADER_UNKNOWN]);
    put(CMD_LINE_PTR, &(CMDLINE.get() as u32).to_le_bytes());
    put(ACPI_RSDP, &tables.get().to_le_bytes());
    if let Some(Loaded { start, len }) = initrd {
        let (start, len) = (start.get(), len.get());
        put(RAMDISK_IMAGE, &(start as u32).to_le_bytes());
        put(EXT_RAMDISK_IMAGE, &((start >> 32) as u32).to_le_bytes());
        put(RAMDISK_SIZE, &(len as u32).to_le_bytes());
        put(EXT_RAMDISK_SIZE, &((len >> 32) as u32).to_le_bytes());
    }
    let map = &map[..map.len().min(E820_ENTRIES_MAX)];
    put(E820_ENTRIES, &[map.len() as u8]);
    for (index, range) in map.iter().enumerate() {
        let at = E820_TABLE + index * E820_ENTRY_LEN;
        put(at, &range.start.get().to_le_bytes());
        put(at + 8, &range.len.get().to_le_bytes());
        put(at + 16, &(range.usage as u32).to_le_bytes());
    }
    params
}

/// One table of each of the two upper levels, then the directories, whose entries map 2 MiB each.
fn page_tables() -> Vec<u64> {
    let table = |n: u64| PAGE_TABLES.get() + n * PAGE;
    let mut words = vec![0; (2 + DIRECTORIES) as usize * ENTRIES as usize];
    words[0] = table(1) | PRESENT_WRITABLE;
    for directory in 0..DIRECTORIES {
        words[(ENTRIES + directory) as usize] = table(2 + directory) | PRESENT_WRITABLE;
    }
    for page in 0..DIRECTORIES * ENTRIES {
        words[(2 * ENTRIES + page) as usize] = page << 21 | PRESENT_WRITABLE | HUGE;
    }
    words
}

/// Length of the page tables, bytes.
pub(crate) const PAGE_TABLES_LEN: u64 = (2 + DIRECTORIES) * PAGE;

#[cfg(test)]
mod tests {
    use drover_units::Bytes;

    use super::*;
    use crate::boot::memory_map::Use;

    #[test]
    fn the_boot_parameters_hold_header_map_and_initrd() {
        let map = [Range { start: Gpa::new(0x10_0000), len: Bytes::mib(3), usage: Use::Ram }];
        let initrd = Loaded { start: Gpa::new(0x1_2345_6000), len: Bytes::new(0x777) };
        let params = boot_params(Some(&[7; 0x60]), &map, Gpa::new(0xe_0000), Some(initrd));
        assert_eq!(params[0x1f1..0x1f5], [7; 4]);
        assert_eq!((params[TYPE_OF_LOADER], params[E820_ENTRIES]), (0xff, 1));
        assert_eq!(params[RAMDISK_IMAGE..][..4], 0x2345_6000_u32.to_le_bytes());
        assert_eq!(params[EXT_RAMDISK_IMAGE], 1);
        assert_eq!(params[E820_TABLE..][..8], 0x10_0000_u64.to_le_bytes());
        assert_eq!(params[ACPI_RSDP..][..4], 0xe_0000_u32.to_le_bytes());
        assert_eq!(boot_params(None, &map, Gpa::ZERO, None)[HEADER_MAGIC..][..4], *b"HdrS");
    }

    #[test]
    fn every_address_below_4_gib_is_mapped_to_itself() {
        let words = page_tables();
        assert_eq!(words.len() as u64 * 8, PAGE_TABLES_LEN);
        for address in [0, 0x1234_5678, 0xbfff_ffff, 0xffff_ffff_u64] {
            let follow =
                |table: u64, index: u64| words[((table - PAGE_TABLES.get()) / 8 + index) as usize] & !0xfff;
            let directories = follow(PAGE_TABLES.get(), address >> 39);
            let directory = follow(directories, address >> 30 & 511);
            assert_eq!(follow(directory, address >> 21 & 511), address & !0x1f_ffff);
        }
    }
}
