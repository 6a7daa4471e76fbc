//! The saved state of a disk: what its successor must agree with. Its queues are the transport's to save, and its data
//! is on the storage.

use drover_block::BackendInfo;
use drover_saved_state::{PayloadReader, PayloadWriter, SavedState, StateError};
use drover_units::{Bytes, Sectors};

/// What the driver has been told about the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlkState {
    pub(super) capacity: Sectors,
    pub(super) block_size: Bytes,
    pub(super) read_only: bool,
    pub(super) segments_max: u16,
    pub(super) id: Vec<u8>,
}

impl BlkState {
    /// Whether a disk with this backend can stand in, as far as its driver can tell. The error is for people.
    pub(super) fn fits(&self, info: &BackendInfo, segments_max: u16, id: &[u8]) -> Result<(), String> {
        if self.capacity != info.capacity {
            return Err(format!("its disk has {}, this one {}", self.capacity, info.capacity));
        }
        if self.block_size != info.block_size {
            return Err(format!(
                "its disk has blocks of {}, this one of {}",
                self.block_size, info.block_size
            ));
        }
        if self.read_only != info.read_only {
            let mode = |read_only| if read_only { "read-only" } else { "writable" };
            return Err(format!(
                "its disk was {}, this one is {}",
                mode(self.read_only),
                mode(info.read_only)
            ));
        }
        if self.segments_max > segments_max {
            return Err(format!(
                "its driver sends {} segments, this disk takes {segments_max}",
                self.segments_max
            ));
        }
        if self.id != id {
            return Err("it is of another disk".to_owned());
        }
        Ok(())
    }
}

impl SavedState for BlkState {
    const KIND: &'static str = "virtio-blk";
    const VERSION: u16 = 1;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.u64(self.capacity.get());
        payload.u64(self.block_size.get());
        payload.bool(self.read_only);
        payload.u16(self.segments_max);
        payload.bytes(&self.id);
    }

    fn decode(_version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        Ok(Self {
            capacity: Sectors::new(payload.u64("capacity")?),
            block_size: Bytes::new(payload.u64("block_size")?),
            read_only: payload.bool("read_only")?,
            segments_max: payload.u16("segments_max")?,
            id: payload.bytes("id")?.to_vec(),
        })
    }
}
