//! What packets come from and go to.

use std::{fmt, io, os::fd::AsFd};

use drover_tap::{Offloads, Tap, TapError};

/// One queue of packets. Each read and write of its descriptor, which does not block, is one packet with a
/// `virtio_net_hdr_v1` in front.
pub trait NetPort: AsFd + fmt::Debug + Send + Sync {
    /// Says what may be left to the driver in packets for it; of all queues together.
    ///
    /// # Errors
    /// The host's.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Whether packets are put into this queue. Called only when that changes; a new queue takes packets.
    ///
    /// # Errors
    /// The host's.
    fn set_attached(&self, attached: bool) -> io::Result<()>;
}

impl NetPort for Tap {
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        Tap::set_offloads(self, offloads).map_err(refused)
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        Tap::set_attached(self, attached).map_err(refused)
    }
}

fn refused(error: TapError) -> io::Error {
    io::Error::other(error)
}
