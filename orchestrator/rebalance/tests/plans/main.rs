//! What must hold of every plan: replayed move by move on the model of `drover-invariants`, which shares no code with the
//! engine or the planners.
//!
//! `PROPTEST_CASES` sets how many clusters each property is tried on.

// The clusters are the ones that the engine's own decisions are checked on.
#[allow(dead_code, reason = "the engine's tests use more of it")]
#[path = "../../../placement/tests/properties/events.rs"]
mod events;
#[allow(dead_code, reason = "the engine's tests use more of it")]
#[path = "../../../placement/tests/properties/model.rs"]
mod model;
#[path = "../../../placement/tests/properties/translate.rs"]
mod translate;

mod properties;
mod replay;
mod scenarios;
