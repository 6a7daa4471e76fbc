//! The connection, and how one call is made on it.

use std::{future::Future, time::Duration};

use tonic::{
    Response, Status,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

use crate::{Error, Result, Retry};

/// How a [`Client`] behaves. `Options::default()` suits people and scripts.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Repeats of connecting, and of calls that may be repeated.
    pub retry: Retry,
    /// A call that has not been answered for this long has failed. Streams are not bounded by it.
    pub call_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { retry: Retry::default(), call_timeout: Duration::from_secs(30) }
    }
}

/// An attempt to open the TCP connection that takes longer has failed.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A dead peer is noticed on idle streams (watches, consoles) within twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The control plane, as its users see it.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    server: String,
    options: Options,
}

/// Whether a call may be made twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It changes nothing, or carries a request id.
    Safe,
    /// A second call could have a second effect, or fail because of the first one's.
    #[allow(
        dead_code,
        reason = "every mutation has a request id now; one that has none must not be repeated"
    )]
    Unsafe,
}

impl Client {
    /// Connects to `server`, such as `http://127.0.0.1:7400`, retrying as `options` say.
    ///
    /// # Errors
    /// [`Error::InvalidServer`], or [`Error::Unreachable`] when every attempt failed.
    pub async fn connect(server: &str, options: Options) -> Result<Self> {
        let endpoint = endpoint(server)?;
        let mut attempt = 1;
        loop {
            match endpoint.connect().await {
                Ok(channel) => return Ok(Self { channel, server: server.to_owned(), options }),
                Err(error) => match options.retry.pause_after(attempt) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => {
                        return Err(Error::from_status(server, &Status::from_error(Box::new(error))));
                    }
                },
            }
            attempt += 1;
        }
    }

    /// The address this client was made with.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn options(&self) -> Options {
        self.options
    }

    pub(crate) fn error(&self, status: &Status) -> Error {
        Error::from_status(&self.server, status)
    }

    /// Makes one call; `attempt` builds and sends it, and is called again only if `repeat` allows it and the server
    /// was not reached.
    pub(crate) async fn call<T, F, A>(&self, repeat: Repeat, attempt: A) -> Result<T>
    where
        A: FnMut(Channel) -> F,
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        self.call_within(self.options.call_timeout, repeat, attempt).await
    }

    /// As [`call`](Self::call), with a time limit of its own for each attempt.
    pub(crate) async fn call_within<T, F, A>(
        &self,
        limit: Duration,
        repeat: Repeat,
        mut attempt: A,
    ) -> Result<T>
    where
        A: FnMut(Channel) -> F,
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let retry = if repeat == Repeat::Safe { self.options.retry } else { Retry::NEVER };
        let mut number = 1;
        loop {
            let answer = tokio::time::timeout(limit, attempt(self.channel())).await;
            let error = match answer {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => self.error(&status),
                Err(_elapsed) => {
                    return Err(Error::Unreachable {
                        server: self.server.clone(),
                        reason: format!("no answer within {} s", limit.as_secs()),
                    });
                }
            };
            match retry.pause_after(number) {
                Some(pause) if error.is_unreachable() => tokio::time::sleep(pause).await,
                _ => return Err(error),
            }
            number += 1;
        }
    }
}

fn endpoint(server: &str) -> Result<Endpoint> {
    let invalid = || Error::InvalidServer { server: server.chars().take(200).collect() };
    if !server.starts_with("http://") {
        return Err(invalid());
    }
    let endpoint = Endpoint::from_shared(server.to_owned()).map_err(|_| invalid())?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true))
}

/// A fresh request id.
pub(crate) fn request_id() -> String {
    Uuid::new_v4().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_urls_are_server_addresses() {
        assert!(endpoint("http://127.0.0.1:7400").is_ok());
        for bad in ["", "127.0.0.1:7400", "https://x", "http://", "http://a b"] {
            assert!(matches!(endpoint(bad), Err(Error::InvalidServer { .. })), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_down_is_unreachable_after_the_last_attempt() {
        let retry = Retry {
            attempts_max: 3,
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(1),
        };
        let options = Options { retry, ..Options::default() };
        // Port 1 (tcpmux) has no listener here, and nothing of ours could take it.
        let error = Client::connect("http://127.0.0.1:1", options).await.unwrap_err();
        assert!(error.is_unreachable(), "{error:?}");
        assert!(error.to_string().contains("refused"), "{error}");
    }
}
