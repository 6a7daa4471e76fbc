//! Runs in an emulated host and does what tests ask for: see [`drover_test_emulated_host::door`].
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is the emulated host's console")]

mod handing;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::{fs::OpenOptionsExt as _, net::UnixStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use drover_test_emulated_host::door::{
    CALL_BYTES_MAX, Call, FRAME_BYTES_MAX, FrameKind, PORT, Request, TOKEN_PATH, World, write_frame,
};
use nix::sched::{CloneFlags, unshare};

fn main() -> io::Result<()> {
    let token = fs::read_to_string(TOKEN_PATH)?;
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    println!("DOOR-OPEN");
    let listeners = Listeners::default();
    for stream in listener.incoming() {
        let (stream, token, listeners) = (stream?, token.clone(), listeners.clone());
        thread::spawn(move || {
            if let Err(error) = serve(stream, &token, &listeners) {
                eprintln!("door: {error}");
            }
        });
    }
    Ok(())
}

fn serve(stream: TcpStream, token: &str, listeners: &Listeners) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Nothing is read ahead beyond the line but by this reader, so what follows the line is read from it too.
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    (&mut reader).take(CALL_BYTES_MAX).read_line(&mut line)?;
    let call: Call = serde_json::from_str(&line)?;
    if call.token != token {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a caller without the token"));
    }
    let mut answer = stream;
    let done = match call.request {
        Request::Run { program, arguments, world } => {
            let mut command = Command::new(program);
            command.args(arguments);
            run(command, world, reader, &answer)
        }
        Request::HandOver { run_dir, files } => {
            handing::hand_over_all(&run_dir, &files).map(|()| String::new())
        }
        Request::Accept { address } => match listeners.accept(address) {
            Ok(socket) => {
                write_frame(&mut answer, FrameKind::Ended, b"")?;
                return splice(socket, reader, &answer);
            }
            Err(error) => Err(error),
        },
        Request::Put { path, mode, bytes } => put(&path, mode, reader.take(bytes)).and_then(|written| {
            if written == bytes { Ok(String::new()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        }),
        Request::Get { path } => get(&path, &mut answer),
        Request::Connect { path } => match UnixStream::connect(&path) {
            Ok(socket) => {
                write_frame(&mut answer, FrameKind::Ended, b"")?;
                return splice(socket, reader, &answer);
            }
            Err(error) => Err(error),
        },
        Request::Live => {
            io::copy(&mut reader, &mut io::sink())?;
            power_off()
        }
    };
    let why = done.unwrap_or_else(|error| error.to_string());
    write_frame(&mut answer, FrameKind::Ended, why.as_bytes())
}

/// Runs a program, whose life is the connection's. Returns how it failed; empty if it did not.
fn run(
    mut command: Command,
    world: World,
    mut reader: BufReader<TcpStream>,
    answer: &TcpStream,
) -> io::Result<String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = if world == World::Shared { command.spawn()? } else { spawn_apart(command, world)? };
    let answer = Arc::new(Mutex::new(answer.try_clone()?));
    let output = child.stdout.take().map(|pipe| forward(pipe, FrameKind::Data, Arc::clone(&answer)));
    let errors = child.stderr.take().map(|pipe| forward(pipe, FrameKind::Error, answer));
    let child = Arc::new(Mutex::new(child));
    let killed = Arc::clone(&child);
    let connection = reader.get_ref().try_clone()?;
    let watcher = thread::spawn(move || {
        io::copy(&mut reader, &mut io::sink()).ok();
        // It may have ended by itself; its output says so to the other thread.
        killed.lock().expect("no thread panics with it").kill().ok();
    });
    for pipe in [output, errors].into_iter().flatten() {
        pipe.join().ok();
    }
    // Both ends of its output are closed: it has ended or is about to.
    let status = child.lock().expect("no thread panics with it").wait()?;
    connection.shutdown(Shutdown::Read).ok();
    watcher.join().ok();
    Ok(if status.success() { String::new() } else { status.to_string() })
}

/// Starts a program as a node agent starts a VM's process: from a thread that has left the host's namespaces, and ends.
fn spawn_apart(mut command: Command, world: World) -> io::Result<Child> {
    let mut namespaces = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    if world == World::Apart {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    let body = move || {
        unshare(namespaces)?;
        command.spawn()
    };
    thread::spawn(body)
        .join()
        .map_err(|_| io::Error::other("the thread that makes namespaces has panicked"))?
}

fn forward(
    mut pipe: impl Read + Send + 'static,
    kind: FrameKind,
    to: Arc<Mutex<TcpStream>>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            // Whoever no longer listens has the program killed; until then it must not block on its output.
            write_frame(&mut *to.lock().expect("no thread panics with it"), kind, &buffer[..length]).ok();
        }
    })
}

fn put(path: &str, mode: u32, mut content: impl Read) -> io::Result<u64> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    io::copy(&mut content, &mut file)
}

fn get(path: &str, answer: &mut TcpStream) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(String::new()),
            length => write_frame(answer, FrameKind::Data, &buffer[..length])?,
        }
    }
}

/// Two ends of a connection, one to read and one to write.
trait Duplex: Read + Write + Send + Sized + 'static {
    fn another(&self) -> io::Result<Self>;
    fn close(&self);
}

impl Duplex for UnixStream {
    fn another(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn close(&self) {
        self.shutdown(Shutdown::Both).ok();
    }
}

impl Duplex for TcpStream {
    fn another(&self) -> io::Result<Self> {
        self.set_nodelay(true)?;
        self.try_clone()
    }

    fn close(&self) {
        self.shutdown(Shutdown::Both).ok();
    }
}

fn splice(mut socket: impl Duplex, mut reader: BufReader<TcpStream>, answer: &TcpStream) -> io::Result<()> {
    let (mut from_socket, mut to_caller) = (socket.another()?, answer.try_clone()?);
    let back = thread::spawn(move || {
        io::copy(&mut from_socket, &mut to_caller).ok();
        to_caller.shutdown(Shutdown::Both).ok();
    });
    io::copy(&mut reader, &mut socket).ok();
    socket.close();
    back.join().ok();
    Ok(())
}

/// Sockets on which somebody has asked to be connected; each stays for the next who asks.
#[derive(Clone, Debug, Default)]
struct Listeners(Arc<Mutex<BTreeMap<SocketAddr, Arc<TcpListener>>>>);

impl Listeners {
    fn accept(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let listener = {
            let mut all = self.0.lock().expect("no thread panics with it");
            match all.get(&address) {
                Some(listener) => Arc::clone(listener),
                None => Arc::clone(all.entry(address).or_insert(Arc::new(TcpListener::bind(address)?))),
            }
        };
        Ok(listener.accept()?.0)
    }
}

fn power_off() -> io::Result<String> {
    let busybox = |word: &[&str]| Command::new("/bin/busybox").args(word).status();
    busybox(&["sync"])?;
    busybox(&["poweroff", "-f"]).map(|status| status.to_string())
}
