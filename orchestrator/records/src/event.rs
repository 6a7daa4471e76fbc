//! Events.

use std::borrow::Cow;

use drover_cluster_state::{ClusterEvent, WallTime};
use drover_wire::store::v1 as stored;

use crate::{RecordError, StoredForm};

impl StoredForm for ClusterEvent {
    type Message = stored::Event;

    fn to_message(&self) -> stored::Event {
        stored::Event {
            at_ms: self.at.as_unix_millis(),
            kind: self.kind.to_string(),
            subject_id: self.subject_id.clone(),
            subject_name: self.subject_name.clone(),
            message: self.message.clone(),
        }
    }

    fn from_message(message: stored::Event) -> Result<Self, RecordError> {
        Ok(Self {
            at: WallTime::from_unix_millis(message.at_ms),
            kind: Cow::Owned(message.kind),
            subject_id: message.subject_id,
            subject_name: message.subject_name,
            message: message.message,
        })
    }
}
