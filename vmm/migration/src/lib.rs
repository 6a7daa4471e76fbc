//! Live migration: moves a running guest to another host, with a pause that its users do not notice, and without ever
//! letting it run twice.
//!
//! ```text
//!            convergence::decide (pure)
//!                   ▲
//!   source::Source (pure) ── effects ──▶ driver::send    ═══ wire frames over transport ═══▶  driver::receive ◀── target::Target (pure)
//!                                            │                                                      │
//!                                     MigratableGuest                                        MigratableGuest
//! ```
//!
//! - [`source`] and [`target`] hold every rule of the protocol, as `step(now, event) -> effects`.
//! - [`convergence`] decides when to stop copying.
//! - [`wire`] is what goes over the network.
//! - [`driver`] executes effects: [`driver::send`] and [`driver::receive`] are the way in.
//! - [`MigratableGuest`] is the machine, [`transport`] the network; both are seams.
//!
//! What holds whatever the network does, and what the simulation in `simulation.rs` shows:
//!
//! 1. The guest never runs at both ends.
//! 2. Until the source has sent Commit, every failure leaves the guest running at the source with nothing lost.
//! 3. From then on the source does not run it unless the orchestrator, having fenced the target, grants a newer epoch.
//! 4. What runs at the target is, byte for byte, what stood still at the source.
//! 5. Every migration ends, or stands in Committed and says so.
//!
//! Not here: choosing where to (the orchestrator), fencing (the orchestrator and storage), encryption (the transport),
//! slowing down a guest that does not converge.
#![forbid(unsafe_code)]

mod control;
pub mod convergence;
pub mod driver;
#[cfg(test)]
mod fake;
mod guest;
mod progress;
pub mod shape;
#[cfg(test)]
mod simulation;
pub mod source;
pub mod target;
pub mod transport;
pub mod wire;

pub use control::{ControlReceiver, GrantError, MigrationControl, control};
pub use guest::{GuestError, MigratableGuest};
pub use progress::{MigrationProgress, Phase, ProgressHandle};
