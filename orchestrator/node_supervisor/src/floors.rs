//! Epochs of VMs that are not here any more.

use std::collections::{BTreeMap, VecDeque};

use drover_ids::{OwnerEpoch, VmId};

/// How many VMs that have ended are remembered: their epoch, against commands that were sent before the end and
/// arrive after it, and their console logs on disk (at most 2 MiB each). A delayed command would have to outlast this
/// many other VMs' ends, and its own deadline, to be taken for a new one; the volumes' epochs would refuse it still.
pub const RETIRED_MAX: usize = 64;

/// The newest epoch of each retired VM, the oldest retirement first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Floors {
    epochs: BTreeMap<VmId, OwnerEpoch>,
    order: VecDeque<VmId>,
}

impl Floors {
    pub(crate) fn get(&self, vm: VmId) -> OwnerEpoch {
        self.epochs.get(&vm).copied().unwrap_or_default()
    }

    /// Remembers `vm`; gives back the VM that has to be forgotten for it.
    pub(crate) fn retire(&mut self, vm: VmId, epoch: OwnerEpoch) -> Option<VmId> {
        let floor = self.epochs.entry(vm).or_default();
        *floor = epoch.max(*floor);
        self.order.retain(|known| *known != vm);
        self.order.push_back(vm);
        if self.order.len() <= RETIRED_MAX {
            return None;
        }
        let oldest = self.order.pop_front()?;
        self.epochs.remove(&oldest);
        Some(oldest)
    }

    /// The VM is here again: its floor moves to its new entry.
    pub(crate) fn take(&mut self, vm: VmId) -> OwnerEpoch {
        self.order.retain(|known| *known != vm);
        self.epochs.remove(&vm).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_retirement_is_forgotten_first() {
        let mut floors = Floors::default();
        let vm = |n: usize| VmId::from_u128(n as u128);
        for n in 0..RETIRED_MAX {
            assert_eq!(floors.retire(vm(n), OwnerEpoch::new(1)), None);
        }
        assert_eq!(floors.retire(vm(0), OwnerEpoch::new(2)), None);
        assert_eq!(floors.retire(vm(RETIRED_MAX), OwnerEpoch::new(1)), Some(vm(1)));
        assert_eq!(floors.get(vm(0)), OwnerEpoch::new(2));
        assert_eq!(floors.get(vm(1)), OwnerEpoch::default());
    }

    #[test]
    fn a_floor_never_falls() {
        let mut floors = Floors::default();
        let vm = VmId::from_u128(1);
        floors.retire(vm, OwnerEpoch::new(7));
        floors.retire(vm, OwnerEpoch::new(3));
        assert_eq!(floors.take(vm), OwnerEpoch::new(7));
        assert_eq!(floors.take(vm), OwnerEpoch::default());
    }
}
