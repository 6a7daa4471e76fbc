//! Pure core of the node agent: which VMs this node has, under which epochs, who may command them, and for how long.
//!
//! A driver owns one [`Supervisor`], feeds it [`Event`]s with the time at which they happened, and carries out the
//! [`Effect`]s it gets back, in order. Each VM goes through
//!
//! ```text
//!              Ensure, PrepareIncoming            Launched(ok)
//!   (unknown) -------------------------> Launching ----------> Live
//!      ^                                     |                  |
//!      |        agent restarts: Recovered ---|----> (any)       |  Stop, newer epoch, reaped, lease gone,
//!      |                                     v                  v  final state reached
//!      |                                   doomed  <------------+
//!      |                                     |
//!      |  end acknowledged by Stop           v ProcessEnded
//!      +---------------------------------- Ended      (reported in every heartbeat until acknowledged)
//! ```
//!
//! What it guarantees, whatever the order of events:
//!
//! - a command whose epoch is older than the newest one seen for its VM is refused (B6);
//! - a VM has at most one process here: the next one is launched after the end of the previous one has been proven;
//! - no VM is launched without a valid lease, nor while the control plane's reap list is not empty (DESIGN section 4);
//! - a lease counts from the moment its heartbeat was *sent*; once it is over, every VM is killed (T_self);
//! - every command is answered exactly once.
//!
//! Deliberately not here: processes, sockets, files, clocks, and what a vmmd reports beyond its epoch and state.
#![forbid(unsafe_code)]

mod commands;
mod effect;
mod event;
mod floors;
mod heartbeat;
mod supervisor;
mod time;
mod vm;

pub use effect::{Answer, Effect, EndHow, Refusal};
pub use event::{Event, LaunchFailed, Process, Run, StaleVm, Ticket, Verb, VmReport, VmState};
pub use floors::RETIRED_MAX;
pub use supervisor::{Supervisor, VmView};
pub use time::{BootTime, InvalidTimers, Lease, Timers};
