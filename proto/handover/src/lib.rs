//! Open files by name, from the node agent to a VM's process that may not open them.
//!
//! A jailed vmmd sees no file but its own. What a call is about to name (a volume, a boot image, a connection to another
//! host) the agent opens, and hands over under the name that the call will use:
//!
//! ```text
//! agent                                       vmmd
//!   |-- length, name, [descriptor] ------------>|   kept in a Table until a call takes it
//!   |<------------------------------ one byte --|   what follows on any other connection finds it there
//! ```
//!
//! The socket is a file in the VM's run directory that only the agent may open. What arrives is bounded in size and
//! number, and a name that is handed over again replaces what was there: the agent may repeat itself.
//!
//! What a process is to do first can be handed over before it is there, on a socket that it is born with ([`send_ahead`]): the
//! files, and the first calls themselves, each as a file ([`call_file`]). Nobody waits for an answer then.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::FileExt as _, net::UnixStream},
    },
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, memfd_create},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};

/// Name of the socket in the run directory. Shorter than `vmmd.sock`: paths of sockets are short.
pub const SOCKET: &str = "fd.sock";

/// Longest name, bytes: a path (PATH_MAX).
pub const NAME_BYTES_MAX: usize = 4096;
/// Files that wait to be taken (B9): two for each of a VM's 64 volumes, the queues of its 8 interfaces of 64 pairs at most, and
/// some more.
pub const WAITING_MAX: usize = 768;
/// The other side answers within microseconds, or it hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// "I have it."
const TAKEN: u8 = 1;
/// "There is no room for it."
const REFUSED: u8 = 2;

/// The name of the file with an encoded `drover.vm.v1.CreateRequest` that comes ahead of all calls.
pub const CREATE: &str = "call:Create";
/// The same for a `drover.vm.v1.StartRequest`, to be carried out once the VM has been created.
pub const START: &str = "call:Start";

/// The name of the file with a volume's owner record.
pub fn record_name(volume: &str) -> String {
    format!("record:{volume}")
}

/// The name of a socket that listens for a migration.
pub fn listener_name(address: &str) -> String {
    format!("listen:{address}")
}

/// The name of a connection to a migration's target.
pub fn connection_name(address: &str) -> String {
    format!("connect:{address}")
}

/// The name of one queue of a tap.
pub fn queue_name(tap: &str, queue: u16) -> String {
    format!("tap:{tap}/{queue}")
}

/// Hands files over through the socket in `run_dir`.
///
/// # Errors
/// Where nobody listens there, or the other side has no room.
pub fn hand_over<'a>(
    run_dir: &Path,
    files: impl IntoIterator<Item = (&'a str, BorrowedFd<'a>)>,
) -> io::Result<()> {
    let mut stream = UnixStream::connect(run_dir.join(SOCKET))?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    for (name, file) in files {
        let message = message(name)?;
        send_with(&stream, &message, file)?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        if answer != [TAKEN] {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many files wait to be taken"));
        }
    }
    Ok(())
}

/// Hands files over to a process that will be born with the other end of `stream`, or has just been. They are all there is: the
/// stream ends behind them.
///
/// # Errors
/// Where the process ends without having taken them, or does not take them within seconds.
pub fn send_ahead<'a>(
    stream: &UnixStream,
    files: impl IntoIterator<Item = (&'a str, BorrowedFd<'a>)>,
) -> io::Result<()> {
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    for (name, file) in files {
        send_with(stream, &message(name)?, file)?;
    }
    stream.shutdown(Shutdown::Write)
}

/// A file with nothing in it but an encoded call.
///
/// # Errors
/// Where the system gives none.
pub fn call_file(call: &[u8]) -> io::Result<OwnedFd> {
    let file = File::from(memfd_create("call", MemfdFlags::CLOEXEC)?);
    // Whoever gets the descriptor reads from where this one stands.
    file.write_all_at(call, 0)?;
    Ok(file.into())
}

fn message(name: &str) -> io::Result<Vec<u8>> {
    let length = u16::try_from(name.len()).ok().filter(|length| usize::from(*length) <= NAME_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the name is too long"))?;
    Ok([&length.to_le_bytes(), name.as_bytes()].concat())
}

fn send_with(mut stream: &UnixStream, message: &[u8], file: BorrowedFd<'_>) -> io::Result<()> {
    let files = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    // The descriptor travels with the first byte, whatever becomes of the others.
    let sent = sendmsg(stream, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&message[sent..])
}

/// What arrives on one connection.
#[derive(Debug)]
pub struct Incoming {
    stream: UnixStream,
}

impl Incoming {
    /// Serves a connection that was accepted. Blocks for seconds at most where the other side does.
    ///
    /// # Errors
    /// Where the stream cannot be given a limit.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self { stream })
    }

    /// Puts everything that arrives into the table, until the other side closes.
    ///
    /// # Errors
    /// What does not follow the protocol.
    pub fn serve(&mut self, table: &Table) -> io::Result<()> {
        while let Some((name, file)) = self.receive()? {
            let answer = if table.put(name, file) { TAKEN } else { REFUSED };
            self.stream.write_all(&[answer])?;
        }
        Ok(())
    }

    /// Puts everything into the table that was [sent ahead](send_ahead).
    ///
    /// # Errors
    /// What does not follow the protocol, or has no room.
    pub fn take_ahead(&mut self, table: &Table) -> io::Result<()> {
        while let Some((name, file)) = self.receive()? {
            if !table.put(name, file) {
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many files wait to be taken"));
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Option<(String, OwnedFd)>> {
        let malformed = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut length = [0; 2];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut length)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut file = None;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                file = files.into_iter().next();
            }
        }
        let file = file.ok_or_else(|| malformed("a name without a descriptor"))?;
        self.stream.read_exact(&mut length[received.bytes..])?;
        let length = usize::from(u16::from_le_bytes(length));
        if length > NAME_BYTES_MAX {
            return Err(malformed("the name is too long"));
        }
        let mut name = vec![0; length];
        self.stream.read_exact(&mut name)?;
        Ok(Some((String::from_utf8(name).map_err(|_| malformed("the name is not UTF-8"))?, file)))
    }
}

/// What has been handed over and not been taken yet.
#[derive(Debug, Default)]
pub struct Table {
    files: Mutex<BTreeMap<String, OwnedFd>>,
}

impl Table {
    /// Keeps a file, in place of an older one of that name. False where there is no room.
    #[must_use]
    pub fn put(&self, name: String, file: OwnedFd) -> bool {
        let mut files = self.lock();
        if files.len() >= WAITING_MAX && !files.contains_key(&name) {
            return false;
        }
        files.insert(name, file);
        true
    }

    /// Takes a file out.
    pub fn take(&self, name: &str) -> Option<File> {
        self.lock().remove(name).map(File::from)
    }

    /// A duplicate of a file that stays: for what several calls may ask for.
    pub fn duplicate(&self, name: &str) -> Option<File> {
        self.lock().get(name)?.as_fd().try_clone_to_owned().ok().map(File::from)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, OwnedFd>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Seek as _, os::unix::net::UnixListener, sync::Arc, thread};

    use super::*;

    /// A run directory in which somebody takes files.
    fn served() -> (tempfile::TempDir, Arc<Table>) {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join(SOCKET)).expect("free");
        let table = Arc::new(Table::default());
        let kept = Arc::clone(&table);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = Incoming::new(stream.expect("accepted")).expect("a stream").serve(&kept);
            }
        });
        (dir, table)
    }

    fn file_with(text: &str) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(text.as_bytes()).expect("written");
        file.rewind().expect("rewound");
        file
    }

    #[test]
    fn what_is_handed_over_is_there_when_the_call_returns_and_once() {
        let (dir, table) = served();
        let (one, two) = (file_with("one"), file_with("two"));
        hand_over(dir.path(), [("a", one.as_fd()), ("b", two.as_fd())]).expect("handed over");
        let mut text = String::new();
        table.take("b").expect("there").read_to_string(&mut text).expect("readable");
        assert_eq!(text, "two");
        assert!(table.take("b").is_none());
        assert!(table.duplicate("a").is_some() && table.take("a").is_some());
    }

    #[test]
    fn what_is_sent_ahead_waits_for_who_is_to_take_it_and_has_an_end() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (file, call) = (file_with("one"), call_file(b"a call").expect("a file"));
        send_ahead(&ours, [("a", file.as_fd()), (CREATE, call.as_fd())]).expect("sent");
        drop((ours, file, call));
        let table = Table::default();
        Incoming::new(theirs).expect("a stream").take_ahead(&table).expect("all of it");
        let read = |name| {
            let mut text = String::new();
            table.take(name).expect("there").read_to_string(&mut text).expect("readable");
            text
        };
        assert_eq!((read("a"), read(CREATE)), ("one".to_owned(), "a call".to_owned()));
    }

    #[test]
    fn a_repeated_name_replaces_and_the_table_has_an_end() {
        let (dir, table) = served();
        let file = file_with("x");
        let names: Vec<String> = (0..WAITING_MAX).map(|n| n.to_string()).collect();
        hand_over(dir.path(), names.iter().map(|name| (name.as_str(), file.as_fd()))).expect("room");
        hand_over(dir.path(), [("0", file.as_fd())]).expect("in place of the older one");
        let error = hand_over(dir.path(), [("more", file.as_fd())]).expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        assert!(table.take("more").is_none());
    }

    #[test]
    fn what_is_not_the_protocol_ends_the_connection_and_nothing_else() {
        let (dir, table) = served();
        let mut stream = UnixStream::connect(dir.path().join(SOCKET)).expect("connected");
        stream.write_all(b"\x03\x00abc").expect("written");
        let mut answer = Vec::new();
        // Closed, or reset where the rest was not read.
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, []);
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let file = file_with("x");
        assert!(hand_over(dir.path(), [(long.as_str(), file.as_fd())]).is_err());
        hand_over(dir.path(), [("a", file.as_fd())]).expect("the next one is served");
        assert!(table.take("a").is_some());
    }
}
