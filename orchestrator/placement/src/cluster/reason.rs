//! Why not.

use std::{fmt, slice};

use drover_cluster_state::{Name, NodeRejection, NodeState};
use drover_ids::NodeId;
use drover_units::{Bytes, VcpuCount};

/// Names shown of the VMs that stand in the way; the rest are counted.
const BLOCKERS_SHOWN: usize = 3;

/// One reason against one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It does not take work.
    NotReady(NodeState),
    /// Too few CPUs are free.
    Vcpus {
        /// What was asked for.
        wanted: VcpuCount,
        /// What is free.
        free: VcpuCount,
        /// What the node has.
        capacity: VcpuCount,
    },
    /// Too little memory is free.
    Memory {
        /// What was asked for.
        wanted: Bytes,
        /// What is free.
        free: Bytes,
        /// What the node has.
        capacity: Bytes,
    },
    /// It does not reach a pool that the VM needs.
    Pool(Name),
    /// It holds VMs of the same anti-affinity group.
    AntiAffinity {
        /// The group.
        group: Name,
        /// Its VMs on this node.
        vms: Vec<Name>,
    },
    /// The VM is there already.
    AlreadyThere,
    /// Another node was asked for.
    NotAskedFor,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady(state) => write!(f, "the node is {state}, not ready"),
            Self::Vcpus { wanted, free, capacity } => {
                write!(f, "needs {wanted} vCPU(s), {free} of {capacity} free")
            }
            Self::Memory { wanted, free, capacity } => {
                write!(f, "needs {wanted} memory, {free} of {capacity} free")
            }
            Self::Pool(pool) => write!(f, "does not reach pool '{pool}'"),
            Self::AntiAffinity { group, vms } => {
                write!(f, "holds ")?;
                for (index, vm) in vms.iter().take(BLOCKERS_SHOWN).enumerate() {
                    write!(f, "{}'{vm}'", if index == 0 { "" } else { ", " })?;
                }
                if vms.len() > BLOCKERS_SHOWN {
                    write!(f, " and {} more", vms.len() - BLOCKERS_SHOWN)?;
                }
                write!(f, " of anti-affinity group '{group}'")
            }
            Self::AlreadyThere => f.write_str("the VM is there already"),
            Self::NotAskedFor => f.write_str("another node was asked for"),
        }
    }
}

/// One node, and everything against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// At least one.
    pub reasons: Vec<Reason>,
}

/// Every node, and everything against it. Empty: there is no node at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Rejections(pub Vec<Rejection>);

impl Rejections {
    /// The form that is stored with an operation.
    pub fn to_records(&self) -> Vec<NodeRejection> {
        let texts = |reasons: &[Reason]| reasons.iter().map(Reason::to_string).collect();
        self.0
            .iter()
            .map(|r| NodeRejection { node: r.node, name: r.name.clone(), reasons: texts(&r.reasons) })
            .collect()
    }
}

impl<'a> IntoIterator for &'a Rejections {
    type Item = &'a Rejection;
    type IntoIter = slice::Iter<'a, Rejection>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Rejections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no node has registered");
        }
        for (index, rejection) in self.0.iter().enumerate() {
            write!(f, "{}{}: ", if index == 0 { "" } else { "; " }, rejection.name)?;
            for (index, reason) in rejection.reasons.iter().enumerate() {
                write!(f, "{}{reason}", if index == 0 { "" } else { ", " })?;
            }
        }
        Ok(())
    }
}
