//! Disk images.

use drover_cluster_state::{DiskImage, DiskImageState, ImageFormat, ImageSource, Secret, WallTime};
use drover_ids::OperationId;
use drover_units::Bytes;
use drover_wire::store::v1 as stored;
use stored::disk_image::Source;

use crate::{
    RecordError, StoredForm,
    fields::{digest, id_bytes, invalid, name, optional_id, required},
};

impl StoredForm for DiskImage {
    type Message = stored::DiskImage;

    fn to_message(&self) -> stored::DiskImage {
        let state = match self.state {
            DiskImageState::Importing => stored::DiskImageState::Importing,
            DiskImageState::Ready => stored::DiskImageState::Ready,
            DiskImageState::Deleting => stored::DiskImageState::Deleting,
        };
        let format = match self.format {
            None => stored::ImageFormat::Unspecified,
            Some(ImageFormat::Raw) => stored::ImageFormat::Raw,
            Some(ImageFormat::Qcow2) => stored::ImageFormat::Qcow2,
        };
        stored::DiskImage {
            name: self.name.to_string(),
            pool: self.pool.to_string(),
            digest: self.digest.as_bytes().to_vec(),
            file_size_bytes: self.file_size.get(),
            size_bytes: self.size.get(),
            format: format.into(),
            source: Some(match &self.source {
                ImageSource::Upload => Source::Upload(stored::Empty {}),
                ImageSource::Url(url) => Source::Url(url.expose().to_owned()),
                ImageSource::Copy(image) => Source::Copy(image.to_string()),
            }),
            received_bytes: self.received.get(),
            state: state.into(),
            operation_id: self.operation.map(|id| id_bytes(id.as_u128())).unwrap_or_default(),
            created_at_ms: self.created_at.as_unix_millis(),
        }
    }

    fn from_message(message: stored::DiskImage) -> Result<Self, RecordError> {
        let state = match message.state() {
            stored::DiskImageState::Importing => DiskImageState::Importing,
            stored::DiskImageState::Ready => DiskImageState::Ready,
            stored::DiskImageState::Deleting => DiskImageState::Deleting,
            stored::DiskImageState::Unspecified => return Err(invalid("disk_image.state", message.state)),
        };
        let format = match stored::ImageFormat::try_from(message.format) {
            Ok(stored::ImageFormat::Unspecified) => None,
            Ok(stored::ImageFormat::Raw) => Some(ImageFormat::Raw),
            Ok(stored::ImageFormat::Qcow2) => Some(ImageFormat::Qcow2),
            Err(_) => return Err(invalid("disk_image.format", message.format)),
        };
        Ok(Self {
            name: name("disk_image.name", &message.name)?,
            pool: name("disk_image.pool", &message.pool)?,
            digest: digest("disk_image.digest", &message.digest)?,
            file_size: Bytes::new(message.file_size_bytes),
            size: Bytes::new(message.size_bytes),
            format,
            source: match required("disk_image.source", message.source)? {
                Source::Upload(_) => ImageSource::Upload,
                Source::Url(url) => ImageSource::Url(Secret::new(url)),
                Source::Copy(image) => ImageSource::Copy(name("disk_image.copy", &image)?),
            },
            received: Bytes::new(message.received_bytes),
            state,
            operation: optional_id("disk_image.operation_id", &message.operation_id, OperationId::from_u128)?,
            created_at: WallTime::from_unix_millis(message.created_at_ms),
        })
    }
}
