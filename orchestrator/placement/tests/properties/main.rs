//! What must hold of every decision, whatever happened before it: checked against a model that shares no code with the
//! engine (`drover-invariants`).
//!
//! `PROPTEST_CASES` sets how many sequences of events each property is tried on.

mod events;
mod model;
mod properties;
mod translate;
