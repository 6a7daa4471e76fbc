//! An image in this process's memory, for tests. It forgets what was not flushed when told to crash.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use drover_dir_volume::OwnerRecord;
use drover_units::{Bytes, SECTOR_SIZE, Sectors};
use nix::sys::eventfd::EventFd;

use crate::{
    Backend, BackendInfo, BackendQueue, BlockError, Completion, Operation, Owner, OwnershipError,
    QueueConfig, RangeLimits, Request, RequestBatch, ResizeListener, backend::completion_eventfd,
    capacity::Capacity, gate::Gate,
};

/// An image that several [`MemoryBackend`]s can have open, as several processes would.
#[derive(Clone, Debug)]
pub struct MemoryImage {
    shared: Arc<Mutex<Contents>>,
}

struct Contents {
    /// What readers see.
    current: Vec<u8>,
    /// What a crash leaves: everything up to the last flush.
    durable: Vec<u8>,
    record: Option<OwnerRecord>,
    held: bool,
}

impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents")
            .field("record", &self.record)
            .field("held", &self.held)
            .finish_non_exhaustive()
    }
}

impl MemoryImage {
    /// An image that reads as zeros.
    ///
    /// # Panics
    /// Where the size is not a positive number of sectors, or beyond what this process can hold.
    pub fn new(size: Bytes) -> Self {
        size.to_sectors().filter(|sectors| *sectors > Sectors::ZERO).expect("a test's image");
        let zeros = vec![0; usize::try_from(size.get()).expect("a test's image fits its memory")];
        let contents = Contents { current: zeros.clone(), durable: zeros, record: None, held: false };
        Self { shared: Arc::new(Mutex::new(contents)) }
    }

    /// Opens it for reading and writing.
    pub fn open(&self) -> MemoryBackend {
        self.handle(false)
    }

    /// Opens it for reading.
    pub fn open_read_only(&self) -> MemoryBackend {
        self.handle(true)
    }

    /// What a crash would leave: everything that was flushed.
    pub fn durable(&self) -> Vec<u8> {
        self.lock().durable.clone()
    }

    /// Makes it longer. Handles that are open learn of it by [`Backend::refresh`].
    ///
    /// # Panics
    /// Where the new size is not a number of sectors, or smaller than the old.
    pub fn grow(&self, size: Bytes) {
        size.to_sectors().expect("a number of sectors");
        let size = usize::try_from(size.get()).expect("a test's image fits its memory");
        let mut contents = self.lock();
        assert!(size >= contents.current.len(), "an image only grows");
        contents.current.resize(size, 0);
        contents.durable.resize(size, 0);
    }

    fn handle(&self, read_only: bool) -> MemoryBackend {
        let handle = Handle {
            image: self.clone(),
            gate: Gate::default(),
            owner: Mutex::default(),
            capacity: Capacity::new(self.lock().capacity()),
            read_only,
        };
        MemoryBackend { handle: Arc::new(handle) }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle on a [`MemoryImage`].
#[derive(Debug)]
pub struct MemoryBackend {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    image: MemoryImage,
    gate: Gate,
    owner: Mutex<Option<Owner>>,
    capacity: Capacity,
    read_only: bool,
}

impl Handle {
    fn info(&self) -> BackendInfo {
        let limits = RangeLimits { sectors_max: RangeLimits::SECTORS_MAX, alignment: Sectors::new(1) };
        BackendInfo {
            capacity: self.capacity.get(),
            block_size: Bytes::new(SECTOR_SIZE),
            read_only: self.read_only,
            segments_max: 256,
            optimal_io: None,
            discard: (!self.read_only).then_some(limits),
            write_zeroes: (!self.read_only).then_some(limits),
        }
    }

    fn owner(&self) -> MutexGuard<'_, Option<Owner>> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for MemoryBackend {
    fn info(&self) -> BackendInfo {
        self.handle.info()
    }

    fn refresh(&self) -> io::Result<Sectors> {
        self.handle.capacity.look(|| Ok(self.handle.image.lock().capacity()))
    }

    fn set_resize_listener(&self, listener: ResizeListener) {
        self.handle.capacity.set_listener(listener);
    }

    fn oldest_request(&self) -> Option<Duration> {
        // A request is over before its submission is.
        None
    }

    fn acquire(&self, owner: &Owner) -> Result<(), OwnershipError> {
        let mut mine = self.handle.owner();
        match *mine {
            Some(current) if current == *owner => return Ok(()),
            Some(current) => return Err(OwnershipError::AlreadyOwned { owner: current }),
            None => {}
        }
        if !self.handle.read_only {
            let mut contents = self.handle.image.lock();
            if contents.held {
                let owner = contents.record.and_then(|record| record.last_owner());
                return Err(OwnershipError::Held { owner });
            }
            if let Some(record) = contents.record {
                record.admit(owner)?;
            }
            contents.record = Some(OwnerRecord::Acquired(*owner));
            contents.held = true;
        }
        *mine = Some(*owner);
        self.handle.gate.open();
        Ok(())
    }

    fn release(&self) -> Result<(), OwnershipError> {
        let mut mine = self.handle.owner();
        if mine.is_none() {
            return Ok(());
        }
        self.handle.gate.close()?;
        if !self.handle.read_only {
            let mut contents = self.handle.image.lock();
            contents.flush();
            contents.held = false;
        }
        *mine = None;
        Ok(())
    }

    fn last_owner(&self) -> Result<Option<Owner>, OwnershipError> {
        Ok(self.handle.image.lock().record.and_then(|record| record.last_owner()))
    }

    fn owner(&self) -> Option<Owner> {
        *self.handle.owner()
    }

    fn queue(&self, config: QueueConfig) -> io::Result<Box<dyn BackendQueue>> {
        Ok(Box::new(MemoryQueue {
            handle: Arc::clone(&self.handle),
            depth: config.depth.max(1).into(),
            answers: Vec::new(),
            event: completion_eventfd()?,
        }))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mine = self.owner.get_mut().unwrap_or_else(PoisonError::into_inner);
        if mine.is_some() {
            self.image.lock().held = false;
        }
    }
}

/// Carries requests out while they are submitted; answers wait to be reaped.
#[derive(Debug)]
struct MemoryQueue {
    handle: Arc<Handle>,
    depth: usize,
    /// With whether the request had entered the gate.
    answers: Vec<(Completion, bool)>,
    event: EventFd,
}

impl BackendQueue for MemoryQueue {
    fn submit(&mut self, batch: &mut RequestBatch) {
        while self.answers.len() < self.depth
            && let Some(request) = batch.pop()
        {
            let entered = self.handle.gate.enter();
            let inside = entered.is_ok();
            let result = entered
                .and_then(|()| request.check(&self.handle.info()))
                .and_then(|()| self.handle.image.lock().carry_out(&request));
            self.answers.push((request.complete(result), inside));
        }
        if !self.answers.is_empty() {
            self.event.write(1).expect("a counter that is reset by every reap does not overflow");
        }
    }

    fn completion_event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        // Empty where the event was readable without need.
        let _ = self.event.read();
        for (completion, inside) in self.answers.drain(..) {
            if inside {
                self.handle.gate.leave();
            }
            completions.push(completion);
        }
    }

    fn in_flight(&self) -> usize {
        self.answers.len()
    }
}

impl Drop for MemoryQueue {
    fn drop(&mut self) {
        for (_, inside) in self.answers.drain(..) {
            if inside {
                self.handle.gate.leave();
            }
        }
    }
}

impl Contents {
    fn carry_out(&mut self, request: &Request) -> Result<(), BlockError> {
        let io_error = |operation| move |error| BlockError::Io { operation, source: io::Error::other(error) };
        let mut at =
            usize::try_from(request.sector().get() * SECTOR_SIZE).expect("checked against the capacity");
        for segment in request.segments() {
            let range = at..at + segment.len();
            match request.operation() {
                Operation::Read => {
                    segment.write(0, &self.current[range]).map_err(io_error(Operation::Read))?
                }
                Operation::Write => {
                    segment.read(0, &mut self.current[range]).map_err(io_error(Operation::Write))?;
                }
                Operation::Flush | Operation::Discard | Operation::WriteZeroes { .. } => {}
            }
            at += segment.len();
        }
        match request.operation() {
            Operation::Read | Operation::Write => {}
            Operation::Flush => self.flush(),
            Operation::Discard | Operation::WriteZeroes { .. } => {
                let length = usize::try_from(request.length().get()).expect("checked against the capacity");
                self.current[at..at + length].fill(0);
            }
        }
        Ok(())
    }

    fn capacity(&self) -> Sectors {
        Bytes::new(self.current.len() as u64).to_sectors().expect("a number of sectors")
    }

    fn flush(&mut self) {
        self.durable.copy_from_slice(&self.current);
    }
}
