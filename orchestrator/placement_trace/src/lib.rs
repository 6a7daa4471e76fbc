//! Traces of VM requests: what arrives when, how large it is, how long it stays.
//!
//! - [`huawei`]: the CSV form of Huawei-East-1, one row for each creation and deletion
//! - [`azure`]: the Azure packing trace, two tables whose sizes are fractions of a machine: as the published SQLite file
//!   (feature `sqlite`) and as CSV exports of the tables
//! - [`generate`]: seeded generators of traces that have the published shape of both
//!
//! Readers read line by line or row by row, refuse what they cannot mean with the line's number, and keep a compact
//! [`Trace`] whose size is bounded ([`MAX_EVENTS`]). Events are in the order of their times; at one moment deletions come
//! first, because what is deleted makes room.
//!
//! This crate knows nothing of hosts and placement.
#![forbid(unsafe_code)]

pub mod azure;
mod error;
pub mod generate;
pub mod huawei;
mod lines;
mod trace;

pub use error::{Error, Problem};
pub use trace::{
    Action, Event, Flavour, FlavourId, Lifetime, MAX_EVENTS, MAX_FLAVOURS, Moment, Priority, Trace, TraceVm,
};
