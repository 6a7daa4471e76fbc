//! A first file system for the kernel.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use drover_guest_memory::GuestMemory;
use drover_units::{Bytes, Gpa, PAGE_SIZE};

use super::image::{CopyFault, copy_file};
use crate::BuildError;

/// Where it has been put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    pub(super) start: Gpa,
    pub(super) len: Bytes,
}

/// An opened initial RAM disk. Clones share the file.
#[derive(Clone, Debug)]
pub struct Initrd {
    file: Arc<File>,
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
        Ok(Self { file: Arc::new(file), path: path.to_owned(), len })
    }

    /// Puts it at the top of low RAM, above everything that ends at `above`, and with its last byte not beyond `last`.
    pub(super) fn load(&self, memory: &GuestMemory, above: Gpa, last: Gpa) -> Result<Loaded, BuildError> {
        let too_small = || BuildError::InitrdTooLarge { path: self.path.clone(), len: self.len };
        let top = memory.layout().ranges().first().map_or(Gpa::ZERO, |range| range.end());
        let end = top.get().min(last.get().saturating_add(1));
        let start = end.checked_sub(self.len.get()).ok_or_else(too_small)? / PAGE_SIZE * PAGE_SIZE;
        let start = Gpa::new(start);
        if start < above {
            return Err(too_small());
        }
        copy_file(&self.file, memory, (0, self.len.get()), start).map_err(|fault| match fault {
            CopyFault::Read(source) => BuildError::OpenInitrd { path: self.path.clone(), source },
            CopyFault::Write(reason) => BuildError::BootStructures { what: "initrd", reason },
        })?;
        Ok(Loaded { start, len: self.len })
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
        let initrd = Initrd::open(file.path()).unwrap();
        let low = initrd.load(&memory, Gpa::new(1 << 20), Gpa::new((3 << 20) - 1)).unwrap();
        assert_eq!(low.start.get(), (3 << 20) - (3 << 19));
        let Loaded { start, .. } = initrd.load(&memory, Gpa::new(1 << 20), Gpa::new(u64::MAX)).unwrap();
        assert_eq!(start.get(), (4 << 20) - (3 << 19));
        let mut found = vec![0; content.len()];
        memory.read(start, &mut found).unwrap();
        assert!(found == content);
        let error = initrd.load(&memory, Gpa::new(3 << 20), Gpa::new(u64::MAX)).unwrap_err();
        assert!(matches!(error, BuildError::InitrdTooLarge { .. }), "{error}");
    }
}
