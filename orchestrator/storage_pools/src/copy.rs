//! Copying a disk, holes left out.

use drover_units::Bytes;

use crate::{DiskReader, DiskWriter, Observer, Result, StorageError};

/// Bytes copied at a time. Also the granularity of holes that are found by looking: large enough that the cost of a
/// request does not show.
const BLOCK_BYTES: usize = 1 << 20;
/// Runs of zeros shorter than this are not looked for inside of a block.
const HOLE_BYTES: usize = 64 << 10;

/// Copies everything of `from` into `to`, which must read as zeros, or hold an earlier part of the same copy.
///
/// # Errors
/// What either storage says; [`StorageError::Cancelled`].
pub fn copy(from: &mut dyn DiskReader, to: &mut dyn DiskWriter, observer: &dyn Observer) -> Result<()> {
    let total = from.size();
    let mut block = vec![0; BLOCK_BYTES];
    let mut offset = 0;
    while let Some(range) = from.next_data(offset)? {
        offset = range.start;
        let end = range.end.min(total.get());
        while offset < end {
            if observer.is_cancelled() {
                return Err(StorageError::Cancelled);
            }
            observer.progress(Bytes::new(offset), total);
            let length = usize::try_from(end - offset).unwrap_or(usize::MAX).min(BLOCK_BYTES);
            from.read_at(offset, &mut block[..length])?;
            write_sparse(to, offset, &block[..length])?;
            offset += length as u64;
        }
        // A range of nothing would repeat for ever.
        offset = offset.max(range.end);
    }
    observer.progress(total, total);
    Ok(())
}

/// Writes `bytes` from `offset` on, longer runs of zeros left out.
///
/// # Errors
/// What the storage says.
pub fn write_sparse(to: &mut dyn DiskWriter, offset: u64, bytes: &[u8]) -> Result<()> {
    let mut pieces = bytes.chunks(HOLE_BYTES).enumerate().peekable();
    while let Some((first, piece)) = pieces.next() {
        if is_zero(piece) {
            continue;
        }
        let start = first * HOLE_BYTES;
        let mut end = start + piece.len();
        while let Some((_, next)) = pieces.next_if(|(_, next)| !is_zero(next)) {
            end += next.len();
        }
        to.write_at(offset + start as u64, &bytes[start..end])?;
    }
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
