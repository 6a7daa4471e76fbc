//! Identifiers of the things Drover manages. Each is its own type, so that none can be passed for another.
//!
//! Ids are UUIDs in canonical text form on every wire and in every table. Creating a random one is an effect and
//! belongs to drivers: [`VmId::from_u128`] takes the randomness as an argument.
#![forbid(unsafe_code)]

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// A text that is not an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseIdError {
    kind: &'static str,
    text: String,
}

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Bounded: the text may come from a peer.
        let shown: String = self.text.chars().take(64).collect();
        write!(
            f,
            "'{shown}' is not a {} id: expected a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057",
            self.kind
        )
    }
}

impl std::error::Error for ParseIdError {}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// An id from 128 bits of the caller's choosing.
            pub const fn from_u128(bits: u128) -> Self {
                Self(Uuid::from_u128(bits))
            }
            /// The id's 128 bits.
            pub const fn as_u128(self) -> u128 {
                self.0.as_u128()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::try_parse(text)
                    .map(Self)
                    .map_err(|_| ParseIdError { kind: $kind, text: text.to_owned() })
            }
        }
    };
}

id! {
    /// A virtual machine, for its whole life, wherever it runs.
    VmId, "VM"
}
id! {
    /// A host with a node agent. Chosen once, kept in the agent's state directory.
    NodeId, "node"
}
id! {
    /// A volume.
    VolumeId, "volume"
}
id! {
    /// A snapshot of a volume.
    SnapshotId, "snapshot"
}
id! {
    /// A project: who pays and who may.
    ProjectId, "project"
}
id! {
    /// One attempt to move one VM.
    MigrationId, "migration"
}
id! {
    /// A long-running operation, and the key that makes its effects idempotent (B8).
    OperationId, "operation"
}

/// A text that is no [`ImageDigest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseDigestError {
    text: String,
}

impl fmt::Display for ParseDigestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Bounded: the text may come from a peer.
        let shown: String = self.text.chars().take(80).collect();
        write!(f, "'{shown}' is not a SHA-256: expected 64 hexadecimal digits")
    }
}

impl std::error::Error for ParseDigestError {}

/// What a disk image is, wherever it is and whatever it is called: the SHA-256 of the file it was made from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageDigest([u8; 32]);

impl ImageDigest {
    /// A hash that has been computed.
    pub const fn new(sha256: [u8; 32]) -> Self {
        Self(sha256)
    }
    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ImageDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ImageDigest({self})")
    }
}

impl FromStr for ImageDigest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let parse = || {
            let (pairs, rest) = text.as_bytes().as_chunks::<2>();
            let pairs: &[[u8; 2]; 32] = pairs.try_into().ok().filter(|_| rest.is_empty())?;
            let mut sha256 = [0; 32];
            for (byte, [high, low]) in sha256.iter_mut().zip(pairs) {
                *byte = digit(*high)? << 4 | digit(*low)?;
            }
            Some(Self(sha256))
        };
        parse().ok_or_else(|| ParseDigestError { text: text.to_owned() })
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a stored value.
            pub const fn new(value: u64) -> Self {
                Self(value)
            }
            /// The number.
            pub const fn get(self) -> u64 {
                self.0
            }
            /// The one after this.
            ///
            /// # Panics
            /// After 2^64 steps, which no cluster takes.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("2^64 steps are never taken"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

counter! {
    /// The right to run a VM, together with a node: grows by compare-and-swap only, and whoever holds an older one
    /// is refused everywhere (B6). Zero is held by nobody.
    OwnerEpoch
}
counter! {
    /// How often the desired state of a resource has been changed.
    Generation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text_form() {
        let id = VmId::from_u128(0x0189_0a5d_ac96_774b_bcce_b302_099a_8057);
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn a_digest_survives_its_text_form_in_either_case() {
        let digest = ImageDigest::new(std::array::from_fn(|at| u8::try_from(at * 7 % 256).unwrap()));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(digest.to_string().to_uppercase().parse(), Ok(digest));
        for bad in ["", "ab", &"g0".repeat(32), &"00".repeat(33), &"0".repeat(63)] {
            assert!(bad.parse::<ImageDigest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hostile_text_is_refused_with_a_short_message() {
        let error = "x".repeat(1 << 20).parse::<NodeId>().unwrap_err();
        assert!(error.to_string().len() < 200, "{error}");
    }
}
