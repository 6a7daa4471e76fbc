//! What an [`ImageQueue`](crate::ImageQueue) can be asked for.

use crate::Extent;
pub use crate::ffi::queue::ImageQueue;

/// One request of a queue. Its data is in the [`Buffers`](crate::Buffers) that are submitted with it; those that move
/// none are submitted with empty ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueOperation {
    /// Image to buffers, from `offset` on.
    Read {
        /// Where in the image.
        offset: u64,
    },
    /// Buffers to image.
    Write {
        /// Where in the image.
        offset: u64,
    },
    /// The content of this extent is not needed any more. Only whole multiples of the image's discard granularity
    /// (64 KiB by default) are given back, the rest stays as it is.
    Discard(Extent),
    /// Makes an extent read as zeros.
    WriteZeroes {
        /// Which.
        extent: Extent,
        /// Writes zeros instead of giving the space back.
        keep_allocated: bool,
    },
    /// Makes durable what has finished before.
    Flush,
}
