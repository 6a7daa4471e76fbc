//! The record's text, which processes of different releases share: it may gain fields, never change those it has.

use drover_ids::OwnerEpoch;
use serde::{Deserialize, Serialize};

use crate::{Owner, OwnerRecord};

/// A record. Ids are texts; unknown fields are refused, since a newer writer may mean to restrict us.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordJson {
    vm: String,
    epoch: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// Only in the record of a fence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<OwnerJson>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnerJson {
    vm: String,
    node: String,
    epoch: u64,
    pid: u32,
}

impl OwnerRecord {
    /// The record as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let json = match self {
            Self::Acquired(owner) => RecordJson {
                vm: owner.vm.to_string(),
                epoch: owner.epoch.get(),
                node: Some(owner.node.to_string()),
                pid: Some(owner.pid),
                previous: None,
            },
            Self::Fenced { vm, epoch, previous } => RecordJson {
                vm: vm.to_string(),
                epoch: epoch.get(),
                node: None,
                pid: None,
                previous: previous.map(|owner| OwnerJson {
                    vm: owner.vm.to_string(),
                    node: owner.node.to_string(),
                    epoch: owner.epoch.get(),
                    pid: owner.pid,
                }),
            },
        };
        serde_json::to_value(&json).expect("strings and integers always serialise")
    }

    /// The record in a piece of JSON. What is not one is refused with a reason: guessing an epoch could let an old
    /// owner in.
    pub fn from_json(json: serde_json::Value) -> Result<Self, String> {
        let json: RecordJson = serde_json::from_value(json).map_err(|error| error.to_string())?;
        let vm = json.vm.parse().map_err(|error| format!("vm: {error}"))?;
        let epoch = OwnerEpoch::new(json.epoch);
        match (json.node, json.pid) {
            (Some(node), Some(pid)) => {
                let node = node.parse().map_err(|error| format!("node: {error}"))?;
                Ok(Self::Acquired(Owner { vm, node, epoch, pid }))
            }
            (None, None) => {
                let previous = json.previous.map(decode_owner).transpose()?;
                Ok(Self::Fenced { vm, epoch, previous })
            }
            _ => Err("node and pid come together or not at all".to_owned()),
        }
    }
}

fn decode_owner(json: OwnerJson) -> Result<Owner, String> {
    Ok(Owner {
        vm: json.vm.parse().map_err(|error| format!("previous.vm: {error}"))?,
        node: json.node.parse().map_err(|error| format!("previous.node: {error}"))?,
        epoch: OwnerEpoch::new(json.epoch),
        pid: json.pid,
    })
}

#[cfg(test)]
mod tests {
    use drover_ids::{NodeId, VmId};

    use super::*;

    const OWNER: Owner =
        Owner { vm: VmId::from_u128(1), node: NodeId::from_u128(2), epoch: OwnerEpoch::new(3), pid: 4 };

    fn check(record: OwnerRecord, text: &str) {
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(record.to_json(), json);
        assert_eq!(OwnerRecord::from_json(json), Ok(record));
    }

    #[test]
    fn records_keep_their_text_form() {
        check(
            OwnerRecord::Acquired(OWNER),
            r#"{"vm":"00000000-0000-0000-0000-000000000001","epoch":3,"node":"00000000-0000-0000-0000-000000000002","pid":4}"#,
        );
        check(
            OwnerRecord::Fenced { vm: OWNER.vm, epoch: OwnerEpoch::new(4), previous: None },
            r#"{"vm":"00000000-0000-0000-0000-000000000001","epoch":4}"#,
        );
        check(
            OwnerRecord::Fenced { vm: OWNER.vm, epoch: OwnerEpoch::new(4), previous: Some(OWNER) },
            r#"{"vm":"00000000-0000-0000-0000-000000000001","epoch":4,"previous":{"vm":"00000000-0000-0000-0000-000000000001","node":"00000000-0000-0000-0000-000000000002","epoch":3,"pid":4}}"#,
        );
    }

    #[test]
    fn damaged_records_are_refused_with_a_reason() {
        for (text, reason) in [
            ("null", "invalid type"),
            ("{}", "missing field `vm`"),
            (r#"{"vm":"x","epoch":1}"#, "vm: 'x' is not a VM id"),
            (r#"{"vm":"00000000-0000-0000-0000-000000000001","epoch":-1}"#, "invalid value"),
            (r#"{"vm":"00000000-0000-0000-0000-000000000001","epoch":1,"pid":1}"#, "node and pid"),
            (r#"{"vm":"00000000-0000-0000-0000-000000000001","epoch":1,"zone":1}"#, "unknown field"),
        ] {
            let error = OwnerRecord::from_json(serde_json::from_str(text).unwrap()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
