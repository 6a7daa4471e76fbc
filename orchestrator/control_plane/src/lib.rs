//! The control plane's process: keeps the cluster's state in a store, serves agents and clients over gRPC, and runs the
//! driver in between.
//!
//! - [`Config`]: flags and file, checked once.
//! - [`ControlPlane`]: a running control plane; `main` starts one, and so do the tests.
//! - `services`: one file per gRPC service; `convert`: messages to domain types and back, and nothing else.
//! - `pools`, `agents`, `clock`: the ports.
//!
//! It decides nothing: requests are admitted by `drover_reconcile::admission`, everything else is the planner's.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "this is the process that owns the clocks; the cores get the time from here"
)]

mod agents;
mod background;
mod blocklist_keeper;
mod ceph;
mod clock;
mod config;
mod convert;
mod device_keeper;
mod kernel_image;
mod network;
mod paging;
mod pools;
mod rbd_fence;
mod server;
mod services;
mod state_dir;
mod status;
mod storage;
mod upload;

pub use config::{
    Arguments, CephConfig, CephConfigError, Config, ConfigError, ImportConfig, PoolError, TimerArguments,
};
pub use network::Network;
pub use server::{ControlPlane, StartError};
pub use state_dir::StateDirError;
pub use storage::AuthorityError;
