//! The file's layout. Pure.
//!
//! | offset | what |
//! |---|---|
//! | 0 | header, 4096 bytes, with a checksum |
//! | 4096 | claim: who resumes and whether the guest may have run since, 64 bytes, with a checksum; or zeros |
//! | 64 KiB | RAM, at its place in the machine's memory file; zero pages are holes |
//! | behind it | index: 8 bytes for each 64 KiB of RAM: which of its pages are there, and their checksum |
//! | behind it | shape (what the machine must look like), then states (a list of envelopes) |
//!
//! Numbers are little-endian. CRC-32C everywhere: it finds damage, not forgery.

use drover_ids::{OwnerEpoch, VmId};
use drover_units::PAGE_SIZE;

const MAGIC: [u8; 8] = *b"DrvSuspd";
pub(crate) const VERSION: u32 = 1;
pub(crate) const HEADER_LEN: usize = 4096;
const HEADER_FIELDS_LEN: usize = 112;

const CLAIM_MAGIC: [u8; 8] = *b"DrvClaim";
pub(crate) const CLAIM_OFFSET: u64 = 4096;
pub(crate) const CLAIM_LEN: usize = 64;

pub(crate) const DATA_OFFSET: u64 = 64 << 10;
/// RAM that is written, checked and loaded together.
pub(crate) const CHUNK: u64 = 64 << 10;
pub(crate) const PAGES_PER_CHUNK: u64 = CHUNK / PAGE_SIZE;
pub(crate) const INDEX_ENTRY_LEN: u64 = 8;

/// Longest shape and longest list of states. The largest machine's are below a tenth of that.
pub(crate) const PART_BYTES_MAX: u64 = 256 << 20;

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The VM.
    pub vm: VmId,
    /// The epoch under which it ran.
    pub epoch: OwnerEpoch,
}

/// Where everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) identity: Identity,
    pub(crate) ram_len: u64,
    pub(crate) shape_len: u64,
    pub(crate) shape_crc: u32,
    pub(crate) states_len: u64,
    pub(crate) states_crc: u32,
    pub(crate) index_crc: u32,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoHeader {
    Magic,
    Version(u32),
    Checksum,
    Numbers,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut fields = Vec::with_capacity(HEADER_FIELDS_LEN);
        fields.extend(MAGIC);
        fields.extend(VERSION.to_le_bytes());
        fields.extend(u32::try_from(CHUNK).expect("64 KiB").to_le_bytes());
        fields.extend(self.identity.vm.as_u128().to_le_bytes());
        fields.extend(self.identity.epoch.get().to_le_bytes());
        for number in [self.ram_len, self.shape_len, self.states_len] {
            fields.extend(number.to_le_bytes());
        }
        for crc in [self.shape_crc, self.states_crc, self.index_crc] {
            fields.extend(crc.to_le_bytes());
        }
        fields.resize(HEADER_FIELDS_LEN - 4, 0);
        fields.extend(crc32c::crc32c(&fields).to_le_bytes());
        let mut header = [0; HEADER_LEN];
        header[..HEADER_FIELDS_LEN].copy_from_slice(&fields);
        header
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, NoHeader> {
        if bytes[..8] != MAGIC {
            return Err(NoHeader::Magic);
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        // Before the checksum: another version may have it elsewhere.
        if u32_at(8) != VERSION {
            return Err(NoHeader::Version(u32_at(8)));
        }
        let covered = HEADER_FIELDS_LEN - 4;
        if u32_at(covered) != crc32c::crc32c(&bytes[..covered]) {
            return Err(NoHeader::Checksum);
        }
        let header = Self {
            identity: Identity {
                vm: VmId::from_u128(u128::from_le_bytes(bytes[16..32].try_into().expect("16 bytes"))),
                epoch: OwnerEpoch::new(u64_at(32)),
            },
            ram_len: u64_at(40),
            shape_len: u64_at(48),
            states_len: u64_at(56),
            shape_crc: u32_at(64),
            states_crc: u32_at(68),
            index_crc: u32_at(72),
        };
        let ram_fits = header.ram_len > 0
            && header.ram_len.is_multiple_of(PAGE_SIZE)
            && header.ram_len <= drover_guest_memory::MAX_RAM.get();
        let parts_fit = header.shape_len <= PART_BYTES_MAX && header.states_len <= PART_BYTES_MAX;
        if u64::from(u32_at(12)) != CHUNK || !ram_fits || !parts_fit {
            return Err(NoHeader::Numbers);
        }
        Ok(header)
    }

    pub(crate) fn chunks(&self) -> u64 {
        self.ram_len.div_ceil(CHUNK)
    }

    pub(crate) fn index_offset(&self) -> u64 {
        DATA_OFFSET + self.ram_len
    }

    pub(crate) fn index_len(&self) -> u64 {
        self.chunks() * INDEX_ENTRY_LEN
    }

    pub(crate) fn shape_offset(&self) -> u64 {
        self.index_offset() + self.index_len()
    }

    pub(crate) fn states_offset(&self) -> u64 {
        self.shape_offset() + self.shape_len
    }

    /// The whole file's length.
    pub(crate) fn file_len(&self) -> u64 {
        self.states_offset() + self.states_len
    }
}

/// One piece of RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// A bit for each page that is there, the first the lowest; the others are zero.
    pub(crate) pages: u16,
    /// Of those that are there, one after the other.
    pub(crate) crc: u32,
}

impl Chunk {
    /// Describes a piece. Pages that `look` says are zero need no place.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut chunk = Self::default();
        for (n, page) in bytes.chunks(PAGE_SIZE as usize).enumerate() {
            if !drover_guest_memory::is_zero(page) {
                chunk.pages |= 1 << n;
                chunk.crc = crc32c::crc32c_append(chunk.crc, page);
            }
        }
        chunk
    }

    /// Whether a piece is the one described.
    pub(crate) fn fits(&self, bytes: &[u8]) -> bool {
        let mut crc = 0;
        for (n, page) in bytes.chunks(PAGE_SIZE as usize).enumerate() {
            if self.has(n) {
                crc = crc32c::crc32c_append(crc, page);
            }
        }
        crc == self.crc
    }

    pub(crate) fn has(&self, page: usize) -> bool {
        self.pages >> page & 1 == 1
    }

    /// The pages that are there, as runs: number of the first, and how many.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (usize, usize)> {
        let mut rest = u32::from(self.pages);
        std::iter::from_fn(move || {
            let first = (rest != 0).then(|| rest.trailing_zeros())?;
            let count = (rest >> first).trailing_ones();
            rest &= !(((1 << count) - 1) << first);
            Some((first as usize, count as usize))
        })
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.pages.to_le_bytes());
        out.extend([0; 2]);
        out.extend(self.crc.to_le_bytes());
    }

    pub(crate) fn decode(bytes: [u8; INDEX_ENTRY_LEN as usize]) -> Self {
        Self {
            pages: u16::from_le_bytes([bytes[0], bytes[1]]),
            crc: u32::from_le_bytes(bytes[4..].try_into().expect("4 bytes")),
        }
    }
}

/// Who resumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) epoch: OwnerEpoch,
    /// The guest may have run under this epoch.
    pub(crate) consumed: bool,
}

impl Claim {
    pub(crate) fn encode(&self) -> [u8; CLAIM_LEN] {
        let mut claim = [0; CLAIM_LEN];
        claim[..8].copy_from_slice(&CLAIM_MAGIC);
        claim[8..16].copy_from_slice(&self.epoch.get().to_le_bytes());
        claim[16] = self.consumed.into();
        let crc = crc32c::crc32c(&claim[..20]);
        claim[20..24].copy_from_slice(&crc.to_le_bytes());
        claim
    }

    /// The claim in the file, if there is one. `Err` where it is damaged: a sector is written whole or not at all, so
    /// that is no claim that was interrupted.
    pub(crate) fn decode(bytes: &[u8; CLAIM_LEN]) -> Result<Option<Self>, ()> {
        if *bytes == [0; CLAIM_LEN] {
            return Ok(None);
        }
        let epoch = u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"));
        let claim = Self { epoch: OwnerEpoch::new(epoch), consumed: bytes[16] == 1 };
        if claim.encode() == *bytes { Ok(Some(claim)) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header {
            identity: Identity { vm: VmId::from_u128(7), epoch: OwnerEpoch::new(3) },
            ram_len: 5 << 20,
            shape_len: 100,
            shape_crc: 1,
            states_len: 1000,
            states_crc: 2,
            index_crc: 3,
        }
    }

    #[test]
    fn a_header_comes_back_and_a_changed_one_does_not() {
        let bytes = header().encode();
        assert_eq!(Header::decode(&bytes), Ok(header()));
        for at in 0..HEADER_FIELDS_LEN {
            let mut damaged = bytes;
            damaged[at] ^= 0x10;
            assert!(Header::decode(&damaged).is_err(), "byte {at}");
        }
        let impossible = |change: fn(&mut Header)| {
            let mut header = header();
            change(&mut header);
            assert_eq!(Header::decode(&header.encode()), Err(NoHeader::Numbers));
        };
        impossible(|header| header.ram_len = 0);
        impossible(|header| header.ram_len = 4097);
        impossible(|header| header.ram_len = u64::MAX / 4096 * 4096);
        impossible(|header| header.states_len = u64::MAX);
    }

    #[test]
    fn a_claim_is_whole_or_none() {
        assert_eq!(Claim::decode(&[0; CLAIM_LEN]), Ok(None));
        for consumed in [false, true] {
            let claim = Claim { epoch: OwnerEpoch::new(9), consumed };
            let bytes = claim.encode();
            assert_eq!(Claim::decode(&bytes), Ok(Some(claim)));
            for at in 0..CLAIM_LEN {
                let mut damaged = bytes;
                damaged[at] ^= 1;
                assert!(Claim::decode(&damaged).is_err(), "byte {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_piece_of_ram_is_known_by_its_pages(pages in any::<u16>(), len in 1..=16_usize, flip in any::<u16>()) {
            let mut bytes = vec![0; len * PAGE_SIZE as usize];
            for page in (0..len).filter(|page| pages >> page & 1 == 1) {
                bytes[page * PAGE_SIZE as usize + 77] = page as u8 + 1;
            }
            let chunk = Chunk::of(&bytes);
            let mask = if len == 16 { u16::MAX } else { (1 << len) - 1 };
            prop_assert_eq!(chunk.pages, pages & mask);
            prop_assert!(chunk.fits(&bytes));
            let mut joined = 0_u16;
            for (first, count) in chunk.runs() {
                for page in first..first + count {
                    joined |= 1 << page;
                }
            }
            prop_assert_eq!(joined, chunk.pages);
            let at = usize::from(flip) % bytes.len();
            let there = chunk.has(at / PAGE_SIZE as usize);
            bytes[at] ^= 1;
            prop_assert_eq!(chunk.fits(&bytes), !there);
            let mut encoded = Vec::new();
            chunk.encode(&mut encoded);
            prop_assert_eq!(Chunk::decode(encoded.try_into().unwrap()), chunk);
        }
    }
}
