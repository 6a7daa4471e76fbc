//! What lies where in the one BAR of a virtio device.
//!
//! ```text
//! 0x0000 common configuration      0x3000 notifications, four bytes to a queue
//! 0x1000 interrupt status          0x6000 MSI-X pending bits
//! 0x2000 device configuration      0x8000 MSI-X table, sixteen bytes to an entry
//! ```

use super::request::{self, Read, Write};
use crate::pci::msix::{ENTRIES_MAX, ENTRY_LEN};

/// Length of the BAR, bytes.
pub(super) const LEN: u64 = 0x1_0000;

pub(super) const COMMON: Area = Area { start: 0, len: request::COMMON_LEN };
pub(super) const STATUS: Area = Area { start: 0x1000, len: 1 };
pub(super) const DEVICE: Area = Area { start: 0x2000, len: 0x1000 };
pub(super) const NOTIFY: Area = Area { start: 0x3000, len: ENTRIES_MAX as u64 * NOTIFY_MULTIPLIER };
pub(super) const PENDING: Area = Area { start: 0x6000, len: ENTRIES_MAX as u64 / 8 };
pub(super) const TABLE: Area = Area { start: 0x8000, len: ENTRIES_MAX as u64 * ENTRY_LEN };

/// Distance of two queues' notification addresses (4.1.4.4): each its own, so that a doorbell needs no value.
pub(super) const NOTIFY_MULTIPLIER: u64 = 4;

/// A part of the BAR.
#[derive(Clone, Copy, Debug)]
pub(super) struct Area {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl Area {
    /// The offset of an access within this area, if all of it is inside.
    fn offset(self, at: u64, len: usize) -> Option<u64> {
        let offset = at.checked_sub(self.start)?;
        (offset.checked_add(len as u64)? <= self.len).then_some(offset)
    }
}

const _: () = assert!(TABLE.start + TABLE.len == LEN && PENDING.start + PENDING.len <= TABLE.start);
const _: () = assert!(NOTIFY.start + NOTIFY.len <= PENDING.start);

/// A read, by what answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadAccess {
    Common(Read),
    Status,
    Device(u64),
    Pending(u64),
    Table(u64),
}

/// A write, by what takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteAccess {
    Common(Write),
    /// The queue with this number has something new.
    Notify(usize),
    Device(u64),
    Table(u64),
}

/// What a read of `len` bytes at `at` in the BAR asks for; `None` where nothing answers.
pub(super) fn parse_read(at: u64, len: usize) -> Option<ReadAccess> {
    if let Some(offset) = COMMON.offset(at, len) {
        return request::parse_read(offset, len).map(ReadAccess::Common);
    }
    if STATUS.offset(at, len).is_some() {
        return Some(ReadAccess::Status);
    }
    let device = DEVICE.offset(at, len).map(ReadAccess::Device);
    let pending = || PENDING.offset(at, len).map(ReadAccess::Pending);
    let table = || TABLE.offset(at, len).map(ReadAccess::Table);
    device.or_else(pending).or_else(table)
}

/// What a write of `data` at `at` in the BAR asks for; `None` where nothing answers.
pub(super) fn parse_write(at: u64, data: &[u8]) -> Option<WriteAccess> {
    if let Some(offset) = COMMON.offset(at, data.len()) {
        return request::parse_write(offset, data).map(WriteAccess::Common);
    }
    if let Some(offset) = NOTIFY.offset(at, data.len()) {
        // Any width, at the address of the queue.
        let queue = usize::try_from(offset / NOTIFY_MULTIPLIER).ok()?;
        return offset.is_multiple_of(NOTIFY_MULTIPLIER).then_some(WriteAccess::Notify(queue));
    }
    let device = DEVICE.offset(at, data.len()).map(WriteAccess::Device);
    device.or_else(|| TABLE.offset(at, data.len()).map(WriteAccess::Table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_belongs_to_the_area_that_holds_all_of_it() {
        assert_eq!(parse_read(0x1000, 1), Some(ReadAccess::Status));
        assert_eq!(parse_read(0x1000, 2), None);
        assert_eq!(parse_read(0x2ffc, 4), Some(ReadAccess::Device(0xffc)));
        assert_eq!(parse_read(0x2ffe, 4), None);
        assert_eq!(parse_read(0x3000, 4), None, "notifications cannot be read");
        assert_eq!(parse_read(0xfff8, 8), Some(ReadAccess::Table(0x7ff8)));
        assert_eq!(parse_read(u64::MAX, 1), None);
        assert_eq!(parse_write(0x3004, &[0, 0]), Some(WriteAccess::Notify(1)));
        assert_eq!(parse_write(0x3006, &[0, 0]), None);
        assert_eq!(parse_write(0x1000, &[0]), None);
        assert_eq!(parse_write(0x2008, &[0; 4]), Some(WriteAccess::Device(8)));
        assert_eq!(parse_write(0x6000, &[0; 8]), None, "pending bits are read only");
        assert_eq!(parse_write(0x8010, &[0; 4]), Some(WriteAccess::Table(0x10)));
    }
}
