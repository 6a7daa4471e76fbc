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
    fn a_hostile_text_is_refused_with_a_short_message() {
        let error = "x".repeat(1 << 20).parse::<NodeId>().unwrap_err();
        assert!(error.to_string().len() < 200, "{error}");
    }
}
