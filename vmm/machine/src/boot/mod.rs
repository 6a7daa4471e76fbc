//! How a guest starts. Three ways, by what the image offers:
//!
//! | image | entered |
//! |---|---|
//! | ELF with a PVH note (vmlinux, other systems' kernels, the probe) | by PVH, in 32-bit mode |
//! | ELF without one (vmlinux) | by Linux's 64-bit protocol, at the ELF entry |
//! | bzImage | by Linux's 64-bit protocol, at the entry of its unpacker |
//!
//! PVH is that of Xen (docs/misc/pvh.pandoc), which Linux, the BSDs and our probe speak. A bzImage is entered as it is: the
//! PVH note of the kernel inside would be found only by unpacking it here, with the decompressors of every kernel's choice.

pub(crate) mod acpi;
mod bzimage;
pub(crate) mod cmdline;
mod elf;
mod image;
mod initrd;
pub(crate) mod linux64;
mod memory_map;
mod pvh;
mod reset_vector;

use drover_guest_memory::GuestMemory;
use drover_hypervisor::{HypervisorError, LongModeEntry, ProtectedModeEntry, Vcpu};
use drover_units::{Bytes, Gpa};
use linux_loader::cmdline::Cmdline;

use self::{acpi::Platform, image::Format};
pub use self::{image::KernelImage, initrd::Initrd};
use crate::{
    BuildError,
    address_map::{BOOT_PARAMS, CMDLINE, GDT, PAGE_TABLES, START_INFO},
};

/// What a guest starts with, each time it does.
#[derive(Clone, Debug)]
pub(crate) struct Boot {
    pub(crate) kernel: KernelImage,
    pub(crate) initrd: Option<Initrd>,
    pub(crate) cmdline: Cmdline,
    pub(crate) platform: Platform,
}

/// The first vCPU's first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Protected(ProtectedModeEntry),
    Long(LongModeEntry),
}

impl Entry {
    /// Sets the vCPU up for it.
    pub(crate) fn apply(self, vcpu: &Vcpu) -> Result<(), HypervisorError> {
        match self {
            Self::Protected(entry) => vcpu.enter_protected_mode(entry),
            Self::Long(entry) => vcpu.enter_long_mode(entry),
        }
    }
}

impl Boot {
    /// Puts kernel, initial RAM disk, command line, memory map and tables into RAM that is all zeros.
    pub(crate) fn load(&self, memory: &GuestMemory) -> Result<Entry, BuildError> {
        let Self { kernel, initrd, cmdline, platform } = self;
        let needed = kernel.memory_needed();
        // Not less than the kernel needs in low RAM, which is all there is up to its end.
        if memory.size() < needed {
            let path = kernel.path().to_owned();
            return Err(BuildError::MemoryTooSmall { path, memory: memory.size(), needed });
        }
        let initrd_last = match &kernel.format {
            Format::BzImage(image) => Gpa::new(image.initrd_last),
            Format::Elf(_) => Gpa::new(u64::MAX),
        };
        let above = Gpa::new(needed.get());
        let initrd = initrd.as_ref().map(|initrd| initrd.load(memory, above, initrd_last)).transpose()?;
        cmdline::write(cmdline, memory, CMDLINE)?;
        let tables = acpi::write(memory, platform)?;
        reset_vector::write(memory)?;
        let map = memory_map::ranges(memory, platform.bus);
        match &kernel.format {
            Format::Elf(elf) => {
                for segment in &elf.segments {
                    kernel.copy(memory, (segment.offset, segment.file_len), segment.start)?;
                }
                if let Some(rip) = elf.pvh {
                    pvh::write(memory, &map, tables, initrd)?;
                    return Ok(Entry::Protected(ProtectedModeEntry { rip, ebx: START_INFO }));
                }
                linux64::write(memory, None, &map, tables, initrd)?;
                Ok(long(elf.entry))
            }
            Format::BzImage(image) => {
                let given = Bytes::new(cmdline.as_cstring().map_or(0, |text| text.as_bytes().len() as u64));
                if given.get() > image.cmdline_max {
                    return Err(BuildError::CmdlineTooLong { given, max: Bytes::new(image.cmdline_max) });
                }
                kernel.copy(memory, (image.offset, image.len), image.start)?;
                linux64::write(memory, Some(&image.header), &map, tables, initrd)?;
                Ok(long(image.entry()))
            }
        }
    }
}

fn long(rip: Gpa) -> Entry {
    Entry::Long(LongModeEntry { rip, rsi: BOOT_PARAMS, page_table: PAGE_TABLES, gdt: GDT })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use drover_units::VcpuCount;

    use super::*;
    use crate::DeviceBus;

    fn image(bytes: &[u8]) -> KernelImage {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        KernelImage::open(file.path()).unwrap()
    }

    fn boot(kernel: KernelImage) -> Boot {
        let platform = Platform { vcpus: VcpuCount::new(1), slots: Vec::new(), bus: DeviceBus::VirtioMmio };
        Boot { kernel, initrd: None, cmdline: cmdline::build("probe.seed=1", &[], None).unwrap(), platform }
    }

    fn byte(memory: &GuestMemory, at: u64) -> u8 {
        let mut byte = [0];
        memory.read(Gpa::new(at), &mut byte).unwrap();
        byte[0]
    }

    #[test]
    fn memory_below_what_the_kernel_needs_is_refused_with_the_size() {
        let kernel = image(&elf::tests::elf(&[(0x10_0000, 16, 0x20_0000)], None));
        match boot(kernel).load(&GuestMemory::anonymous(Bytes::mib(2))).unwrap_err() {
            BuildError::MemoryTooSmall { needed, .. } => assert_eq!(needed, Bytes::mib(3)),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_kind_of_image_is_entered_in_its_own_way() {
        let memory = GuestMemory::anonymous(Bytes::mib(32));
        let kernel = image(&elf::tests::elf(&[(0x10_0000, 16, 16)], Some(0x10_0004)));
        let pvh = Entry::Protected(ProtectedModeEntry { rip: Gpa::new(0x10_0004), ebx: START_INFO });
        assert_eq!(boot(kernel).load(&memory).unwrap(), pvh);
        let kernel = image(&elf::tests::elf(&[(0x20_0000, 16, 16)], None));
        assert_eq!(boot(kernel).load(&memory).unwrap(), long(Gpa::new(0x20_0000)));
        assert_eq!(
            (byte(&memory, 0x10_000f), byte(&memory, 0x20_000f), byte(&memory, 0x20_0010)),
            (0x90, 0x90, 0)
        );
        let kernel = image(&bzimage::tests::bzimage(2 << 20));
        assert_eq!(boot(kernel).load(&memory).unwrap(), long(Gpa::new(0x100_0200)));
        assert_eq!((byte(&memory, 0x11f_ffff), byte(&memory, 0x120_0000)), (0x90, 0));
    }
}
