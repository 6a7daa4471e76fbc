//! The owner record's file: who may write a volume, and the epoch below which nobody may.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use drover_volume_owner::OwnerRecord;

use crate::durable;

/// Largest owner record that is read, bytes. Ours are below 400; anything longer was not written by us.
const RECORD_BYTES_MAX: u64 = 4096;

/// Length of the file: one sector, which a disk writes whole or not at all, so that a record can be changed in its place by
/// a process that has the open file and nothing else. Records are shorter, and padded.
const FILE_BYTES: usize = 512;

/// Looks at a record that is being changed at this moment, before it counts as damaged.
const LOOKS: u32 = 3;

/// The file of a record, by its name, or open already for a process that may open nothing.
#[derive(Debug)]
pub enum Sidecar {
    /// By name.
    At(PathBuf),
    /// Open for reading and writing, from [`open_record`]; its name is for people.
    Open(File, PathBuf),
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
    let mut look = 1;
    loop {
        let file = match File::open(sidecar) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(error)),
        };
        let mut text = Vec::new();
        file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut text).map_err(io_error)?;
        match decode(&text) {
            Ok(record) => return Ok(record),
            // Whoever reads without the lock may meet its holder half-way.
            Err(_) if look < LOOKS => look += 1,
            Err(reason) => return Err(RecordError::Damaged { path: sidecar.to_owned(), reason }),
        }
    }
}

/// Writes the record. The caller holds the volume's lock.
pub(crate) fn write_record(sidecar: &Path, record: &OwnerRecord) -> Result<(), RecordError> {
    let text = encode(record);
    let write = || match OpenOptions::new().write(true).open(sidecar) {
        // In its place, so that whoever has the file open sees it.
        Ok(file) if file.metadata()?.len() == text.len() as u64 => overwrite(&file, &text),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => durable::replace(sidecar, &text),
    };
    write().map_err(|source| RecordError::Io { path: sidecar.to_owned(), source })
}

fn overwrite(file: &File, text: &[u8]) -> io::Result<()> {
    file.write_all_at(text, 0)?;
    file.sync_data()
}

/// Opens the record beside a volume for a process that may not open it itself: see [`Sidecar::Open`]. Where there is
/// none yet, one that says nothing is made.
///
/// # Errors
/// What the file system says.
pub fn open_record(sidecar: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().read(true).write(true).open(sidecar);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let blank = durable::Pending::create(sidecar)?;
    (&blank.file).write_all(&padded(String::new()))?;
    match blank.publish(sidecar) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        // Ours, or somebody else's who was quicker.
        _ => open(),
    }
}

impl Sidecar {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::At(path) | Self::Open(_, path) => path,
        }
    }

    /// The volume's record, as it is at the moment.
    ///
    /// # Errors
    /// [`RecordError`] where it cannot be read or means nothing.
    pub fn read(&self) -> Result<Option<OwnerRecord>, RecordError> {
        let (file, path) = match self {
            Self::At(path) => return read_record(path),
            Self::Open(file, path) => (file, path),
        };
        let mut text = vec![0; RECORD_BYTES_MAX as usize + 1];
        let read = file.metadata().and_then(|file_now| match file_now.nlink() {
            // The volume was detached from its VM, or a record was made at the moment when this file was.
            0 => Err(io::Error::new(io::ErrorKind::NotFound, "the record has been removed or replaced")),
            _ => file.read_at(&mut text, 0),
        });
        let length = read.map_err(|source| RecordError::Io { path: path.clone(), source })?;
        decode(&text[..length]).map_err(|reason| RecordError::Damaged { path: path.clone(), reason })
    }

    /// The caller holds the volume's lock.
    pub(crate) fn write(&self, record: &OwnerRecord) -> Result<(), RecordError> {
        match self {
            Self::At(path) => write_record(path, record),
            Self::Open(file, path) => overwrite(file, &encode(record))
                .map_err(|source| RecordError::Io { path: path.clone(), source }),
        }
    }
}

/// The file's text: the record's JSON in one line.
fn encode(record: &OwnerRecord) -> Vec<u8> {
    padded(record.to_json().to_string())
}

/// One line, as long as the file.
fn padded(mut text: String) -> Vec<u8> {
    text.push_str(&" ".repeat((FILE_BYTES - 1).saturating_sub(text.len())));
    text.push('\n');
    text.into_bytes()
}

/// `None` is a file that was made so that it could be opened, and says nothing yet.
fn decode(text: &[u8]) -> Result<Option<OwnerRecord>, String> {
    if text.len() as u64 > RECORD_BYTES_MAX {
        return Err(format!("longer than {RECORD_BYTES_MAX} bytes"));
    }
    if text == padded(String::new()) {
        return Ok(None);
    }
    OwnerRecord::from_json(serde_json::from_slice(text).map_err(|error| error.to_string())?).map(Some)
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
        assert_eq!(decode(&text), Ok(Some(record)));
        assert_eq!(text.len(), FILE_BYTES);
    }

    #[test]
    fn a_record_of_before_files_were_padded_reads_as_it_did() {
        let vm = drover_ids::VmId::from_u128(1);
        let record = OwnerRecord::Fenced { vm, epoch: drover_ids::OwnerEpoch::new(4), previous: None };
        let text = format!("{}\n", record.to_json());
        assert_eq!(decode(text.as_bytes()), Ok(Some(record)));
    }

    #[test]
    fn an_open_record_sees_and_makes_every_change() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.owner");
        let record = |epoch| {
            let (vm, epoch) = (drover_ids::VmId::from_u128(1), drover_ids::OwnerEpoch::new(epoch));
            OwnerRecord::Fenced { vm, epoch, previous: None }
        };
        let open = Sidecar::Open(open_record(&path).expect("made"), path.clone());
        assert_eq!((open.read().expect("blank"), read_record(&path).expect("blank")), (None, None));
        open.write(&record(3)).expect("written");
        assert_eq!(read_record(&path).expect("readable"), Some(record(3)));
        write_record(&path, &record(4)).expect("written");
        assert_eq!(open.read().expect("readable"), Some(record(4)), "a fence reaches who has the file open");
        std::fs::remove_file(&path).expect("removed");
        assert!(open.read().is_err(), "a record that is gone says nothing");
        // One from before files were padded is written in its place as well.
        std::fs::write(&path, format!("{}\n", record(5).to_json())).expect("written");
        let open = Sidecar::Open(open_record(&path).expect("there"), path.clone());
        open.write(&record(6)).expect("written");
        assert_eq!(read_record(&path).expect("readable"), Some(record(6)));
    }
}
