//! The bounded memory of the console's last bytes, addressed by how many bytes came before.

use std::collections::VecDeque;

/// How much is retained, bytes: two seconds of a console at the speed at which a guest can write one (an exit for each
/// byte, some 30 KiB/s), and small beside a vmmd's 8 MiB (B9).
pub(crate) const RING_BYTES: usize = 64 << 10;

/// The last [`RING_BYTES`] bytes.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    /// How many bytes there have been in all.
    end: u64,
}

/// What a reader gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) bytes: Vec<u8>,
    /// How many bytes before these the reader has missed.
    pub(crate) lost: u64,
    /// Where to read on.
    pub(crate) next: u64,
}

impl Ring {
    /// How many bytes there have been.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Position of the oldest byte retained.
    pub(crate) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Whether the last byte ended a line.
    pub(crate) fn ends_line(&self) -> bool {
        self.bytes.back() == Some(&b'\n')
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let kept = &bytes[bytes.len().saturating_sub(RING_BYTES)..];
        let excess = (self.bytes.len() + kept.len()).saturating_sub(RING_BYTES);
        self.bytes.drain(..excess);
        self.bytes.extend(kept);
    }

    /// At most `max` bytes from `position` on.
    pub(crate) fn read(&self, position: u64, max: usize) -> Chunk {
        let from = position.clamp(self.start(), self.end);
        let skip = (from - self.start()) as usize;
        let bytes: Vec<u8> = self.bytes.iter().skip(skip).take(max).copied().collect();
        Chunk { lost: from.saturating_sub(position), next: from + bytes.len() as u64, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_bytes() {
        let mut ring = Ring::default();
        ring.append(&vec![b'a'; RING_BYTES]);
        ring.append(b"bc");
        assert_eq!((ring.start(), ring.end()), (2, RING_BYTES as u64 + 2));
        let tail = ring.read(RING_BYTES as u64 - 1, usize::MAX);
        assert_eq!((tail.bytes.as_slice(), tail.lost), (b"abc".as_slice(), 0));
    }

    #[test]
    fn one_write_larger_than_the_ring_keeps_its_end() {
        let mut ring = Ring::default();
        ring.append(b"old");
        let mut large = vec![b'x'; RING_BYTES];
        large.extend_from_slice(b"end");
        ring.append(&large);
        assert_eq!(ring.start(), 6);
        assert!(ring.read(0, usize::MAX).bytes.ends_with(b"xend"));
    }

    #[test]
    fn a_reader_that_fell_behind_is_told_by_how_much() {
        let mut ring = Ring::default();
        ring.append(&vec![b'x'; RING_BYTES + 7]);
        let chunk = ring.read(3, 10);
        assert_eq!((chunk.lost, chunk.bytes.len(), chunk.next), (4, 10, 17));
    }

    #[test]
    fn a_reader_at_the_end_gets_nothing() {
        let mut ring = Ring::default();
        ring.append(b"abc");
        assert_eq!(ring.read(3, 10), Chunk { bytes: Vec::new(), lost: 0, next: 3 });
    }
}
