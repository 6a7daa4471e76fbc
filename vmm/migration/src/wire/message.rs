//! Messages other than guest RAM: what a state machine sends and receives.

use std::fmt;

use drover_ids::{MigrationId, OwnerEpoch, VmId};
use drover_saved_state::{Envelope, decode_list, encode_list};
use drover_units::{Bytes, Gpa, Pages, VcpuCount};

use super::{FrameKind, Ledger, WireError, bytes};
use crate::shape::{CpuShape, DeviceShape, MachineShape, RamRange};

/// Longest text of a message, bytes.
pub const MAX_TEXT: usize = 1024;
/// Longest name in a shape, bytes: a UUID or a device kind with room to spare.
const MAX_NAME: usize = 128;
/// Most RAM ranges of a machine. x86-64 has two; hot-plugged memory brings more.
pub const MAX_RAM_RANGES: usize = 64;
/// Most devices of a machine, vCPUs not counted.
pub const MAX_DEVICES: usize = 512;
/// Most words of processor features. CPUID's known feature leaves have fewer than 40.
pub const MAX_FEATURE_WORDS: usize = 256;

/// The source's opening: who it is and what would move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest and newest version that the source speaks. The target answers with one of them.
    pub versions: (u16, u16),
    /// Optional parts of the protocol that the source offers, one bit each. None is defined in version 1.
    pub features: u64,
    /// Which attempt this is. Chosen by the orchestrator and known to both ends beforehand.
    pub migration: MigrationId,
    /// The epoch under which the source runs the VM.
    pub source_epoch: OwnerEpoch,
    /// The epoch under which the target will.
    pub target_epoch: OwnerEpoch,
    /// The machine.
    pub shape: MachineShape,
}

/// What kind of thing made an end give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum AbortCode {
    /// Somebody asked for it.
    Cancelled = 1,
    /// The ends do not fit each other.
    Incompatible = 2,
    /// The peer broke the protocol, or bytes were damaged on the way.
    Protocol = 3,
    /// A limit on time ran out.
    Timeout = 4,
    /// A machine failed at a step.
    Guest = 5,
    /// The peer or the way to it is gone.
    PeerLost = 6,
    /// The guest dirties memory faster than it can be sent.
    NotConverging = 7,
}

impl AbortCode {
    const ALL: [Self; 7] = [
        Self::Cancelled,
        Self::Incompatible,
        Self::Protocol,
        Self::Timeout,
        Self::Guest,
        Self::PeerLost,
        Self::NotConverging,
    ];
}

/// Why a migration was given up: for people, with a code for programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbortReason {
    /// What kind of reason.
    pub code: AbortCode,
    /// The reason. Cut to [`MAX_TEXT`] bytes when it is sent.
    pub text: String,
}

impl AbortReason {
    /// A reason.
    pub fn new(code: AbortCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

impl fmt::Display for AbortReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A frame that does not carry guest RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Source's opening.
    Hello(Box<Hello>),
    /// The target's machine fits and waits for RAM.
    HelloAck {
        /// The version that both will use.
        version: u16,
        /// The features that both will use.
        features: u64,
    },
    /// Every page of a round has been sent.
    RoundEnd {
        /// Counted from 1.
        round: u32,
        /// Everything that the source sent before this frame.
        ledger: Ledger,
    },
    /// Every page of a round has been applied.
    RoundAck {
        /// Counted from 1.
        round: u32,
        /// Everything that the target consumed before the round's end.
        ledger: Ledger,
    },
    /// A part of the machine's saved state.
    State(Vec<Envelope>),
    /// The guest stands still and all of it has been sent.
    Handover {
        /// Everything that the source sent before this frame.
        ledger: Ledger,
        /// Envelopes sent in all.
        envelopes: u32,
    },
    /// All of the guest has been consumed and fits: it could run now.
    Ready {
        /// Everything that the target consumed before the hand-over.
        ledger: Ledger,
    },
    /// The volumes are free, and the guest is the target's.
    Commit {
        /// The epoch that the target owns it under.
        target_epoch: OwnerEpoch,
    },
    /// The guest runs at the target.
    Resumed {
        /// Under this epoch.
        target_epoch: OwnerEpoch,
    },
    /// The sender has given up.
    Abort(AbortReason),
}

impl Message {
    /// The kind of frame that carries it.
    pub fn kind(&self) -> FrameKind {
        match self {
            Self::Hello(_) => FrameKind::Hello,
            Self::HelloAck { .. } => FrameKind::HelloAck,
            Self::RoundEnd { .. } => FrameKind::RoundEnd,
            Self::RoundAck { .. } => FrameKind::RoundAck,
            Self::State(_) => FrameKind::State,
            Self::Handover { .. } => FrameKind::Handover,
            Self::Ready { .. } => FrameKind::Ready,
            Self::Commit { .. } => FrameKind::Commit,
            Self::Resumed { .. } => FrameKind::Resumed,
            Self::Abort(_) => FrameKind::Abort,
        }
    }

    /// The payload.
    ///
    /// # Panics
    /// Where a shape has more of something than its limit (`MAX_…`): whoever builds the machine bounds it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Hello(hello) => encode_hello(hello, &mut out),
            Self::HelloAck { version, features } => {
                out.extend_from_slice(&version.to_le_bytes());
                out.extend_from_slice(&features.to_le_bytes());
            }
            Self::RoundEnd { round, ledger } | Self::RoundAck { round, ledger } => {
                out.extend_from_slice(&round.to_le_bytes());
                encode_ledger(ledger, &mut out);
            }
            Self::State(envelopes) => out = encode_list(envelopes),
            Self::Handover { ledger, envelopes } => {
                encode_ledger(ledger, &mut out);
                out.extend_from_slice(&envelopes.to_le_bytes());
            }
            Self::Ready { ledger } => encode_ledger(ledger, &mut out),
            Self::Commit { target_epoch } | Self::Resumed { target_epoch } => {
                out.extend_from_slice(&target_epoch.get().to_le_bytes());
            }
            Self::Abort(reason) => {
                out.extend_from_slice(&(reason.code as u16).to_le_bytes());
                bytes::put_text(&mut out, &reason.text, MAX_TEXT);
            }
        }
        out
    }

    /// The message in a frame of the given kind.
    ///
    /// # Errors
    /// [`WireError`] naming the field; also for [`FrameKind::Pages`], which is not a message.
    pub fn decode(kind: FrameKind, payload: &[u8]) -> Result<Self, WireError> {
        let mut fields = bytes::Fields::new(kind, payload);
        let message = match kind {
            FrameKind::Hello => Self::Hello(Box::new(decode_hello(&mut fields)?)),
            FrameKind::HelloAck => {
                Self::HelloAck { version: fields.u16("version")?, features: fields.u64("features")? }
            }
            FrameKind::Pages => return Err(WireError::Kind(kind as u16)),
            FrameKind::RoundEnd => {
                Self::RoundEnd { round: fields.u32("round")?, ledger: decode_ledger(&mut fields)? }
            }
            FrameKind::RoundAck => {
                Self::RoundAck { round: fields.u32("round")?, ledger: decode_ledger(&mut fields)? }
            }
            FrameKind::State => {
                let list = fields.take("envelopes", fields.remaining())?;
                Self::State(decode_list(list).map_err(|_| fields.invalid("envelopes"))?)
            }
            FrameKind::Handover => {
                Self::Handover { ledger: decode_ledger(&mut fields)?, envelopes: fields.u32("envelopes")? }
            }
            FrameKind::Ready => Self::Ready { ledger: decode_ledger(&mut fields)? },
            FrameKind::Commit => Self::Commit { target_epoch: OwnerEpoch::new(fields.u64("target epoch")?) },
            FrameKind::Resumed => {
                Self::Resumed { target_epoch: OwnerEpoch::new(fields.u64("target epoch")?) }
            }
            FrameKind::Abort => {
                let code = fields.u16("code")?;
                let code = AbortCode::ALL.into_iter().find(|known| *known as u16 == code);
                let code = code.ok_or_else(|| fields.invalid("code"))?;
                Self::Abort(AbortReason { code, text: fields.text("text", MAX_TEXT)? })
            }
        };
        fields.end()?;
        Ok(message)
    }
}

fn encode_ledger(ledger: &Ledger, out: &mut Vec<u8>) {
    out.extend_from_slice(&ledger.frames.to_le_bytes());
    out.extend_from_slice(&ledger.pages.get().to_le_bytes());
    out.extend_from_slice(&ledger.digest.to_le_bytes());
}

fn decode_ledger(fields: &mut bytes::Fields<'_>) -> Result<Ledger, WireError> {
    Ok(Ledger {
        frames: fields.u64("frames")?,
        pages: Pages::new(fields.u64("pages")?),
        digest: fields.u32("digest")?,
    })
}

fn encode_hello(hello: &Hello, out: &mut Vec<u8>) {
    let Hello { versions, features, migration, source_epoch, target_epoch, shape } = hello;
    out.extend_from_slice(&versions.0.to_le_bytes());
    out.extend_from_slice(&versions.1.to_le_bytes());
    out.extend_from_slice(&features.to_le_bytes());
    out.extend_from_slice(&migration.as_u128().to_le_bytes());
    out.extend_from_slice(&source_epoch.get().to_le_bytes());
    out.extend_from_slice(&target_epoch.get().to_le_bytes());
    encode_shape(shape, out);
}

/// A shape by itself, as whoever keeps one beside a saved machine writes it down.
pub(crate) fn encode_shape(shape: &MachineShape, out: &mut Vec<u8>) {
    out.extend_from_slice(&shape.vm.as_u128().to_le_bytes());
    out.extend_from_slice(&shape.vcpus.get().to_le_bytes());
    out.extend_from_slice(&shape.page_size.to_le_bytes());
    put_count(out, shape.memory.len(), MAX_RAM_RANGES);
    for range in &shape.memory {
        out.extend_from_slice(&range.start.get().to_le_bytes());
        out.extend_from_slice(&range.size.get().to_le_bytes());
    }
    put_count(out, shape.devices.len(), MAX_DEVICES);
    for device in &shape.devices {
        bytes::put_text(out, &device.kind, MAX_NAME);
        bytes::put_text(out, &device.identity, MAX_NAME);
        out.extend_from_slice(&device.version.to_le_bytes());
    }
    bytes::put_text(out, &shape.cpu.vendor, MAX_NAME);
    put_count(out, shape.cpu.features.len(), MAX_FEATURE_WORDS);
    for word in &shape.cpu.features {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

fn put_count(out: &mut Vec<u8>, count: usize, max: usize) {
    assert!(count <= max, "a machine's shape has {count} entries where {max} are possible");
    out.extend_from_slice(&u16::try_from(count).expect("limits are below 2^16").to_le_bytes());
}

fn decode_hello(fields: &mut bytes::Fields<'_>) -> Result<Hello, WireError> {
    Ok(Hello {
        versions: (fields.u16("oldest version")?, fields.u16("newest version")?),
        features: fields.u64("features")?,
        migration: MigrationId::from_u128(fields.u128("migration")?),
        source_epoch: OwnerEpoch::new(fields.u64("source epoch")?),
        target_epoch: OwnerEpoch::new(fields.u64("target epoch")?),
        shape: decode_shape(fields)?,
    })
}

/// What [`encode_shape`] wrote, and nothing else.
pub(crate) fn shape_from_bytes(bytes: &[u8]) -> Result<MachineShape, WireError> {
    let mut fields = bytes::Fields::new(FrameKind::Hello, bytes);
    let shape = decode_shape(&mut fields)?;
    fields.end()?;
    Ok(shape)
}

fn decode_shape(fields: &mut bytes::Fields<'_>) -> Result<MachineShape, WireError> {
    let vm = VmId::from_u128(fields.u128("VM")?);
    let vcpus = VcpuCount::new(fields.u32("vCPUs")?);
    let page_size = fields.u32("page size")?;
    let mut memory = Vec::new();
    for _ in 0..fields.count("RAM ranges", MAX_RAM_RANGES)? {
        let start = Gpa::new(fields.u64("start of a RAM range")?);
        memory.push(RamRange { start, size: Bytes::new(fields.u64("size of a RAM range")?) });
    }
    let mut devices = Vec::new();
    for _ in 0..fields.count("devices", MAX_DEVICES)? {
        devices.push(DeviceShape {
            kind: fields.text("kind of a device", MAX_NAME)?,
            identity: fields.text("identity of a device", MAX_NAME)?,
            version: fields.u16("version of a device")?,
        });
    }
    let vendor = fields.text("processor vendor", MAX_NAME)?;
    let words = fields.count("processor features", MAX_FEATURE_WORDS)?;
    let features = (0..words).map(|_| fields.u32("processor features")).collect::<Result<_, _>>()?;
    Ok(MachineShape { vm, vcpus, memory, page_size, devices, cpu: CpuShape { vendor, features } })
}
