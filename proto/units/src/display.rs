//! Text forms: what people read and type.

use std::{fmt, str::FromStr};

use crate::{Bytes, BytesPerSec, Gpa, Pages, Sectors, VcpuCount};

const PREFIXES: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.get();
        match PREFIXES.iter().find(|(unit, _)| n >= *unit) {
            Some((unit, name)) if n.is_multiple_of(*unit) => write!(f, "{} {name}", n / unit),
            Some((unit, name)) => write!(f, "{:.1} {name}", n as f64 / *unit as f64),
            None => write!(f, "{n} B"),
        }
    }
}

impl fmt::Display for BytesPerSec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Bytes::new(self.get()))
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.get())
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} pages", self.get())
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sectors", self.get())
    }
}

impl fmt::Display for VcpuCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

/// A text that is not a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseBytesError {
    text: String,
}

impl fmt::Display for ParseBytesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is not a size: give a whole number with an optional suffix K, M, G or T (powers of 1024), \
             for example 256M",
            self.text
        )
    }
}

impl std::error::Error for ParseBytesError {}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    /// Accepts `4096`, `4K`, `4KiB`, `4 KiB`, upper or lower case.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseBytesError { text: text.to_owned() };
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let number: u64 = trimmed[..digits].parse().map_err(|_| error())?;
        let shift = match trimmed[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(error()),
        };
        number.checked_mul(1 << shift).map(Bytes::new).ok_or_else(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<u64>) {
        assert_eq!(text.parse::<Bytes>().ok().map(Bytes::get), expect, "{text}");
    }

    #[test]
    fn sizes_parse_with_and_without_suffix() {
        check("0", Some(0));
        check("4096", Some(4096));
        check("4k", Some(4096));
        check(" 256MiB ", Some(256 << 20));
        check("2 G", Some(2 << 30));
        check("", None);
        check("-1", None);
        check("1.5G", None);
        check("1 parsec", None);
        check("99999999999T", None);
    }

    #[test]
    fn sizes_display_in_the_largest_whole_unit() {
        assert_eq!(Bytes::mib(256).to_string(), "256 MiB");
        assert_eq!(Bytes::new(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes::new(17).to_string(), "17 B");
    }
}
