//! Boot images.

use drover_cluster_state::{Image, WallTime};
use drover_units::Bytes;
use drover_wire::store::v1 as stored;

use crate::{RecordError, StoredForm, fields::name};

impl StoredForm for Image {
    type Message = stored::Image;

    fn to_message(&self) -> stored::Image {
        stored::Image {
            name: self.name.to_string(),
            pool: self.pool.to_string(),
            size_bytes: self.size.get(),
            sha256: self.sha256.clone(),
            min_memory_bytes: self.min_memory.get(),
            created_at_ms: self.created_at.as_unix_millis(),
        }
    }

    fn from_message(message: stored::Image) -> Result<Self, RecordError> {
        Ok(Self {
            name: name("image.name", &message.name)?,
            pool: name("image.pool", &message.pool)?,
            size: Bytes::new(message.size_bytes),
            sha256: message.sha256,
            min_memory: Bytes::new(message.min_memory_bytes),
            created_at: WallTime::from_unix_millis(message.created_at_ms),
        })
    }
}
