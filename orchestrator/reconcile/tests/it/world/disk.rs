//! A volume with a lock and an owner record, as a `dir` pool has them.

use drover_cluster_state::{VolumeFence, VolumeOwner};
use drover_ids::{NodeId, OwnerEpoch, VmId, VolumeId};

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    /// The process that has it locked.
    holder: Option<(NodeId, VmId, OwnerEpoch)>,
    record: Option<VolumeOwner>,
    /// Writes that were acknowledged to a guest.
    pub(crate) writes: u64,
}

impl Disk {
    pub(crate) fn acquire(&mut self, node: NodeId, vm: VmId, epoch: OwnerEpoch) -> Result<(), String> {
        if let Some(holder) = self.holder.filter(|holder| *holder != (node, vm, epoch)) {
            return Err(format!("held by {holder:?}"));
        }
        if let Some(record) = self.record.filter(|record| record.epoch > epoch) {
            return Err(format!("epoch {epoch} is older than {}", record.epoch));
        }
        self.holder = Some((node, vm, epoch));
        self.record = Some(VolumeOwner { vm, node, epoch });
        Ok(())
    }

    pub(crate) fn release(&mut self, node: NodeId, vm: VmId) {
        if self.holder.is_some_and(|(n, v, _)| (n, v) == (node, vm)) {
            self.holder = None;
        }
    }

    pub(crate) fn release_node(&mut self, node: NodeId) {
        if self.holder.is_some_and(|(n, ..)| n == node) {
            self.holder = None;
        }
    }

    pub(crate) fn fence(
        &mut self,
        id: VolumeId,
        vm: VmId,
        min_epoch: OwnerEpoch,
    ) -> Result<VolumeFence, String> {
        if let Some(holder) = self.holder {
            return Err(format!("held by {holder:?}"));
        }
        let previous = self.record;
        if previous.is_none_or(|record| record.epoch < min_epoch) {
            let node = NodeId::from_u128(0);
            self.record = Some(VolumeOwner { vm, node, epoch: min_epoch });
        }
        Ok(VolumeFence { volume: id, epoch: min_epoch, previous, blocklist: None })
    }

    /// A write of a guest whose memory knows of `seen` writes. Panics where that is not all of them: the guest would
    /// have gone back in time against its disk.
    pub(crate) fn write(&mut self, node: NodeId, vm: VmId, epoch: OwnerEpoch, seen: &mut u64) {
        assert_eq!(self.holder, Some((node, vm, epoch)), "a guest writes a disk that it does not hold");
        assert_eq!(
            self.writes, *seen,
            "a guest's memory does not know what it wrote (VM {vm}, epoch {epoch})"
        );
        self.writes += 1;
        *seen += 1;
    }
}
