//! A node under test: a real agent process with fake vmmds, and a control plane that does as it is told.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command as Program, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use drover_wire::{
    node::v1::{
        EnsureVmRequest, HeartbeatRequest, HeartbeatResponse, PrepareIncomingRequest, RegisterRequest,
        RegisterResponse, StaleVm, StopVmRequest, StopVmResponse, Timers, VmSpec, VmStatus,
        node_agent_client::NodeAgentClient,
        node_registry_server::{NodeRegistry, NodeRegistryServer},
    },
    vm::v1::{Command, MetricsRequest, VmState, vm_client::VmClient},
};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, Server},
};
use uuid::Uuid;

pub(crate) const VM: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
/// Everything happens within milliseconds; this is for machines that have better things to do.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the control plane has heard, and what it answers.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) registrations: Vec<RegisterRequest>,
    pub(crate) last: Option<HeartbeatRequest>,
    pub(crate) heartbeats: u64,
    pub(crate) refuse_lease: bool,
    pub(crate) reap: Vec<StaleVm>,
}

#[derive(Clone, Debug)]
struct ControlPlane {
    told: Arc<Mutex<Told>>,
    timers: Timers,
}

#[tonic::async_trait]
impl NodeRegistry for ControlPlane {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        self.told.lock().unwrap().registrations.push(request.into_inner());
        Ok(Response::new(RegisterResponse { timers: Some(self.timers) }))
    }
    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        let request = request.into_inner();
        let mut told = self.told.lock().unwrap();
        if told.registrations.last().is_none_or(|known| known.incarnation != request.incarnation) {
            return Err(Status::not_found("register first"));
        }
        told.heartbeats += 1;
        told.last = Some(request);
        let reap = told.reap.clone();
        let lease_granted = !told.refuse_lease && reap.is_empty();
        Ok(Response::new(HeartbeatResponse { lease_granted, reap, discard: Vec::new() }))
    }
}

/// One node.
pub(crate) struct Node {
    pub(crate) folder: TempDir,
    pub(crate) told: Arc<Mutex<Told>>,
    server: String,
    agent: Option<Child>,
}

/// Timers under which nothing in a test is late.
pub(crate) const CALM: Timers =
    Timers { heartbeat_interval_ms: 100, pause_after_ms: 20_000, kill_after_ms: 30_000 };

impl Node {
    pub(crate) async fn start(timers: Timers) -> Self {
        let folder = tempfile::Builder::new().prefix("drover-agent-").tempdir().unwrap();
        fs::create_dir(folder.path().join("pool")).unwrap();
        let told = Arc::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let control_plane = ControlPlane { told: Arc::clone(&told), timers };
        tokio::spawn(
            Server::builder()
                .add_service(NodeRegistryServer::new(control_plane))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        let mut node = Self { folder, told, server, agent: None };
        node.start_agent();
        node.leased().await;
        fs::write(node.folder.path().join("pool/images/probe"), b"elf").unwrap();
        node
    }

    fn program(&self) -> Program {
        let vmmd =
            Path::new(env!("CARGO_BIN_EXE_drover-node-agent")).with_file_name("examples").join("fake_vmmd");
        assert!(vmmd.exists(), "{} is missing: build the examples", vmmd.display());
        let mut program = Program::new(env!("CARGO_BIN_EXE_drover-node-agent"));
        program
            .args(["--name=n1", "--vcpus=4", "--memory=4G", "--log-level=debug"])
            .arg(format!("--state-dir={}", self.state_dir().display()))
            .arg(format!("--control-plane={}", self.server))
            .arg(format!("--pool=main=dir:{}", self.folder.path().join("pool").display()))
            .arg(format!("--vmmd={}", vmmd.display()))
            .arg("--jail=off")
            .stdin(Stdio::null());
        program
    }

    pub(crate) fn start_agent(&mut self) {
        let log =
            fs::File::options().append(true).create(true).open(self.folder.path().join("agent.log")).unwrap();
        self.agent = Some(self.program().stderr(log).spawn().unwrap());
    }

    /// A second agent on the same directory; what it says.
    pub(crate) fn second_agent(&self) -> (bool, String) {
        let output = self.program().output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub(crate) fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// SIGTERM; returns whether the agent ended well.
    pub(crate) fn terminate_agent(&mut self) -> bool {
        let mut agent = self.agent.take().unwrap();
        signal(agent.id().into(), Signal::TERM);
        agent.wait().unwrap().success()
    }

    /// Waits for a heartbeat of the present agent, and thus for its lease.
    pub(crate) async fn leased(&self) {
        let before = self.told.lock().unwrap().heartbeats;
        self.until("two heartbeats", || (self.told.lock().unwrap().heartbeats >= before + 2).then_some(()))
            .await;
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.state_dir().join("vms").join(VM)
    }

    pub(crate) fn misbehave(&self, behaviour: &str) {
        fs::create_dir_all(self.run_dir()).unwrap();
        fs::write(self.run_dir().join("behaviour"), behaviour).unwrap();
    }

    pub(crate) async fn agent(&self) -> NodeAgentClient<Channel> {
        let address = self.told.lock().unwrap().registrations.last().unwrap().address.clone();
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap().timeout(DEADLINE * 2);
        NodeAgentClient::new(endpoint.connect().await.unwrap())
    }

    pub(crate) async fn ensure(&self, epoch: u64) -> Result<VmStatus, Status> {
        let request = EnsureVmRequest { command: command(epoch), spec: Some(spec()), resume: false };
        self.agent().await.ensure_vm(request).await.map(Response::into_inner)
    }

    pub(crate) async fn stop(&self, epoch: u64) -> Result<StopVmResponse, Status> {
        let request = StopVmRequest { command: command(epoch), vm_id: VM.into() };
        self.agent().await.stop_vm(request).await.map(Response::into_inner)
    }

    pub(crate) async fn prepare_incoming(&self, epoch: u64) -> Result<String, Status> {
        let request =
            PrepareIncomingRequest { command: command(epoch), migration_id: VM.into(), spec: Some(spec()) };
        self.agent().await.prepare_incoming(request).await.map(|response| response.into_inner().address)
    }

    /// What the last heartbeat said of the VM.
    pub(crate) fn reported(&self) -> Option<VmStatus> {
        self.told.lock().unwrap().last.as_ref()?.vms.first().cloned()
    }

    /// Waits until a heartbeat says of the VM what `check` wants.
    pub(crate) async fn reports(&self, what: &str, check: impl Fn(&VmStatus) -> bool) -> VmStatus {
        self.until(what, || self.reported().filter(&check)).await
    }

    pub(crate) async fn reports_none(&self) {
        self.until("no VM to be reported", || {
            self.told.lock().unwrap().last.as_ref().is_some_and(|last| last.vms.is_empty()).then_some(())
        })
        .await;
    }

    /// The deadline that the VM's vmmd has been told last.
    pub(crate) async fn lease_of_vmmd(&self) -> u64 {
        let socket = self.run_dir().join("vmmd.sock");
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://vmmd").connect_with_connector(connector).await.unwrap();
        let metrics = VmClient::new(channel).metrics(MetricsRequest {}).await.unwrap();
        metrics.into_inner().text.parse().unwrap()
    }

    /// Polls for a state, with a deadline; shows the agent's log if it does not come.
    pub(crate) async fn until<T>(&self, what: &str, check: impl Fn() -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(found) = check() {
                return found;
            }
            if Instant::now() > deadline {
                let log = fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default();
                panic!("waited in vain for {what}; the agent says:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Every living process that was started in this node's VM directories.
    pub(crate) fn vmmds(&self) -> Vec<u64> {
        processes_with(&self.state_dir().join("vms").display().to_string())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().ok();
            agent.wait().ok();
        }
        for pid in self.vmmds() {
            signal(pid, Signal::KILL);
        }
    }
}

pub(crate) fn command(epoch: u64) -> Option<Command> {
    Some(Command { operation_id: Uuid::new_v4().to_string(), owner_epoch: epoch })
}

pub(crate) fn spec() -> VmSpec {
    VmSpec {
        vm_id: VM.into(),
        name: "web".into(),
        vcpus: 1,
        memory_bytes: 64 << 20,
        image: "probe".into(),
        ..VmSpec::default()
    }
}

pub(crate) fn state(status: &VmStatus) -> VmState {
    status.info.as_ref().map(|info| info.state()).unwrap_or_default()
}

pub(crate) fn pid(status: &VmStatus) -> u64 {
    status.info.as_ref().map(|info| info.pid).unwrap_or_default()
}

pub(crate) fn signal(pid: u64, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).ok();
}

/// The session a process belongs to.
pub(crate) fn session(pid: u64) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().nth(3).unwrap().parse().unwrap()
}

fn processes_with(text: &str) -> Vec<u64> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let runs = |pid: &u64| -> io::Result<bool> {
        let line = fs::read(format!("/proc/{pid}/cmdline"))?;
        let line = String::from_utf8_lossy(&line).into_owned();
        Ok(line.contains("--run-dir") && line.contains(text))
    };
    pids.filter(|pid| runs(pid).unwrap_or(false)).collect()
}
