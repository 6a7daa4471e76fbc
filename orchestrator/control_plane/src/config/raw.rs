//! Configuration as it was given.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Parser};
use serde::Deserialize;

use super::ConfigError;

/// The control plane of a Drover cluster: keeps its state, serves its API, and drives its node agents.
#[derive(Clone, Debug, Parser)]
#[command(name = "drover-control-plane", version)]
pub struct Arguments {
    /// Directory for the cluster's state; created if it is not there. One process at a time.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Address to serve on [default: 127.0.0.1:7400]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// A storage pool that every node reaches under the same name; may be repeated
    #[arg(long = "pool", value_name = "NAME=dir:PATH")]
    pub pools: Vec<String>,
    /// A Ceph cluster that rbd pools can be made in; the user must be one that may make keys and blocklist clients; may
    /// be repeated
    #[arg(long = "ceph", value_name = "NAME=conf:PATH[,user=USER]")]
    pub ceph: Vec<String>,
    /// A network that is not public and that disk images may be fetched from; may be repeated
    #[arg(long = "import-allow", value_name = "ADDRESS/BITS")]
    pub import_allow: Vec<String>,
    /// Certificates (PEM) of an authority to be trusted besides those of this host, when disk images are fetched over https;
    /// may be repeated
    #[arg(long = "import-ca", value_name = "FILE")]
    pub import_ca: Vec<PathBuf>,
    /// A TOML file with the same settings; flags go over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// When what happens.
    #[command(flatten)]
    pub timers: TimerArguments,
}

/// Timers, milliseconds.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Timers")]
pub struct TimerArguments {
    /// Between two heartbeats of an agent [default: 500]
    #[arg(long, value_name = "MS")]
    pub heartbeat_ms: Option<u64>,
    /// A VM pauses when its node's lease is this old [default: 2000]
    #[arg(long, value_name = "MS")]
    pub pause_after_ms: Option<u64>,
    /// A VM is ended when its node's lease is this old [default: 3000]
    #[arg(long, value_name = "MS")]
    pub kill_after_ms: Option<u64>,
    /// At least this long between the end of a silent node's VMs and its fencing [default: 1000]
    #[arg(long, value_name = "MS")]
    pub margin_ms: Option<u64>,
    /// A node is fenced when it has had no lease for this long; more than kill-after plus margin [default: 4500]
    #[arg(long, value_name = "MS")]
    pub t_fence_ms: Option<u64>,
    /// A node takes no new work when it has been silent for this long [default: 1500]
    #[arg(long, value_name = "MS")]
    pub suspect_ms: Option<u64>,
}

/// The file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ConfigFile {
    pub(super) state_dir: Option<PathBuf>,
    pub(super) listen: Option<String>,
    pub(super) pools: BTreeMap<String, String>,
    pub(super) ceph: BTreeMap<String, String>,
    pub(super) import: FileImport,
    pub(super) timers: FileTimers,
}

/// The file's `[import]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileImport {
    pub(super) allow: Vec<String>,
    pub(super) ca: Vec<PathBuf>,
}

/// The file's `[timers]`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FileTimers {
    pub(super) heartbeat_ms: Option<u64>,
    pub(super) pause_after_ms: Option<u64>,
    pub(super) kill_after_ms: Option<u64>,
    pub(super) margin_ms: Option<u64>,
    pub(super) t_fence_ms: Option<u64>,
    pub(super) suspect_ms: Option<u64>,
}

impl ConfigFile {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|source| ConfigError::Syntax { path: path.to_owned(), source: Box::new(source) })
    }
}
