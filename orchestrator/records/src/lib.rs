//! Stored form of cluster state: which key a record is under, and what its bytes mean.
//!
//! The messages are `drover.store.v1` in `drover-wire`. Domain types are converted explicitly, one file per type;
//! what comes back from a store is checked like anything else that is read from a disk (B10): a record that is
//! garbled, misfiled, or written by a version that knows more than this one is a [`RecordError`] that names the field.
//!
//! ```text
//! node/<id>  vm/<id>  volume/<id>  operation/<id>  image/<name>  disk-image/<name>  pool/<name>  name/<kind>/<name>
//! event/<id>  policy/<name>  project/<name>  settings/cluster  blocklisting/<vm id>/<floor>
//! ```
#![forbid(unsafe_code)]

mod blocklisting;
mod disk_image;
mod error;
mod event;
mod evidence;
mod fields;
mod guest_devices;
mod image;
mod key;
mod name;
mod node;
mod operation;
mod ownership;
mod placement;
mod pool;
mod storage_work;
mod vm;
mod volume;

use drover_cluster_state::{ClusterEvent, Record};
use drover_wire::store::v1 as stored;
use prost::Message as _;
use stored::stored_record::Record as StoredRecord;

pub use error::RecordError;
pub use key::{EVENT_PREFIX, StoredKey, event_key, key_text};

use crate::fields::required;

/// A domain type with a stored form.
trait StoredForm: Sized {
    /// The message.
    type Message;

    /// The stored form.
    fn to_message(&self) -> Self::Message;

    /// Back from a store.
    fn from_message(message: Self::Message) -> Result<Self, RecordError>;
}

/// What a value in the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "short-lived, and nearly all are records")]
pub enum Value {
    /// A record of cluster state.
    Record(Record),
    /// A line of the event log.
    Event(ClusterEvent),
}

/// The bytes of a record.
pub fn encode(record: &Record) -> Vec<u8> {
    encode_message(match record {
        Record::Node(node) => StoredRecord::Node(node.to_message()),
        Record::Vm(vm) => StoredRecord::Vm(vm.to_message()),
        Record::Volume(volume) => StoredRecord::Volume(volume.to_message()),
        Record::Image(image) => StoredRecord::Image(image.to_message()),
        Record::Pool(pool) => StoredRecord::Pool(pool.to_message()),
        Record::DiskImage(image) => StoredRecord::DiskImage(image.to_message()),
        Record::Operation(operation) => StoredRecord::Operation(operation.to_message()),
        Record::Name(name) => StoredRecord::Name(name.to_message()),
        Record::Policy(policy) => StoredRecord::Policy(policy.to_message()),
        Record::Project(project) => StoredRecord::Project(project.to_message()),
        Record::Settings(settings) => StoredRecord::Settings(settings.to_message()),
        Record::Blocklisting(entry) => StoredRecord::Blocklisting(entry.to_message()),
    })
}

/// The bytes of an event.
pub fn encode_event(event: &ClusterEvent) -> Vec<u8> {
    encode_message(StoredRecord::Event(event.to_message()))
}

fn encode_message(record: StoredRecord) -> Vec<u8> {
    stored::StoredRecord { record: Some(record) }.encode_to_vec()
}

/// What the bytes under `key` mean.
///
/// # Errors
/// Bytes that are no record, fields that break a rule, a record that belongs under another key.
pub fn decode(key: &StoredKey, bytes: &[u8]) -> Result<Value, RecordError> {
    let message = stored::StoredRecord::decode(bytes)?;
    let record = match required("record", message.record)? {
        StoredRecord::Node(node) => Record::Node(StoredForm::from_message(node)?),
        StoredRecord::Vm(vm) => Record::Vm(StoredForm::from_message(vm)?),
        StoredRecord::Volume(volume) => Record::Volume(StoredForm::from_message(volume)?),
        StoredRecord::Image(image) => Record::Image(StoredForm::from_message(image)?),
        StoredRecord::Pool(pool) => Record::Pool(StoredForm::from_message(pool)?),
        StoredRecord::DiskImage(image) => Record::DiskImage(StoredForm::from_message(image)?),
        StoredRecord::Operation(operation) => Record::Operation(StoredForm::from_message(operation)?),
        StoredRecord::Name(name) => Record::Name(StoredForm::from_message(name)?),
        StoredRecord::Policy(policy) => Record::Policy(StoredForm::from_message(policy)?),
        StoredRecord::Project(project) => Record::Project(StoredForm::from_message(project)?),
        StoredRecord::Settings(settings) => Record::Settings(StoredForm::from_message(settings)?),
        StoredRecord::Blocklisting(entry) => Record::Blocklisting(StoredForm::from_message(entry)?),
        StoredRecord::Event(event) => {
            let event = ClusterEvent::from_message(event)?;
            return match key {
                StoredKey::Event(_) => Ok(Value::Event(event)),
                StoredKey::Record(key) => {
                    Err(RecordError::Misfiled { key: key_text(key), found: "an event".to_owned() })
                }
            };
        }
    };
    match key {
        StoredKey::Record(key) if *key == record.key() => Ok(Value::Record(record)),
        _ => Err(RecordError::Misfiled { key: key.to_string(), found: key_text(&record.key()) }),
    }
}

#[cfg(test)]
mod placement_tests;
#[cfg(test)]
mod tests;
