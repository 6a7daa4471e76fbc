//! What a migration's peer may send. The first bytes may be too short to be a frame with a right checksum, so the rest is also
//! read as the payload of a frame of each kind.
#![no_main]

use std::io::{self, Read};

use drover_fuzz::bounded;
use drover_migration::wire::{FrameEncoder, FrameKind, FrameReader, Message, PagesView};

/// Gives what it has in pieces, with pauses between them.
struct Pieces<'a>(&'a [u8], bool);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 && !self.0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = buffer.len().min(7);
        self.0.read(&mut buffer[..length])
    }
}

fn decode(kind: FrameKind, payload: &[u8]) {
    if let Ok(message) = Message::decode(kind, payload) {
        assert_eq!(message.kind(), kind);
        assert_eq!(Message::decode(kind, &message.encode()).expect("ours"), message);
    }
    if let Ok(pages) = PagesView::decode(payload) {
        let mut count = 0;
        for (run, data) in pages.runs() {
            count += data.map_or(0, <[u8]>::len);
            let _ = run;
        }
        assert!(count <= payload.len());
    }
}

fn read_all(bytes: &[u8]) -> usize {
    let (mut reader, mut input, mut frames) = (FrameReader::default(), Pieces(bytes, false), 0);
    loop {
        match reader.poll(&mut input) {
            Ok(Some(frame)) => {
                frames += 1;
                decode(frame.kind, frame.payload);
            }
            Ok(None) => {}
            Err(_) => return frames,
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| bounded(|| {
    read_all(data);
    let Some((first, payload)) = data.split_first() else { return };
    let kind = FrameKind::ALL[usize::from(*first) % FrameKind::ALL.len()];
    if payload.len() > kind.max_payload() as usize {
        return;
    }
    decode(kind, payload);
    let stamp = FrameEncoder::default().seal(kind, &[payload]);
    assert_eq!(read_all(&[stamp.bytes(), payload].concat()), 1, "a sealed frame arrives");
}));
