//! The serial console: from the guest's bytes to whoever reads them, without ever holding the guest up.
//!
//! A vCPU appends to a bounded [`ring`]. The log thread and every live reader follow the ring at their own pace, each
//! with a position of its own; one that falls behind by more than the ring loses the oldest bytes and learns how many.
//!
//! ```text
//!   vCPU --append--> ring <--position-- log thread --> console.log, console.log.1
//!                      ^---position-- reader (a Console call)
//! ```
//!
//! The log thread wakes with the first byte of all, with a line or every [`GATHER`], not with every byte, and it is the one
//! that wakes the readers: the guest pays for a mutex and nothing else.

mod log_file;
mod output;
mod ring;

use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use drover_ids::OwnerEpoch;
use drover_lifecycle::BootTime;
use drover_thread_role::{Role, spawn};
use tokio::sync::watch;
use tracing::warn;

use self::ring::Ring;
pub(crate) use self::{
    log_file::LogFile,
    output::{GuestOutput, SerialOutput},
    ring::Chunk,
};
use crate::boottime;

/// How long an unfinished line may wait for more of it: short for a person who types, long for a processor.
const GATHER: Duration = Duration::from_millis(5);

/// Largest piece that a reader gets at once, bytes: a few pages, so that a message stays small.
const CHUNK_BYTES_MAX: usize = 16 << 10;

/// Where the guest's serial bytes go.
pub(crate) struct Console {
    inner: Mutex<Inner>,
    /// The log thread waits here.
    grown: Condvar,
    /// Readers wait here; the value is the number of bytes there have been.
    announced: watch::Sender<u64>,
    /// The epoch under which the guest speaks, for the log.
    owner: AtomicU64,
    first_byte: OnceLock<BootTime>,
    on_first_byte: Box<dyn Fn(BootTime) + Send + Sync>,
}

struct Inner {
    ring: Ring,
    log: LogThread,
    closed: bool,
}

/// What the log thread is doing, so that a vCPU wakes it when that is of use and at no other byte.
#[derive(Debug, PartialEq, Eq)]
enum LogThread {
    /// It has everything and waits for the next byte.
    Idle,
    /// It waits for the rest of a line.
    Gathering,
    /// It writes, and will look at the ring again before it waits.
    Writing,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("written", &self.lock().ring.end()).finish_non_exhaustive()
    }
}

impl Console {
    /// A console of which nobody keeps a log yet. `on_first_byte` is called once, by a vCPU.
    pub(crate) fn new(on_first_byte: impl Fn(BootTime) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner { ring: Ring::default(), log: LogThread::Writing, closed: false }),
            grown: Condvar::new(),
            announced: watch::Sender::new(0),
            owner: AtomicU64::new(0),
            first_byte: OnceLock::new(),
            on_first_byte: Box::new(on_first_byte),
        })
    }

    /// Keeps the console's log in `file`, from its first byte on.
    ///
    /// The console works without its log: a failure to write it is a warning.
    pub(crate) fn log_to(self: &Arc<Self>, file: LogFile) -> std::io::Result<ConsoleLog> {
        let follow = Arc::clone(self);
        let builder = thread::Builder::new().name("console-log".to_owned());
        let thread = spawn(Role::Console, builder, move || follow.keep_log(file))?;
        Ok(ConsoleLog { console: Arc::clone(self), thread: Some(thread) })
    }

    /// Takes what the guest wrote. Never blocks on I/O.
    pub(crate) fn append(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.first_byte.get().is_none() {
            let now = boottime::now();
            if self.first_byte.set(now).is_ok() {
                (self.on_first_byte)(now);
            }
        }
        let mut inner = self.lock();
        inner.ring.append(bytes);
        let wake = match inner.log {
            LogThread::Idle => true,
            LogThread::Gathering => bytes.contains(&b'\n'),
            LogThread::Writing => false,
        };
        if wake {
            inner.log = LogThread::Writing;
            self.grown.notify_one();
        }
    }

    /// Says under which epoch the guest speaks from now on.
    pub(crate) fn owned_by(&self, epoch: OwnerEpoch) {
        self.owner.store(epoch.get(), Ordering::Relaxed);
    }

    /// How many bytes there have been.
    pub(crate) fn written(&self) -> u64 {
        self.lock().ring.end()
    }

    /// Follows the console from the oldest byte retained.
    pub(crate) fn follow(self: &Arc<Self>) -> Reader {
        let position = self.lock().ring.start();
        Reader { announced: self.announced.subscribe(), console: Arc::clone(self), position }
    }

    /// Says that nothing follows. Readers get what is left and then the end.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        let end = inner.ring.end();
        drop(inner);
        self.grown.notify_one();
        self.announced.send_replace(end);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A ring is whole after every statement; and the guest's console must not end with a reader's panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log thread: follows the ring until the console closes.
    fn keep_log(&self, mut file: LogFile) {
        let mut position = 0;
        let mut broken = false;
        loop {
            let mut inner = self.lock();
            while inner.ring.end() == position && !inner.closed {
                inner.log = LogThread::Idle;
                inner = self.grown.wait(inner).unwrap_or_else(PoisonError::into_inner);
            }
            // The first byte of all is not kept waiting: who follows the log sees that the guest lives.
            if position > 0 && !inner.ring.ends_line() && !inner.closed {
                inner.log = LogThread::Gathering;
                let gathering = |inner: &mut Inner| inner.log == LogThread::Gathering && !inner.closed;
                (inner, _) = self
                    .grown
                    .wait_timeout_while(inner, GATHER, gathering)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            inner.log = LogThread::Writing;
            let chunk = inner.ring.read(position, usize::MAX);
            let finished = inner.closed && chunk.bytes.is_empty();
            drop(inner);
            if finished {
                return;
            }
            position = chunk.next;
            self.announced.send_replace(position);
            let owner = OwnerEpoch::new(self.owner.load(Ordering::Relaxed));
            let written = file.append(owner, &chunk);
            if let Err(error) = &written
                && !broken
            {
                warn!(%error, "cannot write console.log: console output is not kept");
            }
            broken = written.is_err();
        }
    }
}

/// The log of a console. Dropping it closes the console and waits until the log is written.
#[derive(Debug)]
pub(crate) struct ConsoleLog {
    console: Arc<Console>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ConsoleLog {
    fn drop(&mut self) {
        self.console.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One live reader.
#[derive(Debug)]
pub(crate) struct Reader {
    console: Arc<Console>,
    announced: watch::Receiver<u64>,
    position: u64,
}

impl Reader {
    /// What comes next, or `None` once the console is closed and read to its end.
    ///
    /// Cancel safe: what was not returned is returned by the next call.
    pub(crate) async fn next(&mut self) -> Option<Chunk> {
        loop {
            // Marked before the ring is read, so that what comes after the read wakes us.
            self.announced.mark_unchanged();
            let closed = {
                let inner = self.console.lock();
                let chunk = inner.ring.read(self.position, CHUNK_BYTES_MAX);
                if !chunk.bytes.is_empty() {
                    self.position = chunk.next;
                    return Some(chunk);
                }
                inner.closed
            };
            if closed {
                return None;
            }
            self.announced.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;

    fn console() -> (tempfile::TempDir, Arc<Console>, ConsoleLog) {
        let dir = tempfile::tempdir().expect("a directory");
        let console = Console::new(|_| {});
        let log = console.log_to(LogFile::open(dir.path()).expect("a log")).expect("started");
        (dir, console, log)
    }

    #[tokio::test]
    async fn a_reader_gets_the_retained_tail_then_what_follows_then_the_end() {
        let (_dir, console, log) = console();
        console.append(b"before\n");
        let mut reader = console.follow();
        assert_eq!(reader.next().await.expect("the tail").bytes, b"before\n");
        console.append(b"after\n");
        assert_eq!(reader.next().await.expect("more").bytes, b"after\n");
        drop(log);
        assert_eq!(reader.next().await, None);
    }

    #[tokio::test]
    async fn a_byte_without_a_line_end_arrives_too() {
        let (_dir, console, _log) = console();
        let mut reader = console.follow();
        console.append(b"$");
        assert_eq!(reader.next().await.expect("a prompt").bytes, b"$");
    }

    #[tokio::test]
    async fn a_slow_reader_learns_what_it_lost() {
        let (_dir, console, _log) = console();
        let mut reader = console.follow();
        console.append(&vec![b'x'; ring::RING_BYTES + 10]);
        let chunk = reader.next().await.expect("what is left");
        assert_eq!((chunk.lost, chunk.bytes.len()), (10, CHUNK_BYTES_MAX));
        assert_eq!(reader.next().await.expect("more").lost, 0);
    }

    #[test]
    fn the_log_is_whole_once_the_console_is_closed() {
        let (dir, console, log) = console();
        for n in 0..100 {
            console.append(format!("line {n}\n").as_bytes());
        }
        console.append(b"no line end");
        drop(log);
        let kept = fs::read_to_string(dir.path().join("console.log")).expect("there");
        assert!(kept.contains("]\nline 0\n") && kept.ends_with("line 99\nno line end"), "{kept}");
    }

    #[test]
    fn the_first_byte_is_announced_once() {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().expect("a directory");
        let count = |_| _ = CALLS.fetch_add(1, Ordering::Relaxed);
        let console = Console::new(count);
        let _log = console.log_to(LogFile::open(dir.path()).expect("a log")).expect("started");
        console.append(b"a");
        console.append(b"b");
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    }
}
