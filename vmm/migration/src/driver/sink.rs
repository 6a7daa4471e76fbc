//! Writing frames to a transport that may be slow, stuck or gone.

use std::{
    io::{self, IoSlice, Write},
    time::{Duration, Instant},
};

use crate::wire::{AbortCode, AbortReason, FrameEncoder, Message, Stamp};

/// A transport that takes not one byte for so long is as good as gone.
const STALL_MAX: Duration = Duration::from_secs(10);
/// For messages: the guest may be standing still.
const MESSAGE_STALL_MAX: Duration = Duration::from_secs(2);

/// Why a frame was not sent whole. The stream is of no more use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SinkError {
    /// There is something more urgent to do.
    Interrupted,
    /// The peer is gone or stuck.
    Lost(AbortReason),
}

/// Where frames go.
pub(crate) trait FrameSink {
    /// Sends a frame of guest RAM: its header and the two parts of its payload. May be interrupted.
    fn send_pages(&mut self, stamp: &Stamp, payload: [&[u8]; 2]) -> Result<(), SinkError>;

    /// Sends a frame that carries a message. Is not interrupted: half a Commit helps nobody.
    fn send_message(&mut self, stamp: &Stamp, payload: &[u8]) -> Result<(), SinkError>;
}

/// Seals and sends a message.
pub(crate) fn send_message(
    sink: &mut dyn FrameSink,
    encoder: &mut FrameEncoder,
    message: &Message,
) -> Result<Stamp, SinkError> {
    let payload = message.encode();
    let stamp = encoder.seal(message.kind(), &[&payload]);
    sink.send_message(&stamp, &payload)?;
    Ok(stamp)
}

/// A sink over a transport's writer.
pub(crate) struct WriterSink<'a> {
    writer: Option<Box<dyn Write + Send>>,
    interrupt: Box<dyn FnMut() -> bool + 'a>,
}

impl<'a> WriterSink<'a> {
    /// A sink that is not connected yet. `interrupt` says whether something is more urgent than guest RAM.
    pub(crate) fn new(interrupt: impl FnMut() -> bool + 'a) -> Self {
        Self { writer: None, interrupt: Box::new(interrupt) }
    }

    pub(crate) fn connect(&mut self, writer: Box<dyn Write + Send>) {
        self.writer = Some(writer);
    }

    fn write(&mut self, parts: &mut [IoSlice<'_>], is_message: bool) -> Result<(), SinkError> {
        let Some(mut writer) = self.writer.take() else {
            return Err(lost("the connection is closed".to_owned()));
        };
        // Taken out meanwhile: after half a frame the stream is out of step, and nothing may follow it.
        let limit = if is_message { MESSAGE_STALL_MAX } else { STALL_MAX };
        let mut parts = parts;
        let mut moved_at = Instant::now();
        while parts.iter().any(|part| !part.is_empty()) {
            match writer.write_vectored(parts) {
                Ok(0) => return Err(lost("the connection takes no more".to_owned())),
                Ok(count) => {
                    IoSlice::advance_slices(&mut parts, count);
                    moved_at = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if moved_at.elapsed() >= limit {
                        return Err(lost(format!("the peer has taken nothing for {limit:?}")));
                    }
                }
                Err(error) => return Err(lost(format!("sending failed: {error}"))),
            }
            if !is_message && parts.iter().any(|part| !part.is_empty()) && (self.interrupt)() {
                return Err(SinkError::Interrupted);
            }
        }
        self.writer = Some(writer);
        Ok(())
    }
}

fn lost(text: String) -> SinkError {
    SinkError::Lost(AbortReason::new(AbortCode::PeerLost, text))
}

impl FrameSink for WriterSink<'_> {
    fn send_pages(&mut self, stamp: &Stamp, [table, contents]: [&[u8]; 2]) -> Result<(), SinkError> {
        let mut parts = [IoSlice::new(stamp.bytes()), IoSlice::new(table), IoSlice::new(contents)];
        self.write(&mut parts, false)
    }

    fn send_message(&mut self, stamp: &Stamp, payload: &[u8]) -> Result<(), SinkError> {
        self.write(&mut [IoSlice::new(stamp.bytes()), IoSlice::new(payload)], true)
    }
}
