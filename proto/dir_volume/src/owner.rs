//! The owner record: who may write a volume, and the epoch below which nobody may.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use drover_ids::{NodeId, OwnerEpoch, VmId};
use serde::{Deserialize, Serialize};

use crate::durable;

/// Largest owner record that is read, bytes. Ours are below 400; anything longer was not written by us.
const RECORD_BYTES_MAX: u64 = 4096;

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

/// What the sidecar file of a volume says.
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
}

/// An owner record that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("cannot access the owner record {path}")]
    Io {
        /// The sidecar file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The content is not an owner record. Nobody can acquire the volume until a person has looked at it: guessing
    /// an epoch could let an old owner in.
    #[error("the owner record {path} is damaged: {reason}")]
    Damaged {
        /// The sidecar file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads the record beside a volume; `None` where the volume has never been acquired or fenced.
pub fn read_record(sidecar: &Path) -> Result<Option<OwnerRecord>, RecordError> {
    let io_error = |source| RecordError::Io { path: sidecar.to_owned(), source };
    let file = match File::open(sidecar) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    let mut text = Vec::new();
    file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut text).map_err(io_error)?;
    decode(&text).map(Some).map_err(|reason| RecordError::Damaged { path: sidecar.to_owned(), reason })
}

/// Writes the record. The caller holds the volume's lock.
pub(crate) fn write_record(sidecar: &Path, record: &OwnerRecord) -> Result<(), RecordError> {
    durable::replace(sidecar, &encode(record))
        .map_err(|source| RecordError::Io { path: sidecar.to_owned(), source })
}

/// The file's JSON. Ids are texts; unknown fields are refused, since a newer writer may mean to restrict us.
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

fn encode(record: &OwnerRecord) -> Vec<u8> {
    let json = match record {
        OwnerRecord::Acquired(owner) => RecordJson {
            vm: owner.vm.to_string(),
            epoch: owner.epoch.get(),
            node: Some(owner.node.to_string()),
            pid: Some(owner.pid),
            previous: None,
        },
        OwnerRecord::Fenced { vm, epoch, previous } => RecordJson {
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
    let mut text = serde_json::to_vec(&json).expect("strings and integers always serialise");
    text.push(b'\n');
    text
}

fn decode(text: &[u8]) -> Result<OwnerRecord, String> {
    if text.len() as u64 > RECORD_BYTES_MAX {
        return Err(format!("longer than {RECORD_BYTES_MAX} bytes"));
    }
    let json: RecordJson = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let vm = json.vm.parse().map_err(|error| format!("vm: {error}"))?;
    let epoch = OwnerEpoch::new(json.epoch);
    match (json.node, json.pid) {
        (Some(node), Some(pid)) => {
            let node = node.parse().map_err(|error| format!("node: {error}"))?;
            Ok(OwnerRecord::Acquired(Owner { vm, node, epoch, pid }))
        }
        (None, None) => {
            let previous = json.previous.map(decode_owner).transpose()?;
            Ok(OwnerRecord::Fenced { vm, epoch, previous })
        }
        _ => Err("node and pid come together or not at all".to_owned()),
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
    use super::*;

    const OWNER: Owner =
        Owner { vm: VmId::from_u128(1), node: NodeId::from_u128(2), epoch: OwnerEpoch::new(3), pid: 4 };

    fn check(record: OwnerRecord, text: &str) {
        assert_eq!(String::from_utf8(encode(&record)).unwrap(), format!("{text}\n"));
        assert_eq!(decode(text.as_bytes()), Ok(record));
    }

    /// The format is shared by processes of different releases: these texts may gain fields, never change.
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
            ("", "EOF"),
            ("{}", "missing field `vm`"),
            (r#"{"vm":"x","epoch":1}"#, "vm: 'x' is not a VM id"),
            (r#"{"vm":"00000000-0000-0000-0000-000000000001","epoch":-1}"#, "invalid value"),
            (r#"{"vm":"00000000-0000-0000-0000-000000000001","epoch":1,"pid":1}"#, "node and pid"),
            (r#"{"vm":"00000000-0000-0000-0000-000000000001","epoch":1,"zone":1}"#, "unknown field"),
            (&"9".repeat(5000), "longer than 4096"),
        ] {
            let error = decode(text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn an_owner_displays_everything_a_person_needs_to_find_it() {
        let text = OWNER.to_string();
        for part in [OWNER.vm.to_string(), OWNER.node.to_string(), "epoch 3".into(), "pid 4".into()] {
            assert!(text.contains(&part), "{text}");
        }
    }
}
