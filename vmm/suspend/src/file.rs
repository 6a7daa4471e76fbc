//! A file of a suspended VM, opened and checked.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use drover_ids::OwnerEpoch;
use drover_saved_state::{Envelope, decode_list};
use drover_units::Bytes;

use crate::{
    Identity, ReadError,
    format::{CLAIM_LEN, CLAIM_OFFSET, Chunk, Claim, HEADER_LEN, Header, INDEX_ENTRY_LEN, NoHeader, VERSION},
};

/// A suspended VM. Everything but its RAM has been read and is sound.
#[derive(Debug)]
pub struct SuspendFile {
    path: PathBuf,
    file: File,
    header: Header,
    claim: Option<Claim>,
    index: Vec<Chunk>,
    shape: Vec<u8>,
    states: Vec<Envelope>,
}

impl SuspendFile {
    /// Opens and checks a file. Changes nothing.
    ///
    /// # Errors
    /// [`ReadError`] says what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::options().read(true).write(true).open(path);
        let failed = |source| ReadError::Io { attempt: "open", path: path.to_owned(), source };
        Self::read(file.map_err(failed)?, path)
    }

    /// As [`open`](Self::open), with a file that is open already, for reading and writing. `path` is its name, for errors.
    ///
    /// # Errors
    /// The same.
    pub fn read(file: File, path: &Path) -> Result<Self, ReadError> {
        let failed = |attempt| {
            let path = path.to_owned();
            move |source| ReadError::Io { attempt, path, source }
        };
        let corrupt = |what| ReadError::Corrupt { path: path.to_owned(), what };
        let found = file.metadata().map_err(failed("look at"))?.len();
        let mut bytes = [0; HEADER_LEN];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let reason = "it is shorter than a header";
                return Err(ReadError::NotSuspended { path: path.to_owned(), reason });
            }
            other => other.map_err(failed("read"))?,
        }
        let header = Header::decode(&bytes).map_err(|error| no_header(path, error))?;
        if found < header.file_len() {
            let expected = Bytes::new(header.file_len());
            return Err(ReadError::Truncated { path: path.to_owned(), found: Bytes::new(found), expected });
        }
        // No longer than the file is, which has just been seen.
        let part = |offset, len: u64, crc, what| {
            let mut bytes = vec![0; usize::try_from(len).map_err(|_| corrupt(what))?];
            file.read_exact_at(&mut bytes, offset).map_err(failed("read"))?;
            if crc32c::crc32c(&bytes) == crc { Ok(bytes) } else { Err(corrupt(what)) }
        };
        let index = part(
            header.index_offset(),
            header.index_len(),
            header.index_crc,
            "the checksum of its index is wrong",
        )?;
        let (entries, _) = index.as_chunks::<{ INDEX_ENTRY_LEN as usize }>();
        let index = entries.iter().copied().map(Chunk::decode).collect();
        let shape = part(
            header.shape_offset(),
            header.shape_len,
            header.shape_crc,
            "the checksum of its description is wrong",
        )?;
        let states = part(
            header.states_offset(),
            header.states_len,
            header.states_crc,
            "the checksum of its states is wrong",
        )?;
        let states =
            decode_list(&states).map_err(|source| ReadError::States { path: path.to_owned(), source })?;
        let mut claim = [0; CLAIM_LEN];
        file.read_exact_at(&mut claim, CLAIM_OFFSET).map_err(failed("read"))?;
        let claim = Claim::decode(&claim).map_err(|()| corrupt("its claim is wrong"))?;
        if claim.is_some_and(|claim| claim.consumed) {
            return Err(ReadError::Consumed { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), file, header, claim, index, shape, states })
    }

    /// Whose it is.
    pub fn identity(&self) -> Identity {
        self.header.identity
    }

    /// The guest's RAM.
    pub fn memory(&self) -> Bytes {
        Bytes::new(self.header.ram_len)
    }

    /// What the machine must look like: the bytes that were given to [`SuspendWriter`](crate::SuspendWriter).
    pub fn shape(&self) -> &[u8] {
        &self.shape
    }

    /// Devices and vCPUs.
    pub fn states(&self) -> &[Envelope] {
        &self.states
    }

    /// Whether a volume that was last taken under this epoch is as the VM left it: by the VM that was suspended, or by
    /// one that began to resume it and has run nothing, or else the file would be consumed.
    pub fn is_last_owner(&self, epoch: OwnerEpoch) -> bool {
        epoch == self.header.identity.epoch || self.claim.is_some_and(|claim| claim.epoch == epoch)
    }

    /// Takes note, on the disk, that this epoch resumes. To be called before any volume is taken.
    ///
    /// # Errors
    /// [`ReadError::StaleEpoch`] unless it is newer than any before; [`ReadError::Io`].
    pub fn claim(&mut self, epoch: OwnerEpoch) -> Result<(), ReadError> {
        let claimed = self.claim.map(|claim| claim.epoch);
        let newest = self.header.identity.epoch.max(claimed.unwrap_or_default());
        if epoch <= newest {
            return Err(ReadError::StaleEpoch { asked: epoch, newest });
        }
        let claim = Claim { epoch, consumed: false };
        write_claim(&self.file, &self.path, claim)?;
        self.claim = Some(claim);
        Ok(())
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn claimed(&self) -> Option<OwnerEpoch> {
        self.claim.map(|claim| claim.epoch)
    }

    pub(crate) fn into_parts(self) -> (File, Header, Vec<Chunk>) {
        (self.file, self.header, self.index)
    }
}

pub(crate) fn write_claim(file: &File, path: &Path, claim: Claim) -> Result<(), ReadError> {
    let failed = |source| ReadError::Io { attempt: "claim", path: path.to_owned(), source };
    file.write_all_at(&claim.encode(), CLAIM_OFFSET).map_err(failed)?;
    file.sync_all().map_err(failed)
}

fn no_header(path: &Path, error: NoHeader) -> ReadError {
    let not = |reason| ReadError::NotSuspended { path: path.to_owned(), reason };
    match error {
        NoHeader::Magic => not("the magic number is missing"),
        NoHeader::Version(found) => ReadError::Version { path: path.to_owned(), found, newest: VERSION },
        NoHeader::Checksum => not("the checksum of its header is wrong"),
        NoHeader::Numbers => not("its header says what cannot be"),
    }
}
