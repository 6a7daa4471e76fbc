//! Frames: header, checksum, sequence, and the ledger of what went by.

use std::io::{self, Read};

use drover_saved_state::PAYLOAD_BYTES_MAX;
use drover_units::Pages;

use super::{VERSION_MAX, VERSION_MIN, WireError, pages};

/// Bytes before a frame's payload.
pub const HEADER_LEN: usize = 24;
const MAGIC: [u8; 4] = *b"DRVM";
/// The checksum is the header's last field and covers the ones before it.
const CHECKED_LEN: usize = 20;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FrameKind {
    /// Source's opening.
    Hello = 1,
    /// Target's agreement.
    HelloAck = 2,
    /// Guest RAM.
    Pages = 3,
    /// A round has been sent.
    RoundEnd = 4,
    /// A round has been applied.
    RoundAck = 5,
    /// Saved states.
    State = 6,
    /// All has been sent.
    Handover = 7,
    /// All has been applied.
    Ready = 8,
    /// The target owns the guest.
    Commit = 9,
    /// The guest runs at the target.
    Resumed = 10,
    /// The sender gives up.
    Abort = 11,
}

impl FrameKind {
    /// Each of them.
    pub const ALL: [Self; 11] = [
        Self::Hello,
        Self::HelloAck,
        Self::Pages,
        Self::RoundEnd,
        Self::RoundAck,
        Self::State,
        Self::Handover,
        Self::Ready,
        Self::Commit,
        Self::Resumed,
        Self::Abort,
    ];

    fn from_wire(value: u16) -> Result<Self, WireError> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == value).ok_or(WireError::Kind(value))
    }

    /// The longest payload of this kind: what a peer can make us allocate.
    pub const fn max_payload(self) -> u32 {
        match self {
            Self::Pages => pages::MAX_PAYLOAD,
            // One envelope of the largest kind with its frame; the sender packs several where they fit.
            Self::State => (PAYLOAD_BYTES_MAX + (64 << 10)) as u32,
            // A shape with every list at its limit stays below this.
            Self::Hello => 256 << 10,
            Self::HelloAck | Self::RoundEnd | Self::RoundAck | Self::Handover => 256,
            Self::Ready | Self::Commit | Self::Resumed => 256,
            Self::Abort => 2 << 10,
        }
    }
}

/// The header of one frame, as sent or received: what the ledger adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp([u8; HEADER_LEN]);

impl Stamp {
    /// The header's bytes.
    pub fn bytes(&self) -> &[u8; HEADER_LEN] {
        &self.0
    }

    /// Bytes of the frame, header included.
    pub fn frame_len(&self) -> usize {
        let length = self.0[16..20].try_into().expect("four bytes");
        HEADER_LEN + u32::from_le_bytes(length) as usize
    }
}

/// What has gone over the stream in one direction so far. Both ends keep one; equal ledgers mean that every payload
/// sent was consumed, in order and unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Frames.
    pub frames: u64,
    /// Pages of guest RAM, zero pages included.
    pub pages: Pages,
    /// CRC-32C over the frames' headers, each of which holds its payload's CRC.
    pub digest: u32,
}

impl Ledger {
    /// Enters a frame that carried `pages` pages.
    pub fn enter(&mut self, stamp: &Stamp, pages: Pages) {
        self.frames = self.frames.saturating_add(1);
        self.pages = self.pages.saturating_add(pages);
        self.digest = crc32c::crc32c_append(self.digest, &stamp.0);
    }
}

/// Numbers and seals the frames of one direction.
#[derive(Debug, Default)]
pub struct FrameEncoder {
    next_sequence: u64,
}

impl FrameEncoder {
    /// The header of the next frame, whose payload is the concatenation of `parts`. The caller writes the header and
    /// then the parts, unchanged.
    ///
    /// # Panics
    /// Where the payload is longer than its kind allows: the sender's own bug.
    pub fn seal(&mut self, kind: FrameKind, parts: &[&[u8]]) -> Stamp {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = u32::try_from(length).ok().filter(|length| *length <= kind.max_payload());
        let length = length.unwrap_or_else(|| panic!("a {kind:?} frame was built longer than its limit"));
        let mut header = [0; HEADER_LEN];
        header[0..4].copy_from_slice(&MAGIC);
        header[4..6].copy_from_slice(&VERSION_MAX.to_le_bytes());
        header[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
        header[8..16].copy_from_slice(&self.next_sequence.to_le_bytes());
        header[16..20].copy_from_slice(&length.to_le_bytes());
        let mut crc = crc32c::crc32c(&header[..CHECKED_LEN]);
        for part in parts {
            crc = crc32c::crc32c_append(crc, part);
        }
        header[CHECKED_LEN..].copy_from_slice(&crc.to_le_bytes());
        self.next_sequence = self.next_sequence.wrapping_add(1);
        Stamp(header)
    }
}

/// A whole, checked frame in its reader's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// What it carries.
    pub kind: FrameKind,
    /// The encoded message; see [`super::Message::decode`] and [`super::PagesView::decode`].
    pub payload: &'a [u8],
    /// For the ledger.
    pub stamp: Stamp,
}

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The peer closed the stream between two frames.
    #[error("the peer closed the connection")]
    Closed,
    /// The stream ended inside a frame.
    #[error("the connection ended inside a frame")]
    Truncated,
    /// The transport failed.
    #[error("reading from the peer")]
    Io(#[source] io::Error),
    /// The bytes are not a frame.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Reads frames from a transport, keeping what has arrived of a frame over time-outs.
///
/// Its buffer grows to the largest frame seen and no further than [`FrameKind::max_payload`] allows. After an error
/// the stream is out of step: the reader is of no more use.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// Header and payload of the current frame.
    buffer: Vec<u8>,
    filled: usize,
    next_sequence: u64,
    complete: bool,
}

impl FrameReader {
    /// Reads until a frame is complete (`Some`) or `input` would block or timed out (`None`; call again).
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn poll<R: Read + ?Sized>(&mut self, input: &mut R) -> Result<Option<Frame<'_>>, ReadError> {
        if self.complete {
            self.filled = 0;
            self.complete = false;
        }
        if self.filled < HEADER_LEN && !self.fill(input, HEADER_LEN)? {
            return Ok(None);
        }
        let (kind, length) = self.header()?;
        if !self.fill(input, HEADER_LEN + length)? {
            return Ok(None);
        }
        let stamp = self.verify(kind, length)?;
        self.complete = true;
        self.next_sequence = self.next_sequence.wrapping_add(1);
        Ok(Some(Frame { kind, payload: &self.buffer[HEADER_LEN..HEADER_LEN + length], stamp }))
    }

    fn fill<R: Read + ?Sized>(&mut self, input: &mut R, until: usize) -> Result<bool, ReadError> {
        if self.buffer.len() < until {
            self.buffer.resize(until, 0);
        }
        while self.filled < until {
            match input.read(&mut self.buffer[self.filled..until]) {
                Ok(0) if self.filled == 0 => return Err(ReadError::Closed),
                Ok(0) => return Err(ReadError::Truncated),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(false);
                }
                Err(error) => return Err(ReadError::Io(error)),
            }
        }
        Ok(true)
    }

    /// Kind and payload length. Checked before a byte of the payload is waited for or allocated.
    fn header(&self) -> Result<(FrameKind, usize), WireError> {
        let field = |range: std::ops::Range<usize>| &self.buffer[range];
        let magic: [u8; 4] = field(0..4).try_into().expect("four bytes");
        if magic != MAGIC {
            return Err(WireError::Magic(magic));
        }
        let version = u16::from_le_bytes(field(4..6).try_into().expect("two bytes"));
        if !(VERSION_MIN..=VERSION_MAX).contains(&version) {
            return Err(WireError::Version(version));
        }
        let kind = FrameKind::from_wire(u16::from_le_bytes(field(6..8).try_into().expect("two bytes")))?;
        let got = u64::from_le_bytes(field(8..16).try_into().expect("eight bytes"));
        if got != self.next_sequence {
            return Err(WireError::Sequence { expected: self.next_sequence, got });
        }
        let length = u32::from_le_bytes(field(16..20).try_into().expect("four bytes"));
        let max = kind.max_payload();
        if length > max {
            return Err(WireError::TooLong { kind, length, max });
        }
        Ok((kind, length as usize))
    }

    fn verify(&self, kind: FrameKind, length: usize) -> Result<Stamp, WireError> {
        let (header, rest) = self.buffer.split_first_chunk::<HEADER_LEN>().expect("the header is filled");
        let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..CHECKED_LEN]), &rest[..length]);
        if header[CHECKED_LEN..] != crc.to_le_bytes() {
            return Err(WireError::Checksum(kind));
        }
        Ok(Stamp(*header))
    }
}
