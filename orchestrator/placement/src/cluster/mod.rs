//! Placement over a whole [`ClusterState`](drover_cluster_state::ClusterState), built anew for each decision.

mod decide;
mod inventory;
mod reason;

pub use decide::{Decision, Request, Score, decide};
pub use inventory::{Host, Inventory};
pub use reason::{Reason, Rejection, Rejections};
