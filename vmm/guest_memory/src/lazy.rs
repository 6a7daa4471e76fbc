//! RAM whose pages come when they are first touched: userfaultfd(2).
//!
//! ```text
//! vCPU, device, kernel --touch--> missing page --fault--> Loader::fault --> whoever has the pages
//!                  goes on <----- the page is there <---- Loader::provide <--+   (and the rest, in its own time)
//! ```
//!
//! A page is provided once. One that was [given back](GuestMemory::zero_pages) before it came is zero and stays so. Until
//! [`Loader::finish`] nobody may ask which pages are [populated](GuestMemory::populated): those that have not come
//! would be left out.
#![expect(unsafe_code, reason = "userfaultfd and its ioctls")]

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use drover_units::{Gpa, PAGE_SIZE, Pages};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{GuestMemory, MemoryError, PageRun, RamLayout};

/// linux/userfaultfd.h.
mod abi {
    pub(super) const API: u64 = 0xaa;
    pub(super) const REGISTER_MODE_MISSING: u64 = 1;
    pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
    /// Length of a message, where it says what happened, and the address.
    pub(super) const MESSAGE_LEN: usize = 32;
    pub(super) const MESSAGE_ADDRESS: usize = 16;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default)]
    pub(super) struct Api {
        pub(super) api: u64,
        pub(super) features: u64,
        pub(super) ioctls: u64,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default)]
    pub(super) struct Range {
        pub(super) start: u64,
        pub(super) len: u64,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default)]
    pub(super) struct Register {
        pub(super) range: Range,
        pub(super) mode: u64,
        pub(super) ioctls: u64,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default)]
    pub(super) struct Copy {
        pub(super) destination: u64,
        pub(super) source: u64,
        pub(super) len: u64,
        pub(super) mode: u64,
        /// What was copied, or minus the error.
        pub(super) copied: i64,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default)]
    pub(super) struct Zero {
        pub(super) range: Range,
        pub(super) mode: u64,
        pub(super) zeroed: i64,
    }
    nix::ioctl_readwrite!(handshake, 0xaa, 0x3f, Api);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, Register);
    nix::ioctl_read!(unregister, 0xaa, 0x01, Range);
    nix::ioctl_read!(wake, 0xaa, 0x02, Range);
    nix::ioctl_readwrite!(copy, 0xaa, 0x03, Copy);
    nix::ioctl_readwrite!(zero, 0xaa, 0x04, Zero);
}

/// What a memory knows of its loading.
#[derive(Debug)]
pub(crate) struct Loading {
    layout: RamLayout,
    /// A bit for each page, by range: it has been provided, or given back before it was.
    settled: Mutex<Vec<Vec<u64>>>,
    over: AtomicBool,
    changed: Condvar,
}

impl Loading {
    fn new(layout: &RamLayout) -> Self {
        let words =
            |len: u64| usize::try_from((len / PAGE_SIZE).div_ceil(64)).expect("MAX_RAM bounds the bitmap");
        let settled = layout.ranges().iter().map(|range| vec![0; words(range.len.get())]).collect();
        Self {
            layout: layout.clone(),
            settled: Mutex::new(settled),
            over: AtomicBool::new(false),
            changed: Condvar::new(),
        }
    }

    /// Whether pages are still to come.
    pub(crate) fn is_under_way(&self) -> bool {
        !self.over.load(Ordering::Acquire)
    }

    /// Does something to a run of pages, after which they do not come any more.
    pub(crate) fn settle<T>(&self, run: PageRun, work: impl FnOnce() -> T) -> T {
        let mut settled = self.lock();
        for page in run.iter() {
            if let Some((word, bit)) = self.bit(&mut settled, page) {
                *word |= bit;
            }
        }
        work()
    }

    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let under_way = |_: &mut Vec<Vec<u64>>| self.is_under_way();
        drop(
            self.changed
                .wait_timeout_while(self.lock(), limit, under_way)
                .unwrap_or_else(PoisonError::into_inner),
        );
        !self.is_under_way()
    }

    fn finish(&self) {
        let mut settled = self.lock();
        self.over.store(true, Ordering::Release);
        settled.clear();
        settled.shrink_to_fit();
        drop(settled);
        self.changed.notify_all();
    }

    fn bit<'a>(&self, settled: &'a mut [Vec<u64>], page: Gpa) -> Option<(&'a mut u64, u64)> {
        let at = self.layout.ranges().iter().position(|range| range.start <= page && page < range.end())?;
        let index = (page.get() - self.layout.ranges()[at].start.get()) / PAGE_SIZE;
        let word = settled.get_mut(at)?.get_mut(usize::try_from(index / 64).ok()?)?;
        Some((word, 1 << (index % 64)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u64>>> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings the pages of a memory. For one thread, which must not touch the memory itself: it would wait for itself.
///
/// Dropping it before [`finish`](Self::finish) leaves whoever touches a page that has not come waiting for ever: wrong
/// bytes, which a device could write to a disk, are worse.
#[derive(Debug)]
pub struct Loader {
    memory: GuestMemory,
    faults: File,
    loading: Arc<Loading>,
    finished: bool,
}

/// A way to hear of missing pages that no memory uses yet. It is of the process that opened it.
#[derive(Debug)]
pub struct FaultSource(OwnedFd);

impl FaultSource {
    /// Opens one. A process that gives its privileges up does so before.
    ///
    /// # Errors
    /// [`MemoryError::Lazy`] where the host has no userfaultfd, or not for this process: it takes CAP_SYS_PTRACE, or
    /// access to /dev/userfaultfd.
    pub fn open() -> Result<Self, MemoryError> {
        open().map(Self).map_err(|source| MemoryError::Lazy { attempt: "open userfaultfd", source })
    }
}

impl GuestMemory {
    /// From now on pages come from the loader. The memory is new: nothing has been written to it.
    ///
    /// # Errors
    /// [`MemoryError::Lazy`] where the host's userfaultfd does not know such memory.
    pub fn load_on_demand(&self, FaultSource(faults): FaultSource) -> Result<Loader, MemoryError> {
        let lazy = |attempt| move |source: io::Error| MemoryError::Lazy { attempt, source };
        let mut api = abi::Api { api: abi::API, features: 0, ioctls: 0 };
        // SAFETY: the structure is as the kernel's, and outlives the call.
        unsafe { abi::handshake(faults.as_raw_fd(), &raw mut api) }
            .map_err(io::Error::from)
            .map_err(lazy("agree with the kernel on userfaultfd"))?;
        for region in self.regions() {
            let range = abi::Range { start: region.host_address.addr() as u64, len: region.len.get() };
            let mut register = abi::Register { range, mode: abi::REGISTER_MODE_MISSING, ioctls: 0 };
            // SAFETY: as above; the range is a mapping of ours, and missing pages change nothing but who provides them.
            unsafe { abi::register(faults.as_raw_fd(), &raw mut register) }
                .map_err(io::Error::from)
                .map_err(lazy("watch guest memory"))?;
        }
        let loading = Arc::new(Loading::new(self.layout()));
        self.begin_loading(Arc::clone(&loading))?;
        Ok(Loader { memory: self.clone(), faults: faults.into(), loading, finished: false })
    }
}

/// By the system call where this process may, else by the device.
fn open() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    if fd >= 0 {
        let fd = i32::try_from(fd).expect("descriptors are small");
        // SAFETY: the kernel has just given it to us.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    let refused = io::Error::last_os_error();
    let Ok(device) = File::options().read(true).write(true).open("/dev/userfaultfd") else {
        return Err(refused);
    };
    /// _IO(0xAA, 0x00): a new descriptor.
    const USERFAULTFD_IOC_NEW: libc::c_ulong = 0xaa00;
    // SAFETY: this request takes flags and no pointer.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Loader {
    /// A page that somebody waits for. Waits for one as long as `limit`.
    ///
    /// # Errors
    /// What the host says.
    pub fn fault(&self, limit: Duration) -> io::Result<Option<Gpa>> {
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.faults.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, limit) {
            Ok(0) | Err(nix::Error::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut message = [0; abi::MESSAGE_LEN];
        match (&self.faults).read(&mut message) {
            Ok(abi::MESSAGE_LEN) if message[0] == abi::EVENT_PAGEFAULT => {}
            // Other events have not been asked for.
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
        let address = &message[abi::MESSAGE_ADDRESS..abi::MESSAGE_ADDRESS + 8];
        let address = u64::from_ne_bytes(address.try_into().expect("8 bytes"));
        Ok(self.page_at(address))
    }

    fn page_at(&self, address: u64) -> Option<Gpa> {
        self.memory.regions().find_map(|region| {
            let offset = address.checked_sub(region.host_address.addr() as u64)?;
            (offset < region.len.get()).then(|| Gpa::new(region.start.get() + offset / PAGE_SIZE * PAGE_SIZE))
        })
    }

    /// Brings a run of pages. `bytes` has exactly the run's size. Pages that have come already, or have been given back,
    /// are left alone.
    ///
    /// # Errors
    /// [`MemoryError::OutsideRam`] if the run is not RAM or `bytes` not its size, [`MemoryError::Lazy`] where the host
    /// refuses.
    pub fn provide(&self, run: PageRun, bytes: &[u8]) -> Result<(), MemoryError> {
        let host = self.host_address(run, bytes.len())?;
        let mut settled = self.loading.lock();
        for (n, page) in run.iter().enumerate() {
            let Some((word, bit)) = self.loading.bit(&mut settled, page) else { continue };
            if *word & bit != 0 {
                continue;
            }
            let offset = n * PAGE_SIZE as usize;
            let source = &bytes[offset..offset + PAGE_SIZE as usize];
            self.copy(host + offset as u64, source)
                .map_err(|source| MemoryError::Lazy { attempt: "bring a page of", source })?;
            *word |= bit;
        }
        Ok(())
    }

    /// Lets whoever waits for this page go on: it has come before, or it is zero.
    ///
    /// # Errors
    /// As [`provide`](Self::provide).
    pub fn provide_zero(&self, page: Gpa) -> Result<(), MemoryError> {
        let run = PageRun { start: page, pages: Pages::new(1) };
        let host = self.host_address(run, PAGE_SIZE as usize)?;
        let mut settled = self.loading.lock();
        let range = abi::Range { start: host, len: PAGE_SIZE };
        let mut zero = abi::Zero { range, mode: 0, zeroed: 0 };
        // SAFETY: the page is in a mapping of ours that lives as long as the memory; the kernel fills it only where there
        // is none.
        let outcome = unsafe { abi::zero(self.faults.as_raw_fd(), &raw mut zero) };
        match outcome {
            Ok(_) => {}
            Err(nix::Error::EEXIST) => self.wake(range),
            Err(error) => {
                return Err(MemoryError::Lazy { attempt: "bring a page of", source: error.into() });
            }
        }
        if let Some((word, bit)) = self.loading.bit(&mut settled, page) {
            *word |= bit;
        }
        Ok(())
    }

    /// All pages have come: the others are zero. Whoever still waits goes on.
    ///
    /// # Errors
    /// [`MemoryError::Lazy`] where the host refuses; the memory is as before.
    pub fn finish(mut self) -> Result<(), MemoryError> {
        for region in self.memory.regions() {
            let mut range = abi::Range { start: region.host_address.addr() as u64, len: region.len.get() };
            // SAFETY: the range is the one that was registered.
            unsafe { abi::unregister(self.faults.as_raw_fd(), &raw mut range) }
                .map_err(|error| MemoryError::Lazy { attempt: "end watching", source: error.into() })?;
        }
        self.finished = true;
        self.loading.finish();
        Ok(())
    }

    fn host_address(&self, run: PageRun, len: usize) -> Result<u64, MemoryError> {
        let outside = || MemoryError::OutsideRam { start: run.start, len: run.bytes() };
        if !run.start.get().is_multiple_of(PAGE_SIZE) || run.bytes().get() != len as u64 {
            return Err(outside());
        }
        let end = run.end().ok_or_else(outside)?;
        self.memory
            .regions()
            .find(|region| {
                let limit = region.start.checked_offset(region.len);
                region.start <= run.start && limit.is_some_and(|limit| end <= limit)
            })
            .map(|region| region.host_address.addr() as u64 + (run.start.get() - region.start.get()))
            .ok_or_else(outside)
    }

    fn copy(&self, destination: u64, source: &[u8]) -> io::Result<()> {
        loop {
            let mut copy = abi::Copy {
                destination,
                source: source.as_ptr().addr() as u64,
                len: source.len() as u64,
                mode: 0,
                copied: 0,
            };
            // SAFETY: the source is a live slice of that length, the destination a page of a mapping of ours in which
            // the kernel puts a page only where there is none.
            match unsafe { abi::copy(self.faults.as_raw_fd(), &raw mut copy) } {
                Ok(_) => return Ok(()),
                // The address space is changing: a child is being made, or something is being mapped.
                Err(nix::Error::EAGAIN) => {}
                Err(nix::Error::EEXIST) => {
                    self.wake(abi::Range { start: destination, len: source.len() as u64 });
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wake(&self, range: abi::Range) {
        let mut range = range;
        // SAFETY: waking changes no memory. Its only failure is a range that is not watched.
        let _ = unsafe { abi::wake(self.faults.as_raw_fd(), &raw mut range) };
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        if !self.finished {
            // Closing the descriptor would let everybody who waits see zeros.
            if let Ok(faults) = self.faults.try_clone() {
                std::mem::forget(faults);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use drover_units::Bytes;

    use super::*;

    fn run(page: u64, pages: u64) -> PageRun {
        PageRun { start: Gpa::new(page * PAGE_SIZE), pages: Pages::new(pages) }
    }

    /// `None` where this host or user has no userfaultfd.
    fn lazy(size: Bytes) -> Option<(GuestMemory, Loader)> {
        let memory = GuestMemory::anonymous(size);
        match FaultSource::open().and_then(|source| memory.load_on_demand(source)) {
            Ok(loader) => Some((memory, loader)),
            Err(error) => {
                println!("left out: {error}");
                None
            }
        }
    }

    fn wait_for_fault(loader: &Loader) -> Gpa {
        (0..300).find_map(|_| loader.fault(Duration::from_millis(100)).unwrap()).expect("a fault")
    }

    #[test]
    fn whoever_touches_a_page_waits_until_it_comes() {
        let Some((memory, loader)) = lazy(Bytes::mib(1)) else { return };
        let reader = {
            let memory = memory.clone();
            thread::spawn(move || {
                let mut bytes = [0; 6000];
                memory.read(Gpa::new(0x5800), &mut bytes).unwrap();
                bytes
            })
        };
        assert_eq!(wait_for_fault(&loader), Gpa::new(0x5000));
        loader.provide(run(5, 1), &[5; 4096]).unwrap();
        assert_eq!(wait_for_fault(&loader), Gpa::new(0x6000));
        loader.provide_zero(Gpa::new(0x6000)).unwrap();
        let bytes = reader.join().unwrap();
        assert!(bytes[..2048].iter().all(|byte| *byte == 5) && bytes[2048..].iter().all(|byte| *byte == 0));
        assert!(memory.is_loading());
        assert!(matches!(memory.populated(), Err(MemoryError::Loading)));
        loader.finish().unwrap();
        assert!(memory.wait_loaded(Duration::ZERO));
        assert_eq!(memory.populated().unwrap().runs(), [run(5, 2)]);
        memory.write(Gpa::new(0x9000), &[1]).unwrap();
    }

    #[test]
    fn a_page_comes_once_and_what_was_given_back_does_not() {
        let Some((memory, loader)) = lazy(Bytes::mib(1)) else { return };
        loader.provide(run(0, 4), &[1; 4 * 4096]).unwrap();
        memory.write(Gpa::new(0x1000), &[9]).unwrap();
        memory.zero_pages(run(2, 1)).unwrap();
        memory.zero_pages(run(8, 1)).unwrap();
        loader.provide(run(0, 10), &[2; 10 * 4096]).unwrap();
        let toucher = {
            let memory = memory.clone();
            thread::spawn(move || {
                let mut byte = [7];
                memory.read(Gpa::new(0x2000), &mut byte).unwrap();
                byte
            })
        };
        assert_eq!(wait_for_fault(&loader), Gpa::new(0x2000));
        loader.provide_zero(Gpa::new(0x2000)).unwrap();
        assert_eq!(toucher.join().unwrap(), [0]);
        loader.finish().unwrap();
        let first = |page: u64| {
            let mut byte = [0xff];
            memory.read(Gpa::new(page * PAGE_SIZE), &mut byte).unwrap();
            byte[0]
        };
        assert_eq!([0, 1, 2, 3, 4, 8, 9, 10].map(first), [1, 9, 0, 1, 2, 0, 2, 0]);
    }

    #[test]
    fn what_is_not_ram_is_refused() {
        let Some((_memory, loader)) = lazy(Bytes::kib(16)) else { return };
        assert!(loader.provide(run(3, 2), &[0; 8192]).is_err());
        assert!(loader.provide(run(0, 1), &[0; 4095]).is_err());
        assert!(loader.provide(run(u64::MAX / PAGE_SIZE, 1), &[0; 4096]).is_err());
        assert!(loader.provide_zero(Gpa::new(1 << 40)).is_err());
        assert_eq!(loader.fault(Duration::ZERO).unwrap(), None);
    }
}
