//! Plans the effects that bring a cluster to its desired state.
//!
//! [`Planner::step`] takes what happened and returns what to do. It is level-triggered: every decision is made from the
//! stored state and fresh observations, never from what the planner remembers having started, so that a control plane
//! which is killed anywhere and restarted gets to the same end. What it does remember (calls under way, deadlines,
//! backoff) only keeps it from repeating itself too often.
//!
//! ```text
//!            heartbeats, store changes, answers, ticks
//!                              |
//!   nodes ......... liveness, suspicion, giving a node up, its way back       (failure detection, rejoin)
//!   lifecycle ..... one VM: start, watch, stop, delete                        (calls lifecycle's neighbours below)
//!   fencing ....... the evidence that a grant is out of use                   (B7)
//!   restart ....... when to try again
//!   migration ..... one VM on its way between two nodes
//!   operations .... what the client sees of all this, and its end             (B8)
//!                              |
//!            commits (compare-and-swap), calls, fence requests
//! ```
//!
//! Requests of clients enter beside it: [`admission`] turns each into one guarded transaction, or a typed error that
//! changes nothing. The planner sees the result as a change of the store.
#![forbid(unsafe_code)]

pub mod admission;
mod book;
mod calls;
mod commits;
mod fences;
mod fencing;
mod ident;
mod interface;
mod lifecycle;
mod migration;
mod moves;
mod nodes;
mod operations;
mod placing;
mod planner;
mod preemption;
mod rejoin;
mod restart;
mod sets;
mod timers;

pub use book::{
    Book, Statistics, built_in_policies, check_policy, explain, host_spec, policies_of, policy_names,
    request_of, request_of_move, request_of_spec,
};
pub use interface::{
    AgentAnswer, AgentCall, AgentCommand, CallError, CallId, CommitId, CommitOutcome, Effect, Effects, Event,
    FenceId, FenceRefusal, FenceRequest, Heartbeat, HeartbeatAnswer, NoStopwatch, Stopwatch,
};
pub use planner::Planner;
pub use timers::{RawTimers, Timers, TimersError};
