//! A kernel image, looked at before it is loaded.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use drover_guest_memory::GuestMemory;
use drover_units::{Bytes, Gpa, PAGE_SIZE};

use super::{bzimage::BzImage, elf::Elf};
use crate::BuildError;

/// How much is copied at a time.
const CHUNK: usize = 1 << 20;

/// An opened kernel whose headers make sense: an ELF file (vmlinux, or anything with a PVH note) or a bzImage. Clones share
/// the file.
#[derive(Clone, Debug)]
pub struct KernelImage {
    file: Arc<File>,
    path: PathBuf,
    pub(super) format: Format,
}

/// What kind of image it is.
#[derive(Clone, Debug)]
pub(super) enum Format {
    Elf(Elf),
    BzImage(BzImage),
}

impl KernelImage {
    /// Opens an image and reads its headers.
    ///
    /// # Errors
    /// [`BuildError::OpenKernel`], [`BuildError::NotAKernel`], or [`BuildError::KernelLayout`].
    pub fn open(path: &Path) -> Result<Self, BuildError> {
        let file =
            File::open(path).map_err(|source| BuildError::OpenKernel { path: path.to_owned(), source })?;
        Self::of_file(file, path)
    }

    /// Reads the headers of an image that is open, for a process that may open nothing. The path is for people.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of_file(file: File, path: &Path) -> Result<Self, BuildError> {
        let open_error = |source| BuildError::OpenKernel { path: path.to_owned(), source };
        let format = match BzImage::parse(&file).map_err(open_error)? {
            Some(image) => image.map(Format::BzImage),
            None => Elf::parse(&file).map_err(open_error)?.map(Format::Elf),
        };
        let format = format.map_err(|fault| fault.for_image(path))?;
        Ok(Self { file: Arc::new(file), path: path.to_owned(), format })
    }

    /// The least memory of a machine that can load the image, whole pages.
    pub fn memory_needed(&self) -> Bytes {
        let end = match &self.format {
            Format::Elf(elf) => elf.end(),
            Format::BzImage(image) => image.end(),
        };
        Bytes::new(end.get().next_multiple_of(PAGE_SIZE))
    }

    /// Where the image came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies `len` bytes of the file from `offset` on to `start`.
    pub(super) fn copy(
        &self,
        memory: &GuestMemory,
        (offset, len): (u64, u64),
        start: Gpa,
    ) -> Result<(), BuildError> {
        copy_file(&self.file, memory, (offset, len), start).map_err(|fault| match fault {
            CopyFault::Read(source) => BuildError::OpenKernel { path: self.path.clone(), source },
            CopyFault::Write(reason) => BuildError::KernelLayout { path: self.path.clone(), reason },
        })
    }
}

/// Why a part of a file did not get into RAM.
pub(super) enum CopyFault {
    Read(io::Error),
    Write(String),
}

/// Copies `len` bytes of a file from `offset` on to `start`, a piece at a time.
pub(super) fn copy_file(
    file: &File,
    memory: &GuestMemory,
    (mut offset, mut len): (u64, u64),
    mut start: Gpa,
) -> Result<(), CopyFault> {
    let mut chunk = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
    while len > 0 {
        let piece = &mut chunk[..usize::try_from(len).unwrap_or(CHUNK).min(CHUNK)];
        file.read_exact_at(piece, offset).map_err(CopyFault::Read)?;
        memory.write(start, piece).map_err(|error| CopyFault::Write(error.to_string()))?;
        let done = piece.len() as u64;
        // Neither overflows: the file has these bytes, and RAM does.
        (offset, len, start) = (offset + done, len - done, Gpa::new(start.get() + done));
    }
    Ok(())
}

/// Something that can be read from anywhere: a file, or bytes in a test.
pub(super) trait ReadAt {
    /// Length, bytes.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset` on; `false` where it ends before.
    fn read_all_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool>;
}

impl ReadAt for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
    fn read_all_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        // What lies beyond what a file can have is beyond its end.
        if offset > i64::MAX.cast_unsigned() {
            return Ok(false);
        }
        match self.read_exact_at(buffer, offset) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
impl ReadAt for &[u8] {
    fn len(&self) -> io::Result<u64> {
        Ok(<[u8]>::len(self) as u64)
    }
    fn read_all_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let bytes = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)?.get(..buffer.len()));
        Ok(bytes.inspect(|bytes| buffer.copy_from_slice(bytes)).is_some())
    }
}

/// What is wrong with an image's headers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    NotAKernel(&'static str),
    Layout(String),
}

impl Fault {
    fn for_image(self, path: &Path) -> BuildError {
        let path = path.to_owned();
        match self {
            Self::NotAKernel(reason) => BuildError::NotAKernel { path, reason },
            Self::Layout(reason) => BuildError::KernelLayout { path, reason },
        }
    }
}
