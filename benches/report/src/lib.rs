//! What every side-by-side bench has in common: rounds that interleave the contenders, medians, a table for people and
//! `target/bench/<name>.json` for harnesses.
//!
//! ```no_run
//! use drover_bench_report::{Better, ROUNDS, Report, Row, interleaved};
//!
//! # fn main() -> Result<(), drover_bench_report::Error> {
//! let mut report = Report::of_this_machine("sorting");
//! let samples = interleaved(ROUNDS, &mut [("drover", &mut || 1.0), ("qemu", &mut || 2.0)]);
//! report.push(Row::new("10,000 numbers", "rate", "1/s", Better::Higher).medians(&samples));
//! print!("{}", report.table());
//! let path = report.write(std::path::Path::new("."))?;
//! # Ok(()) }
//! ```
//!
//! A contender that is not installed is left out of a row and named with [`Report::leave_out`]. What is measured, and how
//! a contender is started, is the bench's own.
#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a report is dated")]

mod exit;
mod host;
mod report;
mod samples;

pub use exit::exit_code;
pub use host::Host;
pub use report::{Better, Error, Report, Row};
pub use samples::{ROUNDS, Samples, interleaved, median};
