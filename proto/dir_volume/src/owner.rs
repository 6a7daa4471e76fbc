//! The owner record's file: who may write a volume, and the epoch below which nobody may.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use drover_volume_owner::OwnerRecord;

use crate::durable;

/// Largest owner record that is read, bytes. Ours are below 400; anything longer was not written by us.
const RECORD_BYTES_MAX: u64 = 4096;

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

/// The file's text: the record's JSON in one line.
fn encode(record: &OwnerRecord) -> Vec<u8> {
    format!("{}\n", record.to_json()).into_bytes()
}

fn decode(text: &[u8]) -> Result<OwnerRecord, String> {
    if text.len() as u64 > RECORD_BYTES_MAX {
        return Err(format!("longer than {RECORD_BYTES_MAX} bytes"));
    }
    OwnerRecord::from_json(serde_json::from_slice(text).map_err(|error| error.to_string())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_records_are_refused_with_a_reason() {
        let other = r#"{"vm":"00000000-0000-0000-0000-000000000001","epoch":1,"zone":1}"#;
        for (text, reason) in [("", "EOF"), (other, "unknown field"), (&"9".repeat(5000), "longer than 4096")]
        {
            let error = decode(text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_record_is_one_line_and_reads_back() {
        let vm = drover_ids::VmId::from_u128(1);
        let record = OwnerRecord::Fenced { vm, epoch: drover_ids::OwnerEpoch::new(4), previous: None };
        let text = encode(&record);
        assert_eq!(text.iter().position(|byte| *byte == b'\n'), Some(text.len() - 1));
        assert_eq!(decode(&text), Ok(record));
    }
}
