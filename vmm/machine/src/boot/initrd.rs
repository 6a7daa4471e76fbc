//! A first file system for the kernel.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use drover_guest_memory::GuestMemory;
use drover_units::{Bytes, Gpa, PAGE_SIZE};

use crate::BuildError;

/// How much is copied at a time.
const CHUNK: usize = 1 << 20;

/// An opened initial RAM disk.
#[derive(Debug)]
pub struct Initrd {
    file: File,
    path: PathBuf,
    len: Bytes,
}

impl Initrd {
    /// Opens a file.
    ///
    /// # Errors
    /// [`BuildError::OpenInitrd`].
    pub fn open(path: &Path) -> Result<Self, BuildError> {
        let file =
            File::open(path).map_err(|source| BuildError::OpenInitrd { path: path.to_owned(), source })?;
        Self::of_file(file, path)
    }

    /// Takes a file that is open, for a process that may open nothing. The path is for people.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of_file(file: File, path: &Path) -> Result<Self, BuildError> {
        let open_error = |source| BuildError::OpenInitrd { path: path.to_owned(), source };
        let len = Bytes::new(file.metadata().map_err(open_error)?.len());
        Ok(Self { file, path: path.to_owned(), len })
    }

    /// Its length.
    pub(crate) fn len(&self) -> Bytes {
        self.len
    }

    /// Puts it at the top of low RAM, above everything that ends at `above`. Returns where.
    pub(crate) fn load(&mut self, memory: &GuestMemory, above: Gpa) -> Result<Gpa, BuildError> {
        let too_small = || BuildError::InitrdTooLarge { path: self.path.clone(), len: self.len };
        let top = memory.layout().ranges().first().map_or(Gpa::ZERO, |range| range.end());
        let start = top.get().checked_sub(self.len.get()).ok_or_else(too_small)? / PAGE_SIZE * PAGE_SIZE;
        let start = Gpa::new(start);
        if start < above {
            return Err(too_small());
        }
        let mut chunk = vec![0; CHUNK];
        let mut at = start;
        let mut left = self.len.get();
        while left > 0 {
            let len = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            self.file
                .read_exact(&mut chunk[..len])
                .map_err(|source| BuildError::OpenInitrd { path: self.path.clone(), source })?;
            memory
                .write(at, &chunk[..len])
                .map_err(|error| BuildError::BootStructures { what: "initrd", reason: error.to_string() })?;
            at = Gpa::new(at.get() + len as u64);
            left -= len as u64;
        }
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn it_lies_at_the_top_of_ram_and_must_fit() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..3 << 19).map(|n: u32| (n % 251) as u8).collect();
        file.write_all(&content).unwrap();
        let memory = GuestMemory::anonymous(Bytes::mib(4));
        let mut initrd = Initrd::open(file.path()).unwrap();
        let start = initrd.load(&memory, Gpa::new(1 << 20)).unwrap();
        assert_eq!(start.get(), (4 << 20) - (3 << 19));
        let mut found = vec![0; content.len()];
        memory.read(start, &mut found).unwrap();
        assert!(found == content);
        let error = Initrd::open(file.path()).unwrap().load(&memory, Gpa::new(3 << 20)).unwrap_err();
        assert!(matches!(error, BuildError::InitrdTooLarge { .. }), "{error}");
    }
}
