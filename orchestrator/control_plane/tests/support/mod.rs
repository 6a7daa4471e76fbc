//! A control plane in this process, on loopback, and node agents that pretend to run VMs.

use std::{
    collections::BTreeMap,
    future::pending,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use clap::Parser as _;
use drover_control_plane::{Arguments, Config, ControlPlane};
use drover_wire::{
    control::v1 as api,
    node::v1::{self as node, node_registry_client::NodeRegistryClient},
    vm::v1 as vm,
};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{Notify, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Server, server::TcpIncoming},
};

/// Whatever does not happen within this time does not happen. Far above what a busy machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Directories of a cluster, and its control plane while it runs.
pub(crate) struct Cluster {
    pub(crate) directory: TempDir,
    running: Option<Running>,
}

struct Running {
    address: String,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(directory.path().join("pool")).expect("writable");
        let mut cluster = Self { directory, running: None };
        cluster.start_again().await;
        cluster
    }

    /// A configuration with short timers, so that a dead node is noticed within a second.
    pub(crate) fn config(&self) -> Config {
        let state_dir = self.directory.path().join("state").display().to_string();
        let pool = format!("default=dir:{}", self.pool().display());
        let timers = "--heartbeat-ms 100 --pause-after-ms 400 --kill-after-ms 600 --margin-ms 100 --t-fence-ms 1000 \
                      --suspect-ms 300";
        let line = format!(
            "drover-control-plane --state-dir {state_dir} --pool {pool} --listen 127.0.0.1:0 {timers}"
        );
        Config::resolve(Arguments::parse_from(line.split_whitespace())).expect("it is valid")
    }

    pub(crate) async fn start_again(&mut self) {
        let control_plane = ControlPlane::start(self.config()).await.expect("nothing is in the way");
        let address = format!("http://{}", control_plane.address());
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(control_plane.run(async {
            if stopped.await.is_err() {
                pending::<()>().await;
            }
        }));
        self.running = Some(Running { address, stop, ended });
    }

    /// Ends the control plane as SIGTERM does.
    pub(crate) async fn stop(&mut self) {
        let Running { stop, ended, .. } = self.running.take().expect("it runs");
        stop.send(()).expect("it waits");
        let ended = tokio::time::timeout(PATIENCE, ended).await.expect("it ends in time");
        ended.expect("it does not panic").expect("it ends well");
    }

    pub(crate) fn pool(&self) -> PathBuf {
        self.directory.path().join("pool")
    }

    pub(crate) fn address(&self) -> &str {
        &self.running.as_ref().expect("it runs").address
    }

    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(self.address().to_owned()).expect("an address");
        endpoint.connect().await.expect("it serves")
    }
}

macro_rules! clients {
    ($($name:ident: $module:ident :: $client:ident;)*) => {
        impl Cluster {
            $(pub(crate) async fn $name(&self) -> api::$module::$client<Channel> {
                api::$module::$client::new(self.channel().await)
            })*
        }
    };
}

clients! {
    vms: vms_client::VmsClient;
    volumes: volumes_client::VolumesClient;
    images: images_client::ImagesClient;
    nodes: nodes_client::NodesClient;
    operations: operations_client::OperationsClient;
    events: events_client::EventsClient;
}

impl Cluster {
    pub(crate) async fn create_volume(&self, name: &str) -> api::Volume {
        let request = api::CreateVolumeRequest {
            request_id: String::new(),
            name: name.to_owned(),
            pool: String::new(),
            size_bytes: 1 << 20,
        };
        self.volumes().await.create_volume(request).await.expect("it is valid").into_inner()
    }

    pub(crate) async fn import_image(&self, name: &str, bytes: Vec<u8>) -> Result<api::Image, Status> {
        let size = bytes.len() as u64;
        self.images().await.import_image(upload(name, size, &bytes)).await.map(Response::into_inner)
    }

    /// Asks for a VM that boots the image "probe".
    pub(crate) async fn create_vm(&self, name: &str, volumes: &[&str]) -> Result<api::Operation, Status> {
        let spec = vm_spec(name, volumes);
        let request = api::CreateVmRequest { request_id: String::new(), spec: Some(spec) };
        self.vms().await.create_vm(request).await.map(Response::into_inner)
    }

    /// Follows an operation to its end.
    pub(crate) async fn ended(&self, operation: api::Operation) -> api::Operation {
        let request = api::GetOperationRequest { id: operation.id };
        let stream = self.operations().await.watch_operation(request).await.expect("it is known");
        let mut stream = stream.into_inner();
        let follow = async {
            let mut last = None;
            while let Some(operation) = stream.message().await.expect("the control plane runs") {
                last = Some(operation);
            }
            last.expect("the present state comes at once")
        };
        tokio::time::timeout(PATIENCE, follow).await.expect("an accepted operation ends")
    }

    pub(crate) async fn done(&self, operation: api::Operation) -> api::Operation {
        let ended = self.ended(operation).await;
        assert_eq!(ended.state(), api::OperationState::Done, "{ended:?}");
        ended
    }

    pub(crate) async fn vm(&self, name: &str) -> Result<api::Vm, Status> {
        let request = api::GetVmRequest { vm: name.to_owned() };
        self.vms().await.get_vm(request).await.map(Response::into_inner)
    }

    /// Waits for an event of this kind about this subject; returns its message.
    pub(crate) async fn event(&self, kind: &str, subject: &str) -> String {
        let request = api::WatchEventsRequest { after_sequence: 0, subject: subject.to_owned() };
        let mut stream =
            self.events().await.watch_events(request).await.expect("zero is in range").into_inner();
        let find = async {
            while let Some(event) = stream.message().await.expect("the control plane runs") {
                if event.kind == kind {
                    return event.message;
                }
            }
            panic!("the log ended");
        };
        tokio::time::timeout(PATIENCE, find).await.unwrap_or_else(|_| panic!("no {kind} of {subject}"))
    }
}

pub(crate) fn vm_spec(name: &str, volumes: &[&str]) -> api::VmSpec {
    api::VmSpec {
        name: name.to_owned(),
        vcpus: 1,
        memory_bytes: 64 << 20,
        image: "probe".to_owned(),
        cmdline: String::new(),
        volumes: volumes.iter().map(|volume| (*volume).to_owned()).collect(),
        ..api::VmSpec::default()
    }
}

/// An import's messages: a header that announces `size`, then the bytes in pieces.
pub(crate) fn upload(
    name: &str,
    size: u64,
    bytes: &[u8],
) -> impl tokio_stream::Stream<Item = api::ImportRequest> + Send + 'static {
    use api::import_request::Part;
    let header = api::ImportHeader {
        request_id: String::new(),
        name: name.to_owned(),
        pool: "default".to_owned(),
        size_bytes: size,
    };
    let data = bytes.chunks(100_000).map(|chunk| Part::Data(chunk.to_vec()));
    let parts: Vec<Part> = std::iter::once(Part::Header(header)).chain(data).collect();
    tokio_stream::iter(parts.into_iter().map(|part| api::ImportRequest { part: Some(part) }))
}

/// A kernel that boots nothing, but has everything that is looked at.
pub(crate) fn kernel() -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let program = |kind: u32, offset: u64, start: u64, in_file: u64, in_memory: u64| {
        let [offset, start, in_file, in_memory] = [offset, start, in_file, in_memory].map(u64::to_le_bytes);
        [&kind.to_le_bytes()[..], &[0; 4], &offset, &start, &start, &in_file, &in_memory, &[0; 8]].concat()
    };
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0]);
    put(32, &64_u64.to_le_bytes());
    put(54, &[56, 0, 2, 0]);
    put(64, &program(1, 0, 1 << 20, 0x1000, 3 << 20));
    put(120, &program(4, 0x200, 0, 20, 20));
    put(0x200, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0, 0, 0, 0x10, 0]);
    file
}

#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, expect: &str) {
    let status = outcome.expect_err("must be refused");
    assert!(
        status.code() == code && status.message().contains(expect),
        "{:?}: {}",
        status.code(),
        status.message()
    );
}

/// A node agent whose VMs are entries in a map.
#[derive(Clone)]
pub(crate) struct FakeAgent {
    id: String,
    vms: Arc<Mutex<BTreeMap<String, vm::VmInfo>>>,
    /// The seed disks that came with them.
    seeds: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    changed: Arc<Notify>,
    /// How the next calls to attach a device end; then all end well.
    pub(crate) refusals: Arc<Mutex<Vec<Code>>>,
    /// The volumes that it has been told of, each time.
    pub(crate) attached: Arc<Mutex<Vec<String>>>,
    /// Answers to limits of devices, the next one last.
    pub(crate) limit_refusals: Arc<Mutex<Vec<Code>>>,
    /// Volumes whose limits it was told, and how many writes in a second they are; 0: any number.
    pub(crate) limited: Arc<Mutex<Vec<(String, u64)>>>,
}

/// Ends the agent, and with it its VMs' reports, when dropped.
pub(crate) struct AgentTasks(Vec<JoinHandle<()>>);

impl Drop for AgentTasks {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl FakeAgent {
    /// Serves, registers as node number `number`, and beats.
    pub(crate) async fn start(cluster: &Cluster, number: u128) -> (Self, AgentTasks) {
        let id = drover_ids::NodeId::from_u128(number).to_string();
        let agent = Self {
            id,
            vms: Arc::default(),
            seeds: Arc::default(),
            changed: Arc::default(),
            refusals: Arc::default(),
            attached: Arc::default(),
            limit_refusals: Arc::default(),
            limited: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        let service = node::node_agent_server::NodeAgentServer::new(agent.clone());
        let serve = tokio::spawn(async move {
            let served =
                Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
            served.await.expect("loopback works");
        });
        let registry = NodeRegistryClient::new(cluster.channel().await);
        let beat = tokio::spawn(agent.clone().beat(registry, format!("n{number}"), address));
        (agent, AgentTasks(vec![serve, beat]))
    }

    async fn beat(self, mut registry: NodeRegistryClient<Channel>, name: String, address: String) {
        let register = node::RegisterRequest {
            node_id: self.id.clone(),
            name,
            address,
            capacity: Some(node::NodeCapacity { vcpus: 4, memory_bytes: 1 << 30 }),
            incarnation: "first".to_owned(),
            pools: vec!["default".to_owned()],
            version: "test".to_owned(),
            ..node::RegisterRequest::default()
        };
        let mut interval = tokio::time::interval(Duration::from_millis(100));
        for sequence in 1.. {
            tokio::select! {
                _ = interval.tick() => {}
                () = self.changed.notified() => {}
            }
            let status =
                |info: &vm::VmInfo| node::VmStatus { info: Some(info.clone()), ..Default::default() };
            let vms = self.vms().values().map(status).collect();
            let (node_id, incarnation) = (self.id.clone(), "first".to_owned());
            match registry
                .heartbeat(node::HeartbeatRequest {
                    node_id,
                    incarnation,
                    sequence,
                    vms,
                    suspended: Vec::new(),
                })
                .await
            {
                Err(status) if status.code() == Code::NotFound => {
                    registry.register(register.clone()).await.expect("it is valid");
                    self.changed.notify_one();
                }
                // The control plane is being started again.
                Ok(_) | Err(_) => {}
            }
        }
    }

    pub(crate) fn vms(&self) -> MutexGuard<'_, BTreeMap<String, vm::VmInfo>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seeds(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.seeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The seed disk of a VM that has one.
    pub(crate) fn seed(&self, vm: &str) -> Option<Vec<u8>> {
        self.seeds().get(vm).cloned()
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl node::node_agent_server::NodeAgent for FakeAgent {
    async fn hold_queues(
        &self,
        _: Request<node::HoldQueuesRequest>,
    ) -> Result<Response<vm::HoldQueuesResponse>, Status> {
        Ok(Response::new(vm::HoldQueuesResponse { drained_us: 1 }))
    }

    async fn attach_device(
        &self,
        request: Request<node::AttachDeviceRequest>,
    ) -> Answer<vm::AttachDeviceResponse> {
        use node::attach_device_request::Device;
        if let Some(code) = self.refusals.lock().expect("whole").pop() {
            return Err(Status::new(code, "not today"));
        }
        if let Some(Device::Volume(volume)) = request.into_inner().device {
            self.attached.lock().expect("whole").push(volume.volume_id);
        }
        Ok(Response::new(vm::AttachDeviceResponse {}))
    }
    async fn detach_device(&self, _: Request<node::DetachDeviceRequest>) -> Answer<vm::DetachDeviceResponse> {
        Ok(Response::new(vm::DetachDeviceResponse {}))
    }
    async fn press_power_button(
        &self,
        _: Request<node::PressPowerButtonRequest>,
    ) -> Answer<vm::PressPowerButtonResponse> {
        Ok(Response::new(vm::PressPowerButtonResponse {}))
    }
    async fn set_limits(&self, request: Request<node::SetLimitsRequest>) -> Answer<vm::SetLimitsResponse> {
        use node::set_limits_request::Device;
        if let Some(code) = self.limit_refusals.lock().expect("whole").pop() {
            return Err(Status::new(code, "not today"));
        }
        let node::SetLimitsRequest { device, limits, .. } = request.into_inner();
        if let Some(Device::VolumeId(volume)) = device {
            let writes =
                limits.and_then(|limits| limits.outbound?.requests).map_or(0, |rate| rate.per_second);
            self.limited.lock().expect("whole").push((volume, writes));
        }
        Ok(Response::new(vm::SetLimitsResponse {}))
    }

    async fn release_queues(
        &self,
        _: Request<node::ReleaseQueuesRequest>,
    ) -> Result<Response<vm::ReleaseQueuesResponse>, Status> {
        Ok(Response::new(vm::ReleaseQueuesResponse { held_us: 2, expired: false }))
    }

    async fn suspend_vm(&self, _: Request<node::SuspendVmRequest>) -> Answer<vm::VmInfo> {
        Err(Status::unimplemented("these agents have no files"))
    }

    async fn set_balloon(&self, request: Request<node::SetBalloonRequest>) -> Answer<vm::BalloonStatus> {
        let target_bytes = request.into_inner().target_bytes;
        Ok(Response::new(vm::BalloonStatus { target_bytes, ..vm::BalloonStatus::default() }))
    }

    async fn get_balloon(&self, _: Request<node::GetBalloonRequest>) -> Answer<vm::BalloonStatus> {
        Ok(Response::new(vm::BalloonStatus::default()))
    }

    async fn reclaim_free_memory(
        &self,
        _: Request<node::ReclaimFreeMemoryRequest>,
    ) -> Answer<vm::ReclaimFreeMemoryResponse> {
        Ok(Response::new(vm::ReclaimFreeMemoryResponse::default()))
    }

    async fn ensure_vm(&self, request: Request<node::EnsureVmRequest>) -> Answer<node::VmStatus> {
        let request = request.into_inner();
        let (command, spec) = (request.command.expect("always sent"), request.spec.expect("always sent"));
        let info = vm::VmInfo {
            vm_id: spec.vm_id.clone(),
            name: spec.name,
            owner_epoch: command.owner_epoch,
            state: vm::VmState::Running.into(),
            revision: 1,
            pid: 42,
            ..Default::default()
        };
        if let Some(seed) = spec.seed {
            self.seeds().insert(spec.vm_id.clone(), seed.image);
        }
        self.vms().insert(spec.vm_id, info.clone());
        self.changed.notify_one();
        Ok(Response::new(node::VmStatus { info: Some(info), ..Default::default() }))
    }

    async fn stop_vm(&self, request: Request<node::StopVmRequest>) -> Answer<node::StopVmResponse> {
        let ended = self.vms().remove(&request.into_inner().vm_id).is_some();
        self.changed.notify_one();
        Ok(Response::new(node::StopVmResponse { ended }))
    }

    async fn prepare_incoming(
        &self,
        _: Request<node::PrepareIncomingRequest>,
    ) -> Answer<node::PrepareIncomingResponse> {
        Err(Status::unimplemented("this agent does not migrate"))
    }

    async fn migrate_out(&self, _: Request<node::MigrateOutRequest>) -> Answer<node::VmStatus> {
        Err(Status::unimplemented("this agent does not migrate"))
    }

    async fn cancel_migration(&self, _: Request<node::CancelMigrationRequest>) -> Answer<node::VmStatus> {
        Err(Status::unimplemented("this agent does not migrate"))
    }

    async fn grant_epoch(&self, _: Request<node::GrantEpochRequest>) -> Answer<node::VmStatus> {
        Err(Status::unimplemented("this agent does not migrate"))
    }

    async fn pause_vm(&self, _: Request<node::PauseVmRequest>) -> Answer<node::VmStatus> {
        Err(Status::unimplemented("this agent does not pause"))
    }

    async fn resume_vm(&self, _: Request<node::ResumeVmRequest>) -> Answer<node::VmStatus> {
        Err(Status::unimplemented("this agent does not resume"))
    }

    async fn list_vms(&self, _: Request<node::ListVmsRequest>) -> Answer<node::ListVmsResponse> {
        Ok(Response::new(node::ListVmsResponse { vms: vec![] }))
    }

    type ConsoleStream = ReceiverStream<Result<vm::ConsoleOutput, Status>>;

    /// Echoes, in capitals.
    async fn console(
        &self,
        request: Request<Streaming<node::ConsoleRequest>>,
    ) -> Answer<Self::ConsoleStream> {
        let mut input = request.into_inner();
        let (output, stream) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok(Some(request)) = input.message().await {
                let data = request.data.to_ascii_uppercase();
                if output.send(Ok(vm::ConsoleOutput { data, lost: 0 })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type LogsStream = ReceiverStream<Result<vm::ConsoleOutput, Status>>;

    async fn logs(&self, request: Request<node::LogsRequest>) -> Answer<Self::LogsStream> {
        let node::LogsRequest { vm_id, follow, tail_bytes } = request.into_inner();
        let text = format!("{vm_id} {follow} {tail_bytes}");
        let (output, stream) = tokio::sync::mpsc::channel(1);
        let first = vm::ConsoleOutput { data: text.into_bytes(), lost: 0 };
        output.try_send(Ok(first)).expect("a fresh channel has room");
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
