//! Rust SDK for Drover's gRPC API.
//!
//! [`Client`] is a cheap clone over one HTTP/2 connection. Each method is one call of `drover.control.v1`; what goes
//! over the wire is re-exported as [`api`]. On top of the generated code the SDK adds what every caller needs:
//!
//! - bounded retries of calls that may be repeated, when the server cannot be reached ([`Retry`]);
//! - a request id in every mutation, chosen before the first attempt, so that a repeated attempt has one effect;
//! - [`Client::wait_operation`], which follows an operation to its end across restarts of the control plane;
//! - errors that tell a caller what to do ([`Error`]).
//!
//! VMs, nodes and volumes are named by name or id wherever a `&str` names one; the server resolves it.
//!
//! What it does not do: cache, poll, or decide anything about the cluster.
#![forbid(unsafe_code)]

mod connect;
mod disk_images;
mod error;
mod events;
mod images;
mod import;
mod nodes;
mod operations;
mod placement;
mod pools;
mod retry;
mod snapshots;
mod vms;
mod volumes;

pub use drover_wire::control::v1 as api;
pub use drover_wire::placement::v1 as placement_api;
pub use drover_wire::vm::v1 as vm_api;
pub use tonic::Streaming;

pub use connect::{Client, Options};
pub use error::Error;
pub use import::Import;
pub use operations::{Waited, has_ended};
pub use retry::Retry;
pub use vms::{Console, ConsoleInput, LogRange};

/// What a call gives back.
pub type Result<T> = std::result::Result<T, Error>;

/// Page size asked for by the `list_*` methods, which collect every page.
const PAGE_SIZE: u32 = 500;
/// Most pages a `list_*` method collects: a server that never ends its list is an error, not a full memory (B9).
const PAGES_MAX: usize = 1_000;
