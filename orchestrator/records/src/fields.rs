//! Checks of single fields.

use std::time::Duration;

use drover_cluster_state::{Capacity, Name, Subject};
use drover_ids::{ImageDigest, NodeId, VmId, VolumeId};
use drover_placement_messages::MessageError;
use drover_units::{Bytes, VcpuCount};
use drover_wire::store::v1 as stored;

use crate::{RecordError, StoredForm};

/// A value that must be there.
pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Result<T, RecordError> {
    value.ok_or(RecordError::Missing { field })
}

/// The error of a field that breaks a rule.
pub(crate) fn invalid(field: &'static str, reason: impl ToString) -> RecordError {
    RecordError::Invalid { field, reason: reason.to_string() }
}

/// The error of a placement message.
pub(crate) fn placement(record: &'static str) -> impl FnOnce(MessageError) -> RecordError {
    move |source| RecordError::Placement { record, source }
}

/// A name.
pub(crate) fn name(field: &'static str, text: &str) -> Result<Name, RecordError> {
    Name::new(text).map_err(|error| invalid(field, error))
}

/// A name that may be left out.
pub(crate) fn optional_name(field: &'static str, text: &str) -> Result<Option<Name>, RecordError> {
    if text.is_empty() { Ok(None) } else { name(field, text).map(Some) }
}

/// The 16 bytes of an id.
pub(crate) fn id_bytes(id: u128) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

/// An id from its 16 bytes.
pub(crate) fn id<T>(
    field: &'static str,
    bytes: &[u8],
    from_u128: impl FnOnce(u128) -> T,
) -> Result<T, RecordError> {
    let array =
        bytes.try_into().map_err(|_| invalid(field, format!("{} bytes, an id has 16", bytes.len())))?;
    Ok(from_u128(u128::from_be_bytes(array)))
}

/// An id that may be left out.
pub(crate) fn optional_id<T>(
    field: &'static str,
    bytes: &[u8],
    from_u128: impl FnOnce(u128) -> T,
) -> Result<Option<T>, RecordError> {
    if bytes.is_empty() { Ok(None) } else { id(field, bytes, from_u128).map(Some) }
}

/// A digest from its 32 bytes.
pub(crate) fn digest(field: &'static str, bytes: &[u8]) -> Result<ImageDigest, RecordError> {
    let array =
        bytes.try_into().map_err(|_| invalid(field, format!("{} bytes, a SHA-256 has 32", bytes.len())))?;
    Ok(ImageDigest::new(array))
}

/// Whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whole microseconds.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl StoredForm for Capacity {
    type Message = stored::Capacity;

    fn to_message(&self) -> stored::Capacity {
        stored::Capacity { vcpus: self.vcpus.get(), memory_bytes: self.memory.get() }
    }

    fn from_message(message: stored::Capacity) -> Result<Self, RecordError> {
        Ok(Self { vcpus: VcpuCount::new(message.vcpus), memory: Bytes::new(message.memory_bytes) })
    }
}

impl StoredForm for Subject {
    type Message = stored::Subject;

    fn to_message(&self) -> stored::Subject {
        use stored::subject::Subject as Stored;
        let subject = match self {
            Self::Vm(id) => Stored::VmId(id_bytes(id.as_u128())),
            Self::Volume(id) => Stored::VolumeId(id_bytes(id.as_u128())),
            Self::Image(name) => Stored::Image(name.to_string()),
            Self::Node(id) => Stored::NodeId(id_bytes(id.as_u128())),
            Self::Pool(name) => Stored::Pool(name.to_string()),
            Self::DiskImage(name) => Stored::DiskImage(name.to_string()),
            Self::Rack(name) => Stored::Rack(name.to_string()),
            Self::VmSet(name) => Stored::VmSet(name.to_string()),
            Self::Cluster => Stored::Cluster(stored::Empty {}),
        };
        stored::Subject { subject: Some(subject) }
    }

    fn from_message(message: stored::Subject) -> Result<Self, RecordError> {
        use stored::subject::Subject as Stored;
        Ok(match required("subject", message.subject)? {
            Stored::VmId(bytes) => Self::Vm(id("vm_id", &bytes, VmId::from_u128)?),
            Stored::VolumeId(bytes) => Self::Volume(id("volume_id", &bytes, VolumeId::from_u128)?),
            Stored::Image(text) => Self::Image(name("image", &text)?),
            Stored::NodeId(bytes) => Self::Node(id("node_id", &bytes, NodeId::from_u128)?),
            Stored::Pool(text) => Self::Pool(name("pool", &text)?),
            Stored::DiskImage(text) => Self::DiskImage(name("disk_image", &text)?),
            Stored::Rack(text) => Self::Rack(name("rack", &text)?),
            Stored::VmSet(text) => Self::VmSet(name("vm_set", &text)?),
            Stored::Cluster(_) => Self::Cluster,
        })
    }
}
