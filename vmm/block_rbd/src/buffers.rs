//! What librbd is given of a request: the addresses of guest RAM.
#![expect(unsafe_code, reason = "promises that the guest RAM of requests stays mapped while librbd uses it")]

use drover_block::Request;
use drover_rbd::Buffers;

/// Requests while librbd has them as one: each begins on the disk where the one before it ends.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) first: Request,
    pub(crate) more: Vec<Request>,
}

impl InFlight {
    /// All requests, in order.
    pub(crate) fn requests(&self) -> impl Iterator<Item = &Request> {
        std::iter::once(&self.first).chain(&self.more)
    }
}

// SAFETY: a segment keeps its region of guest RAM mapped for as long as it lives (`Segment::iovec`), wherever the request
// with it is moved; guest RAM may be read and written by anybody at any time, which is how guests use it.
unsafe impl Buffers for InFlight {
    fn iovecs(&self, pieces: &mut Vec<libc::iovec>) {
        let segments = self.requests().flat_map(Request::segments);
        pieces.extend(segments.map(drover_guest_memory::Segment::iovec));
    }
}
