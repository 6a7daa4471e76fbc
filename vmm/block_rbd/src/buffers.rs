//! What librbd is given of a request: the addresses of guest RAM.
#![expect(unsafe_code, reason = "promises that a request's guest RAM stays mapped while librbd uses it")]

use drover_block::Request;
use drover_rbd::Buffers;

/// A request while librbd has it.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) request: Request,
}

// SAFETY: a segment keeps its region of guest RAM mapped for as long as it lives (`Segment::iovec`), wherever the request
// with it is moved; guest RAM may be read and written by anybody at any time, which is how guests use it.
unsafe impl Buffers for InFlight {
    fn iovecs(&self, pieces: &mut Vec<libc::iovec>) {
        pieces.extend(self.request.segments().iter().map(drover_guest_memory::Segment::iovec));
    }
}
