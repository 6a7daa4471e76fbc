//! Our vmmd, spoken to as the node agent does.

use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use drover_ids::{NodeId, OperationId, VmId};
use drover_probe_record::bench::Wait;
use drover_test_prerequisites::{probe_image, workspace_root};
use drover_wire::vm::v1::{self as wire, vm_client::VmClient};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::{
    Contender,
    case::Case,
    figures::Figures,
    guest::{self, MEMORY_MIB, VCPUS},
    target::{Ended, Target},
};

/// From the spawn of a process to its socket, on a busy machine.
const SERVES: Duration = Duration::from_secs(20);
const EPOCH: u64 = 1;
const VM: u128 = 0xbe;
const NODE: u128 = 0x0d;

pub(crate) struct Drover<'a> {
    name: String,
    vmmd: PathBuf,
    target: &'a Target,
    wait: Option<Wait>,
}

/// Builds vmmd as it is shipped, and returns its path.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = workspace_root();
    let status = Command::new(cargo)
        .args(["build", "--release", "--locked", "--package", "drover-vmmd"])
        .current_dir(&root)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "drover-vmmd does not build");
    let folder = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(folder.join("release/drover-vmmd"))
}

impl<'a> Drover<'a> {
    pub(crate) fn new(name: String, vmmd: PathBuf, target: &'a Target, wait: Option<Wait>) -> Self {
        Self { name, vmmd, target, wait }
    }

    fn config(&self, case: &Case, length: Duration) -> wire::VmConfig {
        wire::VmConfig {
            vm_id: VmId::from_u128(VM).to_string(),
            name: "bench".to_owned(),
            vcpus: VCPUS,
            memory_bytes: MEMORY_MIB << 20,
            kernel_path: probe_image().to_string_lossy().into_owned(),
            cmdline: guest::command_line(case, length, self.wait),
            disks: vec![self.target.disk(case.queues)],
            node_id: NodeId::from_u128(NODE).to_string(),
            ..wire::VmConfig::default()
        }
    }

    async fn start(&self, folder: &Path, config: wire::VmConfig) -> anyhow::Result<VmClient<Channel>> {
        let mut client = VmClient::new(connect(&folder.join("vmmd.sock")).await?);
        let create = wire::CreateRequest { command: command(1), config: Some(config), lease: None };
        client.create(create).await.context("Create")?;
        client.start(wire::StartRequest { command: command(2) }).await.context("Start")?;
        Ok(client)
    }
}

impl Contender for Drover<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&self, case: &Case, length: Duration) -> anyhow::Result<Figures> {
        let folder = tempfile::tempdir()?;
        let errors = folder.path().join("errors");
        let child = Command::new(&self.vmmd)
            .arg("--socket")
            .arg(folder.path().join("vmmd.sock"))
            .arg("--run-dir")
            .arg(folder.path())
            .args(["--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&errors)?)
            .spawn()
            .with_context(|| format!("cannot start {}", self.vmmd.display()))?;
        let mut child = Ended(child);
        let said = || std::fs::read_to_string(&errors).unwrap_or_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let started = runtime.block_on(self.start(folder.path(), self.config(case, length)));
        let mut client = started.with_context(said)?;
        let log = folder.path().join("console.log");
        let pid = child.0.id();
        let alive = || matches!(child.0.try_wait(), Ok(None));
        let figures = guest::measure(&log, pid, length, alive).with_context(said)?;
        let stop = wire::StopRequest { command: command(3) };
        runtime.block_on(client.stop(stop)).context("Stop")?;
        drop(client);
        child.wait("vmmd")?;
        Ok(figures)
    }
}

fn command(operation: u128) -> Option<wire::Command> {
    let operation_id = OperationId::from_u128(operation).to_string();
    Some(wire::Command { operation_id, owner_epoch: EPOCH })
}

async fn connect(socket: &Path) -> anyhow::Result<Channel> {
    let deadline = Instant::now() + SERVES;
    loop {
        let path = socket.to_owned();
        let dial = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is not looked at: the connector knows the socket.
        match Endpoint::from_static("http://vmmd").connect_with_connector(dial).await {
            Ok(channel) => return Ok(channel),
            Err(error) if Instant::now() > deadline => bail!("vmmd does not serve: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}
