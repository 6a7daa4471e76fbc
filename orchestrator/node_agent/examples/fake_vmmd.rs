//! A vmmd without a VM, for the tests of the node agent: it speaks the protocol, and misbehaves as the file
//! `behaviour` in its run directory says.
#![allow(missing_docs, reason = "a test's tool")]
#![allow(clippy::disallowed_methods, reason = "a process of its own")]

use std::{fs, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use clap::Parser;
use drover_wire::vm::v1::{
    self as vm, ConsoleInput, ConsoleOutput, VmInfo, VmState,
    vm_server::{Vm, VmServer},
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
};
use tokio_stream::{
    Stream, StreamExt as _,
    wrappers::{ReceiverStream, UnixListenerStream, WatchStream},
};
use tonic::{Request, Response, Status, Streaming, transport::Server};

#[derive(Parser)]
struct Args {
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    run_dir: PathBuf,
    #[arg(long)]
    spawned_at_boottime_ns: u64,
    /// What comes ahead is left to who calls.
    #[arg(long)]
    #[allow(dead_code)]
    calls_ahead: bool,
}

struct Fake {
    info: watch::Sender<VmInfo>,
    lease: watch::Sender<u64>,
    exit: mpsc::Sender<()>,
    run_dir: PathBuf,
    behaviour: String,
}

type Answer<T> = Result<Response<T>, Status>;

impl Fake {
    fn set(&self, state: VmState) -> VmInfo {
        self.info.send_modify(|info| {
            info.set_state(state);
            info.revision += 1;
        });
        self.info.borrow().clone()
    }

    fn admit(&self, command: Option<&vm::Command>) -> Result<(), Status> {
        let command = command.ok_or_else(|| Status::invalid_argument("command"))?;
        if command.owner_epoch < self.info.borrow().owner_epoch {
            return Err(Status::failed_precondition("stale"));
        }
        Ok(())
    }

    fn take(&self, command: Option<&vm::Command>, config: Option<vm::VmConfig>) -> Result<(), Status> {
        self.admit(command)?;
        let config = config.ok_or_else(|| Status::invalid_argument("config"))?;
        self.info.send_modify(|info| {
            info.vm_id = config.vm_id;
            info.name = config.name;
            info.owner_epoch = command.map_or(0, |command| command.owner_epoch);
        });
        Ok(())
    }

    fn print(&self, text: &str) {
        use std::io::Write as _;
        let log = fs::File::options().append(true).create(true).open(self.run_dir.join("console.log"));
        log.and_then(|mut log| log.write_all(text.as_bytes())).expect("console.log can be written");
    }

    async fn misbehave(&self, what: &str) {
        if self.behaviour == format!("hang-in-{what}") {
            std::future::pending().await
        }
        if self.behaviour == format!("die-in-{what}") {
            eprintln!("dying in {what}");
            std::process::exit(3);
        }
    }
}

#[tonic::async_trait]
impl Vm for Fake {
    async fn create(&self, request: Request<vm::CreateRequest>) -> Answer<VmInfo> {
        self.misbehave("create").await;
        let request = request.into_inner();
        if self.behaviour == "refuse-create" {
            return Err(Status::failed_precondition("the volume is locked"));
        }
        self.take(request.command.as_ref(), request.config)?;
        self.lease.send_replace(request.lease.map_or(0, |lease| lease.pause_at_boottime_ns));
        Ok(Response::new(self.set(VmState::Created)))
    }
    async fn start(&self, request: Request<vm::StartRequest>) -> Answer<VmInfo> {
        self.admit(request.into_inner().command.as_ref())?;
        self.print("hello from the guest\n");
        Ok(Response::new(self.set(VmState::Running)))
    }
    async fn pause(&self, request: Request<vm::PauseRequest>) -> Answer<VmInfo> {
        self.admit(request.into_inner().command.as_ref())?;
        Ok(Response::new(self.set(VmState::Paused)))
    }
    async fn resume(&self, request: Request<vm::ResumeRequest>) -> Answer<VmInfo> {
        let command = request.into_inner().command;
        self.admit(command.as_ref())?;
        self.info.send_modify(|info| info.owner_epoch = command.map_or(0, |command| command.owner_epoch));
        Ok(Response::new(self.set(VmState::Running)))
    }
    async fn stop(&self, request: Request<vm::StopRequest>) -> Answer<VmInfo> {
        self.admit(request.into_inner().command.as_ref())?;
        self.misbehave("stop").await;
        self.info.send_modify(|info| info.set_stop_reason(vm::StopReason::Command));
        let info = self.set(VmState::Stopped);
        self.print("goodbye\n");
        self.exit.send(()).await.ok();
        Ok(Response::new(info))
    }
    async fn info(&self, _: Request<vm::InfoRequest>) -> Answer<VmInfo> {
        Ok(Response::new(self.info.borrow().clone()))
    }
    type WatchStream = Pin<Box<dyn Stream<Item = Result<VmInfo, Status>> + Send>>;
    async fn watch(&self, _: Request<vm::WatchRequest>) -> Answer<Self::WatchStream> {
        Ok(Response::new(Box::pin(WatchStream::new(self.info.subscribe()).map(Ok))))
    }
    type ConsoleStream = ReceiverStream<Result<ConsoleOutput, Status>>;
    async fn console(&self, request: Request<Streaming<ConsoleInput>>) -> Answer<Self::ConsoleStream> {
        let mut input = request.into_inner();
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            sender.send(Ok(ConsoleOutput { data: b"login: ".to_vec(), lost: 0 })).await.ok();
            while let Ok(Some(typed)) = input.message().await {
                sender.send(Ok(ConsoleOutput { data: typed.data.to_ascii_uppercase(), lost: 0 })).await.ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
    async fn migrate_out(&self, request: Request<vm::MigrateOutRequest>) -> Answer<VmInfo> {
        let request = request.into_inner();
        self.admit(request.command.as_ref())?;
        self.info.send_modify(|info| info.detail = request.target_address);
        let info = self.set(VmState::MigratingOut);
        self.set(VmState::Committed);
        if self.behaviour != "stay-committed" {
            self.set(VmState::Migrated);
        }
        Ok(Response::new(info))
    }
    async fn cancel_migration(&self, _: Request<vm::CancelMigrationRequest>) -> Answer<VmInfo> {
        Err(Status::failed_precondition("no migration"))
    }
    async fn migrate_in(&self, request: Request<vm::MigrateInRequest>) -> Answer<vm::MigrateInResponse> {
        let request = request.into_inner();
        if self.info.borrow().state() == VmState::Empty {
            self.take(request.command.as_ref(), request.config)?;
            self.set(VmState::Incoming);
        }
        let info = self.info.borrow().clone();
        let address = format!("{}#{}", request.listen_address, info.pid);
        Ok(Response::new(vm::MigrateInResponse { address, info: Some(info) }))
    }
    async fn extend_lease(
        &self,
        request: Request<vm::ExtendLeaseRequest>,
    ) -> Answer<vm::ExtendLeaseResponse> {
        let request = request.into_inner();
        self.lease.send_replace(request.lease.map_or(0, |lease| lease.pause_at_boottime_ns));
        Ok(Response::new(vm::ExtendLeaseResponse { state: self.info.borrow().state }))
    }
    async fn press_power_button(
        &self,
        _: Request<vm::PressPowerButtonRequest>,
    ) -> Answer<vm::PressPowerButtonResponse> {
        Ok(Response::new(vm::PressPowerButtonResponse {}))
    }

    async fn hold_queues(&self, _: Request<vm::HoldQueuesRequest>) -> Answer<vm::HoldQueuesResponse> {
        Ok(Response::new(vm::HoldQueuesResponse { drained_us: 1 }))
    }
    async fn release_queues(
        &self,
        _: Request<vm::ReleaseQueuesRequest>,
    ) -> Answer<vm::ReleaseQueuesResponse> {
        Ok(Response::new(vm::ReleaseQueuesResponse { held_us: 2, expired: false }))
    }
    async fn attach_device(&self, _: Request<vm::AttachDeviceRequest>) -> Answer<vm::AttachDeviceResponse> {
        Ok(Response::new(vm::AttachDeviceResponse {}))
    }
    async fn detach_device(&self, _: Request<vm::DetachDeviceRequest>) -> Answer<vm::DetachDeviceResponse> {
        Ok(Response::new(vm::DetachDeviceResponse {}))
    }
    async fn set_limits(&self, _: Request<vm::SetLimitsRequest>) -> Answer<vm::SetLimitsResponse> {
        Ok(Response::new(vm::SetLimitsResponse {}))
    }
    async fn suspend(&self, _: Request<vm::SuspendRequest>) -> Answer<VmInfo> {
        Ok(Response::new(self.set(vm::VmState::Stopped)))
    }
    async fn set_balloon(&self, _: Request<vm::SetBalloonRequest>) -> Answer<vm::BalloonStatus> {
        Ok(Response::new(vm::BalloonStatus::default()))
    }
    async fn get_balloon(&self, _: Request<vm::GetBalloonRequest>) -> Answer<vm::BalloonStatus> {
        Ok(Response::new(vm::BalloonStatus::default()))
    }
    async fn reclaim_free_memory(
        &self,
        _: Request<vm::ReclaimFreeMemoryRequest>,
    ) -> Answer<vm::ReclaimFreeMemoryResponse> {
        Ok(Response::new(vm::ReclaimFreeMemoryResponse::default()))
    }
    async fn metrics(&self, _: Request<vm::MetricsRequest>) -> Answer<vm::MetricsResponse> {
        Ok(Response::new(vm::MetricsResponse { text: self.lease.borrow().to_string() }))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args = Args::parse();
    assert!(args.spawned_at_boottime_ns > 0);
    let behaviour = fs::read_to_string(args.run_dir.join("behaviour")).unwrap_or_default();
    if behaviour == "die-at-once" {
        eprintln!("cannot open /dev/kvm");
        std::process::exit(2);
    }
    if behaviour == "never-listen" {
        std::future::pending().await
    }
    let mut info = VmInfo { pid: std::process::id().into(), ..VmInfo::default() };
    info.set_state(VmState::Empty);
    let (exit, mut exits) = mpsc::channel(1);
    let fake = Fake {
        info: watch::channel(info).0,
        lease: watch::channel(0).0,
        exit,
        run_dir: args.run_dir,
        behaviour,
    };
    let fake = Arc::new(fake);
    let listener = UnixListener::bind(&args.socket).expect("the socket can be bound");
    let server = Server::builder()
        .add_service(VmServer::from_arc(fake))
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::select! {
        ended = server => ended.expect("the server runs"),
        _ = exits.recv() => tokio::time::sleep(Duration::from_millis(20)).await,
    }
}
