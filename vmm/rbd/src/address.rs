//! How a cluster knows a client: what its blocklist refuses.

use std::{fmt, net::SocketAddr, str::FromStr};

/// The address of one client instance: where it connects from, and a number that is new with every connection to a
/// cluster. It is what a lock's owner, a watcher and an entry of the blocklist are named by.
///
/// Written as Ceph does: `10.0.0.7:0/2987654321`. The type of messenger that some of Ceph's answers put in front
/// (`v2:`, `v1:`, `any:`) is not part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientAddress {
    socket: SocketAddr,
    nonce: u32,
}

/// A text that is not a client's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a client address, such as 10.0.0.7:0/2987654321")]
pub struct AddressError(String);

impl ClientAddress {
    /// From its parts. `nonce` 0 with port 0 stands for every client of the host.
    pub fn new(socket: SocketAddr, nonce: u32) -> Self {
        Self { socket, nonce }
    }
    /// Where the client connects from; the port is 0 for clients.
    pub fn socket(&self) -> SocketAddr {
        self.socket
    }
    /// The instance at that address.
    pub fn nonce(&self) -> u32 {
        self.nonce
    }

    /// Every address in a list as `rados_getaddrs` gives it: one, or several in brackets.
    pub(crate) fn parse_list(text: &str) -> Result<Vec<Self>, AddressError> {
        let inner = text.trim().trim_start_matches('[');
        // IPv6 addresses have brackets of their own: only the list's closing one follows a nonce.
        let inner = if text.trim().starts_with('[') && text.trim().ends_with(']') {
            inner.trim_end_matches(']')
        } else {
            text.trim()
        };
        inner.split(',').filter(|part| !part.is_empty()).map(str::parse).collect()
    }
}

impl FromStr for ClientAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        // Bounded: the text may come from a peer.
        let refused = || AddressError(text.chars().take(64).collect());
        let bare = ["v2:", "v1:", "any:"].iter().find_map(|kind| text.strip_prefix(kind)).unwrap_or(text);
        let (socket, nonce) = bare.rsplit_once('/').ok_or_else(refused)?;
        let socket = socket.parse().map_err(|_| refused())?;
        Ok(Self { socket, nonce: nonce.parse().map_err(|_| refused())? })
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.socket, self.nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &[&str]) {
        let found = ClientAddress::parse_list(text).unwrap();
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expect, "{text}");
    }

    #[test]
    fn addresses_are_read_in_every_form_that_ceph_writes() {
        check("127.0.0.1:0/2987654321", &["127.0.0.1:0/2987654321"]);
        check("v2:10.0.0.7:0/1", &["10.0.0.7:0/1"]);
        check("[v2:10.0.0.7:0/1,v1:10.0.0.7:6801/2]", &["10.0.0.7:0/1", "10.0.0.7:6801/2"]);
        check("any:[fe80::1]:0/9", &["[fe80::1]:0/9"]);
        check("[v2:[fe80::1]:0/9]", &["[fe80::1]:0/9"]);
        check("", &[]);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["-", "10.0.0.7", "10.0.0.7:0", "10.0.0.7:0/x", "10.0.0.7:0/99999999999", "x:0/1"] {
            assert!(text.parse::<ClientAddress>().is_err(), "{text}");
        }
    }
}
