//! Which VMs to move, in what order, and why.
//!
//! Four planners over one inventory, all pure: they are told what there is ([`Basis`]) and answer with a [`Plan`], or with
//! why there is none. Nothing is moved here. Whoever carries a plan out runs its waves one after the other, decides each
//! move again just before it starts, and makes a new plan when something is not as it was.
//!
//! ```text
//! let basis = Basis { inventory, policies, costs, usage, immovable };
//!
//! Rebalancer::new(Settings).propose(now, &basis)              // Proposal: few worthwhile moves, or none
//! rebalancer.began(now, vm)                                   // each move that begins, whoever wanted it
//! drain(&basis, &hosts, &Parallelism)                         // Result<Plan, DrainRefused>; hosts: one, or
//!                                                             // basis.hosts_of_rack("r1"), basis.hosts_of_zone("a")
//! defragment(&basis, &[Request], &RoomLimits)                 // Result<RoomMade, NoRoom>: moves, then hosts
//! consolidate(&basis, &ConsolidateLimits)                     // Plan: emptier hosts, for whoever wants to pack tighter
//!
//! let mut costs = CostModel::new();
//! costs.observe(MigrationSample { .. })                       // each migration that ended well
//! ```
//!
//! What holds for every plan: each move's target passes the engine's own check with what has begun counted on both ends,
//! so no host is ever over its capacity on the way; a plan is as large as its limits say, and the search for it asks a
//! bounded number of questions. A test holds plans to that with the checker of `drover-invariants`, which shares no code
//! with the engine.
#![forbid(unsafe_code)]

mod basis;
mod consolidate;
mod cost;
mod drain;
mod load;
mod loads;
mod plan;
mod rebalance;
mod room;
mod trial;
mod units;
mod waves;

pub use basis::{Basis, Usage, VmUsage};
pub use consolidate::{ConsolidateLimits, consolidate};
pub use cost::{CostModel, MigrationCost, MigrationSample};
pub use drain::{DrainRefused, Stuck, StuckCause, drain};
pub use plan::{CoreSeconds, Dimension, Move, Parallelism, PerMille, Plan, Wave, Why};
pub use rebalance::{Balance, Mode, Proposal, Rebalancer, Settings};
pub use room::{NoRoom, RoomLimits, RoomMade, defragment};
