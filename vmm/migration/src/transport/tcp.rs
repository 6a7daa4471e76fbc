//! TCP.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Accept, Close, Connect, Connection, IO_SLICE};

/// Connects to a `host:port`.
#[derive(Clone, Debug)]
pub struct TcpConnector {
    address: String,
}

impl TcpConnector {
    /// A connector to `address`, which is resolved when it connects.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into() }
    }
}

impl Connect for TcpConnector {
    /// Tries every address that the name resolves to, dividing the limit among them.
    fn connect(&self, limit: Duration) -> io::Result<Connection> {
        let addresses: Vec<SocketAddr> = self.address.to_socket_addrs()?.collect();
        let share = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let unresolved = || io::Error::new(io::ErrorKind::NotFound, "the name resolves to no address");
        let mut last = unresolved();
        for address in addresses {
            match TcpStream::connect_timeout(&address, share) {
                Ok(stream) => return split(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// A connection to the target that somebody else has made, for a process that may make none. It serves once.
#[derive(Debug)]
pub struct MadeConnection {
    stream: Mutex<Option<TcpStream>>,
}

impl MadeConnection {
    /// Takes the connection.
    pub fn new(stream: TcpStream) -> Self {
        Self { stream: Mutex::new(Some(stream)) }
    }
}

impl Connect for MadeConnection {
    fn connect(&self, _limit: Duration) -> io::Result<Connection> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the connection has been used");
        split(stream.ok_or_else(gone)?)
    }
}

/// Listens for the source.
#[derive(Debug)]
pub struct TcpTarget {
    listener: TcpListener,
}

impl TcpTarget {
    /// Listens on `address` (`host:port`; port 0 lets the kernel choose).
    ///
    /// # Errors
    /// Where the address cannot be listened on.
    pub fn bind(address: &str) -> io::Result<Self> {
        Self::of_listener(TcpListener::bind(address)?)
    }

    /// Takes a socket that listens, for a process that may not make one.
    ///
    /// # Errors
    /// Where it cannot be set up.
    pub fn of_listener(listener: TcpListener) -> io::Result<Self> {
        // A connection can be gone between poll and accept: accept must not wait for the next one.
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// The address to connect to.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Accept for TcpTarget {
    fn accept(&self, limit: Duration) -> io::Result<Option<Connection>> {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(nix::Error::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match self.listener.accept() {
            Ok((stream, _)) => Ok(split(stream).ok()),
            Err(error) if is_transient(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// accept(2): errors of the connection that was waiting, not of the listener.
fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
        WouldBlock,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | WouldBlock
    )
}

fn split(stream: TcpStream) -> io::Result<Connection> {
    stream.set_nonblocking(false)?;
    // A Commit must not wait for a segment to fill.
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IO_SLICE))?;
    stream.set_write_timeout(Some(IO_SLICE))?;
    let peer = stream.peer_addr()?.to_string();
    let (reader, closer) = (stream.try_clone()?, TcpCloser(stream.try_clone()?));
    Ok(Connection { reader: Box::new(reader), writer: Box::new(stream), closer: Arc::new(closer), peer })
}

struct TcpCloser(TcpStream);

impl Close for TcpCloser {
    fn close(&self) {
        // Fails where the peer has already closed: then there is nothing left to do.
        drop(self.0.shutdown(Shutdown::Both));
    }
}
