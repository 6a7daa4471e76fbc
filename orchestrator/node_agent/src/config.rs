//! Configuration: what is given on the command line, and what it means.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use drover_dir_volume::DirPool;
use drover_units::{Bytes, VcpuCount};
use drover_wire::placement::v1::HostFacts;

use crate::{
    host_facts::{HostArgs, HostFolders, Network},
    jail::JailArgs,
};

/// The agent of one Drover node.
///
/// Starts VMs for the control plane and keeps them under its lease. Ending the agent (SIGTERM) leaves its VMs
/// running; the next agent on the same state directory adopts them.
#[derive(Clone, Debug, Parser)]
#[command(name = "drover-node-agent", version)]
pub(crate) struct Args {
    /// Name of this node, unique in the cluster
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Where this node keeps its identity and its VMs' sockets and logs
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// The control plane, such as http://127.0.0.1:7400
    #[arg(long, value_name = "URL")]
    control_plane: String,
    /// Where to serve the control plane's calls; port 0 lets the kernel choose
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The address others reach this node at, where it differs from --listen
    #[arg(long, value_name = "IP")]
    advertise: Option<IpAddr>,
    /// A storage pool: name=dir:/path (repeat for several)
    #[arg(long = "pool", value_name = "NAME=dir:PATH", required = true)]
    pools: Vec<String>,
    /// Virtual CPUs this node offers
    #[arg(long, value_name = "N")]
    vcpus: u32,
    /// Guest memory this node offers, such as 4G
    #[arg(long, value_name = "SIZE")]
    memory: Bytes,
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    jail: JailArgs,
    /// The vmmd to start [default: drover-vmmd beside this program]
    #[arg(long, value_name = "PATH")]
    vmmd: Option<PathBuf>,
    /// What to log: error, warn, info, debug or trace, or a filter of tracing
    #[arg(long, value_name = "FILTER", default_value = "info", env = "DROVER_LOG")]
    log_level: String,
}

/// A pool of this node.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) dir: DirPool,
}

/// What [`Args`] mean, checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) name: String,
    pub(crate) state_dir: PathBuf,
    pub(crate) control_plane: String,
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: IpAddr,
    /// At least one.
    pub(crate) pools: Vec<Pool>,
    pub(crate) networks: Vec<Network>,
    pub(crate) vcpus: VcpuCount,
    pub(crate) memory: Bytes,
    /// What placement is told of the host, besides what it offers.
    pub(crate) facts: HostFacts,
    pub(crate) vmmd: PathBuf,
    pub(crate) jail: JailArgs,
    pub(crate) log_level: String,
}

impl Config {
    pub(crate) fn resolve(args: Args) -> anyhow::Result<Self> {
        ensure!(!args.name.trim().is_empty(), "--name must not be empty");
        ensure!(args.vcpus > 0, "--vcpus must be at least 1");
        ensure!(args.memory > Bytes::ZERO, "--memory must be more than 0, such as 4G");
        ensure!(
            args.control_plane.starts_with("http://"),
            "--control-plane: '{}' is not a URL such as http://127.0.0.1:7400",
            args.control_plane
        );
        let advertise = args.advertise.unwrap_or_else(|| args.listen.ip());
        ensure!(
            !advertise.is_unspecified(),
            "--advertise is needed: nobody can reach {advertise}, so name the IP that others reach this node at"
        );
        let mut pools: Vec<Pool> = Vec::new();
        for text in &args.pools {
            let pool = pool(text)?;
            ensure!(
                pools.iter().all(|other| other.name != pool.name),
                "--pool: '{}' is given twice",
                pool.name
            );
            pools.push(pool);
        }
        let networks = args.host.bridged_networks()?;
        let facts = args.host.resolve(&HostFolders::default())?;
        let vmmd = match args.vmmd {
            Some(path) => path,
            None => std::env::current_exe()
                .context("cannot tell where this program is: name the vmmd with --vmmd")?
                .with_file_name("drover-vmmd"),
        };
        let vmmd = vmmd
            .canonicalize()
            .with_context(|| format!("--vmmd: {} does not exist or cannot be read", vmmd.display()))?;
        Ok(Self {
            name: args.name,
            state_dir: args.state_dir,
            control_plane: args.control_plane,
            listen: args.listen,
            advertise,
            pools,
            networks,
            vcpus: VcpuCount::new(args.vcpus),
            memory: args.memory,
            facts,
            vmmd,
            jail: args.jail,
            log_level: args.log_level,
        })
    }
}

fn pool(text: &str) -> anyhow::Result<Pool> {
    let Some((name, place)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
        bail!("--pool: '{text}' is not name=dir:/path");
    };
    let Some(path) = place.strip_prefix("dir:").filter(|path| !path.is_empty()) else {
        bail!("--pool: '{text}' names no kind of pool that this build has: valid is {name}=dir:/path");
    };
    let root = PathBuf::from(path);
    let root =
        root.canonicalize().with_context(|| format!("--pool: {path} of pool '{name}' cannot be opened"))?;
    let dir =
        DirPool::open(root).with_context(|| format!("--pool: {path} of pool '{name}' cannot be used"))?;
    Ok(Pool { name: name.to_owned(), dir })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(extra: &[&str]) -> anyhow::Result<Config> {
        let required =
            ["drover-node-agent", "--name=n", "--state-dir=/s", "--control-plane=http://127.0.0.1:1"];
        let rest = ["--vcpus=2", "--memory=1G", "--vmmd=/bin/sh"];
        Config::resolve(
            Args::try_parse_from(required.iter().chain(&rest).chain(extra)).expect("valid arguments"),
        )
    }

    fn check(extra: &[&str], names: &str) {
        let error = format!("{:#}", resolve(extra).expect_err("refused"));
        assert!(error.contains(names), "{error}");
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        check(&["--pool=x"], "name=dir:/path");
        check(&["--pool=x=rbd:ssd"], "valid is x=dir:/path");
        check(&["--pool=x=dir:/does/not/exist"], "/does/not/exist");
        check(&["--pool=x=dir:/tmp", "--network=lan=br0", "--network=lan=br1"], "two bridges");
        check(&["--pool=x=dir:/tmp", "--network=lan=a/b"], "the bridge of 'lan'");
        check(&["--pool=x=dir:/tmp", "--listen=0.0.0.0:0"], "--advertise");
    }

    #[test]
    fn the_pools_keep_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let config = resolve(&[&format!("--pool=b=dir:{path}"), &format!("--pool=a=dir:{path}")]).unwrap();
        let names: Vec<_> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
    }
}
