//! A connection to a cluster.

use std::{fmt, os::unix::ffi::OsStrExt, sync::Arc};

use serde::Deserialize;

use crate::{
    ClientAddress, ConnectConfig, Error, Library, Source,
    ffi::{c_string, cluster::RawCluster},
};

/// A connected client: one `rados_t`, with 13 threads of its own. Clones share it; it closes with the last of clones,
/// pools and images.
#[derive(Clone)]
pub struct Cluster {
    raw: Arc<RawCluster>,
}

/// What a cluster's OSDs and clients agree on, numbered. A blocklist entry is part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OsdMapEpoch(pub u64);

/// How full a cluster is, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterUsage {
    /// All devices together.
    pub total: u64,
    /// Used, replicas included.
    pub used: u64,
    /// Free, before replication.
    pub available: u64,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("instance", &self.raw.instance()).finish()
    }
}

impl Cluster {
    /// Connects. Waits at most [`Timeouts::connect`](crate::Timeouts::connect).
    ///
    /// # Errors
    /// [`Error::is_timed_out`] where no monitor answers, [`Error::is_denied`] where the key is wrong.
    pub fn connect(library: &'static Library, config: &ConnectConfig) -> Result<Self, Error> {
        let user = match &config.source {
            Source::ConfFile { user, .. } | Source::Monitors { user, .. } => format!("client.{user}"),
        };
        let refused = |operation, subject: &str| {
            let subject = subject.to_owned();
            move |answer: i32| Error::refused(operation, subject, answer)
        };
        let raw =
            RawCluster::create(library, &c_string("the user", &user)?).map_err(refused("become", &user))?;
        if let Source::ConfFile { path, .. } = &config.source {
            let name = path.display().to_string();
            let path = std::ffi::CString::new(path.as_os_str().as_bytes())
                .map_err(|_| Error::NulByte { what: "the configuration file's path" })?;
            check(raw.read_file(&path)).map_err(refused("read Ceph's configuration", &name))?;
        }
        for (name, value) in config.all_options() {
            let value = c_string("an option's value", &value)?;
            // The value may be a key, so it is not named.
            check(raw.set_option(&c_string("an option's name", &name)?, &value))
                .map_err(refused("set Ceph's option", &name))?;
        }
        check(raw.connect()).map_err(refused("connect to the Ceph cluster as", &user))?;
        Ok(Self { raw: Arc::new(raw) })
    }

    pub(crate) fn raw(&self) -> &Arc<RawCluster> {
        &self.raw
    }

    /// The cluster's id, a UUID.
    pub fn fsid(&self) -> Result<String, Error> {
        self.raw.fsid().map_err(|answer| Error::refused("read the id of", "the cluster", answer))
    }

    /// The addresses that the cluster knows this client by: what a fence must name.
    pub fn addresses(&self) -> Result<Vec<ClientAddress>, Error> {
        let operation = "read the addresses of";
        let text = self.raw.addresses().map_err(|answer| Error::refused(operation, "this client", answer))?;
        ClientAddress::parse_list(&text)
            .map_err(|error| Error::Answer { operation, reason: error.to_string() })
    }

    /// The client's number, as in `client.4242`.
    pub fn instance(&self) -> u64 {
        self.raw.instance()
    }

    /// Waits until this client has the newest map there is: what it does from now on, OSDs do in the light of every
    /// blocklist entry that was made before this call.
    pub fn wait_for_latest_osdmap(&self) -> Result<(), Error> {
        check(self.raw.wait_for_latest_osdmap())
            .map_err(|answer| Error::refused("wait for the newest map of", "the cluster", answer))
    }

    /// The number of the newest map.
    pub fn osdmap_epoch(&self) -> Result<OsdMapEpoch, Error> {
        #[derive(Deserialize)]
        struct OsdStat {
            epoch: u64,
        }
        let operation = "osd stat";
        let answer = self.command(&serde_json::json!({"prefix": operation, "format": "json"}))?;
        let stat: OsdStat = serde_json::from_slice(&answer)
            .map_err(|error| Error::Answer { operation, reason: error.to_string() })?;
        Ok(OsdMapEpoch(stat.epoch))
    }

    /// Runs a monitor command, for instance `{"prefix": "osd stat", "format": "json"}`, and returns what it prints.
    ///
    /// # Errors
    /// [`Error::Command`] with the monitors' own words.
    pub fn command(&self, command: &serde_json::Value) -> Result<Vec<u8>, Error> {
        let answer = self.raw.monitor_command(&c_string("a command", &command.to_string())?);
        if answer.code < 0 {
            // The prefix only: a command's arguments may hold a key.
            let prefix = command.get("prefix").and_then(serde_json::Value::as_str).unwrap_or("?");
            return Err(Error::Command {
                command: prefix.to_owned(),
                reason: answer.status,
                errno: crate::error::errno(answer.code.into()),
            });
        }
        Ok(answer.output)
    }

    /// How full the cluster is.
    pub fn usage(&self) -> Result<ClusterUsage, Error> {
        let stat =
            self.raw.stat().map_err(|answer| Error::refused("read the usage of", "the cluster", answer))?;
        let bytes = |kib: u64| kib.saturating_mul(1024);
        Ok(ClusterUsage {
            total: bytes(stat.total_kib),
            used: bytes(stat.used_kib),
            available: bytes(stat.available_kib),
        })
    }

    /// The names of the cluster's pools.
    pub fn pools(&self) -> Result<Vec<String>, Error> {
        self.raw.pools().map_err(|answer| Error::refused("list the pools of", "the cluster", answer))
    }
}

/// A negative answer is an error.
pub(crate) fn check(answer: i32) -> Result<(), i32> {
    if answer < 0 { Err(answer) } else { Ok(()) }
}
