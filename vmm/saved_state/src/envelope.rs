//! The envelope around one saved state.
//!
//! Layout 1, little-endian, no padding:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | magic `DrvS` |
//! | 2 | layout, 1 |
//! | 1 | length of the kind |
//! | n | kind |
//! | 2 | instance |
//! | 2 | version of the payload |
//! | 4 | length of the payload |
//! | n | payload |
//! | 4 | CRC-32C of everything before |

use std::{borrow::Cow, fmt};

use crate::{Malformed, SavedState, StateError};

const MAGIC: [u8; 4] = *b"DrvS";
const LAYOUT: u16 = 1;
const KIND_BYTES_MAX: usize = 32;

/// Longest payload, bytes. The largest state we save is a vCPU's: XSAVE area (4 KiB today, 11 KiB with AMX), MSRs
/// and LAPIC, below 32 KiB together. Guest RAM is never saved this way.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Most envelopes of one machine. 1024 vCPUs and as many devices would fit.
pub const ENVELOPES_MAX: usize = 2048;

/// What an envelope holds the state of. Lower-case letters, digits and `-`; 1 to 32 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind(Cow<'static, str>);

impl Kind {
    /// The kind of a type.
    pub fn of<S: SavedState>() -> Self {
        // Evaluated when the type is compiled, so that a bad name never reaches a release.
        const { assert!(is_valid(S::KIND.as_bytes()), "KIND must be 1 to 32 of a-z, 0-9 and '-'") };
        Self(Cow::Borrowed(S::KIND))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if !is_valid(bytes) {
            return None;
        }
        let name = std::str::from_utf8(bytes).ok()?;
        Some(Self(Cow::Owned(name.to_owned())))
    }
}

const fn is_valid(name: &[u8]) -> bool {
    let mut index = 0;
    while index < name.len() {
        if !matches!(name[index], b'a'..=b'z' | b'0'..=b'9' | b'-') {
            return false;
        }
        index += 1;
    }
    !name.is_empty() && name.len() <= KIND_BYTES_MAX
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// One saved state, ready for a stream or a file.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    kind: Kind,
    instance: u16,
    version: u16,
    payload: Vec<u8>,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the payload: it can hold a guest's secrets.
        f.debug_struct("Envelope")
            .field("kind", &self.kind)
            .field("instance", &self.instance)
            .field("version", &self.version)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

impl Envelope {
    /// Wraps a payload. [`SavedState::to_envelope`] is the usual way.
    ///
    /// # Panics
    /// Where the payload is longer than [`PAYLOAD_BYTES_MAX`]: a device bounds its own state.
    pub fn new(kind: Kind, instance: u16, version: u16, payload: Vec<u8>) -> Self {
        assert!(payload.len() <= PAYLOAD_BYTES_MAX, "a device's state has a bound below the envelope's");
        Self { kind, instance, version, payload }
    }

    /// What the payload is the state of.
    pub fn kind(&self) -> &Kind {
        &self.kind
    }
    /// Which one of that kind, counted from 0.
    pub fn instance(&self) -> u16 {
        self.instance
    }
    /// The version of the payload's format.
    pub fn version(&self) -> u16 {
        self.version
    }
    /// The payload.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Appends the envelope to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&LAYOUT.to_le_bytes());
        let kind = self.kind.as_str().as_bytes();
        out.push(u8::try_from(kind.len()).expect("a kind has at most 32 bytes"));
        out.extend_from_slice(kind);
        out.extend_from_slice(&self.instance.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        let length = u32::try_from(self.payload.len()).expect("checked when the envelope was made");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&self.payload);
        let checksum = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&checksum.to_le_bytes());
    }

    /// Takes one envelope off the front of `bytes`, which afterwards is what follows it. On error `bytes` is
    /// unchanged.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self, StateError> {
        let mut rest = *bytes;
        let envelope = decode_front(bytes, &mut rest).map_err(StateError::Malformed)?;
        *bytes = rest;
        Ok(envelope)
    }
}

fn decode_front(whole: &[u8], rest: &mut &[u8]) -> Result<Envelope, Malformed> {
    if take::<4>(rest)? != MAGIC {
        return Err(Malformed::Magic);
    }
    let layout = u16::from_le_bytes(take(rest)?);
    if layout != LAYOUT {
        return Err(Malformed::Layout(layout));
    }
    let [kind_length] = take(rest)?;
    let kind = Kind::from_bytes(take_slice(rest, kind_length.into())?).ok_or(Malformed::Kind)?;
    let instance = u16::from_le_bytes(take(rest)?);
    let version = u16::from_le_bytes(take(rest)?);
    let length = u32::from_le_bytes(take(rest)?) as usize;
    if length > PAYLOAD_BYTES_MAX {
        return Err(Malformed::TooLong);
    }
    let payload = take_slice(rest, length)?;
    let covered = &whole[..whole.len() - rest.len()];
    if u32::from_le_bytes(take(rest)?) != crc32c::crc32c(covered) {
        return Err(Malformed::Checksum);
    }
    Ok(Envelope { kind, instance, version, payload: payload.to_vec() })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (front, back) = bytes.split_first_chunk().ok_or(Malformed::Truncated)?;
    *bytes = back;
    Ok(*front)
}

fn take_slice<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (front, back) = bytes.split_at_checked(length).ok_or(Malformed::Truncated)?;
    *bytes = back;
    Ok(front)
}

/// All envelopes of a machine, one after the other.
///
/// # Panics
/// With more than [`ENVELOPES_MAX`] of them: the machine bounds its devices.
pub fn encode_list(envelopes: &[Envelope]) -> Vec<u8> {
    assert!(envelopes.len() <= ENVELOPES_MAX, "a machine bounds its devices");
    let mut out = Vec::new();
    for envelope in envelopes {
        envelope.encode(&mut out);
    }
    out
}

/// The envelopes in `bytes`, which must hold nothing else.
pub fn decode_list(mut bytes: &[u8]) -> Result<Vec<Envelope>, StateError> {
    let mut envelopes = Vec::new();
    while !bytes.is_empty() {
        if envelopes.len() == ENVELOPES_MAX {
            return Err(StateError::Malformed(Malformed::TooMany));
        }
        envelopes.push(Envelope::decode(&mut bytes)?);
    }
    Ok(envelopes)
}
