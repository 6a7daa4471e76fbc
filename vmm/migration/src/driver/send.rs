//! The source's driver.

use std::{
    cell::Cell,
    collections::VecDeque,
    io::Read,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use drover_thread_role::{Role, spawn};
use tracing::{info, info_span, warn};

use super::{
    outgoing::Outgoing,
    peer_lost,
    sink::{SinkError, WriterSink},
};
use crate::{
    control::{ControlReceiver, Inbox, Input},
    guest::{MigratableGuest, chain},
    progress::{MigrationProgress, ProgressHandle},
    source::{Effect, Event, Outcome, Source, SourcePlan, Step},
    transport::{Close, Connect, IO_SLICE},
    wire::{AbortCode, AbortReason, FrameReader, Message},
};

/// Moves a running guest to the target that `connector` reaches. Blocks until the migration has ended, for better or
/// worse: see [`Outcome`] for what is true of the guest then. After Commit that can take until the control is told
/// [`grant`](crate::MigrationControl::grant) or [`abandon`](crate::MigrationControl::abandon).
///
/// The guest is called as [`MigratableGuest`] says. Nothing else may pause or resume its vCPUs on behalf of this
/// migration meanwhile.
pub fn send<G: MigratableGuest>(
    guest: &mut G,
    connector: &dyn Connect,
    plan: SourcePlan,
    control: ControlReceiver,
    progress: &ProgressHandle,
) -> Outcome {
    let shape = guest.shape();
    let span = info_span!("migrate_out", migration = %plan.migration, vm = %shape.vm);
    let _entered = span.enter();
    let target_epoch = plan.target_epoch;
    let (machine, effects) = Source::new(plan, shape, Instant::now());
    // The sink asks in the middle of a frame whether the machine's deadline has passed.
    let deadline = Cell::new(None);
    let urgent = || control.is_pending() || deadline.get().is_some_and(|at| Instant::now() >= at);
    let mut driver = Driver {
        machine,
        outgoing: Outgoing::new(guest),
        sink: WriterSink::new(urgent),
        connector,
        control: &control,
        link: None,
        events: VecDeque::new(),
        deadline: &deadline,
        progress,
        published: Instant::now(),
    };
    driver.execute(effects);
    loop {
        driver.publish();
        if let Some(outcome) = driver.machine.outcome() {
            info!(?outcome, progress = ?driver.machine.progress(), "migration ended at the source");
            return outcome.clone();
        }
        let event = driver.next_event();
        let effects = driver.machine.step(Instant::now(), event);
        if driver.machine.is_committed() {
            control.committed_to(target_epoch);
        }
        driver.execute(effects);
    }
}

struct Driver<'a, G> {
    machine: Source,
    outgoing: Outgoing<'a, G>,
    sink: WriterSink<'a>,
    connector: &'a dyn Connect,
    control: &'a ControlReceiver,
    link: Option<Link>,
    /// Answers to effects, in order.
    events: VecDeque<Event>,
    deadline: &'a Cell<Option<Instant>>,
    progress: &'a ProgressHandle,
    /// When progress was last published.
    published: Instant,
}

/// How often the growing number of bytes is told to observers. A fast link sends a frame every 100 us.
pub(super) const PUBLISH_INTERVAL: Duration = Duration::from_millis(50);

impl<G: MigratableGuest> Driver<'_, G> {
    fn execute(&mut self, effects: Vec<Effect>) {
        self.deadline.set(self.machine.deadline());
        for effect in effects {
            let answer = match effect {
                Effect::Connect { limit } => Some(self.connect(limit)),
                Effect::Close => {
                    self.link = None;
                    None
                }
                effect => self.outgoing.execute(effect, &mut self.sink),
            };
            self.events.extend(answer);
        }
    }

    fn connect(&mut self, limit: Duration) -> Event {
        match self.connector.connect(limit) {
            Ok(connection) => {
                info!(peer = %connection.peer, "connected to the target");
                self.sink.connect(connection.writer);
                self.link = Some(Link::open(connection.reader, connection.closer, self.control.inbox()));
                Event::Connected
            }
            Err(error) => {
                let reason = format!("cannot connect to the target: {}", chain(&error));
                Event::Failed { step: Step::Connect, reason }
            }
        }
    }

    /// Answers first, then what arrived from outside, then the clock, then the next piece of what is being sent.
    fn next_event(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            if let Some(input) = self.control.try_next() {
                return event_of(input);
            }
            let now = Instant::now();
            let left = self.deadline.get().map(|deadline| deadline.saturating_duration_since(now));
            if left == Some(Duration::ZERO) {
                return Event::Tick;
            }
            if self.outgoing.is_sending() {
                match self.outgoing.advance(&mut self.sink) {
                    Ok(Some(Event::PeerLost(reason))) => return self.last_word(reason),
                    Ok(Some(event)) => return event,
                    Ok(None) if now.saturating_duration_since(self.published) >= PUBLISH_INTERVAL => {
                        self.publish()
                    }
                    Ok(None) => {}
                    Err(error) => self.interrupted(&error),
                }
            } else if let Some(input) = self.control.wait(left) {
                return event_of(input);
            }
        }
    }

    /// Writing failed. Why the target closed says more than a broken pipe: it is on its way through the reading thread.
    fn last_word(&mut self, reason: AbortReason) -> Event {
        let broken = Event::PeerLost(reason);
        match self.control.wait(Some(IO_SLICE)) {
            Some(input) => {
                self.events.push_back(broken);
                event_of(input)
            }
            None => broken,
        }
    }

    /// The stream ends inside a frame. What interrupted it is handled first and normally ends the migration; should it
    /// not, the broken stream does.
    fn interrupted(&mut self, error: &SinkError) {
        let lost = AbortReason::new(AbortCode::PeerLost, format!("sending was interrupted: {error:?}"));
        let cause = self.control.try_next().map_or(Event::Tick, event_of);
        self.events.extend([cause, Event::PeerLost(lost)]);
    }

    fn publish(&mut self) {
        self.published = Instant::now();
        let bytes_sent = self.outgoing.wire();
        self.progress.publish(MigrationProgress { bytes_sent, ..self.machine.progress().clone() });
    }
}

fn event_of(input: Input) -> Event {
    match input {
        Input::Cancel(reason) => Event::Cancel(reason),
        Input::Grant(epoch) => Event::Grant(epoch),
        Input::Abandon => Event::Abandon,
        Input::Peer(Ok(message)) => Event::Received(message),
        Input::Peer(Err(reason)) => Event::PeerLost(reason),
    }
}

/// A connection with the thread that reads from it. Dropping it closes the one and waits for the other.
struct Link {
    closer: Arc<dyn Close>,
    reader: Option<JoinHandle<()>>,
}

impl Link {
    fn open(reader: Box<dyn Read + Send>, closer: Arc<dyn Close>, inbox: Inbox) -> Self {
        let thread = std::thread::Builder::new().name("migration-reader".to_owned());
        let spawned = spawn(Role::Migration, thread, {
            let mut reader = reader;
            move || read_messages(reader.as_mut(), &inbox)
        });
        if let Err(error) = &spawned {
            // The peer's answer will not come, and the negotiation's deadline ends the migration.
            warn!(%error, "no thread to read the target's answers");
        }
        Self { closer, reader: spawned.ok() }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.closer.close();
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            warn!("the thread that reads the target's answers has panicked");
        }
    }
}

fn read_messages(reader: &mut dyn Read, inbox: &Inbox) {
    let mut frames = FrameReader::default();
    loop {
        let input = match frames.poll(reader) {
            Ok(None) => continue,
            Ok(Some(frame)) => Message::decode(frame.kind, frame.payload)
                .map_err(|error| AbortReason::new(AbortCode::Protocol, error.to_string())),
            Err(error) => Err(peer_lost(&error)),
        };
        if !inbox.deliver(input) {
            return;
        }
    }
}
