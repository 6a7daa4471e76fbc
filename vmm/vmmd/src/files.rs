//! What the VM is made of, opened here or handed over.
//!
//! A process in its jail opens nothing: whatever a call names, the agent has handed over under that name before it makes
//! the call (drover-handover). Without a jail the process opens what is named.

use std::{
    fs::{self, File},
    io,
    net::{TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt as _, net::UnixListener},
    },
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::Builder,
};

use drover_block::{Access, FileBackend, OpenError, Sidecar};
use drover_guest_memory::FaultSource;
use drover_handover::{Incoming, Table, connection_name, listener_name, queue_name, record_name};
use drover_migration::transport::{Connect, MadeConnection, TcpConnector, TcpTarget};
use drover_tap::{Tap, TapError, TapName};
use drover_thread_role::{Role, spawn};
use tracing::warn;

use crate::{
    order::{DiskConfig, DiskPlace},
    refused::chain,
};

/// Stack of the thread that takes files: it moves descriptors and short names.
const STACK_BYTES: usize = 128 << 10;

/// Where open files come from. Clones share what has been handed over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    handed: Option<Arc<Table>>,
    /// Opened before the process gave its privileges up, or why it could not be.
    faults: Arc<Mutex<Option<Result<FaultSource, String>>>>,
}

impl Files {
    /// What has been handed over and will be, and nothing else.
    pub(crate) fn handed_over(table: Table, faults: Option<Result<FaultSource, String>>) -> Self {
        Self { handed: Some(Arc::new(table)), faults: Arc::new(Mutex::new(faults)) }
    }

    /// Takes what is handed over on this socket from now on.
    pub(crate) fn take_on(&self, listener: UnixListener) -> io::Result<()> {
        let Some(table) = self.handed.clone() else { return Ok(()) };
        let builder = Builder::new().name("handover".to_owned()).stack_size(STACK_BYTES);
        spawn(Role::Main, builder, move || take_all(&listener, &table))?;
        Ok(())
    }

    /// A file to read: an image, an initial RAM disk.
    pub(crate) fn read(&self, path: &Path) -> io::Result<File> {
        match &self.handed {
            None => File::open(path),
            Some(table) => table.take(&path.to_string_lossy()).ok_or_else(missing),
        }
    }

    /// A file to write, as it is or new.
    pub(crate) fn made(&self, path: &Path) -> io::Result<File> {
        match &self.handed {
            None => {
                let mut options = File::options();
                options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
            }
            Some(table) => table.take(&path.to_string_lossy()).ok_or_else(missing),
        }
    }

    /// A file to read and to write.
    pub(crate) fn written(&self, path: &Path) -> io::Result<File> {
        match &self.handed {
            None => File::options().read(true).write(true).open(path),
            Some(table) => table.take(&path.to_string_lossy()).ok_or_else(missing),
        }
    }

    /// A socket on which the guest's sockets are reached.
    pub(crate) fn local_listener(&self, path: &Path) -> io::Result<UnixListener> {
        match &self.handed {
            None => {
                // An earlier process of this VM may have listened there.
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => UnixListener::bind(path),
                }
            }
            Some(table) => {
                let socket = table.take(&listener_name(&path.to_string_lossy())).ok_or_else(missing)?;
                Ok(UnixListener::from(OwnedFd::from(socket)))
            }
        }
    }

    /// What tells of pages that are missing: to be had once in a jail, and there only where the command line has said so.
    pub(crate) fn fault_source(&self) -> Result<FaultSource, String> {
        match &self.handed {
            None => FaultSource::open().map_err(|error| chain(&error)),
            Some(_) => {
                let mut kept = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
                kept.take().ok_or_else(|| "this process was not started to resume a VM".to_owned())?
            }
        }
    }

    /// A volume.
    pub(crate) fn volume(&self, path: &Path, access: Access) -> Result<FileBackend, OpenError> {
        let Some(table) = &self.handed else { return FileBackend::open(path, access) };
        let name = path.to_string_lossy();
        let gone = |attempt| OpenError::Io { attempt, path: path.to_owned(), source: missing() };
        let file = table.take(&name).ok_or_else(|| gone("open"))?;
        let sidecar = match table.take(&record_name(&name)) {
            Some(record) => Sidecar::Open(record, path.with_extension("owner")),
            None if access == Access::ReadOnly => Sidecar::At(path.with_extension("owner")),
            None => return Err(gone("open the owner record of")),
        };
        FileBackend::of_file(file, access, (path.to_owned(), sidecar))
    }

    /// Lets go of what was handed over for a disk that is there already.
    pub(crate) fn discard(&self, disk: &DiskConfig) {
        if let (Some(table), DiskPlace::File(path)) = (&self.handed, &disk.place) {
            let name = path.to_string_lossy();
            drop((table.take(&name), table.take(&record_name(&name))));
        }
    }

    /// So many queues of a tap.
    pub(crate) fn tap(&self, name: &TapName, queues: u16) -> Result<Vec<Tap>, TapError> {
        let Some(table) = &self.handed else { return Tap::open(name, queues) };
        let refused =
            || TapError::Refused { attempt: "open", interface: name.to_string(), source: missing() };
        let queue = |n| table.take(&queue_name(name.as_str(), n)).ok_or_else(refused);
        (0..queues).map(|n| Tap::from_fd(queue(n)?.into())).collect()
    }

    /// Listens for a migration.
    pub(crate) fn listen(&self, address: &str) -> io::Result<TcpTarget> {
        match &self.handed {
            None => TcpTarget::bind(address),
            Some(table) => {
                let socket = table.take(&listener_name(address)).ok_or_else(missing)?;
                TcpTarget::of_listener(TcpListener::from(OwnedFd::from(socket)))
            }
        }
    }

    /// The way to a migration's target.
    pub(crate) fn connector(&self, address: &str) -> io::Result<Box<dyn Connect>> {
        match &self.handed {
            None => Ok(Box::new(TcpConnector::new(address))),
            Some(table) => {
                let socket = table.take(&connection_name(address)).ok_or_else(missing)?;
                Ok(Box::new(MadeConnection::new(TcpStream::from(OwnedFd::from(socket)))))
            }
        }
    }
}

fn missing() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "this process may open nothing, and it was not handed over")
}

/// Takes whatever comes, for as long as the process lives. Only the agent can connect.
fn take_all(listener: &UnixListener, table: &Table) {
    for stream in listener.incoming() {
        let served = stream.and_then(Incoming::new).and_then(|mut incoming| incoming.serve(table));
        if let Err(error) = served {
            warn!(%error, "files could not be taken");
        }
    }
}
