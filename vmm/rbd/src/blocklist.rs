//! The clients that a cluster's OSDs refuse.

use std::time::Duration;

use serde::Deserialize;

use crate::{ClientAddress, Cluster, Error, cluster::check, ffi::c_string};

/// One refused client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlocklistEntry {
    /// Which.
    pub address: ClientAddress,
    /// When it ends, as the monitors write it: after that the client may do I/O again, if it still lives.
    pub until: String,
}

impl Cluster {
    /// Refuses a client for as long as `lasts`: its requests, those under way included, fail with `ESHUTDOWN`. Repeating
    /// it starts the time anew. Needs a key with that right.
    ///
    /// When this returns, this client has the map with the entry. It holds for whatever an OSD does after it has
    /// served a client with that map: see [`Cluster::wait_for_latest_osdmap`].
    ///
    /// Takes one round of the monitors: up to a second with Ceph's own settings. Several calls at once share a round.
    pub fn blocklist_add(&self, address: ClientAddress, lasts: Duration) -> Result<(), Error> {
        let text = address.to_string();
        // A fraction of a second would round to none, which means "the default".
        let seconds = u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX).max(1);
        check(self.raw().blocklist_add(&c_string("an address", &text)?, seconds))
            .map_err(|answer| Error::refused("blocklist", text, answer))
    }

    /// Lets a client in again. Idempotent.
    pub fn blocklist_remove(&self, address: ClientAddress) -> Result<(), Error> {
        let command = serde_json::json!({
            "prefix": "osd blocklist",
            "blocklistop": "rm",
            "addr": address.to_string(),
        });
        self.command(&command).map(drop)
    }

    /// Every entry there is, whoever made it.
    pub fn blocklist(&self) -> Result<Vec<BlocklistEntry>, Error> {
        #[derive(Deserialize)]
        struct Entry {
            addr: String,
            until: String,
        }
        let operation = "osd blocklist ls";
        let answer = self.command(&serde_json::json!({"prefix": operation, "format": "json"}))?;
        let damaged = |reason: String| Error::Answer { operation, reason };
        // Two lists follow each other: clients, and ranges of addresses, which are nothing of ours.
        let mut lists = serde_json::Deserializer::from_slice(&answer).into_iter::<Vec<Entry>>();
        let entries =
            lists.next().transpose().map_err(|error| damaged(error.to_string()))?.unwrap_or_default();
        let entry = |entry: Entry| match entry.addr.parse() {
            Ok(address) => Ok(BlocklistEntry { address, until: entry.until }),
            Err(error) => Err(damaged(format!("{error}"))),
        };
        entries.into_iter().map(entry).collect()
    }
}
