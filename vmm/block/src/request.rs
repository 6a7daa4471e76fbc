//! A request and the obligation to answer it.

use std::{collections::VecDeque, fmt, thread};

use drover_guest_memory::Segment;
use drover_units::{Bytes, Sectors};
use smallvec::SmallVec;

use crate::{BackendInfo, BlockError, RangeLimits};

/// The pieces of guest RAM of one request, in order. Four fit without an allocation, which covers what a guest sends
/// that does 4 to 16 KiB at a time.
pub type Segments = SmallVec<[Segment; 4]>;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Disk to guest RAM.
    Read,
    /// Guest RAM to disk. Durable only after a flush.
    Write,
    /// Makes durable every write that was completed (reaped) before the flush was submitted.
    Flush,
    /// The content of a range is not needed any more. It may be given back, in whole or in part, or left as it is: what
    /// it reads as afterwards is the old content or zeros.
    Discard,
    /// Makes a range read as zeros. Durable only after a flush.
    WriteZeroes {
        /// The range may be given back instead of being written.
        may_unmap: bool,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read from",
            Self::Write => "write to",
            Self::Flush => "flush",
            Self::Discard => "discard a range of",
            Self::WriteZeroes { .. } => "write zeros to",
        })
    }
}

/// How the submitter knows its request again. Backends carry it and read nothing into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(pub u64);

/// The obligation to answer one request, exactly once.
///
/// A backend fulfils it with [`Request::complete`]. Dropping it is a bug, since a guest would wait for ever: debug
/// builds panic, release builds log an error.
#[derive(Debug)]
#[must_use = "a request must be answered"]
pub struct Token {
    tag: Tag,
    open: bool,
}

impl Token {
    /// A new obligation.
    pub fn new(tag: Tag) -> Self {
        Self { tag, open: true }
    }

    /// How the submitter knows the request.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// Gives up answering, on purpose: nobody is there to hear it any more. `why` goes to the log.
    pub fn abandon(mut self, why: &'static str) -> Tag {
        self.open = false;
        tracing::warn!(tag = self.tag.0, why, "a block request was abandoned");
        self.tag
    }

    fn close(mut self) -> Tag {
        self.open = false;
        self.tag
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if self.open {
            tracing::error!(tag = self.tag.0, "a block request was dropped without an answer");
            // Not on top of another panic: that would abort and hide the first.
            debug_assert!(thread::panicking(), "block request {:?} was dropped without an answer", self.tag);
        }
    }
}

/// The answer to one request. Only [`Request::complete`] makes one.
#[derive(Debug)]
#[must_use = "the submitter waits for this"]
pub struct Completion {
    tag: Tag,
    result: Result<(), BlockError>,
    segments: Segments,
}

impl Completion {
    /// Which request.
    pub fn tag(&self) -> Tag {
        self.tag
    }
    /// How it went.
    pub fn result(&self) -> &Result<(), BlockError> {
        &self.result
    }
    /// How it went, by value.
    pub fn into_result(self) -> Result<(), BlockError> {
        self.result
    }
    /// How it went, and an empty list with the room that the request's own had: for the next request, so that a steady
    /// stream of long ones allocates nothing.
    pub fn into_result_and_room(mut self) -> (Result<(), BlockError>, Segments) {
        self.segments.clear();
        (self.result, self.segments)
    }
}

/// One thing to do.
#[derive(Debug)]
#[must_use = "a request must be submitted, or its token abandoned"]
pub struct Request {
    operation: Operation,
    sector: Sectors,
    segments: Segments,
    /// Of a request without segments.
    range: Sectors,
    token: Token,
}

impl Request {
    /// Reads from `sector` on into `segments`.
    pub fn read(sector: Sectors, segments: Segments, token: Token) -> Self {
        Self { operation: Operation::Read, sector, segments, range: Sectors::ZERO, token }
    }
    /// Writes `segments` from `sector` on.
    pub fn write(sector: Sectors, segments: Segments, token: Token) -> Self {
        Self { operation: Operation::Write, sector, segments, range: Sectors::ZERO, token }
    }
    /// Makes completed writes durable.
    pub fn flush(token: Token) -> Self {
        Self::over(Operation::Flush, (Sectors::ZERO, Sectors::ZERO), token)
    }
    /// Gives up the content of `range.1` sectors from sector `range.0` on.
    pub fn discard(range: (Sectors, Sectors), token: Token) -> Self {
        Self::over(Operation::Discard, range, token)
    }
    /// Makes `range.1` sectors from sector `range.0` on read as zeros.
    pub fn write_zeroes(range: (Sectors, Sectors), may_unmap: bool, token: Token) -> Self {
        Self::over(Operation::WriteZeroes { may_unmap }, range, token)
    }

    fn over(operation: Operation, (sector, range): (Sectors, Sectors), token: Token) -> Self {
        Self { operation, sector, segments: Segments::new(), range, token }
    }

    /// What to do.
    pub fn operation(&self) -> Operation {
        self.operation
    }
    /// Where it starts on the disk; 0 for a flush.
    pub fn sector(&self) -> Sectors {
        self.sector
    }
    /// Where the data is; none for what moves no data.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }
    /// How the submitter knows it.
    pub fn tag(&self) -> Tag {
        self.token.tag()
    }
    /// How much of the disk it is about. Saturates, which no disk's capacity reaches.
    pub fn length(&self) -> Bytes {
        if self.range > Sectors::ZERO {
            return self.range.to_bytes().unwrap_or(Bytes::new(u64::MAX));
        }
        self.segments
            .iter()
            .fold(Bytes::ZERO, |sum, segment| sum.saturating_add(Bytes::new(segment.len() as u64)))
    }

    /// Checks what every backend checks in the same way, before it touches the storage.
    pub fn check(&self, info: &BackendInfo) -> Result<(), BlockError> {
        match self.operation {
            Operation::Flush => return Ok(()),
            Operation::Read => {}
            _ if info.read_only => return Err(BlockError::ReadOnly),
            Operation::Write => {}
            Operation::Discard => self.check_range(info.discard)?,
            Operation::WriteZeroes { .. } => self.check_range(info.write_zeroes)?,
        }
        if self.segments.len() > usize::from(info.segments_max) {
            let (segments, max) = (self.segments.len(), info.segments_max);
            return Err(BlockError::TooManySegments { segments, max });
        }
        let length = self.length();
        let whole_blocks = length.get().is_multiple_of(info.block_size.get());
        let Some(sectors) = length.to_sectors().filter(|_| whole_blocks) else {
            return Err(BlockError::Unaligned { length, block_size: info.block_size });
        };
        match self.sector.checked_add(sectors) {
            Some(end) if end <= info.capacity => Ok(()),
            _ => Err(BlockError::OutOfRange { sector: self.sector, length, capacity: info.capacity }),
        }
    }

    fn check_range(&self, limits: Option<RangeLimits>) -> Result<(), BlockError> {
        let Some(limits) = limits else { return Err(BlockError::NotOffered { operation: self.operation }) };
        if self.range > limits.sectors_max {
            return Err(BlockError::TooLong { sectors: self.range, max: limits.sectors_max });
        }
        Ok(())
    }

    /// Answers the request. The storage must be done with its segments.
    ///
    /// Marks the guest pages of a read as written, whatever the result: a failed read may have written some.
    pub fn complete(self, result: Result<(), BlockError>) -> Completion {
        if self.operation == Operation::Read {
            for segment in &self.segments {
                segment.mark_dirty();
            }
        }
        Completion { tag: self.token.close(), result, segments: self.segments }
    }

    /// Gives up on the request, on purpose. The storage must be done with its segments.
    pub fn abandon(self, why: &'static str) {
        self.token.abandon(why);
    }
}

/// Requests on their way to a backend, in order. Kept and refilled by the submitter, so that a steady stream of
/// requests allocates nothing.
#[derive(Debug, Default)]
pub struct RequestBatch {
    requests: VecDeque<Request>,
}

impl RequestBatch {
    /// An empty batch with room for `capacity` requests.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { requests: VecDeque::with_capacity(capacity) }
    }
    /// Adds a request at the end.
    pub fn push(&mut self, request: Request) {
        self.requests.push_back(request);
    }
    /// Takes the oldest request.
    pub fn pop(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }
    /// The oldest request, which stays.
    pub fn front(&self) -> Option<&Request> {
        self.requests.front()
    }
    /// How many requests wait.
    pub fn len(&self) -> usize {
        self.requests.len()
    }
    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use drover_guest_memory::{DirtyTracker, GuestMemory};
    use drover_units::Gpa;

    use super::*;

    const INFO: BackendInfo = BackendInfo {
        capacity: Sectors::new(8),
        block_size: Bytes::new(512),
        read_only: false,
        segments_max: 2,
        optimal_io: None,
        discard: Some(RangeLimits { sectors_max: Sectors::new(4), alignment: Sectors::new(1) }),
        write_zeroes: None,
    };

    fn request(operation: Operation, sector: u64, lengths: &[usize]) -> Request {
        let memory = GuestMemory::anonymous(Bytes::mib(1));
        let segments = lengths.iter().map(|length| memory.segment(Gpa::ZERO, *length).unwrap()).collect();
        Request {
            operation,
            sector: Sectors::new(sector),
            segments,
            range: Sectors::ZERO,
            token: Token::new(Tag(1)),
        }
    }

    fn check(operation: Operation, sector: u64, lengths: &[usize], expect: Result<(), &str>) {
        let request = request(operation, sector, lengths);
        let result = request.check(&INFO).map_err(|error| error.to_string());
        match (&result, expect) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(part)) if error.contains(part) => {}
            _ => panic!("{operation:?} at {sector} of {lengths:?}: {result:?}, expected {expect:?}"),
        }
        request.abandon("only checked");
    }

    #[test]
    fn requests_are_checked_against_the_disk() {
        use Operation::{Flush, Read, Write};
        check(Read, 0, &[4096], Ok(()));
        check(Read, 7, &[256, 256], Ok(()));
        check(Read, 8, &[], Ok(()));
        check(Flush, 0, &[], Ok(()));
        check(Write, 7, &[1024], Err("outside a disk of 8 sectors"));
        check(Write, u64::MAX, &[512], Err("outside a disk"));
        check(Read, 0, &[511], Err("511 bytes are not a whole number"));
        check(Read, 0, &[512, 512, 512], Err("3 segments are more than the 2"));
    }

    fn check_range(request: Request, expect: Result<(), &str>) {
        let result = request.check(&INFO).map_err(|error| error.to_string());
        match (&result, expect) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(part)) if error.contains(part) => {}
            _ => panic!("{request:?}: {result:?}, expected {expect:?}"),
        }
        request.abandon("only checked");
    }

    #[test]
    fn ranges_are_checked_against_the_disk() {
        let discard = |sector, sectors| {
            Request::discard((Sectors::new(sector), Sectors::new(sectors)), Token::new(Tag(1)))
        };
        check_range(discard(0, 4), Ok(()));
        check_range(discard(8, 0), Ok(()));
        check_range(discard(0, 5), Err("5 sectors are more than the 4"));
        check_range(discard(6, 3), Err("outside a disk of 8 sectors"));
        check_range(discard(u64::MAX, 2), Err("outside a disk"));
        check_range(discard(0, u64::MAX), Err("sectors are more than the 4"));
        let zeroes = Request::write_zeroes((Sectors::ZERO, Sectors::new(1)), true, Token::new(Tag(1)));
        check_range(zeroes, Err("does not write zeros to this disk"));
    }

    #[test]
    fn only_writes_are_refused_by_a_read_only_disk() {
        let info = BackendInfo { read_only: true, ..INFO };
        for (operation, allowed) in
            [(Operation::Read, true), (Operation::Flush, true), (Operation::Write, false)]
        {
            let request = request(operation, 0, &[512]);
            assert_eq!(request.check(&info).is_ok(), allowed, "{operation:?}");
            request.abandon("only checked");
        }
    }

    #[test]
    fn completing_a_read_marks_its_pages_even_where_it_failed() {
        let memory = GuestMemory::anonymous(Bytes::mib(1));
        let mut tracker = DirtyTracker::new(&memory);
        for (at, result) in [(0x3000, Ok(())), (0x5000, Err(BlockError::ReadOnly))] {
            let segments = Segments::from_iter([memory.segment(Gpa::new(at), 512).unwrap()]);
            let completion = Request::read(Sectors::ZERO, segments, Token::new(Tag(9))).complete(result);
            assert_eq!(completion.tag(), Tag(9));
            assert_eq!(tracker.take().iter().map(Gpa::get).collect::<Vec<_>>(), [at]);
        }
    }

    #[test]
    #[should_panic(expected = "dropped without an answer")]
    #[cfg(debug_assertions)]
    fn dropping_a_token_is_caught() {
        drop(Token::new(Tag(3)));
    }
}
