//! Who may write a volume, whatever stores it: owners, owner records, and the one rule that admits them.
//!
//! Every pool keeps an owner record with each volume, and changes it so that no change is lost (the kinds of pool
//! differ in how). What the record means is the same everywhere:
//!
//! ```text
//! no record --acquire(vm, e)--> owned by (vm, node, e) --acquire(vm, e' > e)--> owned by (vm, node', e')
//!     ^                               |        ^
//!     |                             fence      | acquire(vm, e'' >= floor)
//!     |                               v        |
//!     +------- detach(vm) ------ fenced at floor
//! ```
//!
//! A volume belongs to the VM that last acquired it until it is detached, since epochs of different VMs cannot be
//! compared. Not here: locks and files (`drover-dir-volume`), locks and images (`drover-rbd-volume`).
#![forbid(unsafe_code)]

mod json;

use std::fmt;

use drover_ids::{NodeId, OwnerEpoch, VmId};

/// A process that writes a volume for a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The VM whose disk this is.
    pub vm: VmId,
    /// The node it runs on.
    pub node: NodeId,
    /// Its right to run, together with `node`.
    pub epoch: OwnerEpoch,
    /// The process on that node. For people: nothing decides by it.
    pub pid: u32,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VM {} on node {}, epoch {}, pid {}", self.vm, self.node, self.epoch, self.pid)
    }
}

/// What is recorded with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerRecord {
    /// This process acquired the volume. Whether it still holds the lock only the lock can tell.
    Acquired(Owner),
    /// The volume was fenced: of `vm`, only an owner with at least `epoch` may acquire it.
    Fenced {
        /// The VM the volume belongs to.
        vm: VmId,
        /// The floor.
        epoch: OwnerEpoch,
        /// Who had acquired it before, if anyone.
        previous: Option<Owner>,
    },
}

/// Why a record does not admit an owner. Final: trying again does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The record demands a later epoch: this owner has been replaced and must never write again.
    #[error("epoch {offered} is too old: the volume demands at least {recorded}")]
    StaleEpoch {
        /// The floor in the record.
        recorded: OwnerEpoch,
        /// What the caller came with.
        offered: OwnerEpoch,
    },
    /// The same epoch was already used on another node. An epoch is handed out once, so one of the two is wrong.
    #[error("this epoch already belongs to {owner}")]
    EpochInUse {
        /// Who acquired the volume with this epoch.
        owner: Owner,
    },
    /// The volume belongs to another VM until it is detached from it.
    #[error("the volume is attached to VM {vm}")]
    OtherVm {
        /// The VM it belongs to.
        vm: VmId,
    },
}

impl OwnerRecord {
    /// The VM that the volume belongs to.
    pub fn vm(&self) -> VmId {
        match self {
            Self::Acquired(owner) => owner.vm,
            Self::Fenced { vm, .. } => *vm,
        }
    }
    /// The lowest epoch of that VM which may still acquire the volume.
    pub fn floor(&self) -> OwnerEpoch {
        match self {
            Self::Acquired(owner) => owner.epoch,
            Self::Fenced { epoch, .. } => *epoch,
        }
    }
    /// The last process that acquired the volume.
    pub fn last_owner(&self) -> Option<Owner> {
        match self {
            Self::Acquired(owner) => Some(*owner),
            Self::Fenced { previous, .. } => *previous,
        }
    }

    /// Whether `owner` may acquire a volume with this record, provided that nobody holds its lock.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn admit(&self, owner: &Owner) -> Result<(), Refusal> {
        if self.vm() != owner.vm {
            return Err(Refusal::OtherVm { vm: self.vm() });
        }
        if self.floor() > owner.epoch {
            return Err(Refusal::StaleEpoch { recorded: self.floor(), offered: owner.epoch });
        }
        match self {
            Self::Acquired(other) if other.epoch == owner.epoch && other.node != owner.node => {
                Err(Refusal::EpochInUse { owner: *other })
            }
            _ => Ok(()),
        }
    }

    /// The record that refuses every owner of `vm` below `floor`, where this one (`None`: no record yet) does not do so
    /// already.
    ///
    /// # Errors
    /// [`Refusal::OtherVm`].
    pub fn fenced(current: Option<&Self>, vm: VmId, floor: OwnerEpoch) -> Result<Option<Self>, Refusal> {
        let Some(record) = current else {
            return Ok(Some(Self::Fenced { vm, epoch: floor, previous: None }));
        };
        if record.vm() != vm {
            return Err(Refusal::OtherVm { vm: record.vm() });
        }
        // An owner with exactly `floor` is the new one, not one to be refused.
        if record.floor() >= floor {
            return Ok(None);
        }
        Ok(Some(Self::Fenced { vm, epoch: floor, previous: record.last_owner() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(vm: u128, node: u128, epoch: u64) -> Owner {
        Owner {
            vm: VmId::from_u128(vm),
            node: NodeId::from_u128(node),
            epoch: OwnerEpoch::new(epoch),
            pid: 4,
        }
    }

    fn check(record: OwnerRecord, candidate: Owner, expect: Result<(), &str>) {
        let answer = record.admit(&candidate).map_err(|refusal| refusal.to_string());
        match (&answer, expect) {
            (Ok(()), Ok(())) => {}
            (Err(text), Err(part)) if text.contains(part) => {}
            _ => panic!("{record:?} and {candidate:?}: {answer:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn a_record_admits_its_vms_later_owners_only() {
        let acquired = OwnerRecord::Acquired(owner(1, 2, 3));
        check(acquired, owner(1, 2, 3), Ok(()));
        check(acquired, owner(1, 9, 4), Ok(()));
        check(acquired, owner(1, 2, 2), Err("epoch 2 is too old"));
        check(acquired, owner(1, 9, 3), Err("already belongs to"));
        check(acquired, owner(7, 2, 9), Err("attached to VM"));
        let fenced =
            OwnerRecord::Fenced { vm: VmId::from_u128(1), epoch: OwnerEpoch::new(5), previous: None };
        check(fenced, owner(1, 2, 4), Err("demands at least 5"));
        check(fenced, owner(1, 9, 5), Ok(()));
    }

    #[test]
    fn a_fence_only_raises_the_floor() {
        let vm = VmId::from_u128(1);
        let acquired = OwnerRecord::Acquired(owner(1, 2, 3));
        let raised = OwnerRecord::Fenced { vm, epoch: OwnerEpoch::new(4), previous: Some(owner(1, 2, 3)) };
        assert_eq!(OwnerRecord::fenced(Some(&acquired), vm, OwnerEpoch::new(4)), Ok(Some(raised)));
        assert_eq!(OwnerRecord::fenced(Some(&acquired), vm, OwnerEpoch::new(3)), Ok(None));
        assert_eq!(OwnerRecord::fenced(Some(&raised), vm, OwnerEpoch::new(4)), Ok(None));
        let other = VmId::from_u128(9);
        assert_eq!(
            OwnerRecord::fenced(Some(&raised), other, OwnerEpoch::new(9)),
            Err(Refusal::OtherVm { vm })
        );
        let first = OwnerRecord::Fenced { vm, epoch: OwnerEpoch::new(4), previous: None };
        assert_eq!(OwnerRecord::fenced(None, vm, OwnerEpoch::new(4)), Ok(Some(first)));
    }

    #[test]
    fn an_owner_displays_everything_a_person_needs_to_find_it() {
        let owner = owner(1, 2, 3);
        let text = owner.to_string();
        for part in [owner.vm.to_string(), owner.node.to_string(), "epoch 3".into(), "pid 4".into()] {
            assert!(text.contains(&part), "{text}");
        }
    }
}
