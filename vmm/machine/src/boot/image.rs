//! A kernel image, looked at before it is loaded.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use drover_guest_memory::LOW_RAM_END;
use drover_units::{Bytes, Gpa, PAGE_SIZE};
use linux_loader::elf::{
    EI_CLASS, ELFCLASS64, ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, Elf64_Ehdr, Elf64_Phdr, PT_LOAD,
};
use vm_memory::ByteValued;

use crate::{BuildError, address_map::KERNEL_START};

/// Machine number of x86-64 in an ELF header (EM_X86_64).
const MACHINE_X86_64: u16 = 62;

/// An opened ELF kernel whose headers make sense.
#[derive(Debug)]
pub struct KernelImage {
    file: File,
    path: PathBuf,
    end: Gpa,
}

impl KernelImage {
    /// Opens an image and reads its headers.
    ///
    /// # Errors
    /// [`BuildError::OpenKernel`], [`BuildError::NotAnElf`], or [`BuildError::KernelLayout`].
    pub fn open(path: &Path) -> Result<Self, BuildError> {
        let file =
            File::open(path).map_err(|source| BuildError::OpenKernel { path: path.to_owned(), source })?;
        Self::of_file(file, path)
    }

    /// Reads the headers of an image that is open, for a process that may open nothing. The path is for people.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of_file(mut file: File, path: &Path) -> Result<Self, BuildError> {
        let open_error = |source| BuildError::OpenKernel { path: path.to_owned(), source };
        let layout = read_layout(&mut file).map_err(open_error)?;
        let end = layout.map_err(|fault| fault.for_image(path))?;
        Ok(Self { file, path: path.to_owned(), end })
    }

    /// The least memory of a machine that can load the image, whole pages.
    pub fn memory_needed(&self) -> Bytes {
        Bytes::new(self.end.get().next_multiple_of(PAGE_SIZE))
    }

    /// Where the image came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file_mut(&mut self) -> &mut File {
        &mut self.file
    }
}

/// What is wrong with an image's headers.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    NotAnElf(&'static str),
    Layout(String),
}

impl Fault {
    fn for_image(self, path: &Path) -> BuildError {
        let path = path.to_owned();
        match self {
            Self::NotAnElf(reason) => BuildError::NotAnElf { path, reason },
            Self::Layout(reason) => BuildError::KernelLayout { path, reason },
        }
    }
}

/// First address behind everything the image loads. The inner error is about the image, the outer about reading it.
fn read_layout(image: &mut (impl Read + Seek)) -> io::Result<Result<Gpa, Fault>> {
    let mut header = Elf64_Ehdr::default();
    if let Err(error) = image.read_exact(header.as_mut_slice()) {
        return if error.kind() == io::ErrorKind::UnexpectedEof {
            Ok(Err(Fault::NotAnElf("it is shorter than an ELF header")))
        } else {
            Err(error)
        };
    }
    if header.e_ident[..4] != [ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3] {
        return Ok(Err(Fault::NotAnElf("it does not begin with ELF's magic number")));
    }
    if header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != MACHINE_X86_64 {
        return Ok(Err(Fault::NotAnElf("it is not for 64-bit x86")));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Ok(Err(Fault::NotAnElf("its program headers have another size than ELF's")));
    }
    let mut headers = vec![Elf64_Phdr::default(); usize::from(header.e_phnum)];
    image.seek(SeekFrom::Start(header.e_phoff))?;
    for program_header in &mut headers {
        if let Err(error) = image.read_exact(program_header.as_mut_slice()) {
            return if error.kind() == io::ErrorKind::UnexpectedEof {
                Ok(Err(Fault::NotAnElf("it ends inside its program headers")))
            } else {
                Err(error)
            };
        }
    }
    Ok(load_end(&headers))
}

fn load_end(headers: &[Elf64_Phdr]) -> Result<Gpa, Fault> {
    let mut end = Gpa::ZERO;
    for segment in headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0) {
        let start = Gpa::new(segment.p_paddr);
        let segment_end = start.checked_offset(Bytes::new(segment.p_memsz.max(segment.p_filesz)));
        match segment_end {
            _ if start < KERNEL_START => {
                return Err(Fault::Layout(format!(
                    "it loads to {start}, where boot structures are: it must load from {KERNEL_START} on"
                )));
            }
            Some(segment_end) if segment_end <= LOW_RAM_END => end = end.max(segment_end),
            _ => {
                let len = segment.p_memsz;
                return Err(Fault::Layout(format!(
                    "it loads {len:#x} bytes to {start}, past the end of low RAM at {LOW_RAM_END}"
                )));
            }
        }
    }
    if end == Gpa::ZERO { Err(Fault::Layout("it loads nothing".to_owned())) } else { Ok(end) }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;

    use super::*;

    /// An ELF image with these segments (address, bytes in the file, bytes in memory).
    pub(crate) fn elf(segments: &[(u64, u64, u64)]) -> Vec<u8> {
        let mut header = Elf64_Ehdr {
            e_machine: MACHINE_X86_64,
            e_phoff: size_of::<Elf64_Ehdr>() as u64,
            e_phentsize: size_of::<Elf64_Phdr>() as u16,
            e_phnum: segments.len() as u16,
            ..Default::default()
        };
        header.e_ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        let mut bytes = header.as_slice().to_vec();
        let mut data = (size_of::<Elf64_Ehdr>() + segments.len() * size_of::<Elf64_Phdr>()) as u64;
        for &(p_paddr, p_filesz, p_memsz) in segments {
            let program_header = Elf64_Phdr {
                p_type: PT_LOAD,
                p_offset: data,
                p_paddr,
                p_filesz,
                p_memsz,
                ..Default::default()
            };
            bytes.extend_from_slice(program_header.as_slice());
            data += p_filesz.min(1 << 16);
        }
        bytes.resize(data as usize, 0x90);
        bytes
    }

    fn check(image: &[u8], expect: Result<u64, &str>) {
        let found = read_layout(&mut Cursor::new(image)).unwrap();
        match (&found, expect) {
            (Ok(end), Ok(expect)) => assert_eq!(end.get(), expect),
            (Err(Fault::NotAnElf(reason)), Err(expect)) => assert!(reason.contains(expect), "{reason}"),
            (Err(Fault::Layout(reason)), Err(expect)) => assert!(reason.contains(expect), "{reason}"),
            _ => panic!("{found:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn an_image_needs_memory_up_to_its_last_segment() {
        check(&elf(&[(0x10_0000, 16, 16)]), Ok(0x10_0010));
        check(&elf(&[(0x20_0000, 16, 0x5000), (0x10_0000, 16, 16)]), Ok(0x20_5000));
    }

    #[test]
    fn what_is_not_a_kernel_is_refused_with_the_reason() {
        check(b"", Err("shorter"));
        check(b"#!/bin/sh\n", Err("shorter"));
        check(&[b'x'; 200], Err("magic"));
        let good = elf(&[(0x10_0000, 16, 16)]);
        check(&good[..100], Err("ends inside"));
        let mut other = good.clone();
        other[4] = 1;
        check(&other, Err("64-bit"));
        check(&elf(&[]), Err("loads nothing"));
        check(&elf(&[(0x7000, 16, 16)]), Err("boot structures"));
        check(&elf(&[(0x10_0000, 16, u64::MAX)]), Err("past the end"));
        check(&elf(&[(u64::MAX - 4, 16, 16)]), Err("past the end"));
        check(&elf(&[(0xbfff_f000, 0, 0x1001)]), Err("past the end"));
    }
}
