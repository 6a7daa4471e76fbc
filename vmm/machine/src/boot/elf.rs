//! ELF kernels (vmlinux, and anything else with a PVH note): headers, parsed and checked. Pure: bytes that somebody else
//! chose come in, addresses that can be loaded to come out.

use std::io;

use drover_guest_memory::LOW_RAM_END;
use drover_units::{Bytes, Gpa};
use linux_loader::elf::{
    EI_CLASS, ELFCLASS64, ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr, PT_LOAD,
    PT_NOTE,
};
use vm_memory::ByteValued;

use super::image::{Fault, ReadAt};
use crate::address_map::KERNEL_START;

/// Machine number of x86-64 in an ELF header (EM_X86_64).
const MACHINE_X86_64: u16 = 62;
/// Most program headers that are looked at. A kernel has five.
const PROGRAM_HEADERS_MAX: u16 = 128;
/// Most bytes of notes that are looked at. A kernel has a few hundred.
const NOTES_MAX: u64 = 64 << 10;
/// The note that says where to enter by PVH (Xen, public/elfnote.h: XEN_ELFNOTE_PHYS32_ENTRY).
const NOTE_PHYS32_ENTRY: u32 = 18;

/// What an ELF kernel's headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Elf {
    /// What is loaded where, in the file's order. Not empty; all of it above the boot structures and in low RAM.
    pub(super) segments: Vec<Segment>,
    /// Where the PVH note says to enter, in 32-bit mode.
    pub(super) pvh: Option<Gpa>,
    /// Where the header says to enter; with Linux, in 64-bit mode.
    pub(super) entry: Gpa,
}

/// A part of the file and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) start: Gpa,
    pub(super) file_len: u64,
    /// At least `file_len`; the rest is zero.
    pub(super) len: u64,
}

impl Elf {
    /// First address behind everything that is loaded.
    pub(super) fn end(&self) -> Gpa {
        let end =
            |segment: &Segment| segment.start.checked_offset(Bytes::new(segment.len)).unwrap_or(Gpa::ZERO);
        self.segments.iter().map(end).max().unwrap_or(Gpa::ZERO)
    }

    /// Reads the headers. The inner error is about the image, the outer about reading it.
    pub(super) fn parse(image: &impl ReadAt) -> io::Result<Result<Self, Fault>> {
        let mut header = Elf64_Ehdr::default();
        if !image.read_all_at(0, header.as_mut_slice())? {
            return Ok(Err(Fault::NotAKernel("it is shorter than an ELF header")));
        }
        if let Err(fault) = check_header(&header) {
            return Ok(Err(fault));
        }
        let mut headers = vec![Elf64_Phdr::default(); usize::from(header.e_phnum)];
        let mut at = header.e_phoff;
        for program_header in &mut headers {
            if !image.read_all_at(at, program_header.as_mut_slice())? {
                return Ok(Err(Fault::NotAKernel("it ends inside its program headers")));
            }
            at = at.saturating_add(size_of::<Elf64_Phdr>() as u64);
        }
        let segments = match load_segments(&headers) {
            Ok(segments) => segments,
            Err(fault) => return Ok(Err(fault)),
        };
        let mut pvh = None;
        for notes in headers.iter().filter(|header| header.p_type == PT_NOTE) {
            let mut bytes = vec![0; notes.p_filesz.min(NOTES_MAX) as usize];
            if !image.read_all_at(notes.p_offset, &mut bytes)? {
                return Ok(Err(Fault::NotAKernel("it ends inside its notes")));
            }
            pvh = pvh.or_else(|| pvh_entry(&bytes));
        }
        let elf = Self { segments, pvh, entry: Gpa::new(header.e_entry) };
        Ok(elf.check_entry().map(|()| elf))
    }

    fn check_entry(&self) -> Result<(), Fault> {
        let entry = self.pvh.unwrap_or(self.entry);
        let holds = |segment: &Segment| {
            entry.get().checked_sub(segment.start.get()).is_some_and(|offset| offset < segment.len)
        };
        if self.segments.iter().any(holds) {
            return Ok(());
        }
        Err(Fault::Layout(format!("it is entered at {entry}, where it loads nothing")))
    }
}

fn check_header(header: &Elf64_Ehdr) -> Result<(), Fault> {
    if header.e_ident[..4] != [ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3] {
        return Err(Fault::NotAKernel("it begins like neither an ELF file nor a bzImage"));
    }
    if header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != MACHINE_X86_64 {
        return Err(Fault::NotAKernel("it is not for 64-bit x86"));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Err(Fault::NotAKernel("its program headers have another size than ELF's"));
    }
    if header.e_phnum > PROGRAM_HEADERS_MAX {
        return Err(Fault::NotAKernel("it has more program headers than any kernel"));
    }
    Ok(())
}

fn load_segments(headers: &[Elf64_Phdr]) -> Result<Vec<Segment>, Fault> {
    let mut segments = Vec::new();
    for header in headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0) {
        let start = Gpa::new(header.p_paddr);
        let len = header.p_memsz.max(header.p_filesz);
        if start < KERNEL_START {
            return Err(Fault::Layout(format!(
                "it loads to {start}, where boot structures are: it must load from {KERNEL_START} on"
            )));
        }
        if start.checked_offset(Bytes::new(len)).is_none_or(|end| end > LOW_RAM_END) {
            return Err(Fault::Layout(format!(
                "it loads {len:#x} bytes to {start}, past the end of low RAM at {LOW_RAM_END}"
            )));
        }
        segments.push(Segment { offset: header.p_offset, start, file_len: header.p_filesz, len });
    }
    if segments.is_empty() { Err(Fault::Layout("it loads nothing".to_owned())) } else { Ok(segments) }
}

/// The PVH entry among notes, each with name and descriptor padded to multiples of four.
fn pvh_entry(mut notes: &[u8]) -> Option<Gpa> {
    loop {
        let mut note = Elf64_Nhdr::default();
        let (head, rest) = notes.split_at_checked(size_of::<Elf64_Nhdr>())?;
        note.as_mut_slice().copy_from_slice(head);
        let name_len = (note.n_namesz as usize).checked_next_multiple_of(4)?;
        let descriptor_len = (note.n_descsz as usize).checked_next_multiple_of(4)?;
        let (name, rest) = rest.split_at_checked(name_len)?;
        let (descriptor, rest) = rest.split_at_checked(descriptor_len)?;
        if note.n_type == NOTE_PHYS32_ENTRY && name.starts_with(b"Xen\0") {
            // Four or eight bytes; the entry is below 4 GiB.
            let entry = descriptor.first_chunk::<4>()?;
            return Some(Gpa::new(u32::from_le_bytes(*entry).into()));
        }
        notes = rest;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF image with these segments (address, bytes in the file, bytes in memory), entered where the first begins;
    /// with a PVH note if there is an entry for it.
    pub(crate) fn elf(segments: &[(u64, u64, u64)], pvh: Option<u32>) -> Vec<u8> {
        let count = segments.len() + usize::from(pvh.is_some());
        let mut header = Elf64_Ehdr {
            e_machine: MACHINE_X86_64,
            e_entry: segments.first().map_or(0, |segment| segment.0),
            e_phoff: size_of::<Elf64_Ehdr>() as u64,
            e_phentsize: size_of::<Elf64_Phdr>() as u16,
            e_phnum: count as u16,
            ..Default::default()
        };
        header.e_ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        let mut bytes = header.as_slice().to_vec();
        let mut data = (size_of::<Elf64_Ehdr>() + count * size_of::<Elf64_Phdr>()) as u64;
        for &(p_paddr, p_filesz, p_memsz) in segments {
            let (p_type, p_offset) = (PT_LOAD, data);
            let header = Elf64_Phdr { p_type, p_offset, p_paddr, p_filesz, p_memsz, ..Default::default() };
            bytes.extend_from_slice(header.as_slice());
            data += p_filesz.min(1 << 16);
        }
        if let Some(entry) = pvh {
            let mut note: Vec<u8> = [4_u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()).collect();
            note.extend_from_slice(b"Xen\0");
            note.extend_from_slice(&entry.to_le_bytes());
            let (p_type, p_filesz) = (PT_NOTE, note.len() as u64);
            let header = Elf64_Phdr { p_type, p_offset: data, p_filesz, ..Default::default() };
            bytes.extend_from_slice(header.as_slice());
            bytes.resize(data as usize, 0x90);
            bytes.extend(note);
        } else {
            bytes.resize(data as usize, 0x90);
        }
        bytes
    }

    fn check(image: &[u8], expect: Result<u64, &str>) {
        let found = Elf::parse(&image).unwrap();
        match (&found, expect) {
            (Ok(elf), Ok(expect)) => assert_eq!(elf.end().get(), expect),
            (Err(Fault::NotAKernel(reason)), Err(expect)) => assert!(reason.contains(expect), "{reason}"),
            (Err(Fault::Layout(reason)), Err(expect)) => assert!(reason.contains(expect), "{reason}"),
            _ => panic!("{found:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn an_image_needs_memory_up_to_its_last_segment() {
        check(&elf(&[(0x10_0000, 16, 16)], None), Ok(0x10_0010));
        check(&elf(&[(0x20_0000, 16, 0x5000), (0x10_0000, 16, 16)], None), Ok(0x20_5000));
    }

    #[test]
    fn a_note_says_where_to_enter() {
        let image = elf(&[(0x10_0000, 16, 16)], Some(0x10_0008));
        assert_eq!(Elf::parse(&&image[..]).unwrap().unwrap().pvh, Some(Gpa::new(0x10_0008)));
        check(&elf(&[(0x10_0000, 16, 16)], Some(0x10_0010)), Err("loads nothing"));
        check(&image[..image.len() - 1], Err("inside its notes"));
        assert_eq!(pvh_entry(&[0xff; 64]), None, "lengths beyond everything");
        assert_eq!(pvh_entry(&[0; 64]), None, "empty notes");
    }

    #[test]
    fn what_is_not_a_kernel_is_refused_with_the_reason() {
        check(b"", Err("shorter"));
        check(b"#!/bin/sh\n", Err("shorter"));
        check(&[b'x'; 200], Err("neither"));
        let good = elf(&[(0x10_0000, 16, 16)], None);
        check(&good[..100], Err("ends inside"));
        let mut other = good.clone();
        other[4] = 1;
        check(&other, Err("64-bit"));
        let mut many = good.clone();
        many[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
        check(&many, Err("more program headers"));
        let mut far = good.clone();
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        check(&far, Err("ends inside"));
        check(&elf(&[], None), Err("loads nothing"));
        check(&elf(&[(0x7000, 16, 16)], None), Err("boot structures"));
        check(&elf(&[(0x10_0000, 16, u64::MAX)], None), Err("past the end"));
        check(&elf(&[(u64::MAX - 4, 16, 16)], None), Err("past the end"));
        check(&elf(&[(0xbfff_f000, 0, 0x1001)], None), Err("past the end"));
    }
}
