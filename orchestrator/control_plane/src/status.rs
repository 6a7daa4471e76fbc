//! Errors as gRPC statuses: the code says what a caller can do, the message which field and what would be valid.

use drover_driver::{DriverGone, SubmitError};
use drover_reconcile::admission::{AdmissionError, Category};
use tonic::{Code, Status};

/// Longest message that is sent, bytes: it travels as an HTTP/2 header.
const MESSAGE_BYTES_MAX: usize = 2048;

/// A status with a bounded message.
pub(crate) fn status(code: Code, message: impl Into<String>) -> Status {
    let mut message: String = message.into();
    if message.len() > MESSAGE_BYTES_MAX {
        let cut = (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(cut);
        message.push('…');
    }
    Status::new(code, message)
}

/// A field that has no valid value.
pub(crate) fn invalid(field: &str, problem: impl std::fmt::Display, valid: &str) -> Status {
    status(Code::InvalidArgument, format!("{field}: {problem}; valid: {valid}"))
}

/// Something that is not there.
pub(crate) fn no_such(field: &str, kind: &str, text: &str) -> Status {
    // Bounded: the text comes from a client.
    let shown: String = text.chars().take(80).collect();
    let list = kind.to_lowercase();
    status(
        Code::NotFound,
        format!("{field}: there is no {kind} '{shown}'; `drover {list} list` shows what there is"),
    )
}

/// A refused request.
pub(crate) fn refused(error: &AdmissionError) -> Status {
    let code = match error.category() {
        Category::InvalidArgument => Code::InvalidArgument,
        Category::NotFound => Code::NotFound,
        Category::AlreadyExists => Code::AlreadyExists,
        Category::FailedPrecondition => Code::FailedPrecondition,
        Category::ResourceExhausted => Code::ResourceExhausted,
    };
    status(code, error.to_string())
}

/// A process that is about to end; clients try again.
pub(crate) fn gone(error: DriverGone) -> Status {
    status(Code::Unavailable, error.to_string())
}

/// A request that was not carried out.
pub(crate) fn submit_failed(error: SubmitError<AdmissionError>) -> Status {
    match error {
        SubmitError::Refused(error) => refused(&error),
        SubmitError::Contended => status(Code::Aborted, error.to_string()),
        // The request id makes it safe to ask again.
        SubmitError::Unknown(_) => status(Code::Unavailable, error.to_string()),
        SubmitError::Gone(error) => gone(error),
    }
}

/// An error with its causes, in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_between_characters() {
        let long = status(Code::Internal, "ä".repeat(MESSAGE_BYTES_MAX));
        assert!(long.message().len() <= MESSAGE_BYTES_MAX + '…'.len_utf8());
        assert!(long.message().ends_with("ä…"));
        assert_eq!(status(Code::Internal, "short").message(), "short");
    }
}
