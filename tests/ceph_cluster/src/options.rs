//! What a cluster should be like.

/// How a cluster is built. [`Default`] is one OSD with everything set for speed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CephOptions {
    /// Number of OSDs, each on a CRUSH host of its own; 1 to 9.
    pub osds: u16,
    /// How long the monitor waits before it proposes a change of a map.
    pub paxos: Paxos,
    /// How soon a silent OSD is noticed.
    pub heartbeats: Heartbeats,
    /// Size of each OSD's block file in bytes. The file is sparse and lies in memory. An OSD dies when it is full: allow four
    /// times the data it will hold.
    pub osd_bytes: u64,
    /// The pool that exists from the start.
    pub pool: PoolOptions,
    /// Lines appended to the configuration's `[global]` section, such as `ms client mode = secure`.
    pub extra_global: Vec<String>,
}

impl Default for CephOptions {
    fn default() -> Self {
        Self {
            osds: 1,
            paxos: Paxos::Fast,
            heartbeats: Heartbeats::Fast,
            osd_bytes: 8 << 30,
            pool: PoolOptions::named("rbd"),
            extra_global: Vec::new(),
        }
    }
}

impl CephOptions {
    /// Three OSDs; pools keep three copies and go on with two.
    #[must_use]
    pub fn three_osds() -> Self {
        Self { osds: 3, ..Self::default() }
    }

    /// The same with the monitor settings of a cluster in production.
    #[must_use]
    pub fn stock_paxos(self) -> Self {
        Self { paxos: Paxos::Stock, ..self }
    }
}

/// The monitor's `paxos propose interval` and `paxos min wait`: every change of a map, fencing too, waits for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paxos {
    /// 20 ms and 10 ms: tests do not wait for a batch that never comes.
    Fast,
    /// Ceph's defaults, 1 s and 50 ms: what a cluster in production does.
    Stock,
}

/// When a silent OSD is reported, and when the monitor believes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heartbeats {
    /// Interval 1 s, grace 3 s; a monitor that is back is found within half a second.
    Fast,
    /// Ceph's defaults: interval 6 s, grace 20 s.
    Stock,
}

/// A replicated pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// Its name.
    pub name: String,
    /// Copies of each object. `None`: one per OSD, at most three.
    pub size: Option<u16>,
    /// Copies without which I/O waits. `None`: 2 of 3, else 1.
    pub min_size: Option<u16>,
}

impl PoolOptions {
    /// A pool with as many copies as there are OSDs, at most three.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), size: None, min_size: None }
    }

    /// Copies on a cluster of `osds`.
    pub(crate) fn resolved(&self, osds: u16) -> (u16, u16) {
        let size = self.size.unwrap_or(osds.min(3));
        (size, self.min_size.unwrap_or(if size >= 3 { 2 } else { 1 }))
    }
}
