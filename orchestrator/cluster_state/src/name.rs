//! Names that people give to resources.

use std::{fmt, str::FromStr};

/// Longest name, characters. The length of a DNS label, so that a name can become part of a host name.
pub const NAME_LEN_MAX: usize = 63;

/// A name of a VM, node, volume, pool, image or group: 1 to 63 characters from `A-Z a-z 0-9 . _ -`, the first a letter
/// or a digit. Such a name is safe in a path, a URL and a shell.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// A text that is not a [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{shown}' is not a name: use 1 to {NAME_LEN_MAX} letters, digits, '.', '_' or '-', starting with a letter or digit"
)]
pub struct NameError {
    shown: String,
}

impl Name {
    /// Checks and wraps `text`.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let starts_well = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if starts_well && text.len() <= NAME_LEN_MAX && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            // Bounded: the text comes from a client.
            Err(NameError { shown: text.chars().take(NAME_LEN_MAX + 1).collect() })
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: bool) {
        assert_eq!(Name::new(text).is_ok(), expect, "{text}");
    }

    #[test]
    fn names_are_safe_in_paths_and_shells() {
        check("web-1", true);
        check("0.disk_A", true);
        check("", false);
        check(".hidden", false);
        check("-rf", false);
        check("a/b", false);
        check("a b", false);
        check("größe", false);
        check(&"x".repeat(63), true);
        check(&"x".repeat(64), false);
    }
}
