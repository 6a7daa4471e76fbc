//! Bringing the RAM of a suspended VM: what somebody waits for first, and all the rest in the background.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use drover_guest_memory::{FaultSource, GuestMemory, Loader, PageRun};
use drover_ids::OwnerEpoch;
use drover_thread_role::{Role, spawn};
use drover_units::{Bytes, Gpa, PAGE_SIZE, Pages};

use crate::{
    LoadError, ReadError, SuspendFile,
    file::write_claim,
    format::{CHUNK, Chunk, Claim, DATA_OFFSET, Header, PAGES_PER_CHUNK},
};

/// How far loading has come. Clones are the same.
#[derive(Clone, Debug)]
pub struct LoadProgress {
    path: PathBuf,
    claimed: Option<OwnerEpoch>,
    file: Arc<File>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    loaded: AtomicU64,
    waited_for: AtomicU64,
}

impl LoadProgress {
    /// RAM that has come.
    pub fn loaded(&self) -> Bytes {
        Bytes::new(self.shared.loaded.load(Ordering::Relaxed))
    }

    /// How many times somebody had to wait for a page.
    pub fn waited_for(&self) -> u64 {
        self.shared.waited_for.load(Ordering::Relaxed)
    }

    /// Marks the file, on the disk and for good: from here on the guest may run, and nobody else can resume it.
    ///
    /// # Errors
    /// [`ReadError::Io`], or [`ReadError::Unclaimed`]; the guest must not run.
    pub fn consume(&self) -> Result<(), ReadError> {
        let unclaimed = || ReadError::Unclaimed { path: self.path.clone() };
        let epoch = self.claimed.ok_or_else(unclaimed)?;
        write_claim(&self.file, &self.path, Claim { epoch, consumed: true })
    }
}

impl SuspendFile {
    /// Starts to bring the RAM: at once, whatever is touched; in the background, the rest. Where that fails, `failed` is
    /// called, once, on the loading thread, and whoever waits for a page that has not come waits on: the machine must end.
    ///
    /// # Errors
    /// [`LoadError::Memory`] where the host cannot bring pages on demand, [`LoadError::Read`] where it gives no thread.
    ///
    /// # Panics
    /// If the memory is not of [the size](Self::memory) that was written.
    pub fn load(
        self,
        memory: &GuestMemory,
        source: FaultSource,
        failed: impl FnOnce(LoadError) + Send + 'static,
    ) -> Result<LoadProgress, LoadError> {
        assert_eq!(memory.size(), self.memory(), "a machine of another size takes no RAM");
        let loader = memory.load_on_demand(source)?;
        let (path, claimed) = (self.path().to_owned(), self.claimed());
        let (file, header, index) = self.into_parts();
        let file = Arc::new(file);
        let progress = LoadProgress { path, claimed, file: Arc::clone(&file), shared: Arc::default() };
        let mut loading = Loading {
            memory: memory.clone(),
            file,
            header,
            index,
            progress: progress.clone(),
            buffer: vec![0; CHUNK as usize],
            loader,
        };
        let body = move || match loading.run() {
            Ok(()) => {
                let Loading { loader, progress, .. } = loading;
                let outcome = loader.finish().map_err(LoadError::from);
                tracing::info!(
                    loaded = progress.loaded().get(),
                    waited_for = progress.waited_for(),
                    "the guest's memory has come"
                );
                if let Err(error) = outcome {
                    failed(error);
                }
            }
            Err(error) => {
                failed(error);
                // Keeps the pages that have not come from being read as zeros.
                drop(loading);
            }
        };
        spawn(Role::Load, thread::Builder::new().name("load".to_owned()), body).map_err(LoadError::Read)?;
        Ok(progress)
    }
}

struct Loading {
    memory: GuestMemory,
    file: Arc<File>,
    header: Header,
    /// What is left to load: an entry is emptied when it has been.
    index: Vec<Chunk>,
    progress: LoadProgress,
    buffer: Vec<u8>,
    loader: Loader,
}

impl Loading {
    fn run(&mut self) -> Result<(), LoadError> {
        for number in 0..self.header.chunks() {
            // Who waits goes first.
            while let Some(page) = self.loader.fault(Duration::ZERO).map_err(LoadError::Faults)? {
                self.progress.shared.waited_for.fetch_add(1, Ordering::Relaxed);
                self.bring(page)?;
            }
            self.load(number)?;
        }
        Ok(())
    }

    /// Brings what somebody waits for.
    fn bring(&mut self, page: Gpa) -> Result<(), LoadError> {
        let place = self.memory.layout().ranges().iter().find_map(|range| {
            let offset = page.get().checked_sub(range.start.get())?;
            (offset < range.len.get()).then(|| range.file_offset.get() + offset)
        });
        if let Some(offset) = place {
            self.load(offset / CHUNK)?;
        }
        // It has come by that, or it is zero.
        Ok(self.loader.provide_zero(page)?)
    }

    /// Loads a piece, once.
    fn load(&mut self, number: u64) -> Result<(), LoadError> {
        let entry = usize::try_from(number).ok().and_then(|number| self.index.get_mut(number));
        let Some(chunk) = entry.map(std::mem::take) else { return Ok(()) };
        if chunk.pages == 0 {
            return Ok(());
        }
        let offset = number * CHUNK;
        let len = CHUNK.min(self.header.ram_len - offset);
        let piece = &mut self.buffer[..len as usize];
        read(&self.file, piece, DATA_OFFSET + offset).map_err(LoadError::Read)?;
        if !chunk.fits(piece) {
            return Err(LoadError::Corrupt { offset: Bytes::new(offset) });
        }
        for (first, count) in chunk.runs() {
            // A page beyond the end of RAM cannot be there.
            if first + count > (len / PAGE_SIZE) as usize {
                return Err(LoadError::Corrupt { offset: Bytes::new(offset) });
            }
            let from = first * PAGE_SIZE as usize;
            let bytes = &piece[from..from + count * PAGE_SIZE as usize];
            let start = page(&self.memory, number * PAGES_PER_CHUNK + first as u64);
            self.loader.provide(PageRun { start, pages: Pages::new(count as u64) }, bytes)?;
            self.progress.shared.loaded.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The address of a page by its number in the file. Pieces do not cross the hole.
fn page(memory: &GuestMemory, number: u64) -> Gpa {
    let offset = number * PAGE_SIZE;
    let ranges = memory.layout().ranges();
    let range = ranges.iter().rfind(|range| range.file_offset.get() <= offset).unwrap_or(&ranges[0]);
    Gpa::new(range.start.get() + (offset - range.file_offset.get()))
}

fn read(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.read_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
