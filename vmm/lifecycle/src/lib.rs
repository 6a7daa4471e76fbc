//! The life of one VM inside its vmmd, as a pure state machine: which requests are admitted in which state, by whom
//! (owner epoch), how often (operation id), and until when (lease).
//!
//! ```text
//!            Create            Start                Pause
//!   EMPTY ------------> CREATED -----> RUNNING <----------> PAUSED
//!     |                                ^  |  ^    Resume      | lease overdue pauses, its renewal resumes
//!     | MigrateIn          arrived     |  |  | aborted        |
//!     +-----------> INCOMING ----------+  |  |                |
//!                      |       MigrateOut |  |                |
//!                      |                  v  |                |
//!                      |            MIGRATING_OUT             |
//!                      |                  | Commit sent       |
//!                      |                  v                   |
//!                      |              COMMITTED --> MIGRATED  |  (the target confirmed)
//!                      | failed           |  newer epoch granted: RUNNING again
//!                      v                  v                   v
//!                   STOPPED <------ Stop, guest shutdown, guest fault, fenced, from every state
//! ```
//!
//! The driver owns one [`Lifecycle`] and the machine. It asks [`Lifecycle::request`] about every command, performs the
//! [`Action`]s it is handed one at a time, reports each with [`Lifecycle::finish`], tells what happened by itself with
//! [`Lifecycle::observe`], and after each of these performs what [`Lifecycle::due`] names until there is nothing left.
//!
//! Deliberately not here: clocks, threads, the machine, the wire's types, and what a state looks like to people.
#![forbid(unsafe_code)]

mod lease;
mod operations;
mod phase;
mod request;
mod state_machine;

pub use lease::{BootTime, Lease, LeaseError, LeaseVerdict};
pub use operations::RECENT_OPERATIONS_MAX;
pub use phase::{Link, Phase, State, StopReason};
pub use request::{Command, Refusal, Request, Verb};
pub use state_machine::{Action, Admission, CancelCause, Lifecycle, Observation, Outcome, PauseCause};
