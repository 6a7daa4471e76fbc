//! Uploads: a header, then the bytes in order.

use std::future::Future;

use drover_units::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    Error, Result,
    api::{ImportHeader, ImportRequest, import_request::Part},
    connect::request_id,
};

/// Bytes of one message. A quarter of what a server accepts; large enough that the cost per message does not show.
const CHUNK_BYTES: usize = 1 << 20;
/// Messages read ahead of the network.
const CHUNKS_AHEAD: usize = 2;

/// What an upload becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// The new name.
    pub name: String,
    /// The pool; empty is the only one. A cluster with several wants one named.
    pub pool: String,
    /// Size of the volume, or of the image file.
    pub size: Bytes,
}

/// The request stream of an import, and the future that feeds it from `source`.
pub(crate) fn stream(
    import: Import,
    mut source: impl AsyncRead + Unpin,
    mut progress: impl FnMut(Bytes),
) -> (impl Future<Output = Result<()>>, ReceiverStream<ImportRequest>) {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let feed = async move {
        let header = ImportHeader {
            request_id: request_id(),
            name: import.name,
            pool: import.pool,
            size_bytes: import.size.get(),
        };
        let mut part = Part::Header(header);
        let mut sent = Bytes::ZERO;
        loop {
            // A closed channel means that the server has answered early; its answer says why.
            if sender.send(ImportRequest { part: Some(part) }).await.is_err() {
                return Ok(());
            }
            progress(sent);
            let mut data = Vec::with_capacity(CHUNK_BYTES);
            while data.len() < CHUNK_BYTES {
                let room = (CHUNK_BYTES - data.len()) as u64;
                let read = (&mut source).take(room).read_buf(&mut data).await.map_err(Error::ReadSource)?;
                if read == 0 {
                    break;
                }
            }
            if data.is_empty() {
                return Ok(());
            }
            sent = sent.saturating_add(Bytes::new(data.len() as u64));
            part = Part::Data(data);
        }
    };
    (feed, ReceiverStream::new(receiver))
}

/// Drives an upload to its answer. A source that cannot be read aborts the call, so that no short volume is made.
pub(crate) async fn join<T>(
    feed: impl Future<Output = Result<()>>,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::pin!(feed, call);
    tokio::select! {
        biased;
        answer = &mut call => answer,
        fed = &mut feed => {
            fed?;
            call.await
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    fn import() -> Import {
        Import { name: "v".into(), pool: String::new(), size: Bytes::mib(3) }
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_in_chunks_after_the_header() {
        let source: Vec<u8> = (0..CHUNK_BYTES * 2 + 17).map(|n| (n % 251) as u8).collect();
        let mut seen = Vec::new();
        let (feed, mut requests) = stream(import(), source.as_slice(), |bytes| seen.push(bytes.get()));
        let collect = async {
            let mut data = Vec::new();
            let first = requests.next().await.and_then(|r| r.part);
            assert!(matches!(first, Some(Part::Header(h)) if h.name == "v" && !h.request_id.is_empty()));
            while let Some(Part::Data(chunk)) = requests.next().await.and_then(|r| r.part) {
                assert!(chunk.len() <= CHUNK_BYTES);
                data.extend(chunk);
            }
            data
        };
        let (fed, data) = tokio::join!(feed, collect);
        fed.unwrap();
        assert_eq!(data, source);
        assert_eq!(seen.last(), Some(&(source.len() as u64)));
    }

    #[tokio::test]
    async fn a_source_that_cannot_be_read_fails_the_import() {
        struct Broken;
        impl AsyncRead for Broken {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                _: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready(Err(std::io::ErrorKind::PermissionDenied.into()))
            }
        }
        let (feed, _requests) = stream(import(), Broken, |_| ());
        let never = std::future::pending::<Result<()>>();
        assert!(matches!(join(feed, never).await, Err(Error::ReadSource(_))));
    }
}
