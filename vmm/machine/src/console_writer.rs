//! A console for who embeds a machine.

use std::{fmt, io::Write};

use drover_devices::ConsoleSink;

/// Hands the guest's output on to a writer, byte by byte as it comes. What the writer does not take is lost, as on a serial
/// line that is not plugged in.
///
/// The vCPU that wrote waits for the writer: standard output or a file will do, a peer that may be slow wants a
/// [`ConsoleSink`] of its own, with room for what it has not read.
pub struct ConsoleWriter<W>(pub W);

impl<W: Write + Send> ConsoleSink for ConsoleWriter<W> {
    fn write(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).and_then(|()| self.0.flush());
    }
}

impl<W> fmt::Debug for ConsoleWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleWriter").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_writer_refuses_is_lost() {
        let mut room = [0; 2];
        ConsoleWriter(&mut room[..]).write(b"abc");
        assert_eq!(&room, b"ab");
    }
}
