//! The owner record of an image.

use drover_rbd::{Attribute, ClientAddress, Image};
use drover_volume_owner::OwnerRecord;
use serde::{Deserialize, Serialize};

/// The attribute's name on the image's header object. No name of Ceph's own begins like this.
const ATTRIBUTE: &str = "drover.owner";

/// What an image's owner record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// Who may write.
    pub owner: OwnerRecord,
    /// The addresses of the last owner's client: what a fence must name.
    pub clients: Vec<ClientAddress>,
}

/// An owner record that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The cluster refused.
    #[error("cannot access the owner record")]
    Ceph(#[from] drover_rbd::Error),
    /// The content is not an owner record. Nobody can acquire the volume until a person has looked at it: guessing an
    /// epoch could let an old owner in.
    #[error("the owner record of image {image} is damaged: {reason}")]
    Damaged {
        /// The image.
        image: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody else changed the record at the same moment, again and again.
    #[error("the owner record of image {image} does not hold still")]
    Contended {
        /// The image.
        image: String,
    },
}

/// The attribute's JSON. Unknown fields are refused, since a newer writer may mean to restrict us.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordJson {
    owner: serde_json::Value,
    #[serde(default)]
    clients: Vec<String>,
}

/// Reads the record of an image; `None` where it has never been acquired or fenced.
pub fn read_record(image: &Image) -> Result<Option<ImageRecord>, RecordError> {
    Ok(Stored::read(image)?.record)
}

/// A record together with the exact bytes it was read from, so that it can be swapped.
pub(crate) struct Stored {
    pub(crate) record: Option<ImageRecord>,
    object: String,
    bytes: Vec<u8>,
}

impl Stored {
    pub(crate) fn read(image: &Image) -> Result<Self, RecordError> {
        let object = format!("rbd_header.{}", image.id()?);
        let bytes = image.pool().attribute(Attribute { object: &object, name: ATTRIBUTE })?;
        let record = match bytes.as_slice() {
            [] => None,
            text => Some(decode(text).map_err(|reason| {
                let image = image.name().to_owned();
                RecordError::Damaged { image, reason }
            })?),
        };
        Ok(Self { record, object, bytes })
    }

    /// Replaces the record by `new` (`None` removes it), unless somebody else has changed it since it was read: returns
    /// whether it was replaced.
    pub(crate) fn swap(&self, image: &Image, new: Option<&ImageRecord>) -> Result<bool, RecordError> {
        let attribute = Attribute { object: &self.object, name: ATTRIBUTE };
        let new = new.map(encode).unwrap_or_default();
        Ok(image.pool().compare_and_set_attribute(attribute, &self.bytes, &new)?)
    }
}

/// How often a record is read again because somebody changed it in between. Changes come from one owner at a time and
/// from the control plane, each of them once.
const SWAPS_MAX: u32 = 16;

/// Reads, lets `decide` say what the record is to become (`Ok(None)`: leave it), and swaps; again where somebody was
/// faster. Returns the record that `decide` saw last.
pub(crate) fn update<E: From<RecordError>>(
    image: &Image,
    mut decide: impl FnMut(Option<&ImageRecord>) -> Result<Option<Change>, E>,
) -> Result<Option<ImageRecord>, E> {
    for _ in 0..SWAPS_MAX {
        let stored = Stored::read(image)?;
        let new = match decide(stored.record.as_ref())? {
            None => return Ok(stored.record),
            Some(Change::Remove) => None,
            Some(Change::Replace(record)) => Some(record),
        };
        if stored.swap(image, new.as_ref())? {
            return Ok(stored.record);
        }
    }
    Err(RecordError::Contended { image: image.name().to_owned() }.into())
}

/// What a record is to become.
pub(crate) enum Change {
    Replace(ImageRecord),
    Remove,
}

fn encode(record: &ImageRecord) -> Vec<u8> {
    let json = RecordJson {
        owner: record.owner.to_json(),
        clients: record.clients.iter().map(ToString::to_string).collect(),
    };
    serde_json::to_vec(&json).expect("strings and integers always serialise")
}

fn decode(text: &[u8]) -> Result<ImageRecord, String> {
    let json: RecordJson = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let owner = OwnerRecord::from_json(json.owner).map_err(|reason| format!("owner: {reason}"))?;
    let clients: Result<Vec<ClientAddress>, _> = json.clients.iter().map(|text| text.parse()).collect();
    Ok(ImageRecord { owner, clients: clients.map_err(|error| format!("clients: {error}"))? })
}

#[cfg(test)]
mod tests {
    use drover_ids::{OwnerEpoch, VmId};

    use super::*;

    /// The format is shared by processes of different releases: these texts may gain fields, never change.
    #[test]
    fn records_keep_their_text_form() {
        let owner = OwnerRecord::Fenced { vm: VmId::from_u128(1), epoch: OwnerEpoch::new(4), previous: None };
        let record = ImageRecord { owner, clients: vec!["10.0.0.7:0/42".parse().unwrap()] };
        let text = r#"{"owner":{"epoch":4,"vm":"00000000-0000-0000-0000-000000000001"},"clients":["10.0.0.7:0/42"]}"#;
        assert_eq!(String::from_utf8(encode(&record)).unwrap(), text);
        assert_eq!(decode(text.as_bytes()), Ok(record));
    }

    #[test]
    fn damaged_records_are_refused_with_a_reason() {
        let owner = r#"{"epoch":4,"vm":"00000000-0000-0000-0000-000000000001"}"#;
        for (text, reason) in [
            ("{".to_owned(), "EOF"),
            ("{}".to_owned(), "missing field `owner`"),
            (r#"{"owner":{}}"#.to_owned(), "owner: missing field"),
            (format!(r#"{{"owner":{owner},"clients":["x"]}}"#), "clients: 'x' is not"),
            (format!(r#"{{"owner":{owner},"zone":1}}"#), "unknown field"),
        ] {
            let error = decode(text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
