//! The configuration space (section 5.3.4). Pure.

/// VIRTIO_CONSOLE_F_SIZE: columns and rows are valid.
pub(super) const F_SIZE: u32 = 0;
/// VIRTIO_CONSOLE_F_EMERG_WRITE: one byte may be written without queues.
pub(super) const F_EMERGENCY_WRITE: u32 = 2;

/// Length of the space, bytes: cols, rows, max_nr_ports, emerg_wr.
const LEN: usize = 12;
const EMERGENCY_WRITE: u64 = 8;

/// A terminal's size in characters. Zero means unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsoleSize {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// Fills `data` from the space at `offset`; what is beyond it is zero.
pub(super) fn read(size: ConsoleSize, offset: u64, data: &mut [u8]) {
    let mut space = [0; LEN];
    space[0..2].copy_from_slice(&size.columns.to_le_bytes());
    space[2..4].copy_from_slice(&size.rows.to_le_bytes());
    // One port; the field counts only with VIRTIO_CONSOLE_F_MULTIPORT.
    space[4] = 1;
    let from = usize::try_from(offset).unwrap_or(LEN).min(LEN);
    let there = &space[from..(from.saturating_add(data.len())).min(LEN)];
    data.fill(0);
    data[..there.len()].copy_from_slice(there);
}

/// The character of an emergency write: the low byte of what is written to the field, in any width (5.3.5).
pub(super) fn emergency_write(offset: u64, data: &[u8]) -> Option<u8> {
    (offset == EMERGENCY_WRITE).then(|| data.first().copied()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_driver_looks() {
        let size = ConsoleSize { columns: 0x150, rows: 50 };
        let check = |offset, expect: &[u8]| {
            let mut data = vec![0xff; expect.len()];
            read(size, offset, &mut data);
            assert_eq!(data, expect, "at {offset:#x}");
        };
        check(0, &[0x50, 1, 50, 0, 1, 0, 0, 0]);
        check(8, &[0; 8]);
        check(u64::MAX, &[0; 4]);
        assert_eq!(emergency_write(8, b"x\0\0\0"), Some(b'x'));
        assert_eq!(emergency_write(8, &[]), None);
        assert_eq!(emergency_write(4, b"x"), None);
    }
}
