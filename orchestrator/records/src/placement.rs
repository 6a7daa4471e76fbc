//! Policies, projects and the cluster's settings.

use drover_cluster_state::{PolicyRecord, Project, Settings, WallTime};
use drover_placement_messages::{
    cluster_settings_from, cluster_settings_message, limits_from, limits_message, policy_from, policy_message,
};
use drover_wire::{placement::v1 as shared, store::v1 as stored};

use crate::{
    RecordError, StoredForm,
    fields::{name, optional_name, placement},
};

impl StoredForm for PolicyRecord {
    type Message = shared::Policy;

    fn to_message(&self) -> shared::Policy {
        policy_message(self)
    }

    fn from_message(message: shared::Policy) -> Result<Self, RecordError> {
        policy_from(message).map_err(placement("policy"))
    }
}

impl StoredForm for Settings {
    type Message = shared::Settings;

    fn to_message(&self) -> shared::Settings {
        cluster_settings_message(self)
    }

    fn from_message(message: shared::Settings) -> Result<Self, RecordError> {
        cluster_settings_from(message).map_err(placement("settings"))
    }
}

impl StoredForm for Project {
    type Message = stored::Project;

    fn to_message(&self) -> stored::Project {
        stored::Project {
            name: self.name.to_string(),
            limits: Some(limits_message(self.limits)),
            policy: self.policy.as_ref().map(ToString::to_string).unwrap_or_default(),
            admissions: self.admissions,
            created_at_ms: self.created_at.as_unix_millis(),
        }
    }

    fn from_message(message: stored::Project) -> Result<Self, RecordError> {
        Ok(Self {
            name: name("project.name", &message.name)?,
            limits: limits_from(message.limits.unwrap_or_default()),
            policy: optional_name("project.policy", &message.policy)?,
            admissions: message.admissions,
            created_at: WallTime::from_unix_millis(message.created_at_ms),
        })
    }
}
