//! The planner against a world that it does not know: agents, disks and a store made of plain data, with a clock, a
//! network and faults of their own. Scenarios say what must come of one situation; the simulation makes situations up.
#![allow(clippy::unwrap_used, reason = "a test that meets what it does not expect must fail, there and then")]

mod admission;
mod lease;
mod placement;
mod scenarios;
mod simulation;
mod storage;
mod suspended;
mod world;
