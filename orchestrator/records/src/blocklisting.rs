//! What fences have had refused.

use drover_cluster_state::{Blocklisting, Candidate, WallTime};
use drover_ids::{NodeId, OwnerEpoch, VmId};
use drover_wire::store::v1 as stored;

use crate::{
    RecordError, StoredForm,
    fields::{id, id_bytes, name},
};

impl StoredForm for Blocklisting {
    type Message = stored::Blocklisting;

    fn to_message(&self) -> stored::Blocklisting {
        let candidate = |candidate: &Candidate| stored::BlocklistedProcess {
            node_id: id_bytes(candidate.node.as_u128()),
            epoch: candidate.epoch.get(),
        };
        stored::Blocklisting {
            vm_id: id_bytes(self.vm.as_u128()),
            floor: self.floor.get(),
            candidates: self.candidates.iter().map(candidate).collect(),
            entries: self
                .entries
                .iter()
                .map(|(pool, address)| stored::BlocklistEntry {
                    pool: pool.to_string(),
                    address: address.clone(),
                })
                .collect(),
            created_at_ms: self.created_at.as_unix_millis(),
        }
    }

    fn from_message(message: stored::Blocklisting) -> Result<Self, RecordError> {
        let candidate = |process: &stored::BlocklistedProcess| {
            let node = id("blocklisting.candidates.node_id", &process.node_id, NodeId::from_u128)?;
            Ok(Candidate { node, epoch: OwnerEpoch::new(process.epoch) })
        };
        let entry = |entry: stored::BlocklistEntry| {
            Ok((name("blocklisting.entries.pool", &entry.pool)?, entry.address))
        };
        Ok(Self {
            vm: id("blocklisting.vm_id", &message.vm_id, VmId::from_u128)?,
            floor: OwnerEpoch::new(message.floor),
            candidates: message.candidates.iter().map(candidate).collect::<Result<_, RecordError>>()?,
            entries: message.entries.into_iter().map(entry).collect::<Result<_, RecordError>>()?,
            created_at: WallTime::from_unix_millis(message.created_at_ms),
        })
    }
}
