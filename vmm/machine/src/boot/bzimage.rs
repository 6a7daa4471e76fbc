//! bzImages: Linux's compressed kernels, which unpack themselves. The setup header, parsed and checked; layouts are of
//! Linux's Documentation/arch/x86/boot.rst. Pure.

use std::io;

use drover_guest_memory::LOW_RAM_END;
use drover_units::{Bytes, Gpa};

use super::image::{Fault, ReadAt};
use crate::address_map::KERNEL_START;

/// Where the setup header begins, in the file and in the boot parameters.
pub(super) const HEADER_AT: u64 = 0x1f1;
/// Longest setup header: it ends before the file's first sectors do, and the field of the boot parameters holds it.
const HEADER_LEN_MAX: usize = 0x290 - HEADER_AT as usize;
const SECTOR: u64 = 512;
/// With no number of sectors given there are four more than the first.
const SETUP_SECTORS_DEFAULT: u8 = 4;
/// Oldest protocol that says whether there is a 64-bit entry.
const VERSION_MIN: u16 = 0x020c;
/// Load flags: the kernel belongs above 1 MiB.
const LOADED_HIGH: u8 = 1;
/// Extended load flags: there is a 64-bit entry, 0x200 behind the first byte.
const KERNEL_64: u16 = 1;
const ENTRY_64: u64 = 0x200;

/// What a bzImage's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BzImage {
    /// The header, for the boot parameters.
    pub(super) header: Vec<u8>,
    /// Where the part that is loaded begins in the file, and how long it is.
    pub(super) offset: u64,
    pub(super) len: u64,
    /// Where it is loaded to.
    pub(super) start: Gpa,
    /// RAM from there on that it needs until it has unpacked itself.
    pub(super) needed: u64,
    /// Last address that an initial RAM disk may have.
    pub(super) initrd_last: u64,
    /// Longest command line, bytes.
    pub(super) cmdline_max: u64,
}

impl BzImage {
    /// First address behind what it needs.
    pub(super) fn end(&self) -> Gpa {
        self.start.checked_offset(Bytes::new(self.needed)).unwrap_or(LOW_RAM_END)
    }

    /// Where it is entered in 64-bit mode.
    pub(super) fn entry(&self) -> Gpa {
        self.start.checked_offset(Bytes::new(ENTRY_64)).unwrap_or(self.start)
    }

    /// Reads the header; `None` where the file is no bzImage. The inner error is about the image, the outer about reading
    /// it.
    pub(super) fn parse(image: &impl ReadAt) -> io::Result<Option<Result<Self, Fault>>> {
        let mut start = [0; 0x290];
        let len = image.len()?;
        let readable = usize::try_from(len).unwrap_or(usize::MAX).min(start.len());
        if !image.read_all_at(0, &mut start[..readable])? || start[0x202..0x206] != *b"HdrS" {
            return Ok(None);
        }
        Ok(Some(Self::from_header(&start, len)))
    }

    fn from_header(file: &[u8; 0x290], file_len: u64) -> Result<Self, Fault> {
        let u16_at = |at: usize| u16::from_le_bytes([file[at], file[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let version = u16_at(0x206);
        if version < VERSION_MIN {
            return Err(Fault::NotAKernel(
                "its boot protocol is older than 2.12: use a kernel from Linux 3.8 on",
            ));
        }
        if file[0x211] & LOADED_HIGH == 0 {
            return Err(Fault::NotAKernel("it is a zImage, which is loaded below 1 MiB: use a bzImage"));
        }
        if u16_at(0x236) & KERNEL_64 == 0 {
            return Err(Fault::NotAKernel("it has no 64-bit entry"));
        }
        let sectors = if file[0x1f1] == 0 { SETUP_SECTORS_DEFAULT } else { file[0x1f1] };
        let offset = (u64::from(sectors) + 1) * SECTOR;
        let len = file_len.checked_sub(offset).filter(|len| *len > ENTRY_64);
        let len = len.ok_or(Fault::NotAKernel("it ends inside its setup sectors"))?;
        let start = Gpa::new(u64_at(0x258));
        let needed = u64::from(u32_at(0x260)).max(len);
        if start < KERNEL_START {
            return Err(Fault::Layout(format!("it loads to {start}, where boot structures are")));
        }
        if start.checked_offset(Bytes::new(needed)).is_none_or(|end| end > LOW_RAM_END) {
            return Err(Fault::Layout(format!(
                "it needs {needed:#x} bytes at {start}, past the end of low RAM at {LOW_RAM_END}"
            )));
        }
        // The byte behind the jump at 0x200 is the jump's length, and with it the header's (boot.rst, "jump").
        let header_len =
            (0x202 + usize::from(file[0x201])).saturating_sub(HEADER_AT as usize).min(HEADER_LEN_MAX);
        let header = file[HEADER_AT as usize..HEADER_AT as usize + header_len].to_vec();
        if header_len < 0x268 - HEADER_AT as usize {
            return Err(Fault::NotAKernel("its setup header is shorter than its boot protocol says"));
        }
        Ok(Self {
            header,
            offset,
            len,
            start,
            needed,
            initrd_last: u32_at(0x22c).into(),
            cmdline_max: u32_at(0x238).into(),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bzImage of one setup sector whose kernel is `len` bytes.
    pub(crate) fn bzimage(len: usize) -> Vec<u8> {
        let mut file = vec![0; 1024 + len];
        file[0x1f1] = 1;
        file[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        file[0x211] = LOADED_HIGH;
        file[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        file[0x236] = KERNEL_64 as u8;
        file[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
        file[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        file[0x260..0x264].copy_from_slice(&0x20_0000_u32.to_le_bytes());
        file[1024..].fill(0x90);
        file
    }

    fn check(change: impl FnOnce(&mut Vec<u8>), expect: &str) {
        let mut file = bzimage(4096);
        change(&mut file);
        match BzImage::parse(&&file[..]).unwrap() {
            Some(Err(Fault::NotAKernel(reason))) => assert!(reason.contains(expect), "{reason}"),
            Some(Err(Fault::Layout(reason))) => assert!(reason.contains(expect), "{reason}"),
            found => panic!("{found:?}, expected {expect}"),
        }
    }

    #[test]
    fn a_header_says_what_is_loaded_where() {
        let image = BzImage::parse(&&bzimage(4096)[..]).unwrap().unwrap().unwrap();
        assert_eq!((image.offset, image.len, image.start), (1024, 4096, Gpa::new(0x100_0000)));
        assert_eq!((image.end(), image.entry()), (Gpa::new(0x120_0000), Gpa::new(0x100_0200)));
        assert_eq!((image.initrd_last, image.cmdline_max, image.header.len()), (0x7fff_ffff, 2047, 0x7b));
        assert_eq!(BzImage::parse(&&[0_u8; 100][..]).unwrap(), None);
    }

    #[test]
    fn a_hostile_header_is_refused_with_the_reason() {
        check(|file| file[0x206] = 0x0b, "older than 2.12");
        check(|file| file[0x211] = 0, "zImage");
        check(|file| file[0x236] = 0, "64-bit entry");
        check(|file| file[0x1f1] = 255, "ends inside its setup");
        check(|file| file[0x201] = 0, "shorter than its boot protocol");
        check(|file| file[0x258..0x260].fill(0), "boot structures");
        check(|file| file[0x258..0x260].fill(0xff), "past the end");
        check(|file| file[0x260..0x264].fill(0xff), "past the end");
        check(|file| file.truncate(1100), "ends inside its setup");
    }
}
