//! The event log.

use std::ops::ControlFlow;

use drover_driver::{EventLog, LoggedEvent, OutOfRange, Sequence};
use drover_ports::Store;
use drover_wire::control::v1::{
    self as wire, ListEventsRequest, ListEventsResponse, WatchEventsRequest, events_server::Events,
};
use tonic::{Request, Response, Status};

use super::{
    Api,
    watching::{Look, Watching, watch},
};
use crate::{convert, status::gone};

/// Page size unless the client says otherwise.
const PAGE_DEFAULT: usize = 100;
/// Most events of one page, and of one look of a watch.
const PAGE_MAX: usize = 1000;

fn out_of_range(error: OutOfRange) -> Status {
    Status::out_of_range(format!("after_sequence: {error}; valid: 0, or the sequence of an event in the log"))
}

fn is_about(event: &LoggedEvent, subject: &str) -> bool {
    subject.is_empty() || event.event.subject_id == subject || event.event.subject_name == subject
}

/// What a watcher has not seen yet.
fn look(events: &EventLog, after: Sequence, subject: &str) -> Look<Sequence, wire::Event> {
    let page: Vec<&LoggedEvent> = match events.after(after) {
        Ok(rest) => rest.filter(|event| is_about(event, subject)).take(PAGE_MAX).collect(),
        // It has been so slow that what it should see next is gone.
        Err(error) => return (vec![Err(out_of_range(error))], ControlFlow::Break(())),
    };
    // A full page ends at its last event, any other has seen the whole log.
    let next = match page.last() {
        Some(last) if page.len() == PAGE_MAX => last.sequence,
        _ => events.newest(),
    };
    (page.into_iter().map(|event| Ok(convert::event(event))).collect(), ControlFlow::Continue(next))
}

#[tonic::async_trait]
impl<S: Store> Events for Api<S> {
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let ListEventsRequest { page_size, after_sequence, subject } = request.into_inner();
        let size = match usize::try_from(page_size) {
            Ok(0) => PAGE_DEFAULT,
            Ok(size) => size.min(PAGE_MAX),
            Err(_) => PAGE_MAX,
        };
        let list = move |events: &EventLog| {
            let rest = events.after(Sequence::new(after_sequence)).map_err(out_of_range)?;
            let events = rest.filter(|event| is_about(event, &subject)).take(size).map(convert::event);
            Ok(ListEventsResponse { events: events.collect() })
        };
        self.cluster.read(move |view| list(view.events)).await.map_err(gone)?.map(Response::new)
    }

    type WatchEventsStream = Watching<wire::Event>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let WatchEventsRequest { after_sequence, subject } = request.into_inner();
        let after = Sequence::new(after_sequence);
        // A place that is gone is refused as a call, not in the stream.
        let check = self.cluster.read(move |view| view.events.after(after).map(drop)).await;
        check.map_err(gone)?.map_err(out_of_range)?;
        let stream =
            watch(self.cluster.clone(), after, move |view, after| look(view.events, after, &subject));
        Ok(Response::new(stream))
    }
}
