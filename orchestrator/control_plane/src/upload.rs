//! An import's stream, as a reader for code that waits for storage.

use std::{
    io::{self, Read},
    pin::pin,
    time::Duration,
};

use drover_wire::control::v1::{
    ImportHeader, ImportRequest, UploadRequest, import_request::Part, upload_request,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::status::invalid;

/// Messages that wait for the storage. With the client's own, some MiB.
const MESSAGES_AHEAD: usize = 2;
/// A client that sends nothing for this long has gone.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// The first message.
pub(crate) async fn header(requests: &mut Streaming<ImportRequest>) -> Result<ImportHeader, Status> {
    match next(requests).await?.and_then(|request| request.part) {
        Some(Part::Header(header)) => Ok(header),
        _ => Err(invalid("part", "the first message is not a header", "one header, then the bytes")),
    }
}

/// The next message of a stream, if it comes soon enough.
pub(crate) async fn next<M>(requests: &mut Streaming<M>) -> Result<Option<M>, Status> {
    match tokio::time::timeout(IDLE_MAX, requests.message()).await {
        Ok(message) => message,
        Err(_) => {
            Err(Status::deadline_exceeded(format!("the upload stood still for {} s", IDLE_MAX.as_secs())))
        }
    }
}

/// A message that may be a piece of a file.
pub(crate) trait Piece {
    /// Its bytes, if it is one.
    fn into_bytes(self) -> Option<Vec<u8>>;
}

impl Piece for ImportRequest {
    fn into_bytes(self) -> Option<Vec<u8>> {
        match self.part {
            Some(Part::Data(data)) => Some(data),
            _ => None,
        }
    }
}

impl Piece for UploadRequest {
    fn into_bytes(self) -> Option<Vec<u8>> {
        match self.part {
            Some(upload_request::Part::Data(data)) => Some(data),
            _ => None,
        }
    }
}

/// The bytes that follow. Fed by [`feed_into`].
#[derive(Debug)]
pub(crate) struct Upload {
    chunks: mpsc::Receiver<Result<Vec<u8>, Status>>,
    chunk: Vec<u8>,
    taken: usize,
    ended: bool,
}

/// Where the bytes are put.
pub(crate) type Feeder = mpsc::Sender<Result<Vec<u8>, Status>>;

impl Upload {
    pub(crate) fn new() -> (Feeder, Self) {
        let (feeder, chunks) = mpsc::channel(MESSAGES_AHEAD);
        (feeder, Self { chunks, chunk: Vec::new(), taken: 0, ended: false })
    }
}

/// Waits for what `made` makes of an upload, and hands it what arrives meanwhile.
pub(crate) async fn feed_into<T, M: Piece>(
    requests: Streaming<M>,
    feeder: Feeder,
    made: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let mut made = pin!(made);
    tokio::select! {
        // An answer need not wait for the rest of the bytes: the client may be waiting for the answer.
        made = &mut made => made,
        () = feed(requests, feeder) => made.await,
    }
}

/// Hands on what arrives, until it ends, breaks off, or nobody reads any more. A stream that breaks off is an error
/// for the reader: it must not take it for the end.
async fn feed<M: Piece>(mut requests: Streaming<M>, feeder: Feeder) {
    loop {
        let chunk = match next(&mut requests).await {
            Ok(Some(message)) => match message.into_bytes() {
                // An empty chunk stands for the end, below.
                Some(data) if data.is_empty() => continue,
                Some(data) => Ok(data),
                None => Err(invalid("part", "a message is not data", "one header, then the bytes")),
            },
            // Told apart from a sender that was dropped.
            Ok(None) => Ok(Vec::new()),
            Err(status) => Err(status),
        };
        let last = chunk.as_ref().map_or(true, Vec::is_empty);
        if feeder.send(chunk).await.is_err() || last {
            return;
        }
    }
}

impl Read for Upload {
    /// Blocks: not for async threads.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.chunk.len() && !self.ended {
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) => {
                    self.ended = chunk.is_empty();
                    (self.chunk, self.taken) = (chunk, 0);
                }
                Some(Err(status)) => return Err(io::Error::other(status)),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let left = &self.chunk[self.taken..];
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.taken += count;
        Ok(count)
    }
}

/// The status that made an upload break off, if one did.
pub(crate) fn broken_off<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Status> {
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(status) = inner.and_then(|inner| inner.downcast_ref::<Status>()) {
            return Some(status);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(chunks: Vec<Result<Vec<u8>, Status>>) -> io::Result<Vec<u8>> {
        let (feeder, mut upload) = Upload::new();
        let reader = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            upload.read_to_end(&mut bytes).map(|_| bytes)
        });
        for chunk in chunks {
            // The reader may have met an error before.
            let _unread = feeder.send(chunk).await;
        }
        drop(feeder);
        reader.await.unwrap()
    }

    #[tokio::test]
    async fn chunks_are_read_in_order_up_to_the_end() {
        let bytes = read_all(vec![Ok(b"ab".to_vec()), Ok(b"c".to_vec()), Ok(Vec::new())]).await.unwrap();
        assert_eq!(bytes, b"abc");
    }

    #[tokio::test]
    async fn an_upload_that_breaks_off_is_not_an_end() {
        let error = read_all(vec![Ok(b"ab".to_vec())]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error = read_all(vec![Ok(b"ab".to_vec()), Err(Status::cancelled("gone"))]).await.unwrap_err();
        assert_eq!(broken_off(&error).map(Status::message), Some("gone"));
    }
}
