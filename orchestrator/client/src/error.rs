//! What can go wrong, sorted by what the caller can do about it.

use std::{error::Error as StdError, io, time::Duration};

use tonic::{Code, Status};

use crate::api::Operation;

/// Why a call did not give what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address of the server is not one.
    #[error("'{server}' is not a server address: give a URL such as http://127.0.0.1:7400")]
    InvalidServer {
        /// What was given.
        server: String,
    },
    /// No answer: nobody listens, the connection broke, or the deadline of the call passed. A mutation may or may
    /// not have happened; repeating it with the same request id is safe.
    #[error("the control plane at {server} cannot be reached: {reason}")]
    Unreachable {
        /// The address that was tried.
        server: String,
        /// The last failure, for people.
        reason: String,
    },
    /// What was named does not exist.
    #[error("{message}")]
    NotFound {
        /// The server's words.
        message: String,
    },
    /// The request is malformed; the message names the field and what would be valid.
    #[error("{message}")]
    InvalidArgument {
        /// The server's words.
        message: String,
    },
    /// The server understood and refused.
    #[error("{message}")]
    Refused {
        /// The gRPC code.
        code: Code,
        /// The server's words.
        message: String,
    },
    /// The operation ended as failed.
    #[error("{} of {} failed: {}", .0.kind, .0.subject_name, .0.reason)]
    OperationFailed(Box<Operation>),
    /// The operation was cancelled.
    #[error("{} of {} was cancelled: {}", .0.kind, .0.subject_name, .0.reason)]
    OperationCancelled(Box<Operation>),
    /// The operation goes on, but the caller's patience has ended.
    #[error("operation {id} has not ended within {waited:?}; it goes on")]
    WaitTimeout {
        /// The operation, which can still be watched or cancelled.
        id: String,
        /// How long this call waited.
        waited: Duration,
    },
    /// What was to be imported cannot be read.
    #[error("cannot read what is to be imported")]
    ReadSource(#[source] io::Error),
    /// A list did not end within the number of pages the client accepts.
    #[error("the server's list of {what} does not end")]
    EndlessList {
        /// What was listed.
        what: &'static str,
    },
}

impl Error {
    /// The error for a status that arrived, or that the transport made up.
    pub(crate) fn from_status(server: &str, status: &Status) -> Self {
        let message = status.message().to_owned();
        if connection_lost(status) {
            return Self::Unreachable { server: server.to_owned(), reason: innermost(status) };
        }
        match status.code() {
            Code::NotFound => Self::NotFound { message },
            Code::InvalidArgument => Self::InvalidArgument { message },
            code => {
                Self::Refused { code, message: if message.is_empty() { code.to_string() } else { message } }
            }
        }
    }

    /// The error that ended a stream of `client`'s.
    #[must_use]
    pub fn from_stream(client: &crate::Client, status: &Status) -> Self {
        client.error(status)
    }

    /// Whether the server was not reached, so that an idempotent call may be repeated.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// Whether the call failed on its way, rather than by the server's word: UNAVAILABLE, or a status that the transport
/// made from an I/O error (those have a source; statuses from the wire have none).
fn connection_lost(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => true,
        Code::Unknown | Code::Internal | Code::Cancelled => status.source().is_some(),
        _ => false,
    }
}

/// The last cause in the chain: "Connection refused" says more than "transport error".
fn innermost(status: &Status) -> String {
    let mut cause: &dyn StdError = status;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if std::ptr::addr_eq(cause, status) { status.message().to_owned() } else { cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: &Status, expect: fn(&Error) -> bool) {
        let error = Error::from_status("http://x", status);
        assert!(expect(&error), "{error:?}");
    }

    #[test]
    fn statuses_are_sorted_by_what_the_caller_can_do() {
        check(&Status::not_found("vm 'a' does not exist"), |e| matches!(e, Error::NotFound { .. }));
        check(&Status::invalid_argument("memory"), |e| matches!(e, Error::InvalidArgument { .. }));
        check(&Status::unavailable("going down"), Error::is_unreachable);
        check(&Status::unknown("the server's own bug"), |e| matches!(e, Error::Refused { .. }));
        check(&Status::from_error(Box::new(io::Error::from(io::ErrorKind::ConnectionReset))), |e| {
            e.is_unreachable()
        });
    }

    #[test]
    fn a_refusal_without_words_names_its_code() {
        let error = Error::from_status("http://x", &Status::failed_precondition(""));
        assert!(!error.to_string().is_empty());
    }
}
