//! The right to run a VM: one key, changed by compare-and-swap only (B6).
//!
//! ```text
//!             grant                    begin_migration
//!  Unowned ----------> Owned{Boot} --------------------> Migrating
//!     ^                  | confirm   <--------------------  |  |  |
//!     |                  v              abort_migration     |  |  |
//!     |                Owned{Taken} <-----------------------+  |  |
//!     |   release        |              complete_migration     |  |
//!     +------------------+----------------------------------------+
//!       (evidence for every candidate)  regrant: Owned{Resume} <-+
//! ```
//!
//! `highest` only grows, also over aborted migrations: a new grant is newer than anything any process ever heard of.

use drover_ids::{MigrationId, NodeId, OwnerEpoch};

use crate::Evidence;

/// How far the holder of a right has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Granted; to be started from its disks.
    Boot,
    /// Granted to a migration source that is paused after Commit; to be resumed where it is.
    Resume {
        /// The epoch the paused process still has.
        from: OwnerEpoch,
    },
    /// Has been seen to run. Never started again at this epoch.
    Taken,
}

/// Who may run the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Nobody.
    Unowned,
    /// One node, with one epoch.
    Owned {
        /// The node.
        node: NodeId,
        /// Its epoch.
        epoch: OwnerEpoch,
        /// How far it has got.
        claim: Claim,
    },
    /// The source until Commit, the target after it. Which of the two only they know until they report.
    Migrating {
        /// Where it comes from.
        source: NodeId,
        /// The source's epoch.
        epoch: OwnerEpoch,
        /// Where it goes.
        target: NodeId,
        /// The target's epoch.
        target_epoch: OwnerEpoch,
        /// This attempt.
        migration: MigrationId,
    },
}

/// A grant that may be in use: a process with this epoch may run on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// The epoch.
    pub epoch: OwnerEpoch,
}

/// A change of the right to run that is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnershipError {
    /// The transition does not start from the present right.
    #[error("cannot {attempt}: the right to run is {present}")]
    WrongRight {
        /// What was tried.
        attempt: &'static str,
        /// What is there.
        present: &'static str,
    },
    /// B7: a grant may still be in use.
    #[error("no evidence that epoch {epoch} on node {node} has ended")]
    NoEvidence {
        /// The node.
        node: NodeId,
        /// The epoch.
        epoch: OwnerEpoch,
    },
    /// A migration needs two nodes.
    #[error("source and target of a migration are both node {0}")]
    SameNode(NodeId),
    /// Stored parts that contradict each other.
    #[error("the right to run names epoch {named}, newer than the highest granted, {highest}")]
    EpochAhead {
        /// The epoch the right names.
        named: OwnerEpoch,
        /// The highest one recorded.
        highest: OwnerEpoch,
    },
}

/// The right to run of one VM, with its history: the highest epoch ever granted, and the evidence of the last release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    right: Right,
    highest: OwnerEpoch,
    evidence: Vec<Evidence>,
}

impl Default for Ownership {
    fn default() -> Self {
        Self::new()
    }
}

impl Ownership {
    /// Of a VM that was never granted.
    pub fn new() -> Self {
        Self { right: Right::Unowned, highest: OwnerEpoch::default(), evidence: Vec::new() }
    }

    /// From stored parts.
    pub fn from_parts(
        right: Right,
        highest: OwnerEpoch,
        evidence: Vec<Evidence>,
    ) -> Result<Self, OwnershipError> {
        let ownership = Self { right, highest, evidence };
        match ownership.candidates().map(|c| c.epoch).max() {
            Some(named) if named > highest => Err(OwnershipError::EpochAhead { named, highest }),
            _ => Ok(ownership),
        }
    }

    /// Who may run the VM.
    pub fn right(&self) -> Right {
        self.right
    }

    /// The highest epoch ever granted.
    pub fn highest(&self) -> OwnerEpoch {
        self.highest
    }

    /// The epoch the next grant will have.
    pub fn next_epoch(&self) -> OwnerEpoch {
        self.highest.next()
    }

    /// Why the last release was allowed. Empty: never released.
    pub fn evidence(&self) -> &[Evidence] {
        &self.evidence
    }

    /// Every grant that may be in use: none, one, or both ends of a migration (source first). A claim to resume is
    /// covered by its new epoch: whoever ends that ends the paused process with it.
    pub fn candidates(&self) -> impl Iterator<Item = Candidate> + use<> {
        let pair = match self.right {
            Right::Unowned => [None, None],
            Right::Owned { node, epoch, .. } => [Some(Candidate { node, epoch }), None],
            Right::Migrating { source, epoch, target, target_epoch, .. } => [
                Some(Candidate { node: source, epoch }),
                Some(Candidate { node: target, epoch: target_epoch }),
            ],
        };
        pair.into_iter().flatten()
    }

    /// Whether this grant may be in use.
    pub fn is_candidate(&self, node: NodeId, epoch: OwnerEpoch) -> bool {
        self.candidates().any(|c| c == Candidate { node, epoch })
    }

    /// Whether the node holds, or takes part in, the right.
    pub fn involves(&self, node: NodeId) -> bool {
        self.candidates().any(|c| c.node == node)
    }

    /// The node that holds it: the owner, or a migration's source.
    pub fn node(&self) -> Option<NodeId> {
        self.candidates().next().map(|c| c.node)
    }

    /// Grants the right to `node` with a new epoch, to start from disks.
    pub fn grant(&self, node: NodeId) -> Result<Self, OwnershipError> {
        let Right::Unowned = self.right else { return Err(self.wrong("grant")) };
        Ok(self.owned(node, self.next_epoch(), Claim::Boot))
    }

    /// Notes that the owner has been seen to run.
    pub fn confirm(&self) -> Result<Self, OwnershipError> {
        let Right::Owned { node, epoch, .. } = self.right else { return Err(self.wrong("confirm")) };
        Ok(self.owned(node, epoch, Claim::Taken))
    }

    /// Takes the right away from everyone, given proof that each grant is out of use.
    pub fn release(&self, evidence: Vec<Evidence>) -> Result<Self, OwnershipError> {
        if self.right == Right::Unowned {
            return Err(self.wrong("release"));
        }
        for candidate in self.candidates() {
            self.require(candidate, &evidence)?;
        }
        Ok(Self { right: Right::Unowned, highest: self.highest, evidence })
    }

    /// Admits `target` beside the owner, with a new epoch.
    pub fn begin_migration(&self, target: NodeId, migration: MigrationId) -> Result<Self, OwnershipError> {
        let Right::Owned { node, epoch, claim: Claim::Taken } = self.right else {
            return Err(self.wrong("begin a migration"));
        };
        if node == target {
            return Err(OwnershipError::SameNode(node));
        }
        let target_epoch = self.next_epoch();
        let right = Right::Migrating { source: node, epoch, target, target_epoch, migration };
        Ok(Self { right, highest: target_epoch, evidence: self.evidence.clone() })
    }

    /// The target runs: it is the owner.
    pub fn complete_migration(&self) -> Result<Self, OwnershipError> {
        let Right::Migrating { target, target_epoch, .. } = self.right else {
            return Err(self.wrong("complete a migration"));
        };
        Ok(self.owned(target, target_epoch, Claim::Taken))
    }

    /// The source runs and will not commit: it stays the owner. The target's epoch is spent.
    pub fn abort_migration(&self) -> Result<Self, OwnershipError> {
        let Right::Migrating { source, epoch, .. } = self.right else {
            return Err(self.wrong("abort a migration"));
        };
        Ok(self.owned(source, epoch, Claim::Taken))
    }

    /// Gives a source that is paused after Commit a newer epoch, given proof that the target is out of use.
    /// The caller has also made sure that the target never ran (see reconcile): its memory would be lost.
    pub fn regrant(&self, evidence: Vec<Evidence>) -> Result<Self, OwnershipError> {
        let (node, from) = match self.right {
            Right::Migrating { source, epoch, target, target_epoch, .. } => {
                self.require(Candidate { node: target, epoch: target_epoch }, &evidence)?;
                (source, epoch)
            }
            Right::Owned { node, epoch, claim: Claim::Taken } => (node, epoch),
            _ => return Err(self.wrong("grant a newer epoch")),
        };
        let mut ownership = self.owned(node, self.next_epoch(), Claim::Resume { from });
        ownership.evidence = evidence;
        Ok(ownership)
    }

    fn owned(&self, node: NodeId, epoch: OwnerEpoch, claim: Claim) -> Self {
        let highest = self.highest.max(epoch);
        Self { right: Right::Owned { node, epoch, claim }, highest, evidence: self.evidence.clone() }
    }

    fn require(&self, candidate: Candidate, evidence: &[Evidence]) -> Result<(), OwnershipError> {
        let Candidate { node, epoch } = candidate;
        if evidence.iter().any(|e| e.covers(node, epoch)) {
            Ok(())
        } else {
            Err(OwnershipError::NoEvidence { node, epoch })
        }
    }

    fn wrong(&self, attempt: &'static str) -> OwnershipError {
        let present = match self.right {
            Right::Unowned => "held by nobody",
            Right::Owned { claim: Claim::Boot, .. } => "granted but not yet used",
            Right::Owned { claim: Claim::Resume { .. }, .. } => "granted to a paused source",
            Right::Owned { claim: Claim::Taken, .. } => "in use",
            Right::Migrating { .. } => "shared by a migration",
        };
        OwnershipError::WrongRight { attempt, present }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const A: NodeId = NodeId::from_u128(0xa);
    const B: NodeId = NodeId::from_u128(0xb);
    const M: MigrationId = MigrationId::from_u128(1);

    fn epoch(n: u64) -> OwnerEpoch {
        OwnerEpoch::new(n)
    }
    fn running_on_a() -> Ownership {
        Ownership::new().grant(A).and_then(|o| o.confirm()).expect("a new VM can be granted and confirmed")
    }
    fn stopped(node: NodeId, n: u64) -> Evidence {
        Evidence::Stopped { node, epoch: epoch(n) }
    }

    #[test]
    fn a_second_grant_is_refused_while_one_is_out() {
        assert!(running_on_a().grant(B).is_err());
    }

    #[test]
    fn a_release_without_evidence_is_refused() {
        let owned = running_on_a();
        assert_eq!(owned.release(vec![]), Err(OwnershipError::NoEvidence { node: A, epoch: epoch(1) }));
        assert_eq!(
            owned.release(vec![stopped(B, 1)]),
            Err(OwnershipError::NoEvidence { node: A, epoch: epoch(1) })
        );
        let released = owned.release(vec![stopped(A, 1)]).unwrap();
        assert_eq!(released.grant(B).unwrap().highest(), epoch(2));
    }

    #[test]
    fn a_migration_is_released_only_with_evidence_for_both_ends() {
        let migrating = running_on_a().begin_migration(B, M).unwrap();
        let dead = Evidence::SelfFenceLeaseExpired {
            node: A,
            epoch: epoch(1),
            silent: Duration::from_secs(5),
            volumes: vec![],
        };
        assert_eq!(
            migrating.release(vec![dead.clone()]),
            Err(OwnershipError::NoEvidence { node: B, epoch: epoch(2) })
        );
        assert!(migrating.release(vec![dead, stopped(B, 2)]).is_ok());
    }

    #[test]
    fn an_aborted_migration_spends_its_epoch() {
        let back = running_on_a().begin_migration(B, M).and_then(|o| o.abort_migration()).unwrap();
        assert_eq!(back.right(), Right::Owned { node: A, epoch: epoch(1), claim: Claim::Taken });
        assert_eq!(back.next_epoch(), epoch(3));
    }

    #[test]
    fn a_paused_source_is_granted_an_epoch_newer_than_the_targets() {
        let migrating = running_on_a().begin_migration(B, M).unwrap();
        assert!(migrating.regrant(vec![]).is_err());
        let back = migrating.regrant(vec![stopped(B, 2)]).unwrap();
        assert_eq!(
            back.right(),
            Right::Owned { node: A, epoch: epoch(3), claim: Claim::Resume { from: epoch(1) } }
        );
    }

    #[test]
    fn stored_parts_that_contradict_each_other_are_refused() {
        let right = Right::Owned { node: A, epoch: epoch(5), claim: Claim::Boot };
        assert!(Ownership::from_parts(right, epoch(4), vec![]).is_err());
        assert!(Ownership::from_parts(right, epoch(5), vec![]).is_ok());
    }
}
