//! Reads images in QEMU's qcow2 format, versions 2 and 3, from whoever sends them.
//!
//! The file is untrusted: every number in it is checked before it is used, tables are bounded, and nothing outside of
//! the file is ever opened. What would need another file (backing files, external data files) or a key is refused, and
//! so is what this reader does not know. Layout: QEMU's `docs/interop/qcow2.txt`.
//!
//! ```text
//! header -> L1 table -> L2 tables -> clusters: raw, compressed, zero, or not there (zero as well)
//! ```

mod header;

use std::{
    fs::File,
    io::{self, Read as _},
    ops::Range,
    os::unix::fs::FileExt as _,
};

use drover_units::{Bytes, SECTOR_SIZE};

use crate::{DiskReader, Result, StorageError};
use header::{Compression, Header};

/// Largest L1 table, entries: QEMU's own limit of 32 MiB.
const L1_ENTRIES_MAX: u64 = (32 << 20) / 8;
/// Bits of a table entry that are an offset (9 to 55).
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// No cluster becomes smaller: 512 equal bytes take this many.
const COMPRESSED_BYTES_MIN: u64 = 4;
/// The cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, whatever is in the file (version 3).
const ZERO: u64 = 1;

/// Why a file is no qcow2 image that can be read.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// Not such a file at all.
    #[error("it is not a qcow2 image")]
    NotQcow2,
    /// Of a version that is not known.
    #[error("it is a qcow2 image of version {0}; valid: 2 or 3")]
    Version(u32),
    /// It needs what it does not bring along.
    #[error("it {0}, which is not taken; `qemu-img convert` makes an image without")]
    Unsupported(&'static str),
    /// It says of itself that it is damaged, or contradicts itself.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It is too large.
    #[error("its disk has {0} bytes; valid: at most {1}")]
    TooLarge(u64, Bytes),
    /// The file cannot be read.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
}

fn damaged(what: impl Into<String>) -> Qcow2Error {
    Qcow2Error::Damaged(what.into())
}

/// Where a cluster's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cluster {
    /// It reads as zeros.
    Zero,
    /// In the file, as they are.
    Plain(u64),
    /// In the file, compressed: where, and at most how many bytes.
    Compressed(u64, usize),
}

/// A qcow2 image, as the disk it stands for.
#[derive(Debug)]
pub struct Qcow2 {
    file: File,
    file_size: u64,
    header: Header,
    l1: Vec<u64>,
    /// The L2 table that was used last, and which one it is.
    l2: Option<(usize, Vec<u64>)>,
    /// The compressed cluster that was used last, and which one it is.
    inflated: Option<(u64, Vec<u8>)>,
    counted: Counted,
}

/// Clusters of the disk that have been looked at in turn.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    up_to: u64,
    plain: u64,
    compressed: u64,
}

impl Qcow2 {
    /// How many bytes at the start of a file say whether it is one.
    pub const MAGIC: [u8; 4] = *b"QFI\xfb";

    /// Reads the header and the first table of an image whose disk has at most `size_max`.
    ///
    /// # Errors
    /// [`Qcow2Error`].
    pub fn open(file: File, size_max: Bytes) -> Result<Self, Qcow2Error> {
        let file_size = file.metadata()?.len();
        let header = Header::read(&file)?;
        if header.size > size_max.get() {
            return Err(Qcow2Error::TooLarge(header.size, size_max));
        }
        let per_l1_entry = header.cluster_size() * header.l2_entries() as u64;
        let needed = header.size.div_ceil(per_l1_entry);
        if needed > u64::from(header.l1_size) {
            return Err(damaged(format!("its L1 table has {} entries, {needed} are needed", header.l1_size)));
        }
        if needed > L1_ENTRIES_MAX {
            return Err(damaged(format!("its L1 table would have {needed} entries")));
        }
        let needed = usize::try_from(needed).map_err(|_| damaged("its L1 table"))?;
        let mut image = Self {
            file,
            file_size,
            header,
            l1: Vec::new(),
            l2: None,
            inflated: None,
            counted: Counted::default(),
        };
        image.l1 = image.read_table(image.header.l1_offset, needed)?;
        Ok(image)
    }

    /// Reads a table, which must lie wholly within the file: so none is larger than what was sent.
    fn read_table(&self, offset: u64, entries: usize) -> Result<Vec<u64>, Qcow2Error> {
        let bytes = entries * 8;
        let end = offset.checked_add(bytes as u64).filter(|end| *end <= self.file_size);
        if end.is_none() || !offset.is_multiple_of(self.header.cluster_size()) {
            return Err(damaged(format!("a table at {offset} with {entries} entries is not in the file")));
        }
        let mut table = vec![0; bytes];
        self.file.read_exact_at(&mut table, offset)?;
        Ok(table.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    /// Where the bytes of a cluster of the disk are.
    fn cluster(&mut self, index: u64) -> Result<Cluster, Qcow2Error> {
        let per_table = self.header.l2_entries() as u64;
        let (table, entry) = (index / per_table, index % per_table);
        let table = usize::try_from(table).map_err(|_| damaged("a cluster number"))?;
        let l2_offset = self.l1.get(table).ok_or_else(|| damaged("a cluster past the end"))? & OFFSET_MASK;
        if l2_offset == 0 {
            return Ok(Cluster::Zero);
        }
        if self.l2.as_ref().is_none_or(|(loaded, _)| *loaded != table) {
            self.l2 = Some((table, self.read_table(l2_offset, self.header.l2_entries())?));
        }
        let (_, entries) = self.l2.as_ref().expect("it has just been loaded");
        let entry = entries[usize::try_from(entry).expect("less than the table has")];
        self.meaning(entry)
    }

    fn meaning(&self, entry: u64) -> Result<Cluster, Qcow2Error> {
        if entry & COMPRESSED != 0 {
            // "62 - (cluster_bits - 8)" bits of offset, then the number of sectors after the first.
            let offset_bits = 62 - (self.header.cluster_bits - 8);
            let offset = entry & ((1 << offset_bits) - 1);
            let sectors = ((entry & (COMPRESSED - 1)) >> offset_bits) + 1;
            let length = sectors * SECTOR_SIZE - offset % SECTOR_SIZE;
            if offset >= self.file_size {
                return Err(damaged(format!("a compressed cluster at {offset} is not in the file")));
            }
            // The last one may end before its last sector does.
            let length = length.min(self.file_size - offset);
            return Ok(Cluster::Compressed(offset, usize::try_from(length).expect("below 2^22 sectors")));
        }
        let offset = entry & OFFSET_MASK;
        if offset == 0 || (self.header.version >= 3 && entry & ZERO != 0) {
            return Ok(Cluster::Zero);
        }
        if !offset.is_multiple_of(self.header.cluster_size()) {
            return Err(damaged(format!("a cluster at {offset} is not aligned")));
        }
        // As QEMU reads it: the end of the file need not have been written.
        Ok(if offset < self.file_size { Cluster::Plain(offset) } else { Cluster::Zero })
    }

    fn inflate(&self, offset: u64, length: usize) -> Result<Vec<u8>, Qcow2Error> {
        let mut packed = vec![0; length];
        self.file.read_exact_at(&mut packed, offset)?;
        let size = self.header.cluster_size();
        let mut cluster = Vec::with_capacity(usize::try_from(size).expect("at most 2 MiB"));
        let broken = |error: &dyn std::fmt::Display| {
            damaged(format!("the compressed cluster at {offset} cannot be read: {error}"))
        };
        // Neither reads more than a cluster, however much the data would give.
        match self.header.compression {
            Compression::Zlib => flate2::read::DeflateDecoder::new(&packed[..])
                .take(size)
                .read_to_end(&mut cluster)
                .map_err(|error| broken(&error))?,
            Compression::Zstd => ruzstd::decoding::StreamingDecoder::new(&packed[..])
                .map_err(|error| broken(&error))?
                .take(size)
                .read_to_end(&mut cluster)
                .map_err(|error| broken(&error))?,
        };
        if cluster.len() as u64 != size {
            return Err(broken(&format!("it has {} bytes, a cluster has {size}", cluster.len())));
        }
        Ok(cluster)
    }

    /// Fills `buffer` from within one cluster.
    fn read_cluster(&mut self, index: u64, within: u64, buffer: &mut [u8]) -> Result<(), Qcow2Error> {
        match self.cluster(index)? {
            Cluster::Zero => buffer.fill(0),
            Cluster::Plain(offset) => {
                let start = offset.checked_add(within).ok_or_else(|| damaged("a cluster's offset"))?;
                // The last one may end before it is whole.
                let there = self.file_size.saturating_sub(start).min(buffer.len() as u64);
                let (there, missing) = buffer.split_at_mut(usize::try_from(there).expect("at most a buffer"));
                self.file.read_exact_at(there, start)?;
                missing.fill(0);
            }
            Cluster::Compressed(offset, length) => {
                if self.inflated.as_ref().is_none_or(|(inflated, _)| *inflated != offset) {
                    self.inflated = Some((offset, self.inflate(offset, length)?));
                }
                let (_, cluster) = self.inflated.as_ref().expect("it has just been read");
                let within = usize::try_from(within).expect("within a cluster");
                buffer.copy_from_slice(&cluster[within..within + buffer.len()]);
            }
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Qcow2Error> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= DiskReader::size(self).get());
        if end.is_none() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        let size = self.header.cluster_size();
        let mut done = 0;
        while done < buffer.len() {
            let position = offset + done as u64;
            let within = position % size;
            let length = usize::try_from(size - within).expect("at most 2 MiB").min(buffer.len() - done);
            self.read_cluster(position / size, within, &mut buffer[done..done + length])?;
            done += length;
        }
        Ok(())
    }

    /// Refuses an image that holds fewer clusters than it says: each belongs to one place of the disk, and a file of a
    /// megabyte must not become a disk of terabytes.
    fn count(&mut self, index: u64, cluster: Cluster) -> Result<(), Qcow2Error> {
        if index < self.counted.up_to {
            return Ok(());
        }
        self.counted.up_to = index + 1;
        match cluster {
            Cluster::Zero => {}
            Cluster::Plain(_) => self.counted.plain += 1,
            Cluster::Compressed(..) => self.counted.compressed += 1,
        }
        let plain_max = self.file_size.div_ceil(self.header.cluster_size());
        let compressed_max = self.file_size.div_ceil(COMPRESSED_BYTES_MIN);
        if self.counted.plain > plain_max || self.counted.compressed > compressed_max {
            return Err(damaged("its disk uses clusters of the file more than once"));
        }
        Ok(())
    }

    fn next(&mut self, offset: u64) -> Result<Option<Range<u64>>, Qcow2Error> {
        let cluster_size = self.header.cluster_size();
        let (end, per_table) = (DiskReader::size(self).get(), self.header.l2_entries() as u64);
        // The last cluster may go beyond the disk, which ends inside of it.
        if offset >= end {
            return Ok(None);
        }
        let mut index = offset / cluster_size;
        while index * cluster_size < end {
            let table = usize::try_from(index / per_table).map_err(|_| damaged("a cluster number"))?;
            if self.l1.get(table).is_none_or(|entry| entry & OFFSET_MASK == 0) {
                index = (table as u64 + 1) * per_table;
                continue;
            }
            let cluster = self.cluster(index)?;
            self.count(index, cluster)?;
            if cluster != Cluster::Zero {
                let start = (index * cluster_size).max(offset);
                return Ok(Some(start..((index + 1) * cluster_size).min(end)));
            }
            index += 1;
        }
        Ok(None)
    }
}

fn failed(error: Qcow2Error) -> StorageError {
    StorageError::Failed { action: "read the image".to_owned(), source: error.into() }
}

impl DiskReader for Qcow2 {
    fn size(&self) -> Bytes {
        // A disk has whole sectors, whatever the header says.
        Bytes::new(self.header.size.next_multiple_of(SECTOR_SIZE))
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.read(offset, buffer).map_err(failed)
    }

    fn next_data(&mut self, offset: u64) -> Result<Option<Range<u64>>> {
        self.next(offset).map_err(failed)
    }
}
