//! The conversation with one vmmd.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use drover_node_supervisor::{BootTime, Lease, VmReport, VmState};
use drover_wire::vm::v1::{
    self as vm, Command, CreateRequest, ExtendLeaseRequest, InfoRequest, MigrateInRequest, StartRequest,
    StopRequest, VmConfig, VmInfo, WatchRequest, vm_client::VmClient,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Response, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

/// A vmmd that has not opened its socket this long after its spawn never will.
const SOCKET_WITHIN: Duration = Duration::from_secs(5);
/// vmmd opens its socket a few milliseconds after its spawn, and every millisecond lost here is lost to the start of
/// the VM: look as often as tokio's timer can. After `QUICK_LOOKS` it is not a matter of milliseconds any more.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
const QUICK_LOOKS: u32 = 50;
const LATE_LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Building a machine reads its boot image and touches its disks: seconds on a busy host, not more.
const BUILD_WITHIN: Duration = Duration::from_secs(20);
/// Everything else is answered at once, or vmmd hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A renewal that takes longer is overtaken by the next one.
const EXTEND_WITHIN: Duration = Duration::from_secs(1);

/// A connection. Cheap to clone; connects anew by itself where it breaks.
#[derive(Clone, Debug)]
pub(crate) struct Vmmd {
    client: VmClient<Channel>,
}

type Result<T> = std::result::Result<T, Status>;

impl Vmmd {
    /// Connects, waiting for the socket to appear.
    pub(crate) async fn connect(socket: PathBuf) -> Result<Self> {
        let connected = timeout(SOCKET_WITHIN, async {
            let mut looks = 0;
            while UnixStream::connect(&socket).await.is_err() {
                looks += 1;
                tokio::time::sleep(if looks < QUICK_LOOKS { LOOK_PAUSE } else { LATE_LOOK_PAUSE }).await;
            }
            let connector = service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            });
            // The URI is never resolved.
            Endpoint::from_static("http://vmmd").connect_with_connector(connector).await
        });
        let channel = connected
            .await
            .map_err(|_| Status::unavailable("vmmd was started but does not answer"))?
            .map_err(|error| Status::unavailable(format!("vmmd was started but does not answer: {error}")))?;
        Ok(Self { client: VmClient::new(channel) })
    }

    /// Builds the machine: with a kernel, or with what is in a file.
    pub(crate) async fn create(
        &self,
        command: Command,
        (config, resume): (VmConfig, Option<&Path>),
        lease: Lease,
    ) -> Result<VmInfo> {
        let resume_path = resume.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let (config, lease) = (Some(config), Some(wire_lease(lease)));
        let request = CreateRequest { command: Some(command), config, lease, resume_path };
        bounded(BUILD_WITHIN, self.client.clone().create(request)).await
    }

    /// Waits as long as the writing takes, which is as long as the lease is renewed.
    pub(crate) async fn suspend(&self, command: Command, path: &Path) -> Result<VmInfo> {
        let path = path.to_string_lossy().into_owned();
        let request = vm::SuspendRequest { command: Some(command), path };
        self.client.clone().suspend(request).await.map(Response::into_inner)
    }

    pub(crate) async fn start(&self, command: Command) -> Result<VmInfo> {
        bounded(ANSWER_WITHIN, self.client.clone().start(StartRequest { command: Some(command) })).await
    }

    pub(crate) async fn pause(&self, command: Command) -> Result<VmInfo> {
        bounded(ANSWER_WITHIN, self.client.clone().pause(vm::PauseRequest { command: Some(command) })).await
    }

    pub(crate) async fn resume(&self, command: Command) -> Result<VmInfo> {
        bounded(ANSWER_WITHIN, self.client.clone().resume(vm::ResumeRequest { command: Some(command) })).await
    }

    /// Waits as long as the stop takes: the caller bounds it.
    pub(crate) async fn stop(&self, command: Command) -> Result<VmInfo> {
        self.client.clone().stop(StopRequest { command: Some(command) }).await.map(Response::into_inner)
    }

    pub(crate) async fn info(&self) -> Result<VmInfo> {
        bounded(ANSWER_WITHIN, self.client.clone().info(InfoRequest {})).await
    }

    pub(crate) async fn watch(&self) -> Result<Streaming<VmInfo>> {
        bounded(ANSWER_WITHIN, self.client.clone().watch(WatchRequest {})).await
    }

    pub(crate) async fn migrate_out(&self, request: vm::MigrateOutRequest) -> Result<VmInfo> {
        bounded(ANSWER_WITHIN, self.client.clone().migrate_out(request)).await
    }

    pub(crate) async fn cancel_migration(&self, request: vm::CancelMigrationRequest) -> Result<VmInfo> {
        bounded(ANSWER_WITHIN, self.client.clone().cancel_migration(request)).await
    }

    pub(crate) async fn migrate_in(&self, request: MigrateInRequest) -> Result<vm::MigrateInResponse> {
        bounded(BUILD_WITHIN, self.client.clone().migrate_in(request)).await
    }

    pub(crate) async fn extend_lease(&self, request: ExtendLeaseRequest) -> Result<vm::ExtendLeaseResponse> {
        bounded(EXTEND_WITHIN, self.client.clone().extend_lease(request)).await
    }

    pub(crate) fn client(&self) -> VmClient<Channel> {
        self.client.clone()
    }
}

async fn bounded<T>(
    within: Duration,
    call: impl Future<Output = std::result::Result<Response<T>, Status>>,
) -> Result<T> {
    match timeout(within, call).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => {
            Err(Status::deadline_exceeded(format!("vmmd did not answer within {} s", within.as_secs())))
        }
    }
}

/// The lease as vmmd takes it.
pub(crate) fn wire_lease(lease: Lease) -> vm::Lease {
    let ns = BootTime::as_ns;
    vm::Lease { pause_at_boottime_ns: ns(lease.pause_at), kill_at_boottime_ns: ns(lease.kill_at) }
}

/// What the supervisor acts on.
pub(crate) fn report(info: &VmInfo) -> VmReport {
    let state = match info.state() {
        vm::VmState::Unspecified => VmState::Unreported,
        vm::VmState::Empty => VmState::Empty,
        vm::VmState::Created => VmState::Created,
        vm::VmState::Running => VmState::Running,
        vm::VmState::Paused => VmState::Paused,
        vm::VmState::Incoming => VmState::Incoming,
        vm::VmState::MigratingOut => VmState::MigratingOut,
        vm::VmState::Committed => VmState::Committed,
        vm::VmState::Migrated => VmState::Migrated,
        vm::VmState::Stopped => VmState::Stopped,
    };
    VmReport { epoch: drover_ids::OwnerEpoch::new(info.owner_epoch), state }
}

/// An I/O error of the agent's own, as its callers see it.
pub(crate) fn io_status(what: &str, error: &io::Error) -> Status {
    Status::internal(format!("{what}: {error}"))
}
