//! Executes the source machine's effects on a guest and a sink. No clock, no thread: the simulation runs the same code.

use drover_guest_memory::{DirtyPages, GuestMemory, MemoryError, PageRun};
use drover_ids::OwnerEpoch;
use drover_saved_state::{ENVELOPES_MAX, Envelope};
use drover_units::{Bytes, Pages};

use super::sink::{FrameSink, SinkError, send_message};
use crate::{
    guest::{GuestError, MigratableGuest, chain},
    source::{Effect, Event, Step},
    wire::{FrameEncoder, HEADER_LEN, Ledger, Message, PagesBuilder},
};

/// Envelopes are packed into frames of about this size.
const STATE_FRAME_TARGET: usize = 256 << 10;

/// A guest being sent.
pub(crate) struct Outgoing<'g, G> {
    guest: &'g mut G,
    encoder: FrameEncoder,
    ledger: Ledger,
    builder: PagesBuilder,
    job: Job,
    /// Taken and not sent yet: the next round. `None`: no round has been made, so all of RAM.
    next_round: Option<DirtyPages>,
    /// Everything taken before `next_round`, for the rollback.
    consumed: DirtyPages,
    /// On the wire since the beginning.
    wire: Bytes,
}

/// What goes over the wire piece by piece.
enum Job {
    Idle,
    Round { round: u32, cursor: PageCursor, at_start: Start },
    Handover { cursor: PageCursor, states: Vec<Envelope>, sent: u32, at_start: Start },
}

/// Where counters stood when a job began.
#[derive(Clone, Copy)]
struct Start {
    pages: Pages,
    wire: Bytes,
}

/// Why a piece was not sent.
enum PieceError {
    Guest(Step, String),
    Sink(SinkError),
}

impl From<SinkError> for PieceError {
    fn from(error: SinkError) -> Self {
        Self::Sink(error)
    }
}

impl From<MemoryError> for PieceError {
    fn from(error: MemoryError) -> Self {
        Self::Guest(Step::ReadMemory, chain(&error))
    }
}

impl<'g, G: MigratableGuest> Outgoing<'g, G> {
    pub(crate) fn new(guest: &'g mut G) -> Self {
        Self {
            guest,
            encoder: FrameEncoder::default(),
            ledger: Ledger::default(),
            builder: PagesBuilder::default(),
            job: Job::Idle,
            next_round: None,
            consumed: DirtyPages::new(),
            wire: Bytes::ZERO,
        }
    }

    /// Bytes on the wire so far.
    pub(crate) fn wire(&self) -> Bytes {
        self.wire
    }

    /// Whether [`advance`](Self::advance) has work.
    pub(crate) fn is_sending(&self) -> bool {
        !matches!(self.job, Job::Idle)
    }

    /// Executes an effect on the guest or sends a message; gives the answer, if there is one already. `Connect` and
    /// `Close` are the caller's.
    pub(crate) fn execute(&mut self, effect: Effect, sink: &mut dyn FrameSink) -> Option<Event> {
        self.job = Job::Idle;
        match effect {
            Effect::Connect { .. } | Effect::Close => None,
            Effect::Send(message) => match self.send(&message, sink) {
                Ok(()) => None,
                Err(error) => lost(error),
            },
            Effect::StartDirtyLog => {
                let done = self.guest.start_dirty_log();
                Some(answer(done, Step::StartDirtyLog, Event::DirtyLogStarted))
            }
            Effect::SendRound { round } => self.begin_round(round),
            Effect::TakeDirty => Some(match self.take_dirty() {
                Ok(pages) => Event::DirtyTaken { pages },
                Err(reason) => Event::Failed { step: Step::TakeDirty, reason },
            }),
            Effect::Pause { limit } => Some(answer(self.guest.pause(limit), Step::Pause, Event::Paused)),
            Effect::SendHandover => self.begin_handover(),
            Effect::ReleaseVolumes => {
                let done = self.guest.release_volumes();
                Some(answer(done, Step::ReleaseVolumes, Event::VolumesReleased))
            }
            Effect::AcquireVolumes(epoch) => Some(self.acquire(epoch)),
            Effect::Rollback => {
                self.rollback();
                None
            }
            Effect::Resume => Some(answer(self.guest.resume(), Step::Resume, Event::Resumed)),
            Effect::Retire => {
                self.guest.retire();
                None
            }
        }
    }

    fn acquire(&mut self, epoch: OwnerEpoch) -> Event {
        answer(self.guest.acquire_volumes(epoch), Step::AcquireVolumes, Event::VolumesAcquired)
    }

    fn take_dirty(&mut self) -> Result<Pages, String> {
        let taken = self.guest.take_dirty().map_err(|error| error.chain())?;
        let pages = taken.count();
        if let Some(before) = self.next_round.replace(taken) {
            self.consumed = self.consumed.union(&before);
        }
        Ok(pages)
    }

    fn rollback(&mut self) {
        let taken = self.next_round.take().unwrap_or_default();
        let all = std::mem::take(&mut self.consumed).union(&taken);
        self.guest.mark_dirty(&all);
        self.guest.stop_dirty_log();
    }

    fn begin_round(&mut self, round: u32) -> Option<Event> {
        let cursor = match &self.next_round {
            Some(taken) => PageCursor::of(taken),
            None => match PageCursor::of_all(self.guest.memory()) {
                Ok(cursor) => cursor,
                Err(error) => return Some(Event::Failed { step: Step::ReadMemory, reason: chain(&error) }),
            },
        };
        let at_start = self.start();
        self.job = Job::Round { round, cursor, at_start };
        None
    }

    /// The state first, the dirty pages second: what saving writes to RAM is then still sent.
    fn begin_handover(&mut self) -> Option<Event> {
        let failed = |step, error: GuestError| Some(Event::Failed { step, reason: error.chain() });
        let states = match self.guest.save() {
            Ok(states) if states.len() <= ENVELOPES_MAX => states,
            Ok(states) => {
                let reason =
                    format!("the machine saved {} states, {ENVELOPES_MAX} are possible", states.len());
                return Some(Event::Failed { step: Step::Save, reason });
            }
            Err(error) => return failed(Step::Save, error),
        };
        let left = self.next_round.take().unwrap_or_default();
        let rest = match self.guest.take_dirty() {
            Ok(taken) => left.union(&taken),
            Err(error) => {
                self.next_round = Some(left);
                return failed(Step::TakeDirty, error);
            }
        };
        let cursor = PageCursor::of(&rest);
        self.next_round = Some(rest);
        let at_start = self.start();
        self.job = Job::Handover { cursor, states, sent: 0, at_start };
        None
    }

    fn start(&self) -> Start {
        Start { pages: self.ledger.pages, wire: self.wire }
    }

    /// Sends one frame of what is being sent.
    ///
    /// # Errors
    /// The sink's interruption. Everything else is an event.
    pub(crate) fn advance(&mut self, sink: &mut dyn FrameSink) -> Result<Option<Event>, SinkError> {
        match self.send_piece(sink) {
            Ok(event) => {
                if event.is_some() {
                    self.job = Job::Idle;
                }
                Ok(event)
            }
            Err(error) => {
                self.job = Job::Idle;
                match error {
                    PieceError::Sink(SinkError::Interrupted) => Err(SinkError::Interrupted),
                    PieceError::Sink(error) => Ok(lost(error)),
                    PieceError::Guest(step, reason) => Ok(Some(Event::Failed { step, reason })),
                }
            }
        }
    }

    fn send_piece(&mut self, sink: &mut dyn FrameSink) -> Result<Option<Event>, PieceError> {
        let (Job::Round { cursor, .. } | Job::Handover { cursor, .. }) = &mut self.job else {
            return Ok(None);
        };
        self.builder.clear();
        cursor.fill(&mut self.builder, self.guest.memory())?;
        if !self.builder.is_empty() {
            self.send_pages(sink)?;
            return Ok(None);
        }
        match &mut self.job {
            Job::Idle => Ok(None),
            Job::Round { round, at_start, .. } => {
                let (round, at_start, ledger) = (*round, *at_start, self.ledger);
                self.send(&Message::RoundEnd { round, ledger }, sink)?;
                let pages = ledger.pages.saturating_sub(at_start.pages);
                let wire = self.wire.saturating_sub(at_start.wire);
                Ok(Some(Event::RoundSent { pages, wire, ledger }))
            }
            Job::Handover { states, sent, .. } if !states.is_empty() => {
                let batch = take_batch(states);
                *sent += u32::try_from(batch.len()).expect("at most ENVELOPES_MAX");
                self.send(&Message::State(batch), sink)?;
                Ok(None)
            }
            Job::Handover { sent, at_start, .. } => {
                let (envelopes, at_start, ledger) = (*sent, *at_start, self.ledger);
                self.send(&Message::Handover { ledger, envelopes }, sink)?;
                let wire = self.wire.saturating_sub(at_start.wire);
                Ok(Some(Event::HandoverSent { wire, ledger }))
            }
        }
    }

    fn send_pages(&mut self, sink: &mut dyn FrameSink) -> Result<(), SinkError> {
        let pages = self.builder.pages();
        let [table, contents] = self.builder.payload();
        let stamp = self.encoder.seal(crate::wire::FrameKind::Pages, &[table, contents]);
        sink.send_pages(&stamp, [table, contents])?;
        self.wire = add(self.wire, HEADER_LEN + table.len() + contents.len());
        self.ledger.enter(&stamp, pages);
        Ok(())
    }

    fn send(&mut self, message: &Message, sink: &mut dyn FrameSink) -> Result<(), SinkError> {
        let stamp = send_message(sink, &mut self.encoder, message)?;
        self.wire = add(self.wire, stamp.frame_len());
        self.ledger.enter(&stamp, Pages::ZERO);
        Ok(())
    }
}

fn add(sum: Bytes, length: usize) -> Bytes {
    sum.saturating_add(Bytes::new(length as u64))
}

fn answer(done: Result<(), GuestError>, step: Step, event: Event) -> Event {
    match done {
        Ok(()) => event,
        Err(error) => Event::Failed { step, reason: error.chain() },
    }
}

fn lost(error: SinkError) -> Option<Event> {
    match error {
        // Messages are not interrupted, and `advance` hands the interruption of pages to its caller.
        SinkError::Interrupted => None,
        SinkError::Lost(reason) => Some(Event::PeerLost(reason)),
    }
}

/// The first envelopes, as many as make one frame; at least one.
fn take_batch(states: &mut Vec<Envelope>) -> Vec<Envelope> {
    let mut size = 0;
    let fits = |envelope: &&Envelope| {
        let before = size;
        size += envelope.payload().len();
        before == 0 || size <= STATE_FRAME_TARGET
    };
    let count = states.iter().take_while(fits).count();
    states.drain(..count).collect()
}

/// What of a set of pages has not been sent yet.
struct PageCursor {
    pieces: std::vec::IntoIter<Piece>,
    current: Option<Piece>,
}

#[derive(Clone, Copy)]
enum Piece {
    /// Look at its contents.
    Read(PageRun),
    /// Never written: known to be zero.
    Zero(PageRun),
}

impl PageCursor {
    fn of(pages: &DirtyPages) -> Self {
        Self::new(pages.runs().iter().copied().map(Piece::Read).collect())
    }

    /// All of RAM. Pages that the host has not allocated are zero, and are not allocated by looking at them. The dirty
    /// log is on: a page that the guest allocates afterwards is in it.
    fn of_all(memory: &GuestMemory) -> Result<Self, MemoryError> {
        let populated = memory.populated()?;
        let mut written = populated.runs().iter().copied().peekable();
        let mut pieces = Vec::new();
        for range in memory.layout().ranges() {
            let mut at = range.start;
            while let Some(run) = written.next_if(|run| run.start < range.end()) {
                pieces.extend(gap(at, run.start));
                pieces.push(Piece::Read(run));
                at = run.end().expect("runs of RAM end below 2^64");
            }
            pieces.extend(gap(at, range.end()));
        }
        Ok(Self::new(pieces))
    }

    fn new(pieces: Vec<Piece>) -> Self {
        Self { pieces: pieces.into_iter(), current: None }
    }

    /// Fills a frame with what comes next.
    fn fill(&mut self, builder: &mut PagesBuilder, memory: &GuestMemory) -> Result<(), MemoryError> {
        while builder.room() > Pages::ZERO {
            let Some(piece) = self.current.take().or_else(|| self.pieces.next()) else { break };
            match piece {
                Piece::Zero(run) => builder.push_zero(run),
                Piece::Read(run) => {
                    let (now, later) = split(run, builder.room());
                    builder.push(now, |buffer| memory.read_pages(now, buffer))?;
                    self.current = later.map(Piece::Read);
                }
            }
        }
        Ok(())
    }
}

fn gap(from: drover_units::Gpa, until: drover_units::Gpa) -> Option<Piece> {
    let length = Bytes::new(until.saturating_sub(from).get());
    let pages = length.to_pages().expect("ranges of RAM are whole pages");
    (pages > Pages::ZERO).then_some(Piece::Zero(PageRun { start: from, pages }))
}

fn split(run: PageRun, limit: Pages) -> (PageRun, Option<PageRun>) {
    if run.pages <= limit {
        return (run, None);
    }
    let now = PageRun { start: run.start, pages: limit };
    let start = now.end().expect("a part of RAM ends below 2^64");
    (now, Some(PageRun { start, pages: run.pages.saturating_sub(limit) }))
}
