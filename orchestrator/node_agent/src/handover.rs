//! What a jailed vmmd cannot open, opened for it.

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

use drover_dir_volume::{DirPool, open_record};
use drover_handover::{
    CREATE, SOCKET, START, call_file, connection_name, hand_over, listener_name, queue_name, record_name,
    send_ahead,
};
use drover_tap::{Tap, TapName};
use drover_wire::vm::v1::{CreateRequest, Disk, Nic, StartRequest, VmConfig};
use prost::Message as _;
use tokio::task::spawn_blocking;
use tonic::Status;

use crate::{nics, state_dir::RunDir, vmmd::io_status};

/// A target that does not take a connection within this has gone; the command that asks for it waits five seconds.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

/// Most pairs of queues of an interface: as many as vmmd takes.
const PAIRS_MAX: u16 = 64;

/// Open files by the names that calls will use.
#[derive(Debug, Default)]
pub(crate) struct Parcel {
    files: Vec<(String, OwnedFd)>,
}

impl Parcel {
    /// What a machine of this configuration is made of. What cannot be opened is left out: vmmd then refuses by the name of
    /// the field.
    pub(crate) fn of_machine(config: &VmConfig) -> Self {
        let mut parcel = Self::default();
        for image in [&config.kernel_path, &config.initrd_path] {
            if !image.is_empty() {
                parcel.add(image, File::open(image));
            }
        }
        config.disks.iter().for_each(|disk| parcel.add_disk(disk));
        parcel
    }

    /// A disk's image, if it is a file, and its owner record.
    pub(crate) fn add_disk(&mut self, disk: &Disk) {
        if disk.rbd.is_some() {
            return;
        }
        let path = Path::new(&disk.path);
        self.add(&disk.path, OpenOptions::new().read(true).write(!disk.read_only).open(path));
        if !disk.read_only && path.exists() {
            self.add(&record_name(&disk.path), open_record(&DirPool::sidecar_of(path)));
        }
    }

    /// The file of a VM that is suspended here, or is about to be.
    pub(crate) fn of_suspended(path: &Path, file: File) -> Self {
        Self { files: vec![(path.to_string_lossy().into_owned(), file.into())] }
    }

    /// The socket on which processes of this host reach the guest's.
    pub(crate) fn add_vsock(&mut self, config: &VmConfig) -> Result<(), Status> {
        let vsock = config.devices.as_ref().and_then(|devices| devices.vsock.as_ref());
        let Some(path) = vsock.map(|vsock| Path::new(&vsock.socket_path)) else { return Ok(()) };
        let listen = || {
            // An earlier process's.
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => UnixListener::bind(path),
            }
        };
        let listener =
            listen().map_err(|error| io_status("cannot listen for the guest's sockets", &error))?;
        self.files.push((listener_name(&path.to_string_lossy()), listener.into()));
        Ok(())
    }

    fn add(&mut self, name: &str, file: io::Result<File>) {
        if let Ok(file) = file {
            self.files.push((name.to_owned(), file.into()));
        }
    }

    /// The taps of a machine's interfaces, made for it. They are there for as long as it has them.
    pub(crate) fn add_taps(&mut self, nics: &[Nic]) -> Result<(), Status> {
        for nic in nics {
            let name: TapName = nic
                .tap
                .parse()
                .map_err(|error| Status::internal(format!("'{}' is no name of a tap: {error}", nic.tap)))?;
            let pairs = u16::try_from(nic.queue_pairs).ok().filter(|pairs| *pairs <= PAIRS_MAX);
            let Some(pairs) = pairs else {
                let problem = format!("spec.nics: {} pairs of queues: at most {PAIRS_MAX}", nic.queue_pairs);
                return Err(Status::invalid_argument(problem));
            };
            let queues = Tap::open(&name, pairs.max(1)).map_err(|error| nics::status(&error))?;
            for (n, queue) in (0..).zip(queues) {
                self.files.push((queue_name(&nic.tap, n), queue.into()));
            }
        }
        Ok(())
    }

    /// A socket that listens on `address`.
    pub(crate) fn add_listener(&mut self, address: &str) -> Result<(), Status> {
        let cannot = |error| Status::failed_precondition(format!("cannot listen on {address}: {error}"));
        let socket: SocketAddr = address
            .parse()
            .map_err(|_| Status::internal(format!("'{address}' is no address to listen on")))?;
        let listener = TcpListener::bind(socket).map_err(cannot)?;
        self.files.push((listener_name(&socket.to_string()), listener.into()));
        Ok(())
    }

    /// A connection to `address`.
    pub(crate) fn add_connection(&mut self, address: &str) -> Result<(), Status> {
        let socket: SocketAddr = address
            .parse()
            .map_err(|_| Status::invalid_argument(format!("target_address: '{address}' is not ip:port")))?;
        let stream = TcpStream::connect_timeout(&socket, CONNECT_WITHIN).map_err(|error| {
            Status::unavailable(format!("cannot connect to the target {address}: {error}"))
        })?;
        self.files.push((connection_name(&socket.to_string()), stream.into()));
        Ok(())
    }

    /// The calls that the process is to carry out first.
    pub(crate) fn add_calls(
        &mut self,
        create: &CreateRequest,
        start: Option<&StartRequest>,
    ) -> io::Result<()> {
        let calls = [(CREATE, Some(create.encode_to_vec())), (START, start.map(StartRequest::encode_to_vec))];
        for (name, call) in calls {
            if let Some(call) = call {
                self.files.push((name.to_owned(), call_file(&call)?));
            }
        }
        Ok(())
    }

    /// Sends everything to a process that is being born with the other end of this socket.
    pub(crate) fn send_on(&self, socket: &UnixStream) -> io::Result<()> {
        send_ahead(socket, self.files.iter().map(|(name, file)| (name.as_str(), file.as_fd())))
    }

    fn hand_to(&self, dir: &RunDir) -> io::Result<()> {
        hand_over(dir.path(), self.files.iter().map(|(name, file)| (name.as_str(), file.as_fd())))
    }
}

/// Fills a parcel and hands it to the VM's process, if that waits for one: it is not in a jail otherwise.
pub(crate) async fn deliver(
    dir: &RunDir,
    fill: impl FnOnce() -> Result<Parcel, Status> + Send + 'static,
) -> Result<(), Status> {
    let dir = dir.clone();
    let work = move || {
        if !dir.path().join(SOCKET).exists() {
            return Ok(());
        }
        fill()?.hand_to(&dir).map_err(|error| io_status("cannot hand files over to vmmd", &error))
    };
    spawn_blocking(work).await.map_err(|_| Status::internal("handing files over did not end"))?
}
