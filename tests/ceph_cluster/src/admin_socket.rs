//! A daemon's admin socket: one JSON command with a zero byte behind it, answered by a length (32 bits, big-endian) and JSON.
//! (Ceph documentation, "Using the admin socket"; the framing is in src/common/admin_socket.cc.)
//!
//! A tenth of the cost of the `ceph` command, which is Python, and it works before the daemon has joined its cluster.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::Value;

/// Longest answer that is read: a status is a few hundred bytes.
const ANSWER_BYTES_MAX: u32 = 1 << 20;
/// A daemon that is stopped does not answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Asks for `prefix`; `None` where nobody answers (yet).
pub(crate) fn ask(socket: &Path, prefix: &str) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE)).ok()?;
    stream.write_all(format!("{{\"prefix\":\"{prefix}\"}}\0").as_bytes()).ok()?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let length = u32::from_be_bytes(length);
    if length > ANSWER_BYTES_MAX {
        return None;
    }
    let mut answer = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut answer).ok()?;
    serde_json::from_slice(&answer).ok()
}
