//! Names of stored values.

use std::fmt;

/// Longest key, bytes. The longest we write, `vm/<uuid>`-like, is about 50.
pub const MAX_KEY_BYTES: usize = 256;

/// A text that is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key is 1 to {MAX_KEY_BYTES} visible ASCII characters, not {length} bytes starting with {start:?}")]
pub struct InvalidKey {
    length: usize,
    start: String,
}

/// The name of a stored value: segments joined by `/`, for example `vm/01890a5d-ac96-774b-bcce-b302099a8057`. Keys
/// order bytewise.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// Checks and wraps a text.
    ///
    /// # Errors
    /// An empty, overlong or not visibly-ASCII text.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidKey> {
        let text: String = text.into();
        let valid =
            (1..=MAX_KEY_BYTES).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if valid {
            Ok(Self(text.into_boxed_str()))
        } else {
            Err(InvalidKey { length: text.len(), start: text.chars().take(32).collect() })
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_short_visible_ascii() {
        assert_eq!(Key::new("vm/1").map(|key| key.to_string()), Ok("vm/1".to_owned()));
        for hostile in ["", "vm/\n", "vm 1", "vm/ä", &"k".repeat(MAX_KEY_BYTES + 1)] {
            assert!(Key::new(hostile).is_err(), "{hostile:?}");
        }
    }
}
