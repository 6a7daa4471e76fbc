//! A running emulated host.

use std::{
    fs,
    io::{self, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    debian::Kernel,
    door::{Call, FrameKind, Handed, Request, World, read_frame},
    ext4, initramfs,
    qemu::Emulator,
};

/// From the emulator's start to the open door: 3 s here when nothing else runs.
const START_DEADLINE: Duration = Duration::from_secs(300);
/// For the emulator to end once its host has powered off.
const END_DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at something that cannot be waited for.
const LOOK: Duration = Duration::from_millis(50);
/// For one answer of the door that takes no time: a file's next piece, a connection.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// Another process may take the port between our look and the emulator's; then we look again.
const START_ATTEMPTS: u32 = 3;

/// What a host is made of.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The kernel it runs.
    pub kernel: Kernel,
    /// Programs to have under `/programs`, by name; `drover-emulated-host-door` must be one of them.
    pub programs: Vec<(String, PathBuf)>,
    /// Libraries that programs open while they run, such as librbd. Those that programs are linked with come by themselves.
    pub libraries: Vec<PathBuf>,
    /// Its disk, mounted at `/disk`.
    pub disk: HostDisk,
    /// Its processors.
    pub cpus: u32,
    /// Its memory.
    pub memory_mib: u32,
    /// Its end of a wire to another host.
    pub link: Option<Link>,
    /// It is killed after so long, whatever it does.
    pub lifetime: Duration,
}

/// What a host's disk is made from.
#[derive(Clone, Debug)]
pub enum HostDisk {
    /// A new file system with a copy of what a folder holds.
    Folder {
        /// Which.
        path: PathBuf,
        /// Size of the file system.
        bytes: u64,
    },
    /// A copy of an image with an ext4 file system.
    CopyOf(PathBuf),
}

impl HostDisk {
    fn make(&self, image: &Path) -> anyhow::Result<()> {
        match self {
            Self::Folder { path, bytes } => ext4::make(image, path, *bytes),
            Self::CopyOf(from) => ext4::copy(from, image),
        }
    }
}

/// One end of a wire between two hosts.
#[derive(Clone, Debug)]
pub enum Link {
    /// The end that is started first.
    Listen {
        /// Port of this machine's loopback address.
        port: u16,
        /// Address on the wire, such as `192.168.7.1`.
        address: String,
    },
    /// The end that is started second.
    Connect {
        /// The first end's port.
        port: u16,
        /// Address on the wire.
        address: String,
    },
}

impl Link {
    fn address(&self) -> &str {
        match self {
            Self::Listen { address, .. } | Self::Connect { address, .. } => address,
        }
    }

    fn arguments(&self) -> Vec<String> {
        let (way, mac) = match self {
            Self::Listen { port, .. } => (format!("listen=127.0.0.1:{port}"), "52:54:00:00:77:01"),
            Self::Connect { port, .. } => (format!("connect=127.0.0.1:{port}"), "52:54:00:00:77:02"),
        };
        let card = format!("virtio-net-pci,netdev=link,mac={mac},romfile=");
        vec!["-netdev".to_owned(), format!("socket,id=link,{way}"), "-device".to_owned(), card]
    }
}

/// A host that runs. Dropping it ends it and removes its files.
#[derive(Debug)]
pub struct EmulatedHost {
    emulator: Mutex<Child>,
    door: u16,
    token: String,
    folder: tempfile::TempDir,
    /// While it is open, the host lives.
    life: Mutex<Option<TcpStream>>,
}

impl EmulatedHost {
    /// Starts a host and waits until its door is open.
    ///
    /// # Errors
    /// If it cannot be built, or does not come up: what its console and the emulator said.
    pub fn start(options: &HostOptions) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("drover-emulated-host-").tempdir()?;
        let token = uuid::Uuid::new_v4().to_string();
        let programs: Vec<(&str, &Path)> =
            options.programs.iter().map(|(name, path)| (name.as_str(), path.as_path())).collect();
        let address = options.link.as_ref().map(Link::address);
        let archive = initramfs::build(&options.kernel, (&programs, &options.libraries), &token, address)?;
        fs::write(folder.path().join("host.cpio"), archive)?;
        options.disk.make(&folder.path().join("disk.img"))?;
        let mut attempt = 1;
        let (emulator, door) = loop {
            let door = free_port()?;
            let mut emulator = Self::emulate(options, folder.path(), door)?;
            match wait_for_door(&mut emulator, &folder.path().join("console")) {
                Ok(()) => break (emulator, door),
                Err(error) => {
                    emulator.kill().ok();
                    emulator.wait().ok();
                    let log = fs::read_to_string(folder.path().join("qemu.log")).unwrap_or_default();
                    if attempt == START_ATTEMPTS || !log.contains("Could not set up host forwarding") {
                        return Err(error.context(format!("the emulator said: {}", log.trim())));
                    }
                    attempt += 1;
                }
            }
        };
        let emulator = Mutex::new(emulator);
        let host = Self { emulator, door, token, folder, life: Mutex::new(None) };
        let life = host.call(Request::Live)?;
        *host.life() = Some(life);
        Ok(host)
    }

    fn emulate(options: &HostOptions, folder: &Path, door: u16) -> anyhow::Result<Child> {
        fs::write(folder.join("console"), "")?;
        Emulator {
            kernel: &options.kernel.vmlinux,
            initrd: &folder.join("host.cpio"),
            disk: &folder.join("disk.img"),
            console: &folder.join("console"),
            log: &folder.join("qemu.log"),
            cpus: options.cpus,
            memory_mib: options.memory_mib,
            door,
            link: &options.link.as_ref().map(Link::arguments).unwrap_or_default(),
            lifetime: options.lifetime,
        }
        .start()
    }

    /// Writes a file in the host.
    ///
    /// # Errors
    /// If the host cannot.
    pub fn put(&self, path: &str, mode: u32, content: &[u8]) -> anyhow::Result<()> {
        let mut stream =
            self.call(Request::Put { path: path.to_owned(), mode, bytes: content.len() as u64 })?;
        stream.write_all(content)?;
        self.ended(&mut stream).map(drop).with_context(|| format!("writing {path} in the emulated host"))
    }

    /// Reads a file of the host.
    ///
    /// # Errors
    /// If the host cannot.
    pub fn get(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let mut stream = self.call(Request::Get { path: path.to_owned() })?;
        self.ended(&mut stream).with_context(|| format!("reading {path} in the emulated host"))
    }

    /// Starts a program in the host.
    ///
    /// # Errors
    /// If the host cannot be reached.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Running> {
        self.start_program(program, arguments, World::Shared)
    }

    /// Starts a program in namespaces of its own, as a node agent starts a VM's process; without `own_network`, in the host's
    /// network.
    ///
    /// # Errors
    /// If the host cannot be reached.
    pub fn spawn_apart(
        &self,
        program: &str,
        arguments: &[&str],
        own_network: bool,
    ) -> anyhow::Result<Running> {
        self.start_program(program, arguments, if own_network { World::Apart } else { World::Network })
    }

    fn start_program(&self, program: &str, arguments: &[&str], world: World) -> anyhow::Result<Running> {
        let arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        let request = Request::Run { program: program.to_owned(), arguments, world };
        Ok(Running { stream: self.call(request)?, name: program.to_owned(), output: Vec::new() })
    }

    /// Has programs in the host that connect to `address` of it reach a server at that address of this machine, for as
    /// long as the host lives.
    pub fn forward(self: &Arc<Self>, address: SocketAddr) {
        let host = Arc::downgrade(self);
        thread::spawn(move || {
            // One call waits for one connection; the door keeps the socket that they arrive at.
            while let Some(accepted) = host.upgrade().map(|host| host.call(Request::Accept { address })) {
                let Ok(mut inside) = accepted else { return };
                if inside.set_read_timeout(None).is_err()
                    || !matches!(read_frame(&mut inside), Ok((FrameKind::Ended, why)) if why.is_empty())
                {
                    return;
                }
                // A server that is not there shows as a connection that ends at once.
                if let Ok(outside) = TcpStream::connect(address) {
                    splice(inside, outside);
                }
            }
        });
    }

    /// Opens files in the host and hands them over to the process that has this run directory.
    ///
    /// # Errors
    /// If one cannot be opened, or nobody takes them.
    pub fn hand_over(&self, run_dir: &str, files: Vec<Handed>) -> anyhow::Result<()> {
        let mut stream = self.call(Request::HandOver { run_dir: run_dir.to_owned(), files })?;
        self.ended(&mut stream).map(drop).with_context(|| format!("handing files over in {run_dir}"))
    }

    /// Runs a command line in the host's shell and returns what it printed.
    ///
    /// # Errors
    /// If it fails, or has not ended by the deadline.
    pub fn shell(&self, line: &str, deadline: Duration) -> anyhow::Result<String> {
        let output = self.spawn("/bin/sh", &["-c", line])?.finish(deadline).context(line.to_owned())?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// A connection to a unix socket in the host.
    ///
    /// # Errors
    /// If nobody listens there.
    pub fn connect(&self, socket: &str) -> anyhow::Result<TcpStream> {
        let mut stream = self.call(Request::Connect { path: socket.to_owned() })?;
        self.ended(&mut stream).with_context(|| format!("connecting to {socket} in the emulated host"))?;
        stream.set_read_timeout(None)?;
        Ok(stream)
    }

    /// Powers the host off and returns its disk, which is whole then and lasts as long as this value.
    ///
    /// # Errors
    /// If it does not end.
    pub fn power_off(&self) -> anyhow::Result<PathBuf> {
        // Programs that were dropped just now may take a moment to go.
        let unmount = "sync; for i in $(seq 100); do umount /disk && exit; sleep 0.2; done; exit 1";
        self.shell(unmount, ANSWER_DEADLINE)?;
        drop(self.life().take());
        let end = Instant::now() + END_DEADLINE;
        while self.emulator().try_wait()?.is_none() {
            ensure!(Instant::now() < end, "the emulated host does not power off:\n{}", self.console());
            thread::sleep(LOOK);
        }
        Ok(self.folder.path().join("disk.img"))
    }

    /// What the host's own console has said.
    pub fn console(&self) -> String {
        let said = fs::read(self.folder.path().join("console")).unwrap_or_default();
        String::from_utf8_lossy(&said).into_owned()
    }

    fn life(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emulator(&self) -> MutexGuard<'_, Child> {
        self.emulator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, request: Request) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.door))
            .with_context(|| format!("the emulated host has gone:\n{}", self.console()))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        let mut line = serde_json::to_vec(&Call { token: self.token.clone(), request })?;
        line.push(b'\n');
        stream.write_all(&line)?;
        Ok(stream)
    }

    /// The answer of a request, once it has ended.
    fn ended(&self, stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
        let mut content = Vec::new();
        loop {
            match read_frame(stream)? {
                (FrameKind::Ended, why) if why.is_empty() => return Ok(content),
                (FrameKind::Ended, why) => bail!("{}", String::from_utf8_lossy(&why)),
                (_, more) => content.extend(more),
            }
        }
    }
}

impl Drop for EmulatedHost {
    fn drop(&mut self) {
        // What has ended already cannot be killed.
        let mut emulator = self.emulator();
        emulator.kill().ok();
        emulator.wait().ok();
        drop(emulator);
        if thread::panicking() {
            eprintln!("---- console of the emulated host\n{}", self.console());
        }
    }
}

/// Copies in both directions until one of them ends.
fn splice(inside: TcpStream, outside: TcpStream) {
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        thread::spawn(move || {
            io::copy(&mut from, &mut to).ok();
            to.shutdown(Shutdown::Both).ok();
            from.shutdown(Shutdown::Both).ok();
        });
    };
    outside.set_nodelay(true).ok();
    if let (Ok(from), Ok(to)) = (inside.try_clone(), outside.try_clone()) {
        copy(from, to);
        copy(outside, inside);
    }
}

/// A program that runs in the host. Dropping it kills the program.
#[derive(Debug)]
pub struct Running {
    stream: TcpStream,
    name: String,
    output: Vec<u8>,
}

impl Running {
    /// Reads on until `text` has been written (to either output) and returns everything up to now.
    ///
    /// # Errors
    /// If the program ends before, or the deadline passes: what it wrote.
    pub fn wait_for(&mut self, text: &str, deadline: Duration) -> anyhow::Result<String> {
        let end = Instant::now() + deadline;
        while !self.said().contains(text) {
            if let Some(why) = self.read_one(end)? {
                bail!("{} ended ({why}) before it said '{text}':\n{}", self.name, self.said());
            }
        }
        Ok(self.said())
    }

    /// Waits for the program's end and returns what it wrote.
    ///
    /// # Errors
    /// If it fails, or the deadline passes: what it wrote.
    pub fn finish(mut self, deadline: Duration) -> anyhow::Result<Vec<u8>> {
        self.read_to_end(deadline)?;
        Ok(std::mem::take(&mut self.output))
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn read_to_end(&mut self, deadline: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + deadline;
        loop {
            match self.read_one(end)? {
                None => {}
                Some(why) if why.is_empty() => return Ok(()),
                Some(why) => bail!("{} failed ({why}):\n{}", self.name, self.said()),
            }
        }
    }

    /// Reads what it has written, up to a moment in which it writes nothing.
    pub fn catch_up(&mut self) {
        while let Ok(None) = self.read_one(Instant::now() + LOOK) {}
    }

    /// Everything that it has written and we have read.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.output).replace('\r', "")
    }

    /// Takes the next frame. How the program ended, if that is what it says.
    fn read_one(&mut self, end: Instant) -> anyhow::Result<Option<String>> {
        let left = end.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "{} says nothing more; it said:\n{}", self.name, self.said());
        self.stream.set_read_timeout(Some(left))?;
        match read_frame(&mut self.stream) {
            Ok((FrameKind::Ended, why)) => Ok(Some(String::from_utf8_lossy(&why).into_owned())),
            Ok((_, more)) => {
                self.output.extend(more);
                Ok(None)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                bail!("{} has not ended; it said:\n{}", self.name, self.said())
            }
            Err(error) => Err(error).with_context(|| format!("{} said:\n{}", self.name, self.said())),
        }
    }
}

/// A port of the loopback address that nobody has at the moment.
///
/// # Errors
/// If there is none.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn wait_for_door(emulator: &mut Child, console: &Path) -> anyhow::Result<()> {
    let end = Instant::now() + START_DEADLINE;
    loop {
        let said = String::from_utf8_lossy(&fs::read(console)?).into_owned();
        if said.contains("DOOR-OPEN") {
            return Ok(());
        }
        let ended = emulator.try_wait()?;
        if ended.is_some() || Instant::now() > end {
            bail!("the emulated host did not come up; its console said:\n{said}");
        }
        thread::sleep(LOOK);
    }
}
