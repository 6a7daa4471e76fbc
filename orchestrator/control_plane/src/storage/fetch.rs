//! A file at a web server, from some byte on.
//!
//! The URL comes from a client and may hold credentials: it is in no error and no log. Only http and https are spoken,
//! redirects are counted, and a server that stops sending is given up. Only addresses that the configuration permits are
//! connected to: each server's name is looked up here, those of redirects too, and what was found permitted is what is
//! connected to.

use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use drover_storage_pools::Observer;
use drover_units::Bytes;
use ureq::{
    Agent, Body,
    config::Config,
    http::{Response, StatusCode, Uri, header},
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::{DefaultConnector, NextTimeout},
    },
};

use crate::{
    config::ImportConfig,
    network::{Network, is_permitted},
};

/// Largest file that is fetched: as for uploads.
const FILE_BYTES_MAX: u64 = 2 << 40;
/// Most servers in a row that may point to another one.
const REDIRECTS_MAX: u32 = 5;
/// Until a connection is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Until the answer begins.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// One answer, however long. What has come by then is kept, and the rest is asked for.
const BODY_TIMEOUT: Duration = Duration::from_secs(3600);
/// A server that sends nothing for this long has gone.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// How often a wait for bytes is interrupted to see whether anybody still wants them.
const LOOK: Duration = Duration::from_millis(200);
/// Bytes read at a time, and how many of these wait for the storage.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS_AHEAD: usize = 8;

/// Why a file does not come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FetchError {
    /// Another time it may.
    Transient(String),
    /// It never will.
    Permanent(String),
    /// Its server is at an address that must not be reached.
    NotPermitted,
    /// Nobody wants it any more.
    Cancelled,
}

/// A file on its way.
pub(super) struct Fetched<'a> {
    /// Of the whole file.
    pub(super) file_size: Bytes,
    /// From the byte on that was asked for.
    pub(super) body: Chunks<'a>,
}

/// Certificates of authorities that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of the configuration.
    #[error("{path} cannot be read", path = .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no such file.
    #[error("{path} holds no certificate; valid: a file in PEM format", path = .path.display())]
    NoCertificate {
        /// Which.
        path: PathBuf,
    },
}

/// A server that is not to be reached. Says nothing of where it is: that is for the log, not for whoever asked.
#[derive(Debug, thiserror::Error)]
#[error(
    "url: its server is not at a public address; valid: one that is, or that is in a network given to the control plane with \
     --import-allow"
)]
pub(super) struct NotPermitted;

/// Looks names up, and keeps the addresses that may be connected to.
#[derive(Debug)]
struct Permitted {
    inner: DefaultResolver,
    allowed: Vec<Network>,
}

impl Resolver for Permitted {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.inner.resolve(uri, config, timeout)?;
        let mut permitted = self.empty();
        for address in &*found {
            match is_permitted(address.ip(), &self.allowed) {
                true => permitted.push(*address),
                false => tracing::warn!(%address, "an import points to an address that is not permitted"),
            }
        }
        if permitted.is_empty() { Err(ureq::Error::Other(Box::new(NotPermitted))) } else { Ok(permitted) }
    }
}

/// Fetches files. Clones share its connections.
#[derive(Clone, Debug)]
pub(crate) struct Fetcher {
    agent: Agent,
}

impl Default for Fetcher {
    fn default() -> Self {
        Self::with_roots(Vec::new(), RootCerts::PlatformVerifier)
    }
}

impl Fetcher {
    /// One that may reach what the configuration says.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub(crate) fn new(config: &ImportConfig) -> Result<Self, AuthorityError> {
        // The certificates that the host trusts: an operator's own authority may be one of them.
        let mut roots = RootCerts::PlatformVerifier;
        if !config.authorities.is_empty() {
            let trusted = rustls_native_certs::load_native_certs().certs;
            let mut all: Vec<_> = trusted.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
            for path in &config.authorities {
                let pem = fs::read(path)
                    .map_err(|source| AuthorityError::Unreadable { path: path.clone(), source })?;
                let before = all.len();
                all.extend(parse_pem(&pem).filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                }));
                if all.len() == before {
                    return Err(AuthorityError::NoCertificate { path: path.clone() });
                }
            }
            roots = RootCerts::Specific(Arc::new(all));
        }
        Ok(Self::with_roots(config.allow.clone(), roots))
    }

    fn with_roots(allowed: Vec<Network>, roots: RootCerts) -> Self {
        let config = Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .http_status_as_error(false)
            .max_redirects(REDIRECTS_MAX)
            // A proxy would look names up by itself.
            .proxy(None)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_recv_body(Some(BODY_TIMEOUT))
            .user_agent(concat!("drover/", env!("CARGO_PKG_VERSION")))
            .build();
        let resolver = Permitted { inner: DefaultResolver::default(), allowed };
        Self { agent: Agent::with_parts(config, DefaultConnector::default(), resolver) }
    }

    /// Asks for a file from byte `offset` on. Blocks.
    pub(super) fn open<'a>(
        &self,
        url: &str,
        offset: u64,
        observer: &'a dyn Observer,
    ) -> Result<Fetched<'a>, FetchError> {
        let (url, authorization) = split_credentials(url)?;
        let mut request = self.agent.get(url);
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if offset > 0 {
            request = request.header(header::RANGE, format!("bytes={offset}-"));
        }
        let response = request.call().map_err(|error| explain(&error))?;
        let (file_size, skip) = announced(&response, offset)?;
        if file_size == 0 || file_size > FILE_BYTES_MAX {
            return Err(FetchError::Permanent(format!(
                "the file has {file_size} bytes; valid: 1 to {FILE_BYTES_MAX}"
            )));
        }
        let mut body = Chunks::start(response.into_body(), observer);
        // A server that cannot begin in the middle sends everything.
        let skipped = io::copy(&mut (&mut body).take(skip), &mut io::sink());
        match skipped {
            Ok(count) if count == skip => Ok(Fetched { file_size: Bytes::new(file_size), body }),
            Ok(_) => Err(FetchError::Transient("it ended before the part that is missing".to_owned())),
            Err(_) if observer.is_cancelled() => Err(FetchError::Cancelled),
            Err(error) => Err(FetchError::Transient(error.to_string())),
        }
    }
}

/// The file's size, and how much of the answer lies before `offset`.
fn announced(response: &Response<Body>, offset: u64) -> Result<(u64, u64), FetchError> {
    let text = |name: header::HeaderName| response.headers().get(name).and_then(|value| value.to_str().ok());
    match response.status() {
        StatusCode::OK => {
            let length = text(header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
            let unknown =
                || FetchError::Permanent("the server does not say how large the file is".to_owned());
            Ok((length.ok_or_else(unknown)?, offset))
        }
        StatusCode::PARTIAL_CONTENT => {
            // "bytes 100-199/200"
            let range = text(header::CONTENT_RANGE).and_then(|text| text.strip_prefix("bytes "));
            let parsed = range.and_then(|range| {
                let (range, size) = range.split_once('/')?;
                let (start, _) = range.split_once('-')?;
                Some((start.parse::<u64>().ok()?, size.parse::<u64>().ok()?))
            });
            match parsed {
                Some((start, size)) if start == offset && size > offset => Ok((size, 0)),
                _ => Err(FetchError::Permanent(
                    "the server's answer is not the part that was asked for".to_owned(),
                )),
            }
        }
        status => {
            let text = format!("the server answers {status}");
            let may_pass = status.is_server_error()
                || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
            Err(if may_pass { FetchError::Transient(text) } else { FetchError::Permanent(text) })
        }
    }
}

/// What went wrong, without the URL.
fn explain(error: &ureq::Error) -> FetchError {
    use ureq::Error;
    match error {
        Error::Other(error) if error.is::<NotPermitted>() => FetchError::NotPermitted,
        Error::BadUri(_) | Error::Http(_) => FetchError::Permanent("url: it is not valid".to_owned()),
        Error::TooManyRedirects | Error::RedirectFailed => FetchError::Permanent(format!(
            "the server points elsewhere more than {REDIRECTS_MAX} times, or badly"
        )),
        Error::Tls(problem) => FetchError::Permanent(format!("TLS: {problem}")),
        Error::Rustls(error) => FetchError::Permanent(format!("TLS: {error}")),
        Error::HostNotFound => FetchError::Transient("the server's name is not known".to_owned()),
        Error::ConnectionFailed => FetchError::Transient("no connection to the server".to_owned()),
        Error::Timeout(what) => FetchError::Transient(format!("no answer in time ({what})")),
        Error::Io(error) => FetchError::Transient(error.to_string()),
        _ => FetchError::Transient("the server's answer cannot be understood".to_owned()),
    }
}

/// The URL without user and password, and these as a header.
fn split_credentials(url: &str) -> Result<(Uri, Option<String>), FetchError> {
    let invalid = || FetchError::Permanent("url: it is not valid".to_owned());
    let (scheme, rest) = url.split_once("://").ok_or_else(invalid)?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let path = path.split('#').next().unwrap_or_default();
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let uri: Uri = format!("{scheme}://{host}{path}").parse().map_err(|_| invalid())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(invalid());
    }
    let user = user.map(|user| if user.contains(':') { decode(user) } else { format!("{}:", decode(user)) });
    Ok((uri, user.map(|user| format!("Basic {}", base64(user.as_bytes())))))
}

/// `%40` is `@`.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let decoded = hex.filter(|_| *byte == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(decoded.unwrap_or(*byte));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let value = usize::try_from(bits >> (18 - 6 * digit) & 63).expect("6 bits");
            text.push(if digit <= group.len() { char::from(DIGITS[value]) } else { '=' });
        }
    }
    text
}

/// A body that is read on another thread, so that one that stands still can be given up.
pub(super) struct Chunks<'a> {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    taken: usize,
    observer: &'a dyn Observer,
}

impl<'a> Chunks<'a> {
    fn start(body: Body, observer: &'a dyn Observer) -> Self {
        let (sender, chunks) = mpsc::sync_channel(CHUNKS_AHEAD);
        // Ends with the body, its time limit, or when nobody reads any more.
        thread::spawn(move || {
            let mut reader = body.into_reader();
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let read = reader.read(&mut chunk).map(|count| {
                    chunk.truncate(count);
                    chunk
                });
                let last = read.as_ref().map_or(true, Vec::is_empty);
                if sender.send(read).is_err() || last {
                    return;
                }
            }
        });
        Self { chunks, chunk: Vec::new(), taken: 0, observer }
    }

    fn next(&mut self) -> io::Result<Vec<u8>> {
        let begun = Instant::now();
        loop {
            match self.chunks.recv_timeout(LOOK) {
                Ok(chunk) => return chunk,
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(Vec::new()),
                Err(mpsc::RecvTimeoutError::Timeout) if self.observer.is_cancelled() => {
                    return Err(io::Error::other("cancelled"));
                }
                Err(mpsc::RecvTimeoutError::Timeout) if begun.elapsed() >= IDLE_MAX => {
                    let text = format!("the server sent nothing for {} s", IDLE_MAX.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.chunk.len() {
            (self.chunk, self.taken) = (self.next()?, 0);
        }
        let left = &self.chunk[self.taken..];
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.taken += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expect: &str, header: Option<&str>) {
        let (uri, authorization) = split_credentials(url).unwrap();
        assert_eq!((uri.to_string().as_str(), authorization.as_deref()), (expect, header), "{url}");
    }

    #[test]
    fn credentials_become_a_header() {
        check("http://example.org/a?b=c#d", "http://example.org/a?b=c", None);
        check("https://u:p%40ss@example.org:8443/a", "https://example.org:8443/a", Some("Basic dTpwQHNz"));
        check("https://user@example.org/", "https://example.org/", Some("Basic dXNlcjo="));
        for bad in ["example.org", "ftp://example.org/a", "http://", "http:///a", "http://u:p@/a"] {
            assert!(split_credentials(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, expect) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(text.as_bytes()), expect);
        }
    }
}
