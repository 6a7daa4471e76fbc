//! How to reach a cluster.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::Secret;

/// Where a cluster is, and who we are to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// What a configuration file says, as for Ceph's own tools. It names the keyring.
    ConfFile {
        /// The file.
        path: PathBuf,
        /// The user, without `client.`, for instance `admin`.
        user: String,
    },
    /// What a pool's definition says; no file is read.
    Monitors {
        /// As in `mon_host`: addresses with commas between them, for instance `[v2:10.0.0.1:3300/0]`.
        hosts: String,
        /// The user, without `client.`.
        user: String,
        /// The user's key, as in a keyring.
        key: Secret,
    },
}

/// How long things may take, in whole seconds, rounded up. Without a limit they wait for ever: librbd tries again by
/// itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the first monitor has answered. Ceph's own default is 300 s.
    pub connect: Duration,
    /// A command to the monitors, blocklisting included.
    pub monitor: Option<Duration>,
    /// One request to an OSD. A write that has timed out may still happen, so disks have no limit: prefer waiting.
    pub osd: Option<Duration>,
}

impl Default for Timeouts {
    /// For disks: 10 s to connect (a healthy monitor answers within one), no limit for the rest.
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), monitor: None, osd: None }
    }
}

/// All there is to say about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectConfig {
    /// Where, and as whom.
    pub source: Source,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// Ceph's own options, by name, for instance `rbd_cache`. They win over everything else.
    pub options: BTreeMap<String, String>,
}

impl ConnectConfig {
    /// A connection with the timeouts and options that suit disks.
    pub fn new(source: Source) -> Self {
        Self { source, timeouts: Timeouts::default(), options: BTreeMap::new() }
    }

    /// For I/O that comes from so many processors. What one or two of them ask for keeps one thread of each kind busy; where
    /// Ceph has its usual two and three, they wake each other for every request, which costs a fifth of its CPU time.
    pub fn for_processors(mut self, processors: u32) -> Self {
        if processors <= ONE_THREAD_PROCESSORS {
            for name in ["librados_thread_count", "ms_async_op_threads"] {
                self.options.entry(name.into()).or_insert_with(|| "1".into());
            }
        }
        self
    }

    /// Ceph's options, in the order in which they are set: the later ones win.
    pub(crate) fn all_options(&self) -> Vec<(String, String)> {
        let mut options: Vec<(String, String)> =
            DEFAULTS.map(|(name, value)| (name.into(), value.into())).into();
        options.extend(QUIET.map(|subsystem| (format!("debug_{subsystem}"), "0/0".into())));
        if let Source::Monitors { hosts, key, .. } = &self.source {
            options.push(("mon_host".into(), hosts.clone()));
            options.push(("key".into(), key.reveal().to_owned()));
        }
        // Whole seconds, since not every release reads fractions; rounded up, since zero means "no limit".
        let seconds = |limit: Duration| limit.as_millis().div_ceil(1000).max(1).to_string();
        options.push(("client_mount_timeout".into(), seconds(self.timeouts.connect)));
        if let Some(limit) = self.timeouts.monitor {
            options.push(("rados_mon_op_timeout".into(), seconds(limit)));
        }
        if let Some(limit) = self.timeouts.osd {
            options.push(("rados_osd_op_timeout".into(), seconds(limit)));
        }
        options.extend(self.options.iter().map(|(name, value)| (name.clone(), value.clone())));
        options
    }
}

/// Discards have an effect on whole multiples of this, bytes.
pub const DISCARD_GRANULARITY: u64 = 65536;

/// How many processors one thread of librados keeps up with: it spends some 20 us on a request of 4 KiB, and a processor of a
/// guest asks for no more than it can take back.
const ONE_THREAD_PROCESSORS: u32 = 2;

/// What we want to be otherwise than Ceph's own defaults.
const DEFAULTS: [(&str, &str); 4] = [
    // A guest has a cache of its own, and with librbd's a flush can take seconds at depth 32.
    ("rbd_cache", "false"),
    // Breaking a dead owner's lock must not need the right to blocklist: whoever holds that right has done it before.
    ("rbd_blocklist_on_break_lock", "false"),
    // Smaller pieces of a discard are not worth an operation on an object. Ceph's default, made certain: it is what
    // disks advertise.
    ("rbd_discard_granularity_bytes", "65536"),
    // Nobody asks this process through Ceph's admin socket.
    ("admin_socket", ""),
];

/// Parts of the client that every request passes. They keep what they would log in memory, for the log of a crash, which
/// costs a disk a few percent of its CPU time and tells of nothing but requests that went well.
const QUIET: [&str; 8] =
    ["rbd", "rados", "objecter", "objectcacher", "ms", "throttle", "finisher", "striper"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_options_win() {
        let source = Source::Monitors {
            hosts: "[v2:127.0.0.1:3300/0]".into(),
            user: "drover".into(),
            key: Secret::new("AQB9"),
        };
        let mut config = ConnectConfig::new(source);
        config.timeouts.osd = Some(Duration::from_millis(2500));
        config.options.insert("rbd_cache".into(), "true".into());
        let options = config.all_options();
        let last =
            |name: &str| options.iter().rfind(|option| option.0 == name).map(|option| option.1.as_str());
        assert_eq!(last("rbd_cache"), Some("true"));
        assert_eq!(last("mon_host"), Some("[v2:127.0.0.1:3300/0]"));
        assert_eq!(last("client_mount_timeout"), Some("10"));
        assert_eq!(last("rados_osd_op_timeout"), Some("3"), "rounded up");
        assert_eq!(last("rados_mon_op_timeout"), None);
        assert_eq!(last("debug_rbd"), Some("0/0"));
        assert!(!format!("{config:?}").contains("AQB9"), "{config:?}");
    }

    #[test]
    fn few_processors_have_few_threads() {
        let threads = |config: &ConnectConfig| config.options.get("librados_thread_count").cloned();
        let config =
            ConnectConfig::new(Source::ConfFile { path: "/etc/ceph/ceph.conf".into(), user: "admin".into() });
        assert_eq!(threads(&config.clone().for_processors(2)).as_deref(), Some("1"));
        assert_eq!(threads(&config.clone().for_processors(3)), None, "as Ceph has it");
        let mut asked = config;
        asked.options.insert("librados_thread_count".into(), "4".into());
        assert_eq!(threads(&asked.for_processors(1)).as_deref(), Some("4"), "the caller's options win");
    }
}
