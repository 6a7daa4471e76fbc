//! Fence evidence: why it is certain that an owner can no longer write (B7).

use std::{collections::BTreeSet, fmt, time::Duration};

use drover_ids::{NodeId, OwnerEpoch, VmId, VolumeId};

/// Who held a volume, as its owner record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeOwner {
    /// The VM.
    pub vm: VmId,
    /// The node its process ran on.
    pub node: NodeId,
    /// The epoch it held the volume with.
    pub epoch: OwnerEpoch,
}

/// Clients that a storage cluster refuses from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocklist {
    /// Their addresses. Empty: there was nobody to refuse.
    pub entries: BTreeSet<String>,
    /// The cluster's map that has them (Ceph: the osdmap's epoch), seen by whoever fenced.
    pub map_epoch: u64,
}

/// Proof that the storage refuses every owner of `volume` older than `epoch`, and that no process holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFence {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch floor that is now recorded.
    pub epoch: OwnerEpoch,
    /// The last owner before the fence. `None` where nobody ever held it.
    pub previous: Option<VolumeOwner>,
    /// How a cluster of storage was told. `None`: a lock that could be taken was proof enough.
    pub blocklist: Option<Blocklist>,
}

/// Why one grant of the right to run, (node, epoch), can never be used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The node's agent saw the process end.
    ProcessDeath {
        /// Where it ran.
        node: NodeId,
        /// The epoch it ran with.
        epoch: OwnerEpoch,
        /// How it ended, for people: "killed by signal 9".
        exit: String,
    },
    /// The node's agent confirmed that no process of this or an older epoch is left there, and none can start.
    Stopped {
        /// Where it ran.
        node: NodeId,
        /// The newest epoch the confirmation covers.
        epoch: OwnerEpoch,
    },
    /// The node's lease ran out, so that it has ended its VMs itself, and the storage refuses them besides.
    SelfFenceLeaseExpired {
        /// The silent node.
        node: NodeId,
        /// The epoch it held.
        epoch: OwnerEpoch,
        /// How long no lease had been granted when the node was given up.
        silent: Duration,
        /// One proof for each writable volume of the VM.
        volumes: Vec<VolumeFence>,
    },
    /// The storage refuses the process, which has ended besides: what it left there (a lock, requests under way) can do
    /// no harm and keeps nobody waiting.
    StorageFenced {
        /// Where it ran.
        node: NodeId,
        /// The epoch it held.
        epoch: OwnerEpoch,
        /// One proof for each writable volume of the VM.
        volumes: Vec<VolumeFence>,
    },
}

impl Evidence {
    /// The node and the newest epoch this is about.
    pub fn subject(&self) -> (NodeId, OwnerEpoch) {
        match self {
            Self::ProcessDeath { node, epoch, .. }
            | Self::Stopped { node, epoch }
            | Self::SelfFenceLeaseExpired { node, epoch, .. }
            | Self::StorageFenced { node, epoch, .. } => (*node, *epoch),
        }
    }

    /// The volumes that were taken away.
    pub fn volumes(&self) -> &[VolumeFence] {
        match self {
            Self::SelfFenceLeaseExpired { volumes, .. } | Self::StorageFenced { volumes, .. } => volumes,
            Self::ProcessDeath { .. } | Self::Stopped { .. } => &[],
        }
    }

    /// Whether this rules out that the grant (node, epoch) is ever used again.
    pub fn covers(&self, node: NodeId, epoch: OwnerEpoch) -> bool {
        let (on, up_to) = self.subject();
        // Of a process that has not ended this says nothing: it may run on, without its disks.
        let ended = !matches!(self, Self::StorageFenced { .. });
        ended && on == node && epoch <= up_to
    }

    /// The stable name of this kind of evidence.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ProcessDeath { .. } => "process-death",
            Self::Stopped { .. } => "stopped",
            Self::SelfFenceLeaseExpired { .. } => "self-fence-lease-expired",
            Self::StorageFenced { .. } => "storage-fenced",
        }
    }
}

impl fmt::Display for VolumeFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "volume {} refuses epochs before {}", self.volume, self.epoch)?;
        let Some(Blocklist { entries, map_epoch }) = &self.blocklist else { return Ok(()) };
        if entries.is_empty() {
            return write!(f, " (nobody to blocklist, osdmap {map_epoch})");
        }
        let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
        write!(f, " (blocklisted {} in osdmap {map_epoch})", entries.join(" "))
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Self::ProcessDeath { node, epoch, exit } => {
                write!(f, "{kind}: epoch {epoch} on node {node}, {exit}")
            }
            Self::Stopped { node, epoch } => {
                write!(f, "{kind}: node {node} confirmed that epoch {epoch} has ended")
            }
            Self::SelfFenceLeaseExpired { node, epoch, silent, volumes } => {
                let silent = silent.as_millis();
                write!(f, "{kind}: epoch {epoch} on node {node}, no lease for {silent} ms")?;
                volumes.iter().try_for_each(|volume| write!(f, ", {volume}"))
            }
            Self::StorageFenced { node, epoch, volumes } => {
                write!(f, "{kind}: epoch {epoch} on node {node}")?;
                volumes.iter().try_for_each(|volume| write!(f, ", {volume}"))
            }
        }
    }
}
