//! An image in this process's memory, for tests. It forgets what was not flushed when told to crash.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use drover_dir_volume::OwnerRecord;
use drover_units::{Bytes, SECTOR_SIZE, Sectors};
use nix::sys::eventfd::EventFd;

use crate::{
    Backend, BackendInfo, BackendQueue, BlockError, Completion, Operation, Owner, OwnershipError,
    QueueConfig, Request, RequestBatch, backend::completion_eventfd, gate::Gate,
};

/// An image that several [`MemoryBackend`]s can have open, as several processes would.
#[derive(Clone, Debug)]
pub struct MemoryImage {
    shared: Arc<Mutex<Contents>>,
    capacity: Sectors,
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
        let capacity = size.to_sectors().filter(|sectors| *sectors > Sectors::ZERO).expect("a test's image");
        let zeros = vec![0; usize::try_from(size.get()).expect("a test's image fits its memory")];
        let contents = Contents { current: zeros.clone(), durable: zeros, record: None, held: false };
        Self { shared: Arc::new(Mutex::new(contents)), capacity }
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

    fn handle(&self, read_only: bool) -> MemoryBackend {
        let handle = Handle { image: self.clone(), gate: Gate::default(), owner: Mutex::default() };
        let info = BackendInfo {
            capacity: self.capacity,
            block_size: Bytes::new(SECTOR_SIZE),
            read_only,
            segments_max: 256,
        };
        MemoryBackend { handle: Arc::new(handle), info }
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle on a [`MemoryImage`].
#[derive(Debug)]
pub struct MemoryBackend {
    handle: Arc<Handle>,
    info: BackendInfo,
}

#[derive(Debug)]
struct Handle {
    image: MemoryImage,
    gate: Gate,
    owner: Mutex<Option<Owner>>,
}

impl Handle {
    fn owner(&self) -> MutexGuard<'_, Option<Owner>> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for MemoryBackend {
    fn info(&self) -> BackendInfo {
        self.info
    }

    fn acquire(&self, owner: &Owner) -> Result<(), OwnershipError> {
        let mut mine = self.handle.owner();
        match *mine {
            Some(current) if current == *owner => return Ok(()),
            Some(current) => return Err(OwnershipError::AlreadyOwned { owner: current }),
            None => {}
        }
        if !self.info.read_only {
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
        if !self.info.read_only {
            let mut contents = self.handle.image.lock();
            contents.flush();
            contents.held = false;
        }
        *mine = None;
        Ok(())
    }

    fn owner(&self) -> Option<Owner> {
        *self.handle.owner()
    }

    fn queue(&self, config: QueueConfig) -> io::Result<Box<dyn BackendQueue>> {
        Ok(Box::new(MemoryQueue {
            handle: Arc::clone(&self.handle),
            info: self.info,
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
    info: BackendInfo,
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
                .and_then(|()| request.check(&self.info))
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
                Operation::Flush => {}
            }
            at += segment.len();
        }
        if request.operation() == Operation::Flush {
            self.flush();
        }
        Ok(())
    }

    fn flush(&mut self) {
        self.durable.copy_from_slice(&self.current);
    }
}
