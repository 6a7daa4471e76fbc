//! The configuration space (section 5.2.4) and the features that say which of its fields count.

use drover_block::BackendInfo;
use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_WRITE_ZEROES,
    },
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

use super::ranges;

/// Length of the space up to the last field that a driver of virtio 1.2 knows, bytes.
const LEN: usize = 60;
const CAPACITY: usize = 0;
const SIZE_MAX: usize = 8;
const SEG_MAX: usize = 12;
const BLK_SIZE: usize = 20;
const OPT_IO_SIZE: usize = 28;
const WRITEBACK: usize = 32;
const NUM_QUEUES: usize = 34;
const MAX_DISCARD_SECTORS: usize = 36;
const MAX_DISCARD_SEG: usize = 40;
const DISCARD_SECTOR_ALIGNMENT: usize = 44;
const MAX_WRITE_ZEROES_SECTORS: usize = 48;
const MAX_WRITE_ZEROES_SEG: usize = 52;
const WRITE_ZEROES_MAY_UNMAP: usize = 56;

/// Longest piece of data, bytes: with the most pieces of a request it keeps a request below 1 GiB, and cuts none that a
/// driver makes in practice, which are a few MiB at most.
pub(super) const PIECE_BYTES_MAX: u32 = 4 << 20;

/// What the space is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) info: BackendInfo,
    pub(super) queue_size: u16,
    pub(super) queues: u16,
    /// Written data may wait for a flush.
    pub(super) writeback: bool,
}

/// What the driver may ask for.
pub(super) fn features(info: &BackendInfo, queues: u16) -> u64 {
    let mut bits = vec![
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
    ];
    let optional = [
        (info.read_only, VIRTIO_BLK_F_RO),
        (queues > 1, VIRTIO_BLK_F_MQ),
        (info.optimal_io.is_some(), VIRTIO_BLK_F_TOPOLOGY),
        (info.discard.is_some(), VIRTIO_BLK_F_DISCARD),
        (info.write_zeroes.is_some(), VIRTIO_BLK_F_WRITE_ZEROES),
    ];
    bits.extend(optional.into_iter().filter_map(|(offered, bit)| offered.then_some(bit)));
    bits.into_iter().fold(0, |features, bit| features | 1 << bit)
}

/// Most data segments of one request. A chain is at most as long as its queue (2.7.5), and two descriptors are taken
/// by header and status.
pub(super) fn segments_max(info: &BackendInfo, queue_size: u16) -> u16 {
    info.segments_max.min(queue_size.saturating_sub(2)).max(1)
}

/// Fills `data` from the space at `offset`; what is beyond it is zero.
pub(super) fn read(shape: &Shape, offset: u64, data: &mut [u8]) {
    let space = space(shape);
    let from = usize::try_from(offset).unwrap_or(LEN).min(LEN);
    let there = &space[from..(from.saturating_add(data.len())).min(LEN)];
    data.fill(0);
    data[..there.len()].copy_from_slice(there);
}

/// What the driver has written to the one field that it may write: whether written data may wait for a flush. `None`
/// where it has written anything else.
pub(super) fn written_writeback(offset: u64, data: &[u8]) -> Option<bool> {
    match (offset, data) {
        (offset, [writeback @ (0 | 1)]) if offset == WRITEBACK as u64 => Some(*writeback == 1),
        _ => None,
    }
}

/// A number that is another one after the space has changed (4.2.2.1). Only the capacity ever does.
pub(super) fn generation(info: &BackendInfo) -> u32 {
    // Fibonacci hashing: neighbouring sizes get numbers far apart, on every host the same.
    (info.capacity.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

fn space(shape: &Shape) -> [u8; LEN] {
    let Shape { info, queue_size, queues, writeback } = shape;
    let mut space = [0; LEN];
    let mut put = |at: usize, value: u32| space[at..at + 4].copy_from_slice(&value.to_le_bytes());
    // What does not fit into a field is larger than any disk needs it.
    let clamp = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    put(SIZE_MAX, PIECE_BYTES_MAX);
    put(SEG_MAX, segments_max(info, *queue_size).into());
    put(BLK_SIZE, clamp(info.block_size.get()));
    if let Some(optimal) = info.optimal_io {
        put(OPT_IO_SIZE, clamp(optimal.get() / info.block_size.get().max(1)));
    }
    if let Some(limits) = info.discard {
        put(MAX_DISCARD_SECTORS, clamp(limits.sectors_max.get()));
        put(MAX_DISCARD_SEG, ranges::SEGMENTS_MAX as u32);
        put(DISCARD_SECTOR_ALIGNMENT, clamp(limits.alignment.get()));
    }
    if let Some(limits) = info.write_zeroes {
        put(MAX_WRITE_ZEROES_SECTORS, clamp(limits.sectors_max.get()));
        put(MAX_WRITE_ZEROES_SEG, ranges::SEGMENTS_MAX as u32);
        space[WRITE_ZEROES_MAY_UNMAP] = 1;
    }
    space[WRITEBACK] = (*writeback).into();
    space[NUM_QUEUES..NUM_QUEUES + 2].copy_from_slice(&queues.to_le_bytes());
    space[CAPACITY..CAPACITY + 8].copy_from_slice(&info.capacity.get().to_le_bytes());
    space
}

#[cfg(test)]
mod tests {
    use drover_block::RangeLimits;
    use drover_units::{Bytes, Sectors};

    use super::*;

    const INFO: BackendInfo = BackendInfo {
        capacity: Sectors::new(0x1122_3344_5566),
        block_size: Bytes::new(512),
        read_only: false,
        segments_max: 1024,
        optimal_io: Some(Bytes::mib(4)),
        discard: Some(RangeLimits { sectors_max: Sectors::new(0x20_0000), alignment: Sectors::new(128) }),
        write_zeroes: Some(RangeLimits { sectors_max: Sectors::new(u64::MAX), alignment: Sectors::new(1) }),
    };

    fn check(offset: u64, expect: &[u8]) {
        let mut data = vec![0xff; expect.len()];
        read(&Shape { info: INFO, queue_size: 128, queues: 3, writeback: true }, offset, &mut data);
        assert_eq!(data, expect, "at {offset:#x}");
    }

    #[test]
    fn fields_are_where_the_driver_looks() {
        check(0, &[0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0]);
        check(4, &[0x22, 0x11, 0, 0]);
        check(8, &[0, 0, 0x40, 0]);
        check(12, &[126, 0, 0, 0]);
        check(20, &[0, 2, 0, 0]);
        check(21, &[2]);
        check(28, &[0, 0x20, 0, 0]);
        check(32, &[1, 0, 3, 0]);
        check(36, &[0, 0, 0x20, 0, 16, 0, 0, 0, 128, 0, 0, 0]);
        check(48, &[0xff, 0xff, 0xff, 0xff, 16, 0, 0, 0, 1, 0, 0, 0]);
        check(58, &[0; 4]);
        check(u64::MAX, &[0; 8]);
    }

    fn check_feature(bit: u32, without: BackendInfo, with: BackendInfo) {
        let offered = |info| features(info, 1) >> bit & 1;
        assert_eq!((offered(&without), offered(&with)), (0, 1), "bit {bit}");
    }

    #[test]
    fn what_the_storage_can_do_is_a_feature() {
        check_feature(VIRTIO_BLK_F_RO, INFO, BackendInfo { read_only: true, ..INFO });
        check_feature(VIRTIO_BLK_F_DISCARD, BackendInfo { discard: None, ..INFO }, INFO);
        check_feature(VIRTIO_BLK_F_WRITE_ZEROES, BackendInfo { write_zeroes: None, ..INFO }, INFO);
        check_feature(VIRTIO_BLK_F_TOPOLOGY, BackendInfo { optimal_io: None, ..INFO }, INFO);
    }

    #[test]
    fn several_queues_are_a_feature_and_one_is_none() {
        assert_eq!([1, 2].map(|queues| features(&INFO, queues) >> VIRTIO_BLK_F_MQ & 1), [0, 1]);
    }

    #[test]
    fn the_cache_can_be_turned_on_and_off_and_nothing_else_be_written() {
        for (offset, data, expect) in [
            (32, &[0][..], Some(false)),
            (32, &[1], Some(true)),
            (32, &[2], None),
            (32, &[1, 0], None),
            (32, &[], None),
            (33, &[1], None),
            (0, &[1], None),
            (u64::MAX, &[1], None),
        ] {
            assert_eq!(written_writeback(offset, data), expect, "{data:?} at {offset}");
        }
    }

    #[test]
    fn another_size_is_another_generation() {
        let of = |sectors| generation(&BackendInfo { capacity: Sectors::new(sectors), ..INFO });
        let sizes = [1, 2, 8, 0x800, 0x1000, 1 << 32, (1 << 32) + 8, 1 << 50];
        let generations: std::collections::BTreeSet<u32> = sizes.map(of).into();
        assert_eq!(generations.len(), sizes.len());
        assert_eq!(of(8), of(8));
    }
}
