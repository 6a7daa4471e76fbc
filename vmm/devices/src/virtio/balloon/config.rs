//! The configuration space (section 5.5.4) and the features. Pure.

pub(super) const F_STATS: u32 = 1;
pub(super) const F_DEFLATE_ON_OOM: u32 = 2;
pub(super) const F_FREE_PAGE_HINT: u32 = 3;
pub(super) const F_PAGE_POISON: u32 = 4;
pub(super) const F_REPORTING: u32 = 5;

/// Values of `free_page_hint_cmd_id` that are no session (5.5.6.7).
pub(super) const HINT_STOP: u32 = 0;
pub(super) const HINT_DONE: u32 = 1;

/// The whole space: num_pages, actual, free_page_hint_cmd_id, poison_val.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    /// Pages that should be in the balloon. The host's.
    pub(super) target: u32,
    /// Pages that are. The driver's.
    pub(super) actual: u32,
    /// The host's.
    pub(super) hint_command: u32,
    /// What free pages hold. The driver's.
    pub(super) poison: u32,
}

const LEN: usize = 16;
const ACTUAL: u64 = 4;
const POISON: u64 = 12;

impl Space {
    /// Fills `data` from the space at `offset`; what is beyond it is zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; LEN];
        let fields = [self.target, self.actual, self.hint_command, self.poison];
        for (bytes, field) in space.chunks_exact_mut(4).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        let from = usize::try_from(offset).unwrap_or(LEN).min(LEN);
        let there = &space[from..(from.saturating_add(data.len())).min(LEN)];
        data.fill(0);
        data[..there.len()].copy_from_slice(there);
    }

    /// The driver's write: whole fields, and only its own.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        match offset {
            ACTUAL => self.actual = value,
            POISON => self.poison = value,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_writes_its_own_fields_only() {
        let mut space = Space { target: 1, actual: 2, hint_command: 3, poison: 4 };
        let mut data = [0xff; 16];
        space.read(0, &mut data);
        assert_eq!(data, [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
        let mut beyond = [0xff; 4];
        space.read(14, &mut beyond);
        assert_eq!(beyond, [0; 4]);
        for offset in [0, 4, 8, 12, 16, u64::MAX] {
            space.write(offset, &[9, 0, 0, 0]);
            space.write(offset, &[7]);
        }
        assert_eq!(space, Space { target: 1, actual: 9, hint_command: 3, poison: 9 });
    }
}
