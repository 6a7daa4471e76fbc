//! The target's driver.

use std::{collections::VecDeque, io, time::Instant};

use drover_units::Bytes;
use tracing::{info, info_span, warn};

use super::{
    incoming::{Arrival, Incoming},
    peer_lost,
    sink::WriterSink,
};
use crate::{
    control::{ControlReceiver, Input},
    guest::{MigratableGuest, chain},
    progress::{MigrationProgress, Phase, ProgressHandle},
    shape::MachineShape,
    target::{Effect, Event, Outcome, Target, TargetPlan},
    transport::{Accept, Connection, IO_SLICE},
    wire::{AbortCode, AbortReason, FrameReader, PagesView},
};

/// Receives one guest into a machine that has been built for it. Blocks until the migration has ended: see
/// [`Outcome`] for what is true of the guest then.
///
/// A connection that does not open with the awaited migration's Hello (a port scanner, a stray source) is turned away
/// and the wait goes on, for as long as [`TargetTimeouts::reserved`](crate::target::TargetTimeouts::reserved) allows.
pub fn receive<G: MigratableGuest>(
    guest: &mut G,
    acceptor: &dyn Accept,
    plan: TargetPlan,
    control: &ControlReceiver,
    progress: &ProgressHandle,
) -> Outcome {
    let shape = guest.shape();
    let span = info_span!("migrate_in", migration = %plan.migration, vm = %shape.vm);
    let _entered = span.enter();
    let outcome = accept_source(guest, acceptor, &plan, &shape, (control, progress));
    info!(?outcome, "migration ended at the target");
    outcome
}

fn accept_source<G: MigratableGuest>(
    guest: &mut G,
    acceptor: &dyn Accept,
    plan: &TargetPlan,
    shape: &MachineShape,
    (control, progress): (&ControlReceiver, &ProgressHandle),
) -> Outcome {
    let began = Instant::now();
    loop {
        let refused = match wait_for_connection(acceptor, began + plan.timeouts.reserved, control) {
            Ok(connection) => {
                info!(peer = %connection.peer, "a source has connected");
                let machine = Target::new(plan.clone(), shape.clone(), Instant::now());
                match serve(guest, connection, machine, (control, progress)) {
                    Outcome::Discarded { reason, by_source: false }
                        if reason.code != AbortCode::Cancelled =>
                    {
                        warn!(%reason, "the connection was not the awaited source's");
                        continue;
                    }
                    Outcome::Discarded { reason, by_source: false } => reason,
                    outcome => return outcome,
                }
            }
            Err(reason) => reason,
        };
        guest.discard();
        let detail = refused.to_string();
        progress.publish(MigrationProgress {
            phase: Phase::Aborted,
            total: began.elapsed(),
            detail,
            ..progress.latest()
        });
        return Outcome::Discarded { reason: refused, by_source: false };
    }
}

fn wait_for_connection(
    acceptor: &dyn Accept,
    until: Instant,
    control: &ControlReceiver,
) -> Result<Connection, AbortReason> {
    loop {
        if let Some(reason) = cancelled(control) {
            return Err(AbortReason::new(AbortCode::Cancelled, reason));
        }
        if Instant::now() >= until {
            return Err(AbortReason::new(AbortCode::Timeout, "the source did not come"));
        }
        match acceptor.accept(IO_SLICE) {
            Ok(Some(connection)) => return Ok(connection),
            Ok(None) => {}
            Err(error) => return Err(accept_failed(&error)),
        }
    }
}

fn accept_failed(error: &io::Error) -> AbortReason {
    AbortReason::new(AbortCode::PeerLost, format!("cannot accept the source's connection: {}", chain(error)))
}

fn cancelled(control: &ControlReceiver) -> Option<String> {
    match control.try_next()? {
        Input::Cancel(reason) => Some(reason),
        Input::Abandon => Some("the VM is being stopped".to_owned()),
        // Neither is ever addressed to a target.
        Input::Grant(_) | Input::Peer(_) => None,
    }
}

fn serve<G: MigratableGuest>(
    guest: &mut G,
    connection: Connection,
    machine: Target,
    (control, progress): (&ControlReceiver, &ProgressHandle),
) -> Outcome {
    let Connection { mut reader, writer, closer, .. } = connection;
    let mut sink = WriterSink::new(|| false);
    sink.connect(writer);
    let mut driver = Driver {
        machine,
        incoming: Incoming::new(guest),
        sink,
        close: Box::new(move || closer.close()),
        received: Bytes::ZERO,
        progress,
    };
    let mut frames = FrameReader::default();
    loop {
        if let Some(outcome) = driver.machine.outcome() {
            return outcome.clone();
        }
        if let Some(reason) = cancelled(control) {
            driver.handle(Event::Cancel(reason), None);
        } else if driver.machine.deadline().is_some_and(|deadline| Instant::now() >= deadline) {
            driver.handle(Event::Tick, None);
        } else {
            match frames.poll(reader.as_mut()) {
                Ok(None) => {}
                Ok(Some(frame)) => {
                    driver.count(frame.stamp.frame_len());
                    match Arrival::decode(&frame) {
                        Ok(arrival) => driver.handle(arrival.event, arrival.pages),
                        Err(error) => {
                            let reason = AbortReason::new(AbortCode::Protocol, error.to_string());
                            driver.handle(Event::PeerLost(reason), None);
                        }
                    }
                }
                Err(error) => driver.handle(Event::PeerLost(peer_lost(&error)), None),
            }
        }
    }
}

struct Driver<'a, G> {
    machine: Target,
    incoming: Incoming<'a, G>,
    sink: WriterSink<'a>,
    close: Box<dyn Fn()>,
    received: Bytes,
    progress: &'a ProgressHandle,
}

impl<G: MigratableGuest> Driver<'_, G> {
    /// Handles an event and everything that follows from it without waiting.
    fn handle(&mut self, event: Event, pages: Option<PagesView<'_>>) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for effect in self.machine.step(Instant::now(), event) {
                if effect == Effect::Close {
                    (self.close)();
                } else {
                    events.extend(self.incoming.execute(effect, pages, &mut self.sink));
                }
            }
        }
        let progress = self.machine.progress();
        if pages.is_none() || progress.phase != self.progress.latest().phase {
            self.progress.publish(MigrationProgress { bytes_sent: self.received, ..progress.clone() });
        }
    }

    fn count(&mut self, length: usize) {
        self.received = self.received.saturating_add(Bytes::new(length as u64));
    }
}
