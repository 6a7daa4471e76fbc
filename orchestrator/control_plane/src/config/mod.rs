//! Configuration: what was given on the command line and in a file, then checked once.

mod ceph;
mod import;
mod pool;
mod raw;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use drover_cluster_state::Name;
use drover_reconcile::{RawTimers, Timers, TimersError};

pub use ceph::{CephConfig, CephConfigError};
pub use import::ImportConfig;
pub use pool::PoolError;
pub use raw::{Arguments, TimerArguments};

use raw::{ConfigFile, FileTimers};

/// Where clients and agents find the control plane unless told otherwise.
const LISTEN: &str = "127.0.0.1:7400";

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the store is.
    pub state_dir: PathBuf,
    /// Where to serve.
    pub listen: SocketAddr,
    /// Storage pools: their directories by name.
    pub pools: BTreeMap<Name, PathBuf>,
    /// Ceph clusters by name.
    pub ceph: BTreeMap<Name, CephConfig>,
    /// Where files may be fetched from.
    pub import: ImportConfig,
    /// When what happens.
    pub timers: Timers,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("--config: {path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("--config: {path} is not valid")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where, and what was expected.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A field that has no default was not given.
    #[error("{field} is missing; valid: {valid}")]
    Missing {
        /// As a flag.
        field: &'static str,
        /// What to give.
        valid: &'static str,
    },
    /// A field has a value that is never valid.
    #[error("{field}: '{value}' is not valid; valid: {valid}")]
    Invalid {
        /// As a flag.
        field: &'static str,
        /// What was given.
        value: String,
        /// What would be right.
        valid: &'static str,
    },
    /// A pool.
    #[error("--pool")]
    Pool(#[from] PoolError),
    /// A Ceph cluster.
    #[error("--ceph")]
    Ceph(#[from] CephConfigError),
    /// Timers that do not fit together. The field's name is that of the flag, without `--` and `-ms`.
    #[error(transparent)]
    Timers(#[from] TimersError),
}

impl Config {
    /// Puts the command line over the file over the defaults, and checks the result.
    ///
    /// # Errors
    /// [`ConfigError`], naming the field.
    pub fn resolve(arguments: Arguments) -> Result<Self, ConfigError> {
        let file = match &arguments.config {
            Some(path) => ConfigFile::read(path)?,
            None => ConfigFile::default(),
        };
        let state_dir = arguments
            .state_dir
            .or(file.state_dir)
            .ok_or(ConfigError::Missing { field: "--state-dir", valid: "a directory of its own" })?;
        let listen = arguments.listen.or(file.listen).unwrap_or_else(|| LISTEN.to_owned());
        let listen = listen.parse().map_err(|_| ConfigError::Invalid {
            field: "--listen",
            value: listen,
            valid: "an address and a port such as 127.0.0.1:7400 or [::]:7400",
        })?;
        let pools = pool::resolve(&arguments.pools, file.pools)?;
        let ceph = ceph::resolve(&arguments.ceph, file.ceph)?;
        let timers = Timers::new(timers(arguments.timers, file.timers))?;
        let import = import::resolve(&arguments.import_allow, arguments.import_ca, file.import)?;
        Ok(Self { state_dir, listen, pools, ceph, import, timers })
    }
}

fn timers(arguments: TimerArguments, file: FileTimers) -> RawTimers {
    let default = RawTimers::default();
    let pick = |argument: Option<u64>, file: Option<u64>, default: Duration| {
        argument.or(file).map_or(default, Duration::from_millis)
    };
    RawTimers {
        heartbeat: pick(arguments.heartbeat_ms, file.heartbeat_ms, default.heartbeat),
        pause_after: pick(arguments.pause_after_ms, file.pause_after_ms, default.pause_after),
        kill_after: pick(arguments.kill_after_ms, file.kill_after_ms, default.kill_after),
        margin: pick(arguments.margin_ms, file.margin_ms, default.margin),
        t_fence: pick(arguments.t_fence_ms, file.t_fence_ms, default.t_fence),
        suspect: pick(arguments.suspect_ms, file.suspect_ms, default.suspect),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    /// Resolves a command line; errors come with their causes.
    fn resolve(arguments: &[&str]) -> Result<Config, String> {
        let line = ["drover-control-plane"].iter().chain(arguments);
        let arguments = Arguments::try_parse_from(line).map_err(|error| error.to_string())?;
        Config::resolve(arguments).map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    #[track_caller]
    fn refused(arguments: &[&str], expect: &str) {
        let error = resolve(arguments).expect_err("must be refused");
        assert!(error.contains(expect), "{error}");
    }

    #[test]
    fn the_least_is_a_state_directory_and_a_pool() {
        let config = resolve(&["--state-dir", "/s", "--pool", "default=dir:/p"]).unwrap();
        assert_eq!(config.listen.to_string(), LISTEN);
        assert_eq!(config.pools.values().collect::<Vec<_>>(), [&PathBuf::from("/p")]);
        assert_eq!(config.timers, Timers::default());
    }

    #[test]
    fn the_error_names_the_field_and_what_would_be_valid() {
        let pool = ["--pool", "default=dir:/p"];
        refused(&pool, "--state-dir is missing");
        refused(&["--state-dir", "/s"], "--pool: no pool is configured; valid: NAME=dir:PATH");
        refused(&["--state-dir", "/s", "--pool", "x"], "'x' is not a pool; valid: NAME=dir:PATH");
        refused(&["--state-dir", "/s", "--pool", "a/b=dir:/p"], "'a/b' is not a name");
        refused(&["--state-dir", "/s", "--pool", "a=dir:"], "valid: NAME=dir:PATH");
        refused(&["--state-dir", "/s", "--pool", "a=rbd:p"], "made with `drover pool create`");
        refused(&["--state-dir", "/s", "--pool", "a=dir:/p", "--pool", "a=dir:/q"], "'a' is given twice");
        refused(
            &["--state-dir", "/s", pool[0], pool[1], "--listen", "here"],
            "--listen: 'here' is not valid",
        );
        let fence = ["--state-dir", "/s", pool[0], pool[1], "--t-fence-ms", "4000"];
        refused(&fence, "t_fence is 4s, and must be more than 4s");
    }

    #[test]
    fn a_ceph_cluster_is_a_configuration_file_and_a_user() {
        let base = ["--state-dir", "/s", "--pool", "default=dir:/p", "--ceph"];
        let resolve = |value| resolve(&[&base[..], &[value]].concat());
        let config = resolve("main=conf:/etc/ceph/ceph.conf").unwrap();
        let (name, ceph) = config.ceph.first_key_value().unwrap();
        assert_eq!((name.as_str(), ceph.user.as_str()), ("main", "admin"));
        assert_eq!(ceph.conf, PathBuf::from("/etc/ceph/ceph.conf"));
        assert_eq!(
            resolve("a=conf:/c,user=drover").unwrap().ceph.into_values().next().unwrap().user,
            "drover"
        );
        for bad in [
            "main",
            "main=/etc/ceph.conf",
            "main=conf:",
            "main=conf:/c,key=x",
            "a/b=conf:/c",
            "m=conf:/c,user=",
        ] {
            let error = resolve(bad).expect_err("must be refused");
            assert!(error.starts_with("--ceph: "), "{bad}: {error}");
        }
    }

    #[test]
    fn networks_to_fetch_from_are_named() {
        let base = ["--state-dir", "/s", "--pool", "default=dir:/p"];
        assert_eq!(resolve(&base).unwrap().import, ImportConfig::default());
        let given = ["--import-allow", "10.0.0.0/8", "--import-allow", "::1", "--import-ca", "/ca.pem"];
        let import = resolve(&[&base[..], &given].concat()).unwrap().import;
        let allow: Vec<String> = import.allow.iter().map(ToString::to_string).collect();
        assert_eq!(allow, ["10.0.0.0/8", "::1/128"]);
        assert_eq!(import.authorities, [PathBuf::from("/ca.pem")]);
        let bad = [&base[..], &["--import-allow", "example.org"]].concat();
        refused(&bad, "--import-allow: 'example.org' is not valid; valid: a network such as 10.0.0.0/8");
    }

    #[test]
    fn the_command_line_goes_over_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("drover.toml");
        let text = "state_dir = '/s'\nlisten = '127.0.0.1:1'\n[pools]\nfast = 'dir:/fast'\n\
                    [timers]\nsuspect_ms = 2000\nt_fence_ms = 9000\n\
                    [import]\nallow = ['10.0.0.0/8']\nca = ['/ca.pem']\n";
        std::fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap();
        let config = resolve(&["--config", path, "--listen", "127.0.0.1:2", "--t-fence-ms", "8000"]).unwrap();
        assert_eq!(config.state_dir, PathBuf::from("/s"));
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.timers.get().suspect, Duration::from_secs(2));
        assert_eq!(config.timers.get().t_fence, Duration::from_secs(8));
        assert_eq!((config.import.allow.len(), config.import.authorities.len()), (1, 1));
        std::fs::write(path, "stat_dir = '/s'").unwrap();
        refused(&["--config", path], "unknown field `stat_dir`");
    }
}
