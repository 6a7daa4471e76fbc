//! The ELF image inside a distribution's compressed kernel (the x86 boot protocol,
//! Linux, Documentation/arch/x86/boot.rst).

use std::io::Read as _;

use anyhow::{Context as _, bail, ensure};

/// Number of 512-byte sectors of the real-mode part, less the first.
const SETUP_SECTORS: usize = 0x1f1;
/// Where the compressed image lies, from the end of the real-mode part: its offset and its length.
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const LZ4_LEGACY: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// What one chunk of the legacy lz4 format unpacks to at most.
const LZ4_CHUNK_MAX: usize = 8 << 20;
/// Length of the unpacked image, behind the compressed one.
const TRAILER_BYTES: usize = 4;

/// Unpacks the ELF kernel of a bzImage. Debian compresses 6.1 with lz4 and 6.12 with zstd.
///
/// # Errors
/// If it is not a bzImage, or packed in another way.
pub(crate) fn unpack_bzimage(image: &[u8]) -> anyhow::Result<Vec<u8>> {
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "this is no bzImage");
    let setup = usize::from(*image.get(SETUP_SECTORS).context("too short")?).max(4);
    let start = (setup + 1) * 512 + number(image, PAYLOAD_OFFSET)?;
    let payload = image.get(start..start + number(image, PAYLOAD_LENGTH)?).context("the image is cut off")?;
    let (packed, trailer) = payload.split_at(payload.len().saturating_sub(TRAILER_BYTES));
    let mut unpacked = Vec::with_capacity(number(trailer, 0)?);
    if let Some(chunks) = packed.strip_prefix(LZ4_LEGACY) {
        unpack_lz4(chunks, &mut unpacked)?;
    } else if packed.starts_with(ZSTD) {
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed).context("not zstd after all")?;
        decoder.read_to_end(&mut unpacked).context("cannot unpack zstd")?;
    } else {
        bail!("unknown compression {:02x?}", packed.get(..4));
    }
    ensure!(unpacked.starts_with(b"\x7fELF"), "what was unpacked is no ELF file");
    ensure!(unpacked.len() == number(trailer, 0)?, "the unpacked kernel has another length than announced");
    Ok(unpacked)
}

fn unpack_lz4(mut chunks: &[u8], unpacked: &mut Vec<u8>) -> anyhow::Result<()> {
    while chunks.len() >= 4 {
        let length = number(chunks, 0)?;
        let chunk = chunks.get(4..4 + length).context("a chunk is cut off")?;
        unpacked.extend(lz4_flex::block::decompress(chunk, LZ4_CHUNK_MAX).context("cannot unpack lz4")?);
        chunks = &chunks[4 + length..];
    }
    Ok(())
}

fn number(bytes: &[u8], at: usize) -> anyhow::Result<usize> {
    let field = bytes.get(at..at + 4).context("the header is cut off")?;
    Ok(u32::from_le_bytes(field.try_into().expect("four bytes")) as usize)
}
