//! What a driver may ask of a console at once. Pure.

use crate::virtio::ring::RingError;

/// Most that one chain may write, bytes. Linux writes 32 KiB at most.
pub(super) const OUTPUT_BYTES_MAX: u64 = 64 << 10;

/// The length of what a chain writes, if a driver may write that much.
pub(super) fn output_len(readable: u64) -> Result<u64, RingError> {
    if readable > OUTPUT_BYTES_MAX {
        return Err(RingError::Request("more than 64 KiB of console output in one chain"));
    }
    Ok(readable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_has_a_limit() {
        assert_eq!(output_len(OUTPUT_BYTES_MAX).unwrap(), OUTPUT_BYTES_MAX);
        assert!(output_len(OUTPUT_BYTES_MAX + 1).is_err());
    }
}
