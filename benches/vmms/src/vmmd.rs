//! Our vmmd, spoken to as the node agent does.

use std::{
    env,
    fs::{self, File},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use drover_handover::{CREATE, START, call_file, send_ahead};
use drover_ids::OperationId;
use drover_test_prerequisites::{probe_image, workspace_root};
use drover_wire::vm::v1::{self as wire, vm_client::VmClient};
use hyper_util::rt::TokioIo;
use nix::{
    sys::signal::{Signal, kill},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};
use prost::Message as _;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::{Console, Ended, Guest, jail};

/// Far beyond what anything here takes, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at something that cannot be waited for: well below what is measured.
const LOOK: Duration = Duration::from_micros(200);
/// In a process's folder.
const SOCKET: &str = "vmmd.sock";
const LOG: &str = "vmmd.log";

/// Starts processes, each in a folder of its own.
#[derive(Debug)]
pub struct Launcher {
    vmmd: PathBuf,
    jailed: bool,
    folder: TempDir,
}

/// A vmmd that has been started and may not serve yet. Dropping it kills it.
#[derive(Debug)]
pub struct Born {
    child: Ended,
    run_dir: PathBuf,
    jailed: bool,
}

/// A running vmmd. Dropping it kills it.
#[derive(Debug)]
pub struct Vmmd {
    child: Ended,
    client: VmClient<Channel>,
    run_dir: PathBuf,
    jailed: bool,
}

/// Builds vmmd as it is shipped, and returns its path.
///
/// # Errors
/// If cargo fails.
pub fn build() -> anyhow::Result<PathBuf> {
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

impl Launcher {
    /// Of this program.
    ///
    /// # Errors
    /// If there is none, or no folder can be made.
    pub fn new(vmmd: PathBuf) -> anyhow::Result<Self> {
        ensure!(vmmd.exists(), "there is no {}", vmmd.display());
        // Built now if need be, not while something is measured.
        probe_image();
        Ok(Self { vmmd, jailed: false, folder: tempfile::Builder::new().prefix("drover-bench-").tempdir()? })
    }

    /// The same, in jails as the agent makes them.
    #[must_use]
    pub fn jailed(self) -> Self {
        Self { jailed: true, ..self }
    }

    /// Starts a process and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub async fn spawn(&self) -> anyhow::Result<Vmmd> {
        self.spawn_in(&self.run_dir()?).await
    }

    /// A vmmd with a guest that has been started, and its guest's console from the first byte on.
    ///
    /// # Errors
    /// If the process does not serve, or refuses the guest.
    pub async fn boot(&self, epoch: u64, guest: &Guest) -> anyhow::Result<(Vmmd, Console)> {
        let run_dir = self.run_dir()?;
        let console = Console::watch(&run_dir.join("console.log"))?;
        let mut vmmd = self.spawn_in(&run_dir).await?;
        vmmd.create(epoch, guest.config()).await?;
        vmmd.start(epoch).await?;
        Ok((vmmd, console))
    }

    /// As [`boot`](Self::boot), and the process is told of its guest when it is born, as it is by the node agent: it makes and
    /// starts it before anybody can call. Returns as soon as there is a process, which may not serve yet.
    ///
    /// # Errors
    /// If there is none.
    pub fn boot_ahead(&self, run_dir: &Path, epoch: u64, config: wire::VmConfig) -> anyhow::Result<Born> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let mut command = self.command(run_dir)?;
        command.arg("--calls-ahead").stdin(OwnedFd::from(theirs));
        let child = self.start(&mut command)?;
        // The command keeps its end of the socket open.
        drop(command);
        let mut files = if self.jailed { jail::files(&config)? } else { Vec::new() };
        let first = self::command(epoch);
        let create = wire::CreateRequest {
            command: first.clone(),
            config: Some(config),
            ..wire::CreateRequest::default()
        };
        let start = wire::StartRequest { command: first };
        for (name, call) in [(CREATE, create.encode_to_vec()), (START, start.encode_to_vec())] {
            files.push((name.to_owned(), call_file(&call)?));
        }
        send_ahead(&ours, files.iter().map(|(name, file)| (name.as_str(), file.as_fd())))
            .context("cannot hand over to vmmd")?;
        Ok(Born { child, run_dir: run_dir.to_owned(), jailed: self.jailed })
    }

    /// A folder for one process.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn run_dir(&self) -> anyhow::Result<PathBuf> {
        Ok(tempfile::tempdir_in(self.folder.path())?.keep())
    }

    /// As [`spawn`](Self::spawn), in a folder that was made before.
    ///
    /// # Errors
    /// If the process does not serve.
    pub async fn spawn_in(&self, run_dir: &Path) -> anyhow::Result<Vmmd> {
        let mut command = self.command(run_dir)?;
        let child = self.start(&mut command)?;
        Born { child, run_dir: run_dir.to_owned(), jailed: self.jailed }.serves().await
    }

    /// The program and its arguments.
    fn command(&self, run_dir: &Path) -> anyhow::Result<Command> {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
        let now_ns = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
        let mut command = Command::new(&self.vmmd);
        command
            .arg("--socket")
            .arg(run_dir.join(SOCKET))
            .arg("--run-dir")
            .arg(run_dir)
            .args(["--spawned-at-boottime-ns", &now_ns.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(run_dir.join(LOG))?);
        Ok(command)
    }

    fn start(&self, command: &mut Command) -> anyhow::Result<Ended> {
        let started = if self.jailed { jail::spawn(command) } else { command.spawn() };
        Ok(Ended(started.with_context(|| format!("cannot start {}", self.vmmd.display()))?))
    }
}

impl Born {
    /// Whether it runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.is_alive()
    }

    /// What it logs.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.run_dir.join(LOG)
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub async fn serves(self) -> anyhow::Result<Vmmd> {
        let Self { mut child, run_dir, jailed } = self;
        let socket = run_dir.join(SOCKET);
        let deadline = Instant::now() + DEADLINE;
        let channel = loop {
            match connect(&socket).await {
                Ok(channel) => break channel,
                Err(error) if Instant::now() > deadline || !child.is_alive() => {
                    let log = fs::read_to_string(run_dir.join(LOG)).unwrap_or_default();
                    bail!("vmmd does not serve: {error}: {log}");
                }
                // tokio's timer counts in milliseconds.
                Err(_) => thread::sleep(LOOK),
            }
        };
        Ok(Vmmd { child, client: VmClient::new(channel), run_dir, jailed })
    }
}

impl Vmmd {
    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Whether it runs.
    pub fn is_alive(&mut self) -> bool {
        self.child.is_alive()
    }

    /// What it logs.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.run_dir.join(LOG)
    }

    /// What its guest says.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.run_dir.join("console.log")
    }

    /// Makes the VM.
    ///
    /// # Errors
    /// If it refuses.
    pub async fn create(&mut self, epoch: u64, config: wire::VmConfig) -> anyhow::Result<()> {
        if self.jailed {
            jail::hand_over(&self.run_dir, &config).context("cannot hand files over")?;
        }
        let create = wire::CreateRequest {
            command: command(epoch),
            config: Some(config),
            ..wire::CreateRequest::default()
        };
        self.client.create(create).await.context("Create")?;
        Ok(())
    }

    /// Starts the VM.
    ///
    /// # Errors
    /// If it refuses.
    pub async fn start(&mut self, epoch: u64) -> anyhow::Result<()> {
        self.client.start(wire::StartRequest { command: command(epoch) }).await.context("Start")?;
        Ok(())
    }

    /// Waits until the guest's disks have completed so many writes.
    ///
    /// # Errors
    /// If they do not in time.
    pub async fn writes(&mut self, wanted: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let page = self.metrics().await?;
            let line = page.lines().find(|line| line.starts_with("drover_vm_disk_writes_total"));
            let count = line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0);
            if count >= wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                let console = fs::read_to_string(self.console()).unwrap_or_default();
                bail!("{count} of {wanted} writes within {DEADLINE:?}; the guest says: {console}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What it says of its VM.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn info(&mut self) -> anyhow::Result<wire::VmInfo> {
        Ok(self.client.info(wire::InfoRequest {}).await?.into_inner())
    }

    /// Its page of metrics.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn metrics(&mut self) -> anyhow::Result<String> {
        Ok(self.client.metrics(wire::MetricsRequest {}).await?.into_inner().text)
    }

    /// Waits until the VM is in a state.
    ///
    /// # Errors
    /// If it ends before, or does not get there in time.
    pub async fn reaches(&mut self, state: wire::VmState) -> anyhow::Result<wire::VmInfo> {
        let mut changes = self.client.watch(wire::WatchRequest {}).await?.into_inner();
        let watch = async {
            while let Some(info) = changes.message().await? {
                if info.state() == state {
                    return Ok(info);
                }
            }
            bail!("the VM ended before it was {}", state.as_str_name())
        };
        tokio::time::timeout(DEADLINE, watch).await.with_context(|| state.as_str_name())?
    }

    /// Waits for a VM that moves here, and returns where.
    ///
    /// # Errors
    /// If it refuses.
    pub async fn migrate_in(&mut self, request: wire::MigrateInRequest) -> anyhow::Result<String> {
        Ok(self.client.migrate_in(request).await.context("MigrateIn")?.into_inner().address)
    }

    /// Moves the VM.
    ///
    /// # Errors
    /// If it refuses.
    pub async fn migrate_out(&mut self, request: wire::MigrateOutRequest) -> anyhow::Result<()> {
        self.client.migrate_out(request).await.context("MigrateOut")?;
        Ok(())
    }

    /// Sends the process a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(self.pid().cast_signed()), signal)?)
    }

    /// Ends the VM, and waits for the process's end.
    ///
    /// # Errors
    /// If either does not end in order.
    pub async fn stop(mut self, epoch: u64) -> anyhow::Result<()> {
        self.client.stop(wire::StopRequest { command: command(epoch) }).await.context("Stop")?;
        self.exits().await
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Errors
    /// If it does not, or fails.
    pub async fn exits(self) -> anyhow::Result<()> {
        let deadline = Instant::now() + DEADLINE;
        let Self { mut child, client, .. } = self;
        // It waits for those who are connected; the connection is a task of this runtime's, and ends when that runs.
        drop(client);
        while child.is_alive() {
            ensure!(Instant::now() < deadline, "vmmd did not end within {DEADLINE:?}");
            tokio::time::sleep(LOOK).await;
        }
        child.wait("vmmd")
    }
}

/// A command of an operation of its own.
#[must_use]
pub fn command(epoch: u64) -> Option<wire::Command> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let operation = OperationId::from_u128(NEXT.fetch_add(1, Ordering::Relaxed).into());
    Some(wire::Command { operation_id: operation.to_string(), owner_epoch: epoch })
}

async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = socket.to_owned();
    let dial = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is not looked at: the connector knows the socket.
    Endpoint::from_static("http://vmmd").connect_with_connector(dial).await
}
