//! One vmmd under test: spawned, spoken to, and ended with its test.

use std::{
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{fs::MetadataExt as _, net::UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use drover_dir_volume::{DirPool, fence};
use drover_handover::{CREATE, START, call_file, hand_over, record_name, send_ahead};
use drover_ids::{NodeId, OperationId, OwnerEpoch, VmId, VolumeId};
use drover_probe_record::{
    Claim, ConsoleLog, DirtyWork, DiskWork, ImageReport, Workload, stamp::Slots, verify_image,
};
use drover_test_prerequisites::probe_image;
use drover_units::Bytes;
use drover_wire::vm::v1::{self as wire, vm_client::VmClient};
use hyper_util::rt::TokioIo;
use nix::{
    sched::CloneFlags,
    time::{ClockId, clock_gettime},
};
use prost::Message as _;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// Far beyond what anything here takes, even on a machine that does other things.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at something that cannot be waited for.
const LOOK: Duration = Duration::from_millis(5);

/// A user that nobody is.
const JAIL_UID: u32 = 0x7012_3457;

pub(crate) const VM: u128 = 0x1;
pub(crate) const VOLUME: u128 = 0x2;
pub(crate) const SLOTS: u64 = 512;
pub(crate) const SEED: u64 = 7;

/// A directory with a pool, and whatever processes a test starts in it.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    pub(crate) pool: DirPool,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("pool");
        for folder in ["volumes", "images"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        let pool = DirPool::open(&root).expect("a pool");
        Self { dir, pool }
    }

    /// A host with a volume that the probe's disk work fits.
    pub(crate) fn with_volume() -> Self {
        let host = Self::new();
        host.pool.create_volume(VolumeId::from_u128(VOLUME), Bytes::mib(4)).expect("a volume");
        host
    }

    pub(crate) async fn spawn(&self, name: &str) -> Vmmd {
        Vmmd::spawn(&self.dir.path().join(name)).await
    }

    /// A process in as much of its jail as this user can make.
    pub(crate) async fn spawn_jailed(&self, name: &str, with: &[&str]) -> Vmmd {
        self.spawn_jailed_on(name, with, Stdio::null()).await
    }

    /// The same, with this standard input.
    async fn spawn_jailed_on(&self, name: &str, with: &[&str], input: Stdio) -> Vmmd {
        let run_dir = self.dir.path().join(name);
        let mut arguments = vec!["--jail".to_owned()];
        arguments.extend(with.iter().map(|argument| (*argument).to_owned()));
        let mut namespaces = CloneFlags::empty();
        if nix::unistd::Uid::effective().is_root() {
            arguments.extend([format!("--jail-uid={JAIL_UID}"), "--jail-own-mounts".to_owned()]);
            namespaces = CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWNET;
        }
        let place = run_dir.clone();
        // A thread of its own: what it leaves, it does not come back to.
        let child = std::thread::spawn(move || {
            nix::sched::unshare(namespaces).expect("root may");
            Vmmd::launch_with(&place, &arguments, input)
        });
        Vmmd::serving(child.join().expect("started"), &run_dir).await
    }

    /// A process that is told of its VM when it is born, jailed or not: by these calls of one operation, and these files.
    pub(crate) async fn spawn_told(
        &self,
        (name, jailed): (&str, bool),
        files: Vec<(String, OwnedFd)>,
        (create, start): (&wire::CreateRequest, &wire::StartRequest),
    ) -> Vmmd {
        let (ours, theirs) = StdUnixStream::pair().expect("a pair");
        let calls = [(CREATE, create.encode_to_vec()), (START, start.encode_to_vec())];
        let calls = calls.map(|(name, call)| (name.to_owned(), call_file(&call).expect("a file")));
        let all: Vec<_> = files.into_iter().chain(calls).collect();
        send_ahead(&ours, all.iter().map(|(name, file)| (name.as_str(), file.as_fd()))).expect("room");
        let input = Stdio::from(OwnedFd::from(theirs));
        if jailed {
            return self.spawn_jailed_on(name, &["--calls-ahead"], input).await;
        }
        let run_dir = self.dir.path().join(name);
        let child = Vmmd::launch_with(&run_dir, &["--calls-ahead".to_owned()], input);
        Vmmd::serving(child, &run_dir).await
    }

    /// The disk's files, as the agent hands them over.
    pub(crate) fn disk_files(&self) -> Vec<(String, OwnedFd)> {
        let path = PathBuf::from(self.disk().path);
        let name = path.to_string_lossy().into_owned();
        let disk = fs::File::options().read(true).write(true).open(&path).expect("a volume");
        let record = drover_dir_volume::open_record(&DirPool::sidecar_of(&path)).expect("its record");
        vec![(record_name(&name), record.into()), (name, disk.into())]
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn disk(&self) -> wire::Disk {
        let volume = VolumeId::from_u128(VOLUME);
        let path = self.pool.volume_path(volume).to_string_lossy().into_owned();
        wire::Disk { volume_id: volume.to_string(), path, ..wire::Disk::default() }
    }

    /// Does what the orchestrator does before it lets anybody else have the volume.
    pub(crate) async fn fence(&self, floor: u64) {
        let volume = VolumeId::from_u128(VOLUME);
        let fence = || fence(&self.pool, volume, VmId::from_u128(VM), OwnerEpoch::new(floor)).ok();
        eventually("a volume that nobody holds", fence).await;
    }

    /// What is on the volume, given that so much was acknowledged.
    pub(crate) fn verify(&self, acked_max: u64) -> ImageReport {
        let claim = Claim { slots: Slots { seed: SEED, count: SLOTS }, acked_max };
        verify_image(&self.pool.volume_path(VolumeId::from_u128(VOLUME)), &claim).expect("readable")
    }
}

/// A machine that beats.
pub(crate) fn config(workload: Workload) -> wire::VmConfig {
    wire::VmConfig {
        vm_id: VmId::from_u128(VM).to_string(),
        name: "probe".to_owned(),
        vcpus: 2,
        memory_bytes: 64 << 20,
        kernel_path: probe_image().to_string_lossy().into_owned(),
        cmdline: workload.to_string(),
        disks: Vec::new(),
        node_id: NodeId::from_u128(0xd).to_string(),
        ..wire::VmConfig::default()
    }
}

pub(crate) fn heartbeat() -> Workload {
    Workload { seed: SEED, heartbeat_ms: Some(5), ..Workload::default() }
}

/// Beats and writes its disk, at a rate that leaves the machine to others.
pub(crate) fn disk_work() -> Workload {
    Workload { disk: Some(DiskWork { slots: SLOTS, iops: 400, queue_depth: 4 }), ..heartbeat() }
}

pub(crate) fn dirty_work(mib: u64, mib_per_s: u64) -> Workload {
    Workload { dirty: Some(DirtyWork { mib, mib_per_s }), ..disk_work() }
}

/// A command of an operation of its own.
pub(crate) fn command(epoch: u64) -> Option<wire::Command> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    command_of(NEXT.fetch_add(1, Ordering::Relaxed).into(), epoch)
}

pub(crate) fn command_of(operation: u128, epoch: u64) -> Option<wire::Command> {
    let operation_id = OperationId::from_u128(operation).to_string();
    Some(wire::Command { operation_id, owner_epoch: epoch })
}

pub(crate) fn boottime_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("a clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

pub(crate) fn lease(pause_in: Duration, kill_in: Duration) -> Option<wire::Lease> {
    let at = |duration: Duration| boottime_ns() + duration.as_nanos() as u64;
    Some(wire::Lease { pause_at_boottime_ns: at(pause_in), kill_at_boottime_ns: at(kill_in) })
}

/// Panics unless the call was refused with this code and a message that holds all of these.
pub(crate) fn assert_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, says: &[&str]) {
    let status = result.expect_err("refused");
    assert_eq!(status.code(), code, "{status}");
    for text in says {
        assert!(status.message().contains(text), "'{text}' is not in: {}", status.message());
    }
}

/// A counter of the VM's first disk.
pub(crate) async fn metric(vmmd: &mut Vmmd, name: &str) -> u64 {
    let page = vmmd.client.metrics(wire::MetricsRequest {}).await.expect("told").into_inner().text;
    let line = page.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// Waits for something that can only be looked at.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "this did not come within {DEADLINE:?}: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

/// A running vmmd. Dropping it kills it.
pub(crate) struct Vmmd {
    child: Child,
    pub(crate) client: VmClient<Channel>,
    pub(crate) run_dir: PathBuf,
}

impl Drop for Vmmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.run_dir.join("vmmd.log")).unwrap_or_default();
            eprintln!("---- {}\n{log}", self.run_dir.join("vmmd.log").display());
        }
    }
}

impl Vmmd {
    /// Starts a process and waits until it serves.
    pub(crate) async fn spawn(run_dir: &Path) -> Self {
        Self::serving(Self::launch(run_dir), run_dir).await
    }

    /// Hands files over, by the names that calls will use.
    pub(crate) fn hand_over(&self, files: &[(String, OwnedFd)]) {
        let files = files.iter().map(|(name, file)| (name.as_str(), file.as_fd()));
        hand_over(&self.run_dir, files).expect("taken");
    }

    async fn serving(child: Child, run_dir: &Path) -> Self {
        let socket = run_dir.join("vmmd.sock");
        let deadline = Instant::now() + DEADLINE;
        let channel = loop {
            match connect(&socket).await {
                Ok(channel) => break channel,
                Err(error) if Instant::now() > deadline => panic!("vmmd does not serve: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_micros(200)).await,
            }
        };
        Self { child, client: VmClient::new(channel), run_dir: run_dir.to_owned() }
    }

    /// Starts a process as the agent does.
    pub(crate) fn launch(run_dir: &Path) -> Child {
        Self::launch_with(run_dir, &[], Stdio::null())
    }

    fn launch_with(run_dir: &Path, with: &[String], input: Stdio) -> Child {
        fs::create_dir_all(run_dir).expect("a run dir");
        let log = run_dir.join("vmmd.log");
        let log = fs::OpenOptions::new().append(true).create(true).open(log).expect("a log");
        Command::new(env!("CARGO_BIN_EXE_drover-vmmd"))
            .arg("--socket")
            .arg(run_dir.join("vmmd.sock"))
            .arg("--run-dir")
            .arg(run_dir)
            .args(["--spawned-at-boottime-ns", &boottime_ns().to_string()])
            .args(with)
            .stdin(input)
            .stderr(log)
            .spawn()
            .expect("spawned")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Creates and starts a VM at epoch 1.
    pub(crate) async fn boot(&mut self, config: wire::VmConfig) {
        self.boot_at(1, config).await;
    }

    pub(crate) async fn boot_at(&mut self, epoch: u64, config: wire::VmConfig) {
        let create = wire::CreateRequest {
            command: command(epoch),
            config: Some(config),
            ..wire::CreateRequest::default()
        };
        self.client.create(create).await.expect("created");
        self.client.start(wire::StartRequest { command: command(epoch) }).await.expect("started");
    }

    pub(crate) async fn create(
        &mut self,
        epoch: u64,
        config: wire::VmConfig,
    ) -> Result<wire::VmInfo, Status> {
        let create = wire::CreateRequest {
            command: command(epoch),
            config: Some(config),
            ..wire::CreateRequest::default()
        };
        self.client.create(create).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn suspend(&mut self, epoch: u64, path: &Path) -> Result<wire::VmInfo, Status> {
        let path = path.to_string_lossy().into_owned();
        let request = wire::SuspendRequest { command: command(epoch), path };
        self.client.suspend(request).await.map(tonic::Response::into_inner)
    }

    /// Suspends the VM and takes note of its end, as the agent does: the process waits for nobody else.
    pub(crate) async fn suspends(&mut self, epoch: u64, path: &Path) -> wire::VmInfo {
        let info = self.suspend(epoch, path).await.expect("suspended");
        self.stop(epoch).await.expect("it has ended");
        assert!(self.exits().await.success());
        info
    }

    /// Creates the VM from a file. It is not started.
    pub(crate) async fn create_from(
        &mut self,
        epoch: u64,
        config: wire::VmConfig,
        path: &Path,
    ) -> Result<wire::VmInfo, Status> {
        let create = wire::CreateRequest {
            command: command(epoch),
            config: Some(config),
            resume_path: path.to_string_lossy().into_owned(),
            ..wire::CreateRequest::default()
        };
        self.client.create(create).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn start(&mut self, epoch: u64) -> Result<wire::VmInfo, Status> {
        let request = wire::StartRequest { command: command(epoch) };
        self.client.start(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn pause(&mut self, epoch: u64) -> Result<wire::VmInfo, Status> {
        let request = wire::PauseRequest { command: command(epoch) };
        self.client.pause(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn resume(&mut self, epoch: u64) -> Result<wire::VmInfo, Status> {
        let request = wire::ResumeRequest { command: command(epoch) };
        self.client.resume(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn stop(&mut self, epoch: u64) -> Result<wire::VmInfo, Status> {
        let request = wire::StopRequest { command: command(epoch) };
        self.client.stop(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn info(&mut self) -> wire::VmInfo {
        self.client.info(wire::InfoRequest {}).await.expect("told").into_inner()
    }

    /// Waits until the status is as wanted.
    pub(crate) async fn reaches(
        &mut self,
        what: &str,
        wanted: impl Fn(&wire::VmInfo) -> bool,
    ) -> wire::VmInfo {
        let mut changes = self.client.watch(wire::WatchRequest {}).await.expect("watched").into_inner();
        let mut last = None;
        let watch = async {
            while let Some(info) = changes.message().await.expect("a status") {
                if wanted(&info) {
                    return Some(info);
                }
                last = Some(info);
            }
            None
        };
        match tokio::time::timeout(DEADLINE, watch).await {
            Ok(Some(info)) => info,
            Ok(None) => panic!("the VM ended before this: {what}; {last:?}"),
            Err(_) => panic!("this did not come within {DEADLINE:?}: {what}; {last:?}"),
        }
    }

    pub(crate) async fn reaches_state(&mut self, state: wire::VmState) -> wire::VmInfo {
        self.reaches(state.as_str_name(), |info| info.state() == state).await
    }

    /// What the guest has said, as far as it is kept.
    pub(crate) fn console(&self) -> ConsoleLog {
        let read = |name| fs::read(self.run_dir.join(name)).unwrap_or_default();
        let text = [read("console.log.1"), read("console.log")].concat();
        ConsoleLog::parse(&String::from_utf8_lossy(&text))
    }

    /// Waits until the guest has said something.
    pub(crate) async fn says(&mut self, what: &str, said: impl Fn(&ConsoleLog) -> bool) -> ConsoleLog {
        eventually(what, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("vmmd has ended ({status}) before this: {what}");
            }
            Some(self.console()).filter(&said)
        })
        .await
    }

    /// Waits until so many more heartbeats have come.
    pub(crate) async fn beats(&mut self, more: u64) {
        let before = self.console().heartbeats();
        self.says("heartbeats", |console| console.heartbeats() >= before + more).await;
    }

    /// Waits until so many more writes have been acknowledged; returns how many there are.
    pub(crate) async fn acks(&mut self, more: u64) -> u64 {
        let before = self.console().acked_max();
        self.says("acknowledged writes", |console| console.acked_max() >= before + more).await.acked_max()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.pid().cast_signed());
        nix::sys::signal::kill(pid, signal).expect("signalled");
    }

    /// kill -9, and wait for what is left.
    pub(crate) fn kill_9(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn exits(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the process's end", || child.try_wait().expect("our child")).await
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }

    pub(crate) fn socket_mode(&self) -> Option<u32> {
        fs::symlink_metadata(self.run_dir.join("vmmd.sock")).ok().map(|file| file.mode() & 0o777)
    }
}

async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    Endpoint::from_static("http://vmmd").connect_with_connector(connector).await
}
