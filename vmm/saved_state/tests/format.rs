//! The format: what it is, that it stays, and that nothing in it is trusted.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use drover_saved_state::{
    ENVELOPES_MAX, Envelope, Kind, Malformed, PAYLOAD_BYTES_MAX, PayloadReader, PayloadWriter, SavedState,
    StateError, decode_list, encode_list,
};
use proptest::prelude::*;

/// A state with a field of every type. Version 2 added `extra`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sample {
    byte: u8,
    flag: bool,
    half: u16,
    word: u32,
    long: u64,
    bytes: Vec<u8>,
    list: Vec<u16>,
    extra: u8,
}

const LIST_MAX: usize = 8;

impl SavedState for Sample {
    const KIND: &'static str = "sample";
    const VERSION: u16 = 2;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.u8(self.byte);
        payload.bool(self.flag);
        payload.u16(self.half);
        payload.u32(self.word);
        payload.u64(self.long);
        payload.bytes(&self.bytes);
        payload.count(self.list.len());
        for element in &self.list {
            payload.u16(*element);
        }
        payload.u8(self.extra);
    }

    fn decode(version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        let mut sample = Self {
            byte: payload.u8("byte")?,
            flag: payload.bool("flag")?,
            half: payload.u16("half")?,
            word: payload.u32("word")?,
            long: payload.u64("long")?,
            bytes: payload.bytes("bytes")?.to_vec(),
            list: Vec::new(),
            extra: 0,
        };
        for _ in 0..payload.count("list", LIST_MAX)? {
            sample.list.push(payload.u16("list")?);
        }
        if version >= 2 {
            sample.extra = payload.u8("extra")?;
        }
        Ok(sample)
    }
}

fn sample() -> Sample {
    Sample {
        byte: 0x11,
        flag: true,
        half: 0x2233,
        word: 0x4455_6677,
        long: 0x8899_aabb_ccdd_eeff,
        bytes: b"payload".to_vec(),
        list: vec![1, 2],
        extra: 0,
    }
}

fn encoded(envelope: &Envelope) -> Vec<u8> {
    let mut bytes = Vec::new();
    envelope.encode(&mut bytes);
    bytes
}

/// One golden file per layout and version, written once and never again: today's reader reads them all.
#[test]
fn every_version_ever_written_is_still_read() {
    for (name, expect) in [("sample-v1.bin", sample()), ("sample-v2.bin", Sample { extra: 0x99, ..sample() })]
    {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        if std::env::var_os("UPDATE_EXPECT").is_some() && expect.extra != 0 {
            std::fs::write(&path, encoded(&expect.to_envelope(3))).unwrap();
        }
        let bytes = std::fs::read(&path).unwrap();
        let envelope = Envelope::decode(&mut &bytes[..]).unwrap();
        assert_eq!(envelope.instance(), 3);
        assert_eq!(Sample::from_envelope(&envelope).unwrap(), expect, "{name}");
        if envelope.version() == Sample::VERSION {
            assert_eq!(encoded(&expect.to_envelope(3)), bytes, "{name}: the writer has changed");
        }
    }
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let newer = Envelope::new(Kind::of::<Sample>(), 0, 3, Vec::new());
    let error = Sample::from_envelope(&newer).unwrap_err();
    assert_eq!(error, StateError::Version { kind: "sample", found: 3, newest: 2 });
    assert_eq!(
        error.to_string(),
        "the saved state of 'sample' has version 3; this release reads versions 1 to 2"
    );
}

#[test]
fn a_state_of_another_kind_is_refused() {
    #[derive(Debug)]
    struct Other;
    impl SavedState for Other {
        const KIND: &'static str = "other";
        const VERSION: u16 = 1;
        fn encode(&self, _: &mut PayloadWriter) {}
        fn decode(_: u16, _: &mut PayloadReader<'_>) -> Result<Self, StateError> {
            Ok(Self)
        }
    }
    assert!(matches!(Other::from_envelope(&sample().to_envelope(0)), Err(StateError::Kind { .. })));
}

#[test]
fn bytes_left_over_are_an_error() {
    let mut payload = sample().to_envelope(0).payload().to_vec();
    payload.push(0);
    let envelope = Envelope::new(Kind::of::<Sample>(), 0, 2, payload);
    assert_eq!(Sample::from_envelope(&envelope), Err(StateError::Trailing(1)));
}

#[test]
fn a_length_is_checked_before_anything_is_allocated() {
    let mut header = encoded(&Envelope::new(Kind::of::<Sample>(), 0, 1, Vec::new()));
    let length_at = header.len() - 8;
    header[length_at..length_at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(Envelope::decode(&mut &header[..]), Err(StateError::Malformed(Malformed::TooLong)));

    let mut payload = PayloadWriter::new();
    payload.u32(u32::MAX);
    let payload = payload.into_bytes();
    assert_eq!(PayloadReader::new(&payload).bytes("x"), Err(StateError::Truncated { field: "x" }));
    assert!(matches!(PayloadReader::new(&payload).count("x", 8), Err(StateError::Field { .. })));
}

#[test]
fn a_list_longer_than_any_machine_is_refused() {
    let one = encoded(&Envelope::new(Kind::of::<Sample>(), 0, 1, Vec::new()));
    assert_eq!(decode_list(&one.repeat(ENVELOPES_MAX)).unwrap().len(), ENVELOPES_MAX);
    let error = decode_list(&one.repeat(ENVELOPES_MAX + 1)).unwrap_err();
    assert_eq!(error, StateError::Malformed(Malformed::TooMany));
}

#[test]
fn the_largest_payload_survives() {
    let envelope = Envelope::new(Kind::of::<Sample>(), 0, 1, vec![7; PAYLOAD_BYTES_MAX]);
    assert_eq!(Envelope::decode(&mut &encoded(&envelope)[..]), Ok(envelope));
}

#[test]
fn a_debug_text_does_not_show_the_payload() {
    let secret = Envelope::new(Kind::of::<Sample>(), 0, 1, b"hunter2".to_vec());
    assert!(!format!("{secret:?}").contains("104"), "{secret:?}");
}

fn samples() -> impl Strategy<Value = Sample> {
    let list = prop::collection::vec(any::<u16>(), 0..=LIST_MAX);
    (any::<(u8, bool, u16, u32, u64, Vec<u8>, u8)>(), list).prop_map(
        |((byte, flag, half, word, long, bytes, extra), list)| Sample {
            byte,
            flag,
            half,
            word,
            long,
            bytes,
            list,
            extra,
        },
    )
}

proptest! {
    #[test]
    fn what_is_saved_is_what_is_restored(states in prop::collection::vec(samples(), 0..5)) {
        let saved: Vec<_> = states.iter().zip(0..).map(|(state, n)| state.to_envelope(n)).collect();
        let restored = decode_list(&encode_list(&saved)).unwrap();
        prop_assert_eq!(&restored, &saved);
        for (state, envelope) in states.iter().zip(&restored) {
            prop_assert_eq!(&Sample::from_envelope(envelope).unwrap(), state);
        }
    }

    #[test]
    fn a_flipped_bit_never_goes_unnoticed(state in samples(), at in any::<prop::sample::Index>(), bit in 0_u32..8) {
        let mut bytes = encoded(&state.to_envelope(0));
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        prop_assert!(Envelope::decode(&mut &bytes[..]).is_err());
    }

    #[test]
    fn a_cut_off_end_never_goes_unnoticed(state in samples(), keep in any::<prop::sample::Index>()) {
        let bytes = encoded(&state.to_envelope(0));
        let mut cut = &bytes[..keep.index(bytes.len())];
        let before = cut;
        prop_assert_eq!(Envelope::decode(&mut cut), Err(StateError::Malformed(Malformed::Truncated)));
        prop_assert_eq!(cut, before);
    }

    #[test]
    fn garbage_is_an_error_or_a_state_but_never_a_panic(bytes in any::<Vec<u8>>(), version in 0_u16..4) {
        let _ = decode_list(&bytes);
        let _ = Sample::from_envelope(&Envelope::new(Kind::of::<Sample>(), 0, version, bytes));
    }
}
