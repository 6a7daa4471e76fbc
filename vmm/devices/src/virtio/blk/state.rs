//! The saved state of a disk: what its successor must agree with. Its queues are the transport's to save, and its data
//! is on the storage.

use drover_block::RangeLimits;
use drover_saved_state::{PayloadReader, PayloadWriter, SavedState, StateError};
use drover_units::{Bytes, Sectors};

use super::config::Shape;

/// What the driver has been told about the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BlkState {
    pub(super) capacity: Sectors,
    pub(super) block_size: Bytes,
    pub(super) read_only: bool,
    pub(super) segments_max: u16,
    pub(super) id: Vec<u8>,
    /// These three since version 2; before it they were not offered.
    pub(super) optimal_io: Option<Bytes>,
    pub(super) discard: Option<RangeLimits>,
    pub(super) write_zeroes: Option<RangeLimits>,
    /// These two since version 3; before it there was one queue, and a driver could not turn the cache off.
    pub(super) queues: u16,
    pub(super) writeback: bool,
}

impl BlkState {
    /// Whether a disk with this backend can stand in, as far as its driver can tell. The error is for people.
    pub(super) fn fits(&self, here: &Shape, segments_max: u16, id: &[u8]) -> Result<(), String> {
        let info = &here.info;
        if self.queues != here.queues {
            return Err(format!("its disk has {} queues, this one {}", self.queues, here.queues));
        }
        // A disk that has grown since is one whose driver is told so.
        if self.capacity > info.capacity {
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
        for (what, told, here) in
            [("discard", self.discard, info.discard), ("write zeros", self.write_zeroes, info.write_zeroes)]
        {
            let Some(told) = told else { continue };
            if here.is_none_or(|here| here.sectors_max < told.sectors_max) {
                let told = told.sectors_max.get();
                return Err(format!("its driver may {what} {told} sectors at once, this disk takes fewer"));
            }
        }
        if self.id != id {
            return Err("it is of another disk".to_owned());
        }
        Ok(())
    }
}

impl SavedState for BlkState {
    const KIND: &'static str = "virtio-blk";
    const VERSION: u16 = 3;

    fn encode(&self, payload: &mut PayloadWriter) {
        payload.u64(self.capacity.get());
        payload.u64(self.block_size.get());
        payload.bool(self.read_only);
        payload.u16(self.segments_max);
        payload.bytes(&self.id);
        payload.u64(self.optimal_io.unwrap_or(Bytes::ZERO).get());
        for limits in [self.discard, self.write_zeroes] {
            payload.u64(limits.map_or(Sectors::ZERO, |limits| limits.sectors_max).get());
            payload.u64(limits.map_or(Sectors::ZERO, |limits| limits.alignment).get());
        }
        payload.u16(self.queues);
        payload.bool(self.writeback);
    }

    fn decode(version: u16, payload: &mut PayloadReader<'_>) -> Result<Self, StateError> {
        let mut state = Self {
            capacity: Sectors::new(payload.u64("capacity")?),
            block_size: Bytes::new(payload.u64("block_size")?),
            read_only: payload.bool("read_only")?,
            segments_max: payload.u16("segments_max")?,
            id: payload.bytes("id")?.to_vec(),
            optimal_io: None,
            discard: None,
            write_zeroes: None,
            queues: 1,
            writeback: true,
        };
        if version >= 2 {
            let optimal_io = Bytes::new(payload.u64("optimal_io")?);
            state.optimal_io = Some(optimal_io).filter(|size| *size > Bytes::ZERO);
            state.discard = limits(payload, "discard.sectors_max", "discard.alignment")?;
            state.write_zeroes = limits(payload, "write_zeroes.sectors_max", "write_zeroes.alignment")?;
        }
        if version >= 3 {
            state.queues = payload.u16("queues")?;
            state.writeback = payload.bool("writeback")?;
        }
        Ok(state)
    }
}

/// Limits of ranges; no sectors at all stand for "not offered".
fn limits(
    payload: &mut PayloadReader<'_>,
    sectors_max: &'static str,
    alignment: &'static str,
) -> Result<Option<RangeLimits>, StateError> {
    let limits = RangeLimits {
        sectors_max: Sectors::new(payload.u64(sectors_max)?),
        alignment: Sectors::new(payload.u64(alignment)?),
    };
    Ok(Some(limits).filter(|limits| limits.sectors_max > Sectors::ZERO))
}
