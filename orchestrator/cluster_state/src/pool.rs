//! Storage pools that clients make. Those of the configuration are not stored.

use std::fmt;

use drover_ids::OperationId;

use crate::{Name, StallPolicy, WallTime};

/// A text that must not be seen: it shows itself in no log, error or answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for whoever must present it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// How nodes reach a pool of RBD images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolAccess {
    /// The cluster's monitors, as Ceph's `mon_host`.
    pub mon_hosts: String,
    /// Ceph's name of the pool.
    pub ceph_pool: String,
    /// Its namespace. Empty: the default one.
    pub namespace: String,
    /// The Ceph user, without "client.".
    pub user: String,
    /// Its key. It can use the images of this pool, and cannot fence anybody.
    pub key: Secret,
    /// For VMs that do not say themselves what becomes of them when the storage does not answer.
    pub stall: Option<StallPolicy>,
}

/// Where a pool of RBD images is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RbdPool {
    /// The Ceph cluster, by its name in the control plane's configuration.
    pub cluster: Name,
    /// Ceph's name of the pool.
    pub ceph_pool: String,
    /// Its namespace. Empty: the default one.
    pub namespace: String,
    /// The Ceph user of the nodes, without "client.".
    pub user: String,
    /// Monitors and key, once the user has been made.
    pub credentials: Option<RbdCredentials>,
}

/// What a node needs besides names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RbdCredentials {
    /// The cluster's monitors, as Ceph's `mon_host`.
    pub mon_hosts: String,
    /// The user's key.
    pub key: Secret,
}

/// Whether a pool can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// Its user is being made.
    Creating,
    /// Usable.
    Ready,
    /// Its user is being removed. Nothing can be made in it.
    Deleting,
}

/// A pool, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Unique among pools, those of the configuration included.
    pub name: Name,
    /// Where it is.
    pub rbd: RbdPool,
    /// Whether it can be used.
    pub state: PoolState,
    /// What works on it.
    pub operation: Option<OperationId>,
    /// When it was created.
    pub created_at: WallTime,
    /// For VMs that do not say themselves what becomes of them when the storage does not answer.
    pub stall: Option<StallPolicy>,
}

impl Pool {
    /// How nodes reach it. `None`: it is not ready.
    pub fn access(&self) -> Option<PoolAccess> {
        let credentials = self.rbd.credentials.as_ref().filter(|_| self.state == PoolState::Ready)?;
        Some(PoolAccess {
            mon_hosts: credentials.mon_hosts.clone(),
            ceph_pool: self.rbd.ceph_pool.clone(),
            namespace: self.rbd.namespace.clone(),
            user: self.rbd.user.clone(),
            key: credentials.key.clone(),
            stall: self.stall,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_show() {
        let credentials = RbdCredentials { mon_hosts: "10.0.0.1".to_owned(), key: Secret::new("AQB7") };
        let text = format!("{credentials:?}");
        assert!(text.contains("10.0.0.1") && !text.contains("AQB7"), "{text}");
    }
}
