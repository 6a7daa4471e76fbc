//! Executes the target machine's effects on a guest and a sink. No clock, no thread: the simulation runs the same code.

use drover_guest_memory::MemoryError;
use tracing::debug;

use super::sink::{FrameSink, send_message};
use crate::{
    guest::{GuestError, MigratableGuest, chain},
    target::{Effect, Event, Step},
    wire::{Frame, FrameEncoder, FrameKind, Message, PagesView, WireError},
};

/// A guest being received over one connection.
pub(crate) struct Incoming<'g, G> {
    guest: &'g mut G,
    encoder: FrameEncoder,
}

/// A frame as the machine sees it, with the guest RAM that it carries.
pub(crate) struct Arrival<'a> {
    pub(crate) event: Event,
    pub(crate) pages: Option<PagesView<'a>>,
}

impl<'a> Arrival<'a> {
    pub(crate) fn decode(frame: &Frame<'a>) -> Result<Self, WireError> {
        let stamp = frame.stamp;
        if frame.kind == FrameKind::Pages {
            let view = PagesView::decode(frame.payload)?;
            return Ok(Self {
                event: Event::PagesReceived { stamp, pages: view.pages() },
                pages: Some(view),
            });
        }
        let message = Message::decode(frame.kind, frame.payload)?;
        Ok(Self { event: Event::Received { stamp, message }, pages: None })
    }
}

impl<'g, G: MigratableGuest> Incoming<'g, G> {
    pub(crate) fn new(guest: &'g mut G) -> Self {
        Self { guest, encoder: FrameEncoder::default() }
    }

    /// Executes an effect; gives the answer, if there is one. `pages` is what the frame being handled carries. `Close`
    /// is the caller's.
    pub(crate) fn execute(
        &mut self,
        effect: Effect,
        pages: Option<PagesView<'_>>,
        sink: &mut dyn FrameSink,
    ) -> Option<Event> {
        match effect {
            Effect::Close => None,
            Effect::Send(message) => {
                if let Err(error) = send_message(sink, &mut self.encoder, &message) {
                    // What the source said last is still to be read and says more than a broken pipe; reading ends
                    // with the connection, or a deadline passes.
                    debug!(?error, kind = ?message.kind(), "the message did not reach the source");
                }
                None
            }
            Effect::ApplyPages => pages.and_then(|pages| self.apply(pages)),
            Effect::Restore(states) => {
                Some(answer(self.guest.restore(&states), Step::Restore, Event::Restored))
            }
            Effect::AcquireVolumes(epoch) => {
                let done = self.guest.acquire_volumes(epoch);
                Some(answer(done, Step::AcquireVolumes, Event::VolumesAcquired))
            }
            Effect::Resume => Some(answer(self.guest.resume(), Step::Resume, Event::Resumed)),
            Effect::Discard => {
                self.guest.discard();
                None
            }
        }
    }

    fn apply(&mut self, pages: PagesView<'_>) -> Option<Event> {
        let memory = self.guest.memory();
        let apply = |(run, contents): (_, Option<&[u8]>)| match contents {
            Some(contents) => memory.write_pages(run, contents),
            // Gives back what an earlier round may have written there.
            None => memory.zero_pages(run),
        };
        let done: Result<(), MemoryError> = pages.runs().try_for_each(apply);
        let failed = |error| Event::Failed { step: Step::WriteMemory, reason: chain(&error) };
        done.err().map(failed)
    }
}

fn answer(done: Result<(), GuestError>, step: Step, event: Event) -> Event {
    match done {
        Ok(()) => event,
        Err(error) => Event::Failed { step, reason: error.chain() },
    }
}
