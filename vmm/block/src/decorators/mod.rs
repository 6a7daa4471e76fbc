//! Backends around backends, for tests: [`Delayed`] answers late, [`Faulty`] fails on purpose.

mod delay;
mod fault;

pub use delay::Delayed;
pub use fault::{Fault, Faulty};
