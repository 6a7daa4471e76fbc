//! What a placement policy would have done with a trace of VM requests on a described cluster.
//!
//! [`simulate`] hands each request of a [`Trace`](drover_placement_trace::Trace) to a [`Placer`]: the engine with one of its
//! policies ([`EnginePlacer`]), or a textbook heuristic to compare with ([`HeuristicPlacer`]). It keeps its own account of
//! what is where, so that a placer that overcommits is found out, and records how full and how broken up the cluster is
//! over time. [`upper_bound`] says how full it could have become by the linear relaxation.
//!
//! [`csv`] and [`plot`] show an [`Outcome`]. Nothing here reads files or clocks.
#![forbid(unsafe_code)]

mod bound;
mod cluster;
mod contender;
mod csv;
mod engine;
mod heuristic;
mod measure;
mod placer;
pub mod plot;
mod simulate;

pub use bound::{Bound, upper_bound};
pub use cluster::{Cluster, ClusterError, HostClass, HostIndex, MAX_HOSTS, Room};
pub use contender::{Contender, ContenderError};
pub use csv::csv;
pub use engine::{EngineError, EnginePlacer};
pub use heuristic::{Heuristic, HeuristicPlacer};
pub use measure::{LARGE_FLAVOURS, Sample};
pub use placer::{Ask, Move, Placer};
pub use simulate::{Error, FirstRejection, Options, Outcome, Until, simulate};
