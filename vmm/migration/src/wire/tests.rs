//! The codec: every message comes back, every damage is noticed, no bytes panic, and version 1 stays as it is.

use std::{fmt::Write as _, fs, io, io::Read, path::PathBuf};

use drover_guest_memory::PageRun;
use drover_ids::{MigrationId, OwnerEpoch, VmId};
use drover_saved_state::Envelope;
use drover_units::{Bytes, Gpa, PAGE_SIZE, Pages, VcpuCount};
use proptest::{collection::vec, prelude::*};

use super::{bytes::Fields, *};
use crate::shape::{CpuShape, DeviceShape, MachineShape, RamRange};

fn frame_of(encoder: &mut FrameEncoder, kind: FrameKind, payload: &[u8]) -> Vec<u8> {
    let stamp = encoder.seal(kind, &[payload]);
    [&stamp.bytes()[..], payload].concat()
}

fn run(first: u64, pages: u64) -> PageRun {
    PageRun { start: Gpa::new(first * PAGE_SIZE), pages: Pages::new(pages) }
}

fn hello() -> Hello {
    Hello {
        versions: (1, 1),
        features: 0,
        migration: MigrationId::from_u128(0x11),
        source_epoch: OwnerEpoch::new(4),
        target_epoch: OwnerEpoch::new(5),
        shape: MachineShape {
            vm: VmId::from_u128(0x22),
            vcpus: VcpuCount::new(2),
            memory: vec![
                RamRange { start: Gpa::ZERO, size: Bytes::gib(3) },
                RamRange { start: Gpa::new(1 << 32), size: Bytes::gib(1) },
            ],
            page_size: 4096,
            devices: vec![
                DeviceShape { kind: "serial".to_owned(), identity: String::new(), version: 1 },
                DeviceShape { kind: "virtio-blk".to_owned(), identity: "vol-1".to_owned(), version: 2 },
            ],
            cpu: CpuShape { vendor: "AuthenticAMD".to_owned(), features: vec![1, 0x8000_0000] },
        },
    }
}

fn ledger() -> Ledger {
    Ledger { frames: 3, pages: Pages::new(1 << 33), digest: 0xdead_beef }
}

/// One of each.
fn messages() -> Vec<Message> {
    let envelope = |n: u8| Envelope::new(crate::fake::registers_kind(), n.into(), 1, vec![n; usize::from(n)]);
    vec![
        Message::Hello(Box::new(hello())),
        Message::HelloAck { version: 1, features: 0 },
        Message::RoundEnd { round: 1, ledger: ledger() },
        Message::RoundAck { round: 1, ledger: ledger() },
        Message::State(vec![envelope(0), envelope(9)]),
        Message::Handover { ledger: ledger(), envelopes: 2 },
        Message::Ready { ledger: ledger() },
        Message::Commit { target_epoch: OwnerEpoch::new(5) },
        Message::Resumed { target_epoch: OwnerEpoch::new(5) },
        Message::Abort(AbortReason::new(AbortCode::Timeout, "too late")),
    ]
}

fn pages_payload() -> Vec<u8> {
    let mut builder = PagesBuilder::default();
    builder.push_zero(run(0, 1000));
    let fill = |buffer: &mut [u8]| {
        for (number, page) in buffer.chunks_exact_mut(PAGE_SIZE as usize).enumerate() {
            // The middle one is zero.
            page.fill(if number == 1 { 0 } else { 7 });
        }
        Ok::<(), io::Error>(())
    };
    builder.push(run(1000, 3), fill).unwrap();
    builder.payload().concat()
}

#[test]
fn every_message_comes_back_as_it_was() {
    for message in messages() {
        assert_eq!(Message::decode(message.kind(), &message.encode()), Ok(message));
    }
}

/// `UPDATE_EXPECT=1` writes the file. A difference means that peers of the last release do not understand this one:
/// make a new version instead.
#[test]
fn version_1_is_as_it_always_was() {
    let mut encoder = FrameEncoder::default();
    let mut frames: Vec<Vec<u8>> =
        messages().iter().map(|message| frame_of(&mut encoder, message.kind(), &message.encode())).collect();
    frames.push(frame_of(&mut encoder, FrameKind::Pages, &pages_payload()));
    let mut text = String::new();
    for frame in &frames {
        let kind = u16::from_le_bytes([frame[6], frame[7]]);
        writeln!(text, "kind {kind}, {} bytes, crc32c {:08x}", frame.len(), crc32c::crc32c(frame)).unwrap();
        for line in frame[..frame.len().min(512)].chunks(32) {
            let hex: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "  {hex}").unwrap();
        }
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/wire_v1.golden");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), text, "see {}", path.display());
}

#[test]
fn pages_come_back_and_zero_pages_cost_nothing() {
    let payload = pages_payload();
    assert_eq!(payload.len(), 4 + 4 * 16 + 2 * 4096);
    let view = PagesView::decode(&payload).unwrap();
    assert_eq!(view.pages(), Pages::new(1003));
    let runs: Vec<_> = view.runs().collect();
    let sevens = [7; PAGE_SIZE as usize];
    let expect = [
        (run(0, 1000), None),
        (run(1000, 1), Some(&sevens[..])),
        (run(1001, 1), None),
        (run(1002, 1), Some(&sevens[..])),
    ];
    assert_eq!(runs, expect);
}

#[test]
fn a_builder_says_when_it_is_full_and_its_largest_frame_fits() {
    let mut builder = PagesBuilder::default();
    let mut page = 0;
    // The worst case: every page begins a run of its own, data and zero in turn.
    while builder.room() > Pages::ZERO {
        let byte = u8::from(page % 4 == 0);
        let fill = |buffer: &mut [u8]| {
            buffer.fill(byte);
            Ok::<(), io::Error>(())
        };
        builder.push(run(page, 1), fill).unwrap();
        page += 2;
    }
    let payload = builder.payload().concat();
    assert!(payload.len() <= FrameKind::Pages.max_payload() as usize);
    assert_eq!(PagesView::decode(&payload).unwrap().runs().count() as u64, page / 2);
    builder.clear();
    assert_eq!(builder.room(), Pages::new(MAX_DATA_PAGES as u64));
}

#[test]
fn a_read_that_fails_adds_nothing() {
    let mut builder = PagesBuilder::default();
    assert!(builder.push(run(0, 1), |_| Err(io::Error::other("gone"))).is_err());
    assert!(builder.is_empty());
}

fn check_pages(payload: &[u8], field: &'static str) {
    let error = PagesView::decode(payload).unwrap_err();
    let named = match &error {
        WireError::Field { field, .. } | WireError::Short { field, .. } => *field,
        WireError::Trailing { .. } => "trailing",
        other => panic!("{other}"),
    };
    assert_eq!(named, field, "{error}");
}

#[test]
fn page_frames_that_no_sender_makes_are_refused_by_field() {
    let entry = |first: u64, pages: u32, kind: u32| {
        [&1u32.to_le_bytes()[..], &first.to_le_bytes(), &pages.to_le_bytes(), &kind.to_le_bytes()].concat()
    };
    check_pages(&[], "number of runs");
    check_pages(&u32::MAX.to_le_bytes(), "number of runs");
    check_pages(&2u32.to_le_bytes(), "runs");
    check_pages(&entry(0, 0, 0), "pages of a run");
    check_pages(&entry(0, 1, 2), "kind of a run");
    check_pages(&entry(0, u32::MAX, 1), "pages of a run");
    check_pages(&entry(u64::MAX, 1, 0), "first page of a run");
    check_pages(&entry((1 << 52) - 1, 2, 0), "first page of a run");
    check_pages(&entry(0, 1, 1), "contents");
    check_pages(&[entry(0, 1, 0), vec![0]].concat(), "trailing");
    let many = [vec![65u8, 0, 0, 0], vec![entry(0, 64, 1)[4..].to_vec(); 65].concat()].concat();
    check_pages(&many, "pages of a run");
}

/// Gives the bytes in pieces of the given sizes, with a time-out between them.
struct Trickle<'a> {
    bytes: &'a [u8],
    pieces: Vec<usize>,
    blocked: bool,
}

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.blocked = !self.blocked;
        if self.blocked {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let piece = self.pieces.pop().unwrap_or(usize::MAX);
        let count = self.bytes.len().min(buffer.len()).min(piece.max(1));
        buffer[..count].copy_from_slice(&self.bytes[..count]);
        self.bytes = &self.bytes[count..];
        Ok(count)
    }
}

fn read_all(reader: &mut FrameReader, input: &mut dyn Read) -> (Vec<(FrameKind, Vec<u8>)>, ReadError) {
    let mut frames = Vec::new();
    loop {
        match reader.poll(input) {
            Ok(None) => {}
            Ok(Some(frame)) => frames.push((frame.kind, frame.payload.to_vec())),
            Err(error) => return (frames, error),
        }
    }
}

fn stream(frames: &[(FrameKind, Vec<u8>)]) -> Vec<u8> {
    let mut encoder = FrameEncoder::default();
    frames.iter().flat_map(|(kind, payload)| frame_of(&mut encoder, *kind, payload)).collect()
}

fn check_stream(bytes: &[u8], expect: &str) {
    let (_, error) = read_all(&mut FrameReader::default(), &mut &bytes[..]);
    assert_eq!(error.to_string(), expect);
}

#[test]
fn streams_that_are_not_ours_say_what_is_wrong() {
    let commit = Message::Commit { target_epoch: OwnerEpoch::new(1) };
    let good = frame_of(&mut FrameEncoder::default(), commit.kind(), &commit.encode());
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    check_stream(&good, "the peer closed the connection");
    check_stream(&good[..good.len() - 1], "the connection ended inside a frame");
    check_stream(&good[..3], "the connection ended inside a frame");
    check_stream(
        &with(0, b"HTTP"),
        "the peer does not speak the migration protocol (a frame begins with [48, 54, 54, 50])",
    );
    check_stream(&with(4, &[2, 0]), "frame version 2 is not one of 1..=1");
    check_stream(&with(6, &[99, 0]), "frame kind 99 is not known");
    check_stream(&with(8, &[7]), "frame 7 arrived where 0 was due");
    check_stream(&with(16, &[0xff; 4]), "a Commit frame of 4294967295 bytes is longer than the 256 allowed");
    check_stream(&with(24, &[2]), "a Commit frame is damaged: its checksum does not match");
    check_stream(&[good.clone(), good.clone()].concat(), "frame 0 arrived where 1 was due");
}

#[test]
fn a_text_that_is_too_long_is_cut_between_characters() {
    let mut out = Vec::new();
    bytes::put_text(&mut out, "aäää", 4);
    assert_eq!(Fields::new(FrameKind::Abort, &out).text("text", 4), Ok("aä".to_owned()));
    let long = Message::Abort(AbortReason::new(AbortCode::Guest, "x".repeat(1 << 20)));
    let payload = long.encode();
    assert!(payload.len() <= FrameKind::Abort.max_payload() as usize);
    Message::decode(FrameKind::Abort, &payload).unwrap();
}

fn any_kind() -> impl Strategy<Value = FrameKind> {
    prop::sample::select(FrameKind::ALL.to_vec())
}

proptest! {
    #[test]
    fn any_payload_gives_a_message_or_an_error(kind in any_kind(), payload in vec(any::<u8>(), 0..600)) {
        drop(Message::decode(kind, &payload));
        drop(PagesView::decode(&payload).map(|view| view.runs().count()));
    }

    #[test]
    fn a_message_with_bytes_changed_is_a_message_or_an_error(
        which in 0usize..10,
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let message = &messages()[which];
        let mut payload = message.encode();
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        drop(Message::decode(message.kind(), &payload));
        drop(Message::decode(message.kind(), &payload[..cut.index(payload.len())]));
    }

    #[test]
    fn what_decodes_encodes_to_the_same_bytes(which in 0usize..10, at in any::<prop::sample::Index>(), byte: u8) {
        let message = &messages()[which];
        let mut payload = message.encode();
        let at = at.index(payload.len());
        payload[at] = byte;
        if let Ok(decoded) = Message::decode(message.kind(), &payload) {
            prop_assert_eq!(decoded.encode(), payload);
        }
    }

    #[test]
    fn frames_come_back_however_they_trickle_in(
        frames in vec((any_kind(), vec(any::<u8>(), 0..200)), 0..6),
        pieces in vec(1usize..50, 0..40),
    ) {
        let bytes = stream(&frames);
        let mut input = Trickle { bytes: &bytes, pieces, blocked: false };
        let (got, error) = read_all(&mut FrameReader::default(), &mut input);
        prop_assert_eq!(got, frames);
        prop_assert!(matches!(error, ReadError::Closed));
    }

    #[test]
    fn no_changed_bit_goes_unnoticed(
        frames in vec((any_kind(), vec(any::<u8>(), 0..100)), 1..4),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let mut bytes = stream(&frames);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let (got, error) = read_all(&mut FrameReader::default(), &mut &bytes[..]);
        prop_assert!(got.len() < frames.len());
        prop_assert_eq!(&got[..], &frames[..got.len()]);
        prop_assert!(matches!(error, ReadError::Wire(_) | ReadError::Truncated));
    }

    #[test]
    fn any_bytes_end_a_stream_without_a_panic(bytes in vec(any::<u8>(), 0..2000)) {
        read_all(&mut FrameReader::default(), &mut &bytes[..]);
        let after_magic = [&b"DRVM\x01\x00"[..], &bytes].concat();
        read_all(&mut FrameReader::default(), &mut &after_magic[..]);
    }

    #[test]
    fn any_page_frame_is_refused_or_consistent(
        runs in vec((0u64..1 << 53, 0u32..70, 0u32..3), 0..6),
        data_pages in 0usize..70,
        extra in 0usize..2,
    ) {
        let mut payload = u32::try_from(runs.len()).unwrap().to_le_bytes().to_vec();
        for (first, pages, kind) in &runs {
            payload.extend_from_slice(&first.to_le_bytes());
            payload.extend_from_slice(&pages.to_le_bytes());
            payload.extend_from_slice(&kind.to_le_bytes());
        }
        payload.resize(payload.len() + data_pages * PAGE_SIZE as usize + extra, 1);
        if let Ok(view) = PagesView::decode(&payload) {
            let contents: usize = view.runs().filter_map(|(_, contents)| contents).map(<[u8]>::len).sum();
            prop_assert_eq!(contents, data_pages * PAGE_SIZE as usize);
            for (run, contents) in view.runs() {
                prop_assert!(run.end().is_some() || run.start.get().checked_add(run.bytes().get() - 1).is_some());
                prop_assert!(contents.is_none_or(|contents| contents.len() as u64 == run.bytes().get()));
            }
        }
    }
}
