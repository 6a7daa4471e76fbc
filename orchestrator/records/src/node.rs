//! Nodes.

use std::{collections::BTreeSet, time::Duration};

use drover_cluster_state::{HostFacts, Incarnation, Node, NodeFence, NodeFenceEvidence, NodeSettings};
use drover_ids::NodeId;
use drover_placement_messages::{facts_from, facts_message, settings_from, settings_message};
use drover_wire::store::v1 as stored;
use stored::node_fence::State;

use crate::{
    RecordError, StoredForm,
    fields::{id, id_bytes, millis, name, placement, required},
};

impl StoredForm for Node {
    type Message = stored::Node;

    fn to_message(&self) -> stored::Node {
        stored::Node {
            id: id_bytes(self.id.as_u128()),
            name: self.name.to_string(),
            address: self.address.clone(),
            capacity: Some(self.capacity.to_message()),
            pools: self.pools.iter().map(ToString::to_string).collect(),
            incarnation: self.incarnation.0.clone(),
            version: self.version.clone(),
            fence: Some(self.fence.to_message()),
            assignments: self.assignments,
            // Absent means what an older version meant by not knowing it.
            facts: (self.facts != HostFacts::default()).then(|| facts_message(&self.facts)),
            settings: (self.settings != NodeSettings::default()).then(|| settings_message(&self.settings)),
            librbd: self.librbd.clone(),
        }
    }

    fn from_message(message: stored::Node) -> Result<Self, RecordError> {
        Ok(Self {
            id: id("node.id", &message.id, NodeId::from_u128)?,
            name: name("node.name", &message.name)?,
            address: message.address,
            capacity: StoredForm::from_message(required("node.capacity", message.capacity)?)?,
            pools: message
                .pools
                .iter()
                .map(|pool| name("node.pools", pool))
                .collect::<Result<BTreeSet<_>, _>>()?,
            incarnation: Incarnation(message.incarnation),
            version: message.version,
            fence: StoredForm::from_message(required("node.fence", message.fence)?)?,
            assignments: message.assignments,
            facts: facts_from(message.facts.unwrap_or_default()).map_err(placement("node.facts"))?,
            settings: settings_from(message.settings.unwrap_or_default())
                .map_err(placement("node.settings"))?,
            librbd: message.librbd,
        })
    }
}

impl StoredForm for NodeFence {
    type Message = stored::NodeFence;

    fn to_message(&self) -> stored::NodeFence {
        let state = match self {
            Self::Clear => State::Clear(stored::Empty {}),
            Self::Fencing { silent } => State::FencingSilentMs(millis(*silent)),
            Self::Fenced(evidence) => State::Fenced(stored::NodeFenceEvidence {
                silent_ms: millis(evidence.silent),
                vms: evidence.vms,
                volumes: evidence.volumes,
            }),
        };
        stored::NodeFence { state: Some(state) }
    }

    fn from_message(message: stored::NodeFence) -> Result<Self, RecordError> {
        Ok(match required("node.fence.state", message.state)? {
            State::Clear(_) => Self::Clear,
            State::FencingSilentMs(silent) => Self::Fencing { silent: Duration::from_millis(silent) },
            State::Fenced(evidence) => Self::Fenced(NodeFenceEvidence {
                silent: Duration::from_millis(evidence.silent_ms),
                vms: evidence.vms,
                volumes: evidence.volumes,
            }),
        })
    }
}
