//! Which VMs to move, in what order, and why.
#![forbid(unsafe_code)]

mod cost;
mod plan;

pub use cost::{CostModel, MigrationCost, MigrationSample};
pub use plan::{CoreSeconds, Dimension, Move, Parallelism, PerMille, Plan, Wave, Why};
