//! Runs the machines: threads, blocking I/O, the clock.
//!
//! [`send`] and [`receive`] each take a thread of their caller's for as long as the migration lasts; `send` starts one
//! more that reads what the target says. Memory is bounded: one frame being built and one being read at each end.
//!
//! A driver never decides anything. It executes what [`crate::source`] and [`crate::target`] ask for, one effect after
//! the other, and tells them what came of it, what the peer said, what the [`MigrationControl`](crate::MigrationControl)
//! asks, and when a deadline has passed.
#![allow(clippy::disallowed_methods, reason = "the driver owns the clock that the machines are given")]

mod incoming;
mod outgoing;
mod receive;
mod send;
mod sink;
#[cfg(test)]
mod tests;

pub use receive::receive;
pub use send::send;
#[cfg(test)]
pub(crate) use {
    incoming::{Arrival, Incoming},
    outgoing::Outgoing,
    sink::{FrameSink, SinkError},
};

use crate::{
    guest::chain,
    wire::{AbortCode, AbortReason, ReadError},
};

/// What a read that failed means for the migration.
pub(crate) fn peer_lost(error: &ReadError) -> AbortReason {
    let code = match error {
        ReadError::Wire(_) => AbortCode::Protocol,
        ReadError::Closed | ReadError::Truncated | ReadError::Io(_) => AbortCode::PeerLost,
    };
    AbortReason::new(code, chain(error))
}
