//! What is spoken between a test and the program in the emulated host that does its bidding.
//!
//! One TCP connection per request. The test sends a line of JSON ([`Call`]); the door answers with frames, each a kind (one
//! byte), a length (four bytes, little-endian) and so many bytes. [`Request::Connect`] is answered by one
//! [`FrameKind::Ended`], and the connection then is the socket that was asked for.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};

/// Where the door listens in the emulated host.
pub const PORT: u16 = 7;
/// The file in the emulated host with the word that a caller must know.
pub const TOKEN_PATH: &str = "/door.token";
/// Longest line that is a call: arguments of a program, no content.
pub const CALL_BYTES_MAX: u64 = 64 << 10;
/// Longest frame.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

/// A request and the right to make it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// What [`TOKEN_PATH`] holds: the port is open to every user of this machine.
    pub token: String,
    /// What to do.
    pub request: Request,
}

/// What can be asked for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Run a program and stream what it writes. It is killed when the connection closes.
    Run {
        /// Its path.
        program: String,
        /// Its arguments.
        arguments: Vec<String>,
        /// What it shares with the host.
        world: World,
    },
    /// Hand files over to a VM's process in its jail, as a node agent does before a call names them.
    HandOver {
        /// The process's run directory.
        run_dir: String,
        /// What is opened for it.
        files: Vec<Handed>,
    },
    /// Wait until somebody in the host connects to this address of it, and become that connection. Whoever asks has a
    /// server there that the host cannot reach.
    Accept {
        /// Address and port in the host.
        address: SocketAddr,
    },
    /// Write a file; its content follows the line.
    Put {
        /// Where.
        path: String,
        /// Its permissions.
        mode: u32,
        /// How much follows.
        bytes: u64,
    },
    /// Send a file's content.
    Get {
        /// Which.
        path: String,
    },
    /// Become a connection to a unix socket.
    Connect {
        /// Which.
        path: String,
    },
    /// Answer nothing; power the host off when the connection closes. Every owner holds one, so that a host never
    /// outlives its owner.
    Live,
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// Output, or a file's content.
    Data,
    /// Error output.
    Error,
    /// The request has ended; the bytes say why it failed, and are empty if it did not.
    Ended,
}

/// What a program shares with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum World {
    /// Everything.
    Shared,
    /// The network: processes, mounts and IPC are its own.
    Network,
    /// Nothing of these.
    Apart,
}

/// Something that is opened for a process that opens nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Handed {
    /// A file to read.
    Image(String),
    /// A raw volume; with its owner record, where it may be written.
    Volume {
        /// Which.
        path: String,
        /// Whether it may not be written.
        read_only: bool,
    },
    /// Queues of a new tap, which is there for as long as the process has them.
    Tap {
        /// Its name.
        name: String,
        /// How many queues.
        queues: u16,
    },
    /// A socket that listens for a migration.
    Listener(SocketAddr),
    /// A connection to where another process does.
    Connection(SocketAddr),
}

impl FrameKind {
    fn from_byte(byte: u8) -> io::Result<Self> {
        match byte {
            0 => Ok(Self::Data),
            1 => Ok(Self::Error),
            2 => Ok(Self::Ended),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a frame of an unknown kind")),
        }
    }
}

/// Sends one frame.
///
/// # Errors
/// If the connection is broken.
pub fn write_frame(to: &mut impl Write, kind: FrameKind, content: &[u8]) -> io::Result<()> {
    let length = u32::try_from(content.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(content.len() + 5);
    frame.push(kind as u8);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(content);
    to.write_all(&frame)
}

/// Receives one frame.
///
/// # Errors
/// If the connection is broken, or what came is no frame.
pub fn read_frame(from: &mut impl Read) -> io::Result<(FrameKind, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that is too long"));
    }
    let mut content = vec![0; length];
    from.read_exact(&mut content)?;
    Ok((FrameKind::from_byte(kind)?, content))
}
