//! The cluster's event log.

use tonic::Streaming;

use crate::{
    Client, Error, PAGE_SIZE, PAGES_MAX, Result,
    api::{Event, ListEventsRequest, WatchEventsRequest, events_client::EventsClient},
    connect::Repeat,
};

impl Client {
    /// Every retained event after `after_sequence`, oldest first; with `subject`, those of one resource.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_events(&self, after_sequence: u64, subject: Option<&str>) -> Result<Vec<Event>> {
        let mut events: Vec<Event> = Vec::new();
        for _ in 0..PAGES_MAX {
            let request = ListEventsRequest {
                page_size: PAGE_SIZE,
                after_sequence: events.last().map_or(after_sequence, |event| event.sequence),
                subject: subject.unwrap_or_default().to_owned(),
            };
            let page = self
                .call(Repeat::Safe, |channel| {
                    let request = request.clone();
                    async move { EventsClient::new(channel).list_events(request).await }
                })
                .await?;
            // The server may give fewer than asked for: only an empty page is the end.
            if page.events.is_empty() {
                return Ok(events);
            }
            events.extend(page.events);
        }
        Err(Error::EndlessList { what: "events" })
    }

    /// Events as they happen, after `after_sequence`.
    ///
    /// # Errors
    /// [`Error::Refused`] with OUT_OF_RANGE when what follows `after_sequence` has been dropped, and see [`Error`].
    pub async fn watch_events(&self, after_sequence: u64, subject: Option<&str>) -> Result<Streaming<Event>> {
        let request = WatchEventsRequest { after_sequence, subject: subject.unwrap_or_default().to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { EventsClient::new(channel).watch_events(request).await }
        })
        .await
    }
}
