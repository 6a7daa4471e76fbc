//! The right to run.

use drover_cluster_state::{Claim, Ownership, Right};
use drover_ids::{MigrationId, NodeId, OwnerEpoch};
use drover_wire::store::v1 as stored;
use stored::{owned::Claim as StoredClaim, ownership::Right as StoredRight};

use crate::{
    RecordError, StoredForm,
    fields::{id, id_bytes, invalid, required},
};

impl StoredForm for Ownership {
    type Message = stored::Ownership;

    fn to_message(&self) -> stored::Ownership {
        let right = match self.right() {
            Right::Unowned => StoredRight::Unowned(stored::Empty {}),
            Right::Owned { node, epoch, claim } => StoredRight::Owned(stored::Owned {
                node_id: id_bytes(node.as_u128()),
                epoch: epoch.get(),
                claim: Some(match claim {
                    Claim::Boot => StoredClaim::Boot(stored::Empty {}),
                    Claim::Resume { from } => StoredClaim::ResumeFrom(from.get()),
                    Claim::Taken => StoredClaim::Taken(stored::Empty {}),
                }),
            }),
            Right::Migrating { source, epoch, target, target_epoch, migration } => {
                StoredRight::Migrating(stored::Migrating {
                    source_id: id_bytes(source.as_u128()),
                    epoch: epoch.get(),
                    target_id: id_bytes(target.as_u128()),
                    target_epoch: target_epoch.get(),
                    migration_id: id_bytes(migration.as_u128()),
                })
            }
        };
        stored::Ownership {
            highest_epoch: self.highest().get(),
            right: Some(right),
            evidence: self.evidence().iter().map(StoredForm::to_message).collect(),
        }
    }

    fn from_message(message: stored::Ownership) -> Result<Self, RecordError> {
        let right = match required("ownership.right", message.right)? {
            StoredRight::Unowned(_) => Right::Unowned,
            StoredRight::Owned(owned) => Right::Owned {
                node: id("owned.node_id", &owned.node_id, NodeId::from_u128)?,
                epoch: OwnerEpoch::new(owned.epoch),
                claim: match required("owned.claim", owned.claim)? {
                    StoredClaim::Boot(_) => Claim::Boot,
                    StoredClaim::ResumeFrom(from) => Claim::Resume { from: OwnerEpoch::new(from) },
                    StoredClaim::Taken(_) => Claim::Taken,
                },
            },
            StoredRight::Migrating(migrating) => Right::Migrating {
                source: id("migrating.source_id", &migrating.source_id, NodeId::from_u128)?,
                epoch: OwnerEpoch::new(migrating.epoch),
                target: id("migrating.target_id", &migrating.target_id, NodeId::from_u128)?,
                target_epoch: OwnerEpoch::new(migrating.target_epoch),
                migration: id("migrating.migration_id", &migrating.migration_id, MigrationId::from_u128)?,
            },
        };
        let evidence =
            message.evidence.into_iter().map(StoredForm::from_message).collect::<Result<_, _>>()?;
        Self::from_parts(right, OwnerEpoch::new(message.highest_epoch), evidence)
            .map_err(|error| invalid("ownership", error))
    }
}
