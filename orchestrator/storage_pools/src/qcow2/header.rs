//! The header: what is checked before anything else is read.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::{Qcow2, Qcow2Error, damaged};

/// Of version 2, which has no length field.
const HEADER_V2_BYTES: usize = 72;
/// Of version 3 with the compression type.
const HEADER_BYTES: usize = 112;
/// Smallest and largest clusters, as powers of two: those of the format, and QEMU's.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Incompatible features of version 3.
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// The first bit says that reference counts may be wrong, which a reader does not look at.
const KNOWN: u64 = 1 | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Zlib,
    Zstd,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) size: u64,
    pub(super) l1_size: u32,
    pub(super) l1_offset: u64,
    pub(super) compression: Compression,
}

impl Header {
    pub(super) fn read(file: &File) -> Result<Self, Qcow2Error> {
        let mut bytes = [0; HEADER_BYTES];
        let filled = fill(file, &mut bytes)?;
        Self::parse(&bytes, filled)
    }

    fn parse(bytes: &[u8; HEADER_BYTES], filled: usize) -> Result<Self, Qcow2Error> {
        let u32_at = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if filled < HEADER_V2_BYTES || bytes[..4] != Qcow2::MAGIC {
            return Err(Qcow2Error::NotQcow2);
        }
        let version = u32_at(4);
        let features = match version {
            2 => 0,
            // Up to the length field itself.
            3 if filled >= 104 => u64_at(72),
            3 => return Err(damaged("its header is cut off")),
            other => return Err(Qcow2Error::Version(other)),
        };
        if u64_at(8) != 0 || u32_at(16) != 0 {
            return Err(Qcow2Error::Unsupported("has a backing file"));
        }
        if u32_at(32) != 0 {
            return Err(Qcow2Error::Unsupported("is encrypted"));
        }
        if features & CORRUPT != 0 {
            return Err(damaged("it says so itself (`qemu-img check -r` repairs it)"));
        }
        if features & EXTERNAL_DATA != 0 {
            return Err(Qcow2Error::Unsupported("has an external data file"));
        }
        if features & EXTENDED_L2 != 0 {
            return Err(Qcow2Error::Unsupported("has subclusters"));
        }
        if features & !KNOWN != 0 {
            return Err(Qcow2Error::Unsupported("uses features that are not known here"));
        }
        let compression = match features & COMPRESSION_TYPE {
            0 => Compression::Zlib,
            _ if u32_at(100) <= 104 => {
                return Err(damaged("its header has no room for its compression type"));
            }
            _ => match bytes[104] {
                0 => Compression::Zlib,
                1 => Compression::Zstd,
                _ => return Err(Qcow2Error::Unsupported("is compressed in a way that is not known here")),
            },
        };
        let cluster_bits = u32_at(20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(damaged(format!("clusters of 2^{cluster_bits} bytes")));
        }
        let size = u64_at(24);
        if size == 0 {
            return Err(damaged("its disk is empty"));
        }
        Ok(Self { version, cluster_bits, size, l1_size: u32_at(36), l1_offset: u64_at(40), compression })
    }

    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of an L2 table: it fills a cluster.
    pub(super) fn l2_entries(&self) -> usize {
        1 << (self.cluster_bits - 3)
    }
}

/// As much as there is.
fn fill(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
