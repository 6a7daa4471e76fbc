//! Drover's gRPC interfaces, generated from the .proto files beside this crate.
//!
//! - [`vm::v1`]: one vmmd process, one VM; spoken over a unix socket on its host.
//! - [`node::v1`]: the node agent, and the registry that agents report to.
//! - [`control::v1`]: the control plane's users.
//! - [`placement::v1`]: what placement needs to know and what it says; part of the others.
//! - [`store::v1`]: what the control plane keeps in its store. Not spoken between processes.
//!
//! Wire types are not domain types: each user converts with `TryFrom` where messages arrive, and nothing that came
//! over the wire is trusted before that.
#![allow(
    missing_docs,
    reason = "generated code carries the comments of the .proto files where they have any"
)]
#![allow(clippy::all, clippy::disallowed_types, reason = "generated code")]

/// Two packages have a message of this name and shape: what a client sends, and what is stored of it.
macro_rules! debug_cloud_init {
    () => {
        impl std::fmt::Debug for CloudInit {
            /// How much there is of what may be secret.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct("CloudInit")
                    .field("hostname", &self.hostname)
                    .field("ssh_keys", &self.ssh_keys.len())
                    .field("user_data_bytes", &self.user_data.len())
                    .field("network_config_bytes", &self.network_config.len())
                    .finish()
            }
        }
    };
}
use debug_cloud_init;

/// One vmmd process.
pub mod vm {
    /// `drover.vm.v1`
    pub mod v1 {
        tonic::include_proto!("drover.vm.v1");

        impl std::fmt::Debug for RbdAccess {
            /// Everything but the key.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct("RbdAccess")
                    .field("mon_hosts", &self.mon_hosts)
                    .field("ceph_pool", &self.ceph_pool)
                    .field("namespace", &self.namespace)
                    .field("user", &self.user)
                    .field("fsid", &self.fsid)
                    .finish_non_exhaustive()
            }
        }
    }
}

/// The node agent and the registry of agents.
pub mod node {
    /// `drover.node.v1`
    pub mod v1 {
        tonic::include_proto!("drover.node.v1");

        impl std::fmt::Debug for SeedDisk {
            /// Its length.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct("SeedDisk").field("image_bytes", &self.image.len()).finish()
            }
        }
    }
}

/// The control plane's API.
pub mod control {
    /// `drover.control.v1`
    pub mod v1 {
        tonic::include_proto!("drover.control.v1");
        crate::debug_cloud_init!();
    }
}

/// What placement needs to know of hosts and VMs, and what it says.
pub mod placement {
    /// `drover.placement.v1`
    pub mod v1 {
        tonic::include_proto!("drover.placement.v1");
    }
}

/// The control plane's stored records.
pub mod store {
    /// `drover.store.v1`
    pub mod v1 {
        tonic::include_proto!("drover.store.v1");
        crate::debug_cloud_init!();
    }
}

/// Encoded `FileDescriptorSet` of every package that has services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Largest message any Drover server or client accepts, bytes (B9). A heartbeat of a node with 1,000 VMs is about
/// 300 KiB; an import chunk is at most 1 MiB.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::{control, node, store, vm};

    #[test]
    fn a_message_that_is_logged_does_not_show_its_secret() {
        let access = vm::v1::RbdAccess {
            user: "drover-vms".into(),
            key: "c2VjcmV0".into(),
            ..vm::v1::RbdAccess::default()
        };
        let rbd = node::v1::RbdAccess { cluster: Some(access), image: "volume-1".into() };
        let access = node::v1::PoolAccess { kind: Some(node::v1::pool_access::Kind::Rbd(rbd)) };
        let shown = format!("{access:?}");
        assert!(shown.contains("drover-vms") && !shown.contains("c2VjcmV0"), "{shown}");

        let user_data = "#!/bin/sh\n# c2VjcmV0".to_owned();
        let asked = control::v1::CloudInit { user_data: user_data.clone(), ..Default::default() };
        let kept = store::v1::CloudInit { user_data: user_data.clone(), ..Default::default() };
        let sent = node::v1::SeedDisk { image: user_data.into_bytes() };
        let spec = control::v1::VmSpec { cloud_init: Some(asked), ..Default::default() };
        let shown = format!("{spec:?} {kept:?} {sent:?}");
        assert!(shown.contains("user_data_bytes: 20") && !shown.contains("c2VjcmV0"), "{shown}");
        assert!(!shown.contains("99, 50"), "{shown}");
    }
}
