//! How much a device may do in a second: token buckets over requests and over bytes, for each direction and for both
//! together, changed while they are in use.
//!
//! ```text
//!            total          inbound           outbound
//!         requests bytes  requests bytes   requests bytes     each a bucket, or no limit
//!              \____|________|______|_________/______/
//!                   take: all that concern it, or none, and then the exact instant from which it may
//! ```
//!
//! Everything here is arithmetic: time comes in as a [`Duration`] since any fixed moment, and the driver owns clock and
//! timer. Tokens are counted in billionths, so that what accrues in a nanosecond is a whole number at every rate:
//! nothing is ever rounded, and over any time a limit gives exactly its rate.
//!
//! A device's queues ask at the same time, each from its own thread. None waits for another: a bucket is one number that
//! a compare-and-swap changes, and only a change of the limits takes a lock, once at each queue.
//!
//! Deliberately not here: which of several waiting queues goes first (the one whose timer fires first), and pacing
//! inside a burst.
//!
//! [`Duration`]: std::time::Duration
#![forbid(unsafe_code)]

mod bucket;
mod limiter;
mod rate;

pub use limiter::{Cost, Counters, Direction, Limiter, Throttled, Waiting};
pub use rate::{Limit, Limits, Rate, RateError};
