//! `cargo xtask demo`: the product's promise in one run.
//!
//! Real processes, real KVM, a real SIGKILL. The closing JSON line is stable and only grows.

mod report;
mod scenario;

use std::{
    env, fs,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use drover_test_framework::{Binaries, CephCluster, ClusterOptions, TestCluster, ceph_cluster::CephOptions};
use drover_test_prerequisites::{build_probe, workspace_root};
use drover_units::Bytes;
use tokio::signal::unix::{SignalKind, signal};

use crate::{cargo, setup::check_kvm};
use report::Timeline;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Print only the closing JSON line
    #[arg(long)]
    json: bool,
    /// Leave the cluster up and print how to reach it
    #[arg(long)]
    keep: bool,
    /// Where the volumes are: in a directory, or in a Ceph cluster of the demo's own
    #[arg(long, value_enum, default_value_t = Storage::Dir)]
    storage: Storage,
    /// Put all state here (an empty or new folder) instead of a temporary folder
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// Kinds of storage to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Storage {
    Dir,
    Rbd,
}

impl Storage {
    fn name(self) -> &'static str {
        match self {
            Self::Dir => "dir",
            Self::Rbd => "rbd",
        }
    }
}

/// Runs the demo. Fails if anything is lost.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(
        !(options.keep && options.storage == Storage::Rbd),
        "--keep: a Ceph cluster goes with the demo; `cargo xtask ceph up` leaves one running"
    );
    // Before anything is built: a demo without KVM would be a long wait for one sentence.
    check_kvm()?;
    let binaries = build(options.json)?;
    build_probe().map_err(anyhow::Error::msg).context("the probe guest does not build")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot make a runtime")?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            outcome = demo(options, binaries) => outcome,
            // Dropping the scenario ends every process it started.
            _ = interrupt.recv() => bail!("interrupted; the cluster has been taken down"),
            _ = terminate.recv() => bail!("terminated; the cluster has been taken down"),
        }
    })
}

async fn demo(options: &Options, binaries: Binaries) -> anyhow::Result<()> {
    let state = State::make(options.state_dir.as_deref())?;
    let timeline = Timeline::start(!options.json);
    let cli = binaries.cli();
    let cluster_options = ClusterOptions {
        binaries,
        folder: state.folder.clone(),
        nodes: 3,
        vcpus_per_node: 4,
        memory_per_node: Bytes::gib(2),
        agent_arguments: Vec::new(),
    };
    let mut cluster = match options.storage {
        Storage::Dir => TestCluster::start(cluster_options).await?,
        Storage::Rbd => {
            let ceph = CephCluster::start(&CephOptions::three_osds())
                .context("no Ceph cluster: `cargo xtask setup` installs what it needs")?;
            timeline.say(&format!("a Ceph cluster with {} OSDs is up", ceph.osds()));
            TestCluster::start_on_ceph(cluster_options, ceph).await?
        }
    };
    timeline.say(&format!(
        "control plane and {} node agents are up, at {}",
        cluster.nodes(),
        cluster.server()
    ));

    let outcome = scenario::run(&mut cluster, options.storage.name(), &timeline).await;
    if outcome.is_err() || options.keep {
        // What is left behind is what one needs to find out why.
        eprintln!("state and logs: {}", state.keep().display());
    }
    let summary = outcome?;
    if options.keep {
        eprintln!("the cluster stays up; reach it with:\n  export DROVER_SERVER={}", cluster.server());
        eprintln!("  {} vm list", cli.display());
        eprintln!("end it with:\n  pkill -f {}", cluster.folder().display());
        cluster.keep();
    } else {
        cluster.stop()?;
    }
    println!("{}", serde_json::to_string(&summary)?);
    if !summary.ok {
        bail!("something was lost: see the line above");
    }
    Ok(())
}

/// Where the cluster keeps its state: a folder of the user's, or a temporary one that goes with the demo.
struct State {
    folder: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl State {
    fn make(wanted: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(folder) = wanted {
            if folder.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
                bail!("--state-dir: {} is not empty: name an empty or new folder", folder.display());
            }
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            return Ok(Self { folder: folder.canonicalize()?, temporary: None });
        }
        let temporary =
            tempfile::Builder::new().prefix("drover-").tempdir().context("cannot make a folder")?;
        Ok(Self { folder: temporary.path().to_owned(), temporary: Some(temporary) })
    }

    fn keep(self) -> PathBuf {
        self.temporary.map(tempfile::TempDir::keep);
        self.folder
    }
}

/// Builds Drover's programs, optimised, and says where they are.
fn build(quiet: bool) -> anyhow::Result<Binaries> {
    let mut command = cargo::command();
    command
        .args(["build", "--release", "--locked"])
        .args(["--package", "drover-cli", "--package", "drover-control-plane"])
        .args(["--package", "drover-node-agent", "--package", "drover-vmmd"])
        .current_dir(workspace_root())
        .stdin(Stdio::null());
    if quiet || !std::io::stderr().is_terminal() {
        command.arg("--quiet");
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the build failed ({status})");
    }
    let target =
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_root().join("target"), PathBuf::from);
    Binaries::in_folder(&target.join("release"))
}
