//! What a boot image says about itself: an x86-64 ELF file with a PVH entry or a bzImage, which the VMM loads and starts,
//! or an initramfs, which it loads beside one.
//!
//! The file comes from a client: every number in it is checked before it is used, tables are bounded, and nothing is
//! read that the file does not have. ELF-64 is laid out as in the System V ABI, "Object Files"; the PVH note is Xen's
//! `XEN_ELFNOTE_PHYS32_ENTRY`, <https://xenbits.xen.org/docs/unstable/misc/pvh.html>. A bzImage's header is Linux's,
//! Documentation/arch/x86/boot.rst.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use drover_units::{Bytes, PAGE_SIZE};

/// Largest boot image that is taken in. An uncompressed distribution kernel has some 60 MiB.
pub(crate) const IMAGE_BYTES_MAX: Bytes = Bytes::mib(1024);

/// The file header.
const HEADER_BYTES: usize = 64;
/// One program header.
const PROGRAM_HEADER_BYTES: usize = 56;
/// Most program headers. Linkers write about ten.
const PROGRAM_HEADERS_MAX: u16 = 128;
/// Longest note segment that is searched. Linux's has some hundred bytes.
const NOTES_BYTES_MAX: u64 = 64 << 10;
/// Guest-physical addresses above this are no RAM that a VMM would load to.
const ADDRESS_MAX: u64 = 1 << 46;
/// The least RAM of any VM: below 1 MiB is where the boot information lies, and RAM is mapped in pages of 2 MiB.
const MEMORY_MIN: Bytes = Bytes::mib(2);

/// Of a bzImage: where its header says that it is one, which protocol it follows, how it may be entered, and what it takes.
const BZIMAGE_MAGIC: (u64, &[u8; 4]) = (0x202, b"HdrS");
const BZIMAGE_VERSION: u64 = 0x206;
const BZIMAGE_LOAD_FLAGS: u64 = 0x236;
const BZIMAGE_ADDRESS: u64 = 0x258;
const BZIMAGE_INIT_BYTES: u64 = 0x260;
/// The first protocol that tells of a 64-bit entry, and the flag that tells of it.
const BZIMAGE_VERSION_MIN: u16 = 0x20c;
const BZIMAGE_64_BIT: u16 = 1;

/// How an initramfs begins: a cpio archive, or one that gzip, xz, zstd, lz4, bzip2 or lzma has compressed.
const INITRAMFS: [&[u8]; 7] = [
    b"07070",
    &[0x1f, 0x8b],
    &[0xfd, b'7', b'z', b'X', b'Z', 0],
    &[0x28, 0xb5, 0x2f, 0xfd],
    &[0x02, 0x21, 0x4c, 0x18],
    b"BZh",
    &[0x5d, 0, 0],
];

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`
const NOTE_PHYS32_ENTRY: u32 = 18;
const NOTE_NAME: &[u8] = b"Xen\0";

/// What a VM needs to boot an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelImage {
    /// RAM up to the end of what is loaded.
    pub(crate) min_memory: Bytes,
}

/// Why a file is no boot image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelImageError {
    /// Nothing that a VM boots from.
    #[error("it is not an ELF file, no bzImage and no initramfs")]
    Unknown,
    /// For another machine.
    #[error("it is not a 64-bit x86 ELF file")]
    WrongMachine,
    /// Not to be loaded.
    #[error("it is an object or a library, not an executable")]
    NotExecutable,
    /// Numbers that contradict each other or the file.
    #[error("its {what} is not valid")]
    Damaged {
        /// Where.
        what: &'static str,
    },
    /// A bzImage for the 32-bit entry only.
    #[error("it is a bzImage without a 64-bit entry")]
    No64BitEntry,
    /// Nothing to load.
    #[error("it has nothing to load")]
    NothingToLoad,
    /// No PVH entry.
    #[error(
        "it has no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY); a Linux kernel needs CONFIG_PVH=y, uncompressed"
    )]
    NoPvhEntry,
    /// The entry is not in what is loaded.
    #[error("its PVH entry {entry:#x} lies outside of what is loaded")]
    EntryOutside {
        /// Where it points.
        entry: u64,
    },
    /// The file cannot be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
}

/// Something that is loaded.
struct Segment {
    start: u64,
    end: u64,
}

/// Checks a file of `size` bytes.
pub(crate) fn inspect(file: &File, size: Bytes) -> Result<KernelImage, KernelImageError> {
    let first: [u8; 6] = read(file, 0, size)?.ok_or(KernelImageError::Unknown)?;
    if first.starts_with(b"\x7fELF") {
        return inspect_elf(file, size);
    }
    if read(file, BZIMAGE_MAGIC.0, size)?.as_ref() == Some(BZIMAGE_MAGIC.1) {
        return inspect_bzimage(file, size);
    }
    if INITRAMFS.iter().any(|magic| first.starts_with(magic)) {
        return Ok(KernelImage {
            min_memory: Bytes::new(size.get().next_multiple_of(PAGE_SIZE)).max(MEMORY_MIN),
        });
    }
    Err(KernelImageError::Unknown)
}

fn inspect_bzimage(file: &File, size: Bytes) -> Result<KernelImage, KernelImageError> {
    let damaged = || KernelImageError::Damaged { what: "bzImage header" };
    let number = |at| -> Result<[u8; 2], KernelImageError> { read(file, at, size)?.ok_or_else(damaged) };
    let version = u16::from_le_bytes(number(BZIMAGE_VERSION)?);
    if version < BZIMAGE_VERSION_MIN || u16::from_le_bytes(number(BZIMAGE_LOAD_FLAGS)?) & BZIMAGE_64_BIT == 0
    {
        return Err(KernelImageError::No64BitEntry);
    }
    let address = u64::from_le_bytes(read(file, BZIMAGE_ADDRESS, size)?.ok_or_else(damaged)?);
    let bytes = u32::from_le_bytes(read(file, BZIMAGE_INIT_BYTES, size)?.ok_or_else(damaged)?);
    let end = address.checked_add(bytes.into()).filter(|end| *end <= ADDRESS_MAX).ok_or_else(damaged)?;
    Ok(KernelImage { min_memory: Bytes::new(end.next_multiple_of(PAGE_SIZE)).max(MEMORY_MIN) })
}

fn inspect_elf(file: &File, size: Bytes) -> Result<KernelImage, KernelImageError> {
    let header: [u8; HEADER_BYTES] =
        read(file, 0, size)?.ok_or(KernelImageError::Damaged { what: "file header" })?;
    let (offset, count) = check_header(&header)?;
    let (mut segments, mut entry) = (Vec::new(), None);
    for index in 0..u64::from(count) {
        let damaged = KernelImageError::Damaged { what: "program header table" };
        let at = offset.checked_add(index * PROGRAM_HEADER_BYTES as u64).ok_or(damaged)?;
        let program: [u8; PROGRAM_HEADER_BYTES] =
            read(file, at, size)?.ok_or(KernelImageError::Damaged { what: "program header table" })?;
        match u32_at(&program, 0) {
            PT_LOAD => segments.extend(segment(&program, size)?),
            PT_NOTE if entry.is_none() => entry = pvh_entry(file, &program, size)?,
            _ => {}
        }
    }
    let end = segments.iter().map(|segment| segment.end).max().ok_or(KernelImageError::NothingToLoad)?;
    let entry = entry.ok_or(KernelImageError::NoPvhEntry)?;
    if !segments.iter().any(|segment| (segment.start..segment.end).contains(&entry)) {
        return Err(KernelImageError::EntryOutside { entry });
    }
    let end = Bytes::new(end.next_multiple_of(PAGE_SIZE));
    Ok(KernelImage { min_memory: end.max(MEMORY_MIN) })
}

/// Where the program headers are, and how many.
fn check_header(header: &[u8; HEADER_BYTES]) -> Result<(u64, u16), KernelImageError> {
    const CLASS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    const MACHINE_X86_64: u16 = 62;
    const TYPE_EXECUTABLE: u16 = 2;
    /// A position-independent executable; a library too, but that has no PVH note.
    const TYPE_SHARED: u16 = 3;
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN || u16_at(header, 18) != MACHINE_X86_64 {
        return Err(KernelImageError::WrongMachine);
    }
    if !matches!(u16_at(header, 16), TYPE_EXECUTABLE | TYPE_SHARED) {
        return Err(KernelImageError::NotExecutable);
    }
    let count = u16_at(header, 56);
    if usize::from(u16_at(header, 54)) != PROGRAM_HEADER_BYTES || count > PROGRAM_HEADERS_MAX {
        return Err(KernelImageError::Damaged { what: "program header table" });
    }
    Ok((u64_at(header, 32), count))
}

/// What a loadable program header covers in memory; nothing if it is empty.
fn segment(program: &[u8; PROGRAM_HEADER_BYTES], size: Bytes) -> Result<Option<Segment>, KernelImageError> {
    let damaged = || KernelImageError::Damaged { what: "loadable segment" };
    let (offset, start) = (u64_at(program, 8), u64_at(program, 24));
    let (in_file, in_memory) = (u64_at(program, 32), u64_at(program, 40));
    let file_end = offset.checked_add(in_file).ok_or_else(damaged)?;
    let end = start.checked_add(in_memory).ok_or_else(damaged)?;
    if in_file > in_memory || file_end > size.get() || end > ADDRESS_MAX {
        return Err(damaged());
    }
    Ok((in_memory > 0).then_some(Segment { start, end }))
}

/// The PVH entry, if it is in this note segment.
fn pvh_entry(
    file: &File,
    program: &[u8; PROGRAM_HEADER_BYTES],
    size: Bytes,
) -> Result<Option<u64>, KernelImageError> {
    let damaged = || KernelImageError::Damaged { what: "note segment" };
    let (offset, length) = (u64_at(program, 8), u64_at(program, 32));
    let end = offset.checked_add(length).ok_or_else(damaged)?;
    if end > size.get() || length > NOTES_BYTES_MAX {
        return Err(damaged());
    }
    let mut notes = vec![0; usize::try_from(length).map_err(|_| damaged())?];
    file.read_exact_at(&mut notes, offset)?;
    let mut rest = &notes[..];
    // Each note: lengths of name and content, a type, the name and the content, both padded to four bytes.
    while let Some((head, body)) = rest.split_at_checked(12) {
        let (name_bytes, content_bytes) = (u32_at(head, 0) as usize, u32_at(head, 4) as usize);
        let (name, body) = body.split_at_checked(name_bytes).ok_or_else(damaged)?;
        let body = body.get(padding(name_bytes)..).ok_or_else(damaged)?;
        let (content, body) = body.split_at_checked(content_bytes).ok_or_else(damaged)?;
        if name == NOTE_NAME && u32_at(head, 8) == NOTE_PHYS32_ENTRY {
            // Linux writes eight bytes, others four; the address is one of the low four GiB either way.
            return match content.len() {
                4 => Ok(Some(u32_at(content, 0).into())),
                8 => Ok(Some(u64_at(content, 0))),
                _ => Err(damaged()),
            };
        }
        // The last one's padding may be cut off.
        rest = body.get(padding(content_bytes)..).unwrap_or_default();
    }
    Ok(None)
}

fn padding(length: usize) -> usize {
    length.wrapping_neg() & 3
}

/// `N` bytes at `offset`; `None` where the file does not have them.
fn read<const N: usize>(file: &File, offset: u64, size: Bytes) -> io::Result<Option<[u8; N]>> {
    if offset.checked_add(N as u64).is_none_or(|end| end > size.get()) {
        return Ok(None);
    }
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(Some(bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// A small kernel: one segment at 1 MiB of 4 KiB in the file and 3 MiB in memory, and a PVH note.
    pub(crate) fn kernel() -> Vec<u8> {
        const NOTE_AT: u64 = 0x200;
        let note = [
            &4_u32.to_le_bytes()[..],
            &4_u32.to_le_bytes(),
            &18_u32.to_le_bytes(),
            b"Xen\0",
            &[0, 0, 0x10, 0],
        ]
        .concat();
        let mut file = vec![0; 0x1000];
        file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\x00");
        put(&mut file, 16, &2_u16.to_le_bytes());
        put(&mut file, 18, &62_u16.to_le_bytes());
        put(&mut file, 32, &64_u64.to_le_bytes());
        put(&mut file, 54, &56_u16.to_le_bytes());
        put(&mut file, 56, &2_u16.to_le_bytes());
        let program = |kind: u32, offset: u64, start: u64, in_file: u64, in_memory: u64| {
            let [offset, start, in_file, in_memory] =
                [offset, start, in_file, in_memory].map(u64::to_le_bytes);
            [&kind.to_le_bytes()[..], &[0; 4], &offset, &start, &start, &in_file, &in_memory, &[0; 8]]
                .concat()
        };
        put(&mut file, 64, &program(PT_LOAD, 0, 1 << 20, 0x1000, 3 << 20));
        put(&mut file, 64 + 56, &program(PT_NOTE, NOTE_AT, 0, note.len() as u64, note.len() as u64));
        put(&mut file, NOTE_AT as usize, &note);
        file
    }

    fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn inspect_bytes(bytes: &[u8]) -> Result<KernelImage, KernelImageError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        inspect(&file, Bytes::new(bytes.len() as u64))
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Vec<u8>), expect: &str) {
        let mut bytes = kernel();
        change(&mut bytes);
        let error = inspect_bytes(&bytes).expect_err("must be refused").to_string();
        assert!(error.contains(expect), "{error}");
    }

    #[test]
    fn the_least_memory_reaches_to_the_end_of_what_is_loaded() {
        assert_eq!(inspect_bytes(&kernel()).unwrap().min_memory, Bytes::mib(4));
        let mut odd = kernel();
        put(&mut odd, 64 + 40, &(3_u64 << 20 | 1).to_le_bytes());
        assert_eq!(inspect_bytes(&odd).unwrap().min_memory, Bytes::new((4 << 20) + 4096));
    }

    #[test]
    fn what_cannot_boot_is_refused_with_the_reason() {
        refused(|file| file.clear(), "not an ELF file");
        refused(|file| file[0] = b'x', "not an ELF file");
        refused(|file| file.truncate(0x20), "file header is not valid");
        refused(|file| file[4] = 1, "not a 64-bit x86 ELF file");
        refused(|file| put(file, 18, &183_u16.to_le_bytes()), "not a 64-bit x86 ELF file");
        refused(|file| put(file, 16, &1_u16.to_le_bytes()), "an object or a library");
        refused(|file| put(file, 56, &u16::MAX.to_le_bytes()), "program header table is not valid");
        refused(|file| put(file, 32, &u64::MAX.to_le_bytes()), "program header table is not valid");
        refused(|file| put(file, 64 + 8, &u64::MAX.to_le_bytes()), "loadable segment is not valid");
        refused(|file| put(file, 64 + 24, &u64::MAX.to_le_bytes()), "loadable segment is not valid");
        refused(|file| put(file, 64 + 32, &0x1001_u64.to_le_bytes()), "loadable segment is not valid");
        refused(|file| put(file, 64, &7_u32.to_le_bytes()), "nothing to load");
        refused(|file| put(file, 64 + 56, &7_u32.to_le_bytes()), "no PVH entry note");
        refused(|file| file[0x200 + 8] = 17, "no PVH entry note");
        refused(|file| put(file, 0x200, &u32::MAX.to_le_bytes()), "note segment is not valid");
        refused(|file| put(file, 0x210, &[0, 0, 0, 1]), "PVH entry 0x1000000 lies outside");
        refused(|file| file.truncate(0x800), "loadable segment is not valid");
    }

    /// The parts of a bzImage that count.
    fn bzimage() -> Vec<u8> {
        let mut file = vec![0; 0x400];
        put(&mut file, 0x202, b"HdrS");
        put(&mut file, 0x206, &0x20f_u16.to_le_bytes());
        put(&mut file, 0x236, &0x3f_u16.to_le_bytes());
        put(&mut file, 0x258, &0x100_0000_u64.to_le_bytes());
        put(&mut file, 0x260, &0x345_6789_u32.to_le_bytes());
        file
    }

    #[test]
    fn a_distributions_kernel_and_initramfs_are_taken_as_they_are() {
        assert_eq!(inspect_bytes(&bzimage()).unwrap().min_memory, Bytes::new(0x445_7000));
        for (magic, expect) in
            [(&b"070701"[..], true), (&[0x28, 0xb5, 0x2f, 0xfd], true), (b"QFI\xfb", false)]
        {
            let file = [magic, &[0; 3 << 20]].concat();
            match inspect_bytes(&file) {
                Ok(image) => assert_eq!((image.min_memory, expect), (Bytes::new((3 << 20) + 4096), true)),
                Err(error) => assert!(!expect && error.to_string().contains("no initramfs"), "{error}"),
            }
        }
    }

    #[test]
    fn a_bzimage_that_cannot_boot_is_refused_with_the_reason() {
        let refused = |change: fn(&mut Vec<u8>), expect: &str| {
            let mut bytes = bzimage();
            change(&mut bytes);
            let error = inspect_bytes(&bytes).expect_err("must be refused").to_string();
            assert!(error.contains(expect), "{error}");
        };
        refused(|file| file[0x236] = 0, "without a 64-bit entry");
        refused(|file| file[0x206] = 0xb, "without a 64-bit entry");
        refused(|file| put(file, 0x258, &u64::MAX.to_le_bytes()), "bzImage header is not valid");
        refused(|file| file.truncate(0x262), "bzImage header is not valid");
        refused(|file| file[0x202] = b'h', "no bzImage");
    }

    proptest! {
        #[test]
        fn no_file_makes_the_parser_panic(
            changes in proptest::collection::vec((0..0x240_usize, any::<u8>()), 0..16), length in 0..=0x1000_usize,
            is_bzimage: bool,
        ) {
            let mut bytes = kernel();
            for (at, value) in changes {
                bytes[at] = value;
            }
            bytes.truncate(length);
            if is_bzimage && bytes.len() > 0x206 {
                bytes[0] = 0;
                put(&mut bytes, 0x202, b"HdrS");
            }
            if let Ok(image) = inspect_bytes(&bytes) {
                prop_assert!(image.min_memory.get() <= ADDRESS_MAX + PAGE_SIZE);
            }
        }
    }
}
