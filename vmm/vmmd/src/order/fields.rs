//! The one way to say that a field is not valid.

use std::{fmt, str::FromStr};

/// Most of a hostile text that is repeated in an answer, characters.
const SHOWN_MAX: usize = 80;

/// A field that is not valid, and what would be. Becomes INVALID_ARGUMENT.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InvalidField(String);

impl InvalidField {
    /// An error whose text names the field already.
    pub(crate) fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string())
    }
}

/// `field` holds `found` where `expected` is needed.
pub(crate) fn invalid(field: &str, found: impl fmt::Display, expected: &str) -> InvalidField {
    let found: String = found.to_string().chars().take(SHOWN_MAX).collect();
    InvalidField(match found.as_str() {
        "is missing" => format!("{field} is missing: expected {expected}"),
        _ => format!("{field} is '{found}': expected {expected}"),
    })
}

/// The value of a field with a text form.
pub(crate) fn parsed<T: FromStr<Err: fmt::Display>>(field: &str, text: &str) -> Result<T, InvalidField> {
    text.parse().map_err(|error| InvalidField(format!("{field}: {error}")))
}
