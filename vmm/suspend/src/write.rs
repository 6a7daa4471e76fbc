//! Writing a paused VM to a file.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use drover_guest_memory::{DirtyPages, GuestMemory, PageRun};
use drover_saved_state::{Envelope, encode_list};
use drover_units::{Bytes, Gpa, PAGE_SIZE, Pages};
use nix::sys::statvfs::fstatvfs;

use crate::{
    WriteError,
    format::{CHUNK, CLAIM_LEN, CLAIM_OFFSET, Chunk, DATA_OFFSET, Header, Identity},
};

/// What is left free of the file's file system: others of its host keep records and logs there, and a VM that runs on is
/// better than one that takes them their place.
pub(crate) const ROOM_LEFT: Bytes = Bytes::mib(64);
/// RAM that is written between two looks at what is free.
const LOOK_EVERY: Bytes = Bytes::mib(16);

/// What goes into the file.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// Whose it is.
    pub identity: Identity,
    /// The RAM of a paused machine, all of it there.
    pub memory: &'a GuestMemory,
    /// What the machine must look like that takes it over: the caller's own bytes.
    pub shape: &'a [u8],
    /// Its devices and vCPUs.
    pub states: &'a [Envelope],
}

/// A file in which everything is but the header: nothing that can be resumed. Dropping it empties the file.
#[derive(Debug)]
pub struct SuspendWriter {
    path: PathBuf,
    file: File,
    header: Header,
    written: Written,
    committed: bool,
}

/// How large it has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// RAM that is in the file.
    pub ram: Bytes,
    /// RAM that is zero and is not.
    pub zero: Bytes,
}

impl SuspendWriter {
    /// Writes everything but the header, down to the disk, over whatever the file holds. `path` is its name, for errors.
    /// Uses a buffer of 64 KiB, and an index of 8 bytes for each 64 KiB of RAM, whatever there is in it.
    ///
    /// # Errors
    /// [`WriteError`]; the file is empty again, as far as that can be done.
    pub fn write(file: File, path: &Path, contents: Contents<'_>) -> Result<Self, WriteError> {
        let Contents { identity, memory, shape, states } = contents;
        let states = encode_list(states);
        let header = Header {
            identity,
            ram_len: memory.size().get(),
            shape_len: shape.len() as u64,
            shape_crc: crc32c::crc32c(shape),
            states_len: states.len() as u64,
            states_crc: crc32c::crc32c(&states),
            index_crc: 0,
        };
        let written = Written { ram: Bytes::ZERO, zero: Bytes::ZERO };
        let mut writer = Self { path: path.to_owned(), file, header, written, committed: false };
        // What an earlier try has left is of no use to anybody.
        writer.file.set_len(0).map_err(writer.failed("empty"))?;
        writer.file.set_len(header.file_len()).map_err(writer.failed("size"))?;
        // Room for the header and for the claims of whoever resumes: a disk that is full by then must not stop them.
        writer
            .file
            .write_all_at(&[0; CLAIM_OFFSET as usize + CLAIM_LEN], 0)
            .map_err(writer.failed("write"))?;
        let index = writer.fill_ram(memory)?;
        writer.header.index_crc = crc32c::crc32c(&index);
        let write = |bytes: &[u8], at| writer.file.write_all_at(bytes, at).map_err(writer.failed("write"));
        write(&index, header.index_offset())?;
        write(shape, header.shape_offset())?;
        write(&states, header.states_offset())?;
        writer.file.sync_all().map_err(writer.failed("write"))?;
        Ok(writer)
    }

    /// How large it has become.
    pub fn written(&self) -> Written {
        self.written
    }

    /// Writes the header: from here on the VM is in the file, and nowhere else.
    ///
    /// # Errors
    /// [`WriteError::Io`] where it is certain that the file holds nothing; [`WriteError::Doubtful`] where it may be whole:
    /// the VM must not go on under its epoch then.
    pub fn commit(mut self) -> Result<Written, WriteError> {
        self.committed = true;
        let written = self.file.write_all_at(&self.header.encode(), 0).and_then(|()| self.file.sync_all());
        let Err(source) = written else { return Ok(self.written) };
        let (attempt, path) = ("write", self.path.clone());
        match self.file.set_len(0).and_then(|()| self.file.sync_all()) {
            Ok(()) => Err(WriteError::Io { attempt, path, source }),
            Err(_) => Err(WriteError::Doubtful { path, source }),
        }
    }

    fn failed(&self, attempt: &'static str) -> impl FnOnce(io::Error) -> WriteError + use<> {
        let path = self.path.clone();
        move |source| WriteError::Io { attempt, path, source }
    }

    fn require_room(&self) -> Result<(), WriteError> {
        let free = fstatvfs(&self.file).map_err(|error| self.failed("look at")(error.into()))?;
        let free = Bytes::new(free.blocks_available().saturating_mul(free.fragment_size()));
        if free < ROOM_LEFT {
            return Err(WriteError::NoRoom { path: self.path.clone(), free });
        }
        Ok(())
    }

    /// Writes the pages that are not zero. Returns the index.
    fn fill_ram(&mut self, memory: &GuestMemory) -> Result<Vec<u8>, WriteError> {
        let populated = memory.populated()?;
        let mut cursor = Cursor { pages: &populated, at: 0 };
        let size = memory.size().get();
        let mut index = Vec::with_capacity(usize::try_from(size.div_ceil(CHUNK) * 8).unwrap_or_default());
        let mut buffer = vec![0; CHUNK as usize];
        let mut look_at = Bytes::ZERO;
        for range in memory.layout().ranges() {
            let (first, end) = (range.file_offset.get(), range.file_offset.get() + range.len.get());
            // Ranges begin at multiples of a piece: the hole between them does.
            for offset in (first..end).step_by(CHUNK as usize) {
                let len = CHUNK.min(end - offset);
                let start = Gpa::new(range.start.get() + (offset - first));
                let piece = &mut buffer[..len as usize];
                let run = PageRun { start, pages: Pages::new(len / PAGE_SIZE) };
                let chunk = if cursor.touches(run) {
                    memory.read_pages(run, piece)?;
                    Chunk::of(piece)
                } else {
                    Chunk::default()
                };
                for (page, count) in chunk.runs() {
                    let (from, to) = (page * PAGE_SIZE as usize, (page + count) * PAGE_SIZE as usize);
                    self.file
                        .write_all_at(&piece[from..to], DATA_OFFSET + offset + from as u64)
                        .map_err(self.failed("write"))?;
                }
                if self.written.ram >= look_at {
                    self.require_room()?;
                    look_at = self.written.ram.saturating_add(LOOK_EVERY);
                }
                let there = u64::from(chunk.pages.count_ones()) * PAGE_SIZE;
                self.written.ram = self.written.ram.saturating_add(Bytes::new(there));
                self.written.zero = self.written.zero.saturating_add(Bytes::new(len - there));
                chunk.encode(&mut index);
            }
        }
        Ok(index)
    }
}

impl Drop for SuspendWriter {
    fn drop(&mut self) {
        if !self.committed {
            // Without a header it is nothing in any case.
            let _ = self.file.set_len(0);
        }
    }
}

/// Follows runs in ascending order.
struct Cursor<'a> {
    pages: &'a DirtyPages,
    at: usize,
}

impl Cursor<'_> {
    /// Whether the host has any of these pages. Asked for ascending runs.
    fn touches(&mut self, run: PageRun) -> bool {
        let runs = self.pages.runs();
        while runs.get(self.at).is_some_and(|there| there.end().is_some_and(|end| end <= run.start)) {
            self.at += 1;
        }
        runs.get(self.at).is_some_and(|there| run.end().is_none_or(|end| there.start < end))
    }
}
