//! Names of interfaces.

use std::{fmt, str::FromStr};

/// Longest name of an interface: the kernel's IFNAMSIZ without the zero that ends it.
const LEN_MAX: usize = 15;

/// The name of a network interface: 1 to 15 letters, digits, `-`, `_` or `.`, of which not all are dots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TapName(String);

/// A text that is not an interface's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an interface's name: give 1 to 15 letters, digits, '-', '_' or '.'")]
pub struct NameError(String);

impl TapName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TapName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let good = (1..=LEN_MAX).contains(&text.len())
            && text.chars().all(is_allowed)
            && !text.chars().all(|c| c == '.');
        if good { Ok(Self(text.to_owned())) } else { Err(NameError(text.to_owned())) }
    }
}

impl fmt::Display for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_kernel_takes_and_no_path() {
        for good in ["tap0", "dr-0123456789ab", "a", "vm_1.2"] {
            assert_eq!(good.parse::<TapName>().unwrap().as_str(), good);
        }
        for bad in ["", "0123456789abcdef", "a b", "..", "a/b", "tap%d", "é"] {
            assert!(bad.parse::<TapName>().is_err(), "{bad}");
        }
    }
}
