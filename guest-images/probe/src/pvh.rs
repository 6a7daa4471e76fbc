//! What the loader leaves in memory (Xen public/arch-x86/hvm/start_info.h), copied before anything else uses that memory.

use core::ptr;

const MAGIC: u32 = 0x336e_c578;
/// The version that added the memory map.
const VERSION_WITH_MEMORY_MAP: u32 = 1;
const COMMAND_LINE_MAX: usize = 2048;
const RANGES_MAX: usize = 16;
const MEMORY_TYPE_RAM: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryMapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// A range of RAM.
#[derive(Clone, Copy, Default)]
pub(crate) struct RamRange {
    /// Its first address.
    pub(crate) start: u64,
    /// The address behind its last.
    pub(crate) end: u64,
}

/// The machine as the loader describes it.
pub(crate) struct Loaded {
    command_line: [u8; COMMAND_LINE_MAX],
    command_line_bytes: usize,
    ranges: [RamRange; RANGES_MAX],
    range_count: usize,
}

impl Loaded {
    /// Nothing yet.
    pub(crate) const fn empty() -> Self {
        Loaded {
            command_line: [0; COMMAND_LINE_MAX],
            command_line_bytes: 0,
            ranges: [RamRange { start: 0, end: 0 }; RANGES_MAX],
            range_count: 0,
        }
    }

    /// Reads the start info at `address`.
    ///
    /// # Errors
    /// What is there is not a start info with a memory map.
    pub(crate) fn read(&mut self, address: u32) -> Result<(), &'static str> {
        // SAFETY: PVH passes the address of a start info, all 4 GiB are mapped, and any bit pattern is a value.
        let info = unsafe { ptr::read_unaligned(address as usize as *const StartInfo) };
        if info.magic != MAGIC {
            return Err("the loader passed no PVH start info");
        }
        self.copy_command_line(info.command_line);
        if info.version < VERSION_WITH_MEMORY_MAP {
            return Err("the PVH start info has no memory map (version 0): no work on RAM or disk");
        }
        for index in 0..u64::from(info.memory_map_entries) {
            let entry = info.memory_map + index * size_of::<MemoryMapEntry>() as u64;
            // SAFETY: the loader's table, at the address and of the length that it says.
            let entry = unsafe { ptr::read_unaligned(entry as usize as *const MemoryMapEntry) };
            if entry.kind == MEMORY_TYPE_RAM && self.range_count < RANGES_MAX {
                let end = entry.address.saturating_add(entry.size);
                self.ranges[self.range_count] = RamRange { start: entry.address, end };
                self.range_count += 1;
            }
        }
        Ok(())
    }

    /// The command line, up to the first byte that is not UTF-8.
    pub(crate) fn command_line(&self) -> &str {
        let bytes = &self.command_line[..self.command_line_bytes];
        bytes.utf8_chunks().next().map_or("", |chunk| chunk.valid())
    }

    /// The RAM of the machine.
    pub(crate) fn ram(&self) -> &[RamRange] {
        &self.ranges[..self.range_count]
    }

    fn copy_command_line(&mut self, address: u64) {
        if address == 0 {
            return;
        }
        for (index, slot) in self.command_line.iter_mut().enumerate() {
            // SAFETY: the loader's string ends with a zero byte, behind which this does not read.
            let byte = unsafe { ptr::read((address as usize + index) as *const u8) };
            if byte == 0 {
                break;
            }
            *slot = byte;
            self.command_line_bytes = index + 1;
        }
    }
}
