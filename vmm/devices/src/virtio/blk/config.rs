//! The configuration space (section 5.2.4) and the features that say which of its fields count.

use drover_block::BackendInfo;
use virtio_bindings::{
    virtio_blk::{VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX},
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

/// Length of the space up to the last field that a driver of virtio 1.2 knows, bytes.
const LEN: usize = 60;
const CAPACITY: usize = 0;
const SEG_MAX: usize = 12;
const BLK_SIZE: usize = 20;

/// What the driver may ask for.
pub(super) fn features(info: &BackendInfo) -> u64 {
    let mut bits = vec![
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
    ];
    if info.read_only {
        bits.push(VIRTIO_BLK_F_RO);
    }
    bits.into_iter().fold(0, |features, bit| features | 1 << bit)
}

/// Most data segments of one request. A chain is at most as long as its queue (2.7.5), and two descriptors are taken
/// by header and status.
pub(super) fn segments_max(info: &BackendInfo, queue_size: u16) -> u16 {
    info.segments_max.min(queue_size.saturating_sub(2)).max(1)
}

/// Fills `data` from the space at `offset`; what is beyond it is zero.
pub(super) fn read(info: &BackendInfo, queue_size: u16, offset: u64, data: &mut [u8]) {
    let mut space = [0; LEN];
    let block_size = u32::try_from(info.block_size.get()).unwrap_or(0);
    space[CAPACITY..CAPACITY + 8].copy_from_slice(&info.capacity.get().to_le_bytes());
    space[SEG_MAX..SEG_MAX + 4].copy_from_slice(&u32::from(segments_max(info, queue_size)).to_le_bytes());
    space[BLK_SIZE..BLK_SIZE + 4].copy_from_slice(&block_size.to_le_bytes());
    let from = usize::try_from(offset).unwrap_or(LEN).min(LEN);
    let there = &space[from..(from.saturating_add(data.len())).min(LEN)];
    data.fill(0);
    data[..there.len()].copy_from_slice(there);
}

#[cfg(test)]
mod tests {
    use drover_units::{Bytes, Sectors};

    use super::*;

    const INFO: BackendInfo = BackendInfo {
        capacity: Sectors::new(0x1122_3344_5566),
        block_size: Bytes::new(512),
        read_only: false,
        segments_max: 1024,
        optimal_io: None,
        discard: None,
        write_zeroes: None,
    };

    fn check(offset: u64, expect: &[u8]) {
        let mut data = vec![0xff; expect.len()];
        read(&INFO, 128, offset, &mut data);
        assert_eq!(data, expect, "at {offset:#x}");
    }

    #[test]
    fn fields_are_where_the_driver_looks() {
        check(0, &[0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0]);
        check(4, &[0x22, 0x11, 0, 0]);
        check(12, &[126, 0, 0, 0]);
        check(20, &[0, 2, 0, 0]);
        check(21, &[2]);
        check(58, &[0; 4]);
        check(u64::MAX, &[0; 8]);
    }

    #[test]
    fn read_only_is_a_feature() {
        let bit = 1 << VIRTIO_BLK_F_RO;
        assert_eq!(features(&INFO) & bit, 0);
        assert_eq!(features(&BackendInfo { read_only: true, ..INFO }) & bit, bit);
    }
}
