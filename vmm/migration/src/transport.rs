//! The seam to the network: what carries a migration's frames. TCP today; TLS is another implementation.

use std::{
    fmt,
    io::{self, Read, Write},
    sync::Arc,
    time::Duration,
};

pub use tcp::{MadeConnection, TcpConnector, TcpTarget};

mod tcp;

/// How long one call to a transport may block without moving a byte. Bounds how late a cancel is seen; long enough
/// that a healthy link never wakes for it.
pub const IO_SLICE: Duration = Duration::from_millis(50);

/// Ends a connection from any thread: reads in progress return 0 or an error, writes an error. Idempotent.
pub trait Close: Send + Sync {
    /// Ends it. What was written before is still delivered where the peer reads it.
    fn close(&self);
}

/// A connection to the peer, in the parts that different threads use.
pub struct Connection {
    /// Receives. A read returns within [`IO_SLICE`] with `WouldBlock` or `TimedOut` where nothing arrives, and 0 once
    /// the peer has closed.
    pub reader: Box<dyn Read + Send>,
    /// Sends. A write returns within [`IO_SLICE`]: the bytes taken, or `WouldBlock` or `TimedOut` where none were.
    /// Written bytes leave without waiting for more.
    pub writer: Box<dyn Write + Send>,
    /// Ends both.
    pub closer: Arc<dyn Close>,
    /// The peer, for people.
    pub peer: String,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// The source's way to its target.
pub trait Connect: Send {
    /// Connects within `limit`.
    ///
    /// # Errors
    /// Where the target cannot be reached in time.
    fn connect(&self, limit: Duration) -> io::Result<Connection>;
}

/// The target's way to its source.
pub trait Accept: Send {
    /// Waits for one connection; `None` where none came within `limit`. The driver calls this again and again with
    /// limits of about [`IO_SLICE`].
    ///
    /// # Errors
    /// Where waiting is impossible. A connection that came and went is not an error.
    fn accept(&self, limit: Duration) -> io::Result<Option<Connection>>;
}
