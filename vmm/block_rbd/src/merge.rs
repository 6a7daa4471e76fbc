//! Which requests are sent to the cluster as one.
//!
//! An operation of the cluster's costs the same whatever its size, here and on the storage hosts: messages, wake-ups, a
//! transaction. What a guest sends at once and in sequence goes as one operation, and its answers come at once: one
//! interrupt.

use drover_block::{Operation, Request};
use drover_units::{Bytes, Sectors};

/// Most segments of one operation. librbd has no limit; this is what a guest's longest chain has.
pub(crate) const SEGMENTS_MAX: u16 = 1024;

/// Longer operations are not made by joining: half an object, so that a guest which keeps a few large requests under way still
/// has more than one operation under way.
const BYTES_MAX: Bytes = Bytes::mib(2);

/// Requests that are one, as far as they go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merge {
    operation: Operation,
    end: Option<Sectors>,
    bytes: Bytes,
    segments: usize,
}

impl Merge {
    /// Begins with a request that has been checked.
    pub(crate) fn of(first: &Request) -> Self {
        let bytes = first.length();
        let end = bytes.to_sectors().and_then(|sectors| first.sector().checked_add(sectors));
        Self { operation: first.operation(), end, bytes, segments: first.segments().len() }
    }

    /// Takes the next request in, if it goes on where the others end.
    pub(crate) fn take(&mut self, next: &Request) -> bool {
        let moves_data = matches!(self.operation, Operation::Read | Operation::Write);
        let follows = next.operation() == self.operation && self.end == Some(next.sector());
        let (length, segments) = (next.length(), self.segments + next.segments().len());
        let bytes = self.bytes.saturating_add(length);
        let fits = bytes <= BYTES_MAX && segments <= usize::from(SEGMENTS_MAX);
        if !moves_data || !follows || !fits || length == Bytes::ZERO {
            return false;
        }
        let end = length.to_sectors().and_then(|sectors| next.sector().checked_add(sectors));
        *self = Self { operation: self.operation, end, bytes, segments };
        true
    }
}

#[cfg(test)]
mod tests {
    use drover_block::{Segments, Tag, Token};
    use drover_guest_memory::GuestMemory;
    use drover_units::Gpa;

    use super::*;

    const MIB: usize = 1 << 20;

    fn segments(pieces: usize, length: usize) -> Segments {
        let memory = GuestMemory::anonymous(Bytes::mib(4));
        (0..pieces).map(|_| memory.segment(Gpa::ZERO, length).unwrap()).collect()
    }

    fn token() -> Token {
        Token::new(Tag(0))
    }

    /// How many of the requests behind the first are taken in.
    fn taken(requests: Vec<Request>) -> usize {
        let mut merge = Merge::of(&requests[0]);
        let count = requests[1..].iter().take_while(|next| merge.take(next)).count();
        requests.into_iter().for_each(|request| request.abandon("a test"));
        count
    }

    fn reads(pieces: usize, length: usize, sectors: &[u64]) -> usize {
        let read = |sector: &u64| Request::read(Sectors::new(*sector), segments(pieces, length), token());
        taken(sectors.iter().map(read).collect())
    }

    #[test]
    fn what_goes_on_where_the_last_ended_is_taken_in() {
        assert_eq!(reads(1, 4096, &[8, 16, 24, 32]), 3);
        assert_eq!(reads(2, 4096, &[8, 24, 40]), 2);
        assert_eq!(reads(1, 4096, &[8, 16, 25, 33]), 1);
        assert_eq!(reads(1, 4096, &[8, 8]), 0);
        assert_eq!(reads(1, 4096, &[16, 8]), 0);
        assert_eq!(reads(1, 4096, &[u64::MAX - 7, 0]), 0);
    }

    #[test]
    fn an_operation_stays_below_its_limits() {
        assert_eq!(reads(1, MIB, &[0, 2048, 4096, 6144]), 1);
        assert_eq!(reads(1, 2 * MIB, &[0, 4096]), 0);
        assert_eq!(reads(400, 512, &[0, 400, 800]), 1);
    }

    #[test]
    fn only_what_moves_data_the_same_way_is_joined() {
        let sector = Sectors::new;
        let read = |at| Request::read(sector(at), segments(1, 4096), token());
        let write = |at| Request::write(sector(at), segments(1, 4096), token());
        assert_eq!(taken(vec![write(0), write(8), read(16)]), 1);
        assert_eq!(taken(vec![read(0), write(8)]), 0);
        assert_eq!(taken(vec![write(0), Request::flush(token())]), 0);
        assert_eq!(taken(vec![Request::flush(token()), Request::flush(token())]), 0);
        let discard = |at| Request::discard((sector(at), sector(8)), token());
        assert_eq!(taken(vec![discard(0), discard(8)]), 0);
        let zero = |at| Request::write_zeroes((sector(at), sector(8)), true, token());
        assert_eq!(taken(vec![zero(0), zero(8)]), 0);
    }
}
