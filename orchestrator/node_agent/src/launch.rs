//! Brings a VM's process up, and down.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use drover_ids::{MigrationId, VmId};
use drover_node_supervisor::{EndHow, Event, Lease, Run};
use drover_wire::vm::v1::{
    Command, CreateRequest, MigrateInRequest, StartRequest, VmConfig, VmInfo, VmState,
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};
use tonic::{Code, Status};
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::{
    death_watch::DeathWatch,
    handover::{self, Parcel},
    jail::{Jail, Needs},
    machine::Machine,
    message::{Message, NotUp, Up},
    nics,
    process::Process,
    spawn,
    state_dir::RunDir,
    suspended::Suspended,
    vmmd::{Vmmd, io_status, wire_lease},
};

/// A vmmd that is asked to stop drains its disks' writes first. After this it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// Between the answer to Stop and the end of the process.
const EXIT_WITHIN: Duration = Duration::from_secs(2);
/// A killed process is gone in milliseconds, unless it waits for a disk that does not answer.
const DEATH_WITHIN: Duration = Duration::from_secs(10);
/// How much of vmmd's last words an error repeats.
const LAST_WORDS: i64 = 512;

/// Everything a launch needs.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) vm: VmId,
    pub(crate) run: Run,
    pub(crate) dir: RunDir,
    pub(crate) vmmd: PathBuf,
    pub(crate) jail: Jail,
    pub(crate) machine: Machine,
    pub(crate) command: Command,
    pub(crate) lease: Lease,
    pub(crate) how: How,
    pub(crate) deaths: DeathWatch,
    pub(crate) suspended: Suspended,
}

impl Plan {
    /// Whether it goes on with what was suspended here.
    fn resumes(&self) -> bool {
        matches!(self.how, How::Boot) && self.machine.resume && self.suspended.has(self.vm)
    }

    /// Whether the process can be told what to do before it can be called: not where the answer decides what comes next.
    fn calls_ahead(&self) -> bool {
        matches!(self.how, How::Boot) && !self.resumes()
    }

    /// Whether that goes for its start too: a guest must not run before its interfaces are connected, nor before it is known
    /// under which addresses it writes to a cluster.
    fn starts_ahead(&self) -> bool {
        self.machine.wiring.is_empty() && self.machine.config.disks.iter().all(|disk| disk.rbd.is_none())
    }
}

/// How the VM comes to life.
#[derive(Clone, Debug)]
pub(crate) enum How {
    Boot,
    Receive { migration: MigrationId, listen: String },
}

impl How {
    fn listens_on(&self) -> Option<String> {
        match self {
            Self::Boot => None,
            Self::Receive { listen, .. } => Some(listen.clone()),
        }
    }
}

/// Carries out a plan and tells the agent how it went.
pub(crate) async fn launch(
    plan: Plan,
    recorded: impl Future<Output = io::Result<()>>,
    inbox: mpsc::Sender<Message>,
) {
    let (vm, run) = (plan.vm, plan.run);
    let result = bring_up(plan, recorded, &inbox).await;
    match &result {
        Ok(up) => info!(%vm, pid = up.info.pid, epoch = up.info.owner_epoch, "VM is up"),
        Err(NotUp { status, .. }) => warn!(%vm, error = status.message(), "VM did not come up"),
    }
    inbox.send(Message::Launched { vm, run, result }).await.ok();
}

async fn bring_up(
    mut plan: Plan,
    recorded: impl Future<Output = io::Result<()>>,
    inbox: &mpsc::Sender<Message>,
) -> Result<Up, NotUp> {
    let never_ran = |status| NotUp { status, may_have_run: false };
    recorded.await.map_err(|error| never_ran(io_status("cannot record the VM", &error)))?;
    // Written in the same breath as the process is started: it is small, and no other thread has to be asked for it.
    plan.machine
        .place_seed(&plan.dir)
        .map_err(|error| never_ran(io_status("cannot write the seed disk", &error)))?;
    plan.machine
        .place_vsock(&plan.dir)
        .map_err(|error| never_ran(io_status("cannot place the guest's sockets", &error)))?;
    if !plan.resumes() {
        // The VM has another life from here on.
        plan.suspended.remove(plan.vm);
    }
    let ahead = plan.calls_ahead().then(|| CallsAhead::send(&plan)).transpose();
    let ahead = ahead.map_err(|error| never_ran(io_status("cannot make a socket", &error)))?;
    let input = ahead.as_ref().map(|ahead| ahead.input.as_fd());
    let process = start_process(&plan, input).map_err(never_ran)?;
    let (vm, run) = (plan.vm, plan.run);
    inbox.send(Message::Spawned { vm, run, process: Arc::clone(&process) }).await.ok();
    let dir = plan.dir.clone();
    // The end of the process ends every call to it; this only says so in better words, and sooner.
    tokio::select! {
        biased;
        result = talk(plan, ahead, inbox) => result,
        exit = process.ended() => {
            let words = spawn_blocking(move || last_words(&dir.path().join("vmmd.log"))).await.unwrap_or_default();
            let message = format!("vmmd ended while it was being started: {exit}{words}");
            Err(NotUp { status: Status::internal(message), may_have_run: true })
        }
    }
}

fn start_process(plan: &Plan, ahead: Option<BorrowedFd<'_>>) -> Result<Arc<Process>, Status> {
    // Spawning blocks until the child has become vmmd, about a millisecond: shorter than the way to another thread
    // and back, and this thread has to register the process with its reactor.
    let config = &plan.machine.config;
    let needs = Needs {
        rbd: config.disks.iter().any(|disk| disk.rbd.is_some()),
        vsock: config.devices.as_ref().is_some_and(|devices| devices.vsock.is_some()),
        resume: plan.resumes(),
    };
    let start = spawn::Start { vmmd: &plan.vmmd, jail: plan.jail, needs, ahead };
    match spawn::spawn(start, &plan.dir, &plan.deaths) {
        Ok(Some(process)) => Ok(Arc::new(process)),
        Ok(None) => Err(Status::internal("an older process of this VM is still there")),
        Err(error) => Err(io_status(&format!("cannot start {}", plan.vmmd.display()), &error)),
    }
}

async fn talk(plan: Plan, ahead: Option<CallsAhead>, inbox: &mpsc::Sender<Message>) -> Result<Up, NotUp> {
    let resumes = plan.resumes();
    let starts_ahead = ahead.as_ref().is_some_and(|ahead| ahead.starts);
    let Plan { vm, run, dir, machine, command, lease, how, suspended, .. } = plan;
    // What has been told to start may have done so, unless it says that it has no machine.
    let never_ran = |status| NotUp { status, may_have_run: starts_ahead };
    let vmmd = Vmmd::connect(dir.socket()).await.map_err(never_ran)?;
    // Its lease can be extended from now on, however long its disks take.
    inbox.send(Message::Reachable { vm, run, vmmd: vmmd.clone() }).await.ok();
    let listen = how.listens_on();
    let delivered = match ahead {
        Some(ahead) => ahead.sent().await,
        None => {
            deliver_machine(&dir, &machine.config, move |parcel| match listen {
                Some(address) => parcel.add_listener(&address),
                None => Ok(()),
            })
            .await
        }
    };
    delivered.map_err(never_ran)?;
    match how {
        How::Boot => {
            let suspended = resumes.then_some(&suspended);
            let created = create(&vmmd, (&dir, suspended), command.clone(), (machine.config, lease)).await;
            let created = match created {
                Ok(info) => info,
                Err(status) => {
                    let may_have_run = starts_ahead && !has_no_machine(&vmmd, &status).await;
                    return Err(NotUp { status, may_have_run });
                }
            };
            nics::connect(&machine.wiring).map_err(never_ran)?;
            // Under which addresses it writes is reported before it does.
            inbox.send(Message::Info { vm, run, info: created }).await.ok();
            let started = vmmd.start(command).await;
            let info = started.map_err(|status| NotUp { status, may_have_run: true })?;
            if let Some(suspended) = suspended {
                // It has been spent. What is still to be loaded of it comes through vmmd's own descriptor.
                suspended.remove(vm);
            }
            Ok(Up { vmmd, info, address: None })
        }
        How::Receive { migration, listen } => {
            let request = MigrateInRequest {
                command: Some(command),
                migration_id: migration.to_string(),
                config: Some(machine.config),
                listen_address: listen,
                lease: Some(wire_lease(lease)),
            };
            let answer = vmmd.migrate_in(request).await.map_err(never_ran)?;
            nics::connect(&machine.wiring).map_err(never_ran)?;
            let info = match answer.info {
                Some(info) => info,
                None => vmmd.info().await.map_err(never_ran)?,
            };
            Ok(Up { vmmd, info, address: Some(answer.address) })
        }
    }
}

/// Whether a process that did not create its machine has none, and will not start one.
async fn has_no_machine(vmmd: &Vmmd, refusal: &Status) -> bool {
    // It may be at it still.
    let has_answered = refusal.code() != Code::DeadlineExceeded;
    has_answered && vmmd.info().await.is_ok_and(|info| info.state() == VmState::Empty)
}

/// What a process is told while it is being started: what its VM is made of, and what to do with it. The calls are made all the
/// same when it serves, and find that they have been carried out.
struct CallsAhead {
    /// The process's end.
    input: UnixStream,
    sending: JoinHandle<Result<(), Status>>,
    starts: bool,
}

impl CallsAhead {
    /// Begins to send.
    fn send(plan: &Plan) -> io::Result<Self> {
        let (ours, input) = UnixStream::pair()?;
        let command = Some(plan.command.clone());
        let starts = plan.starts_ahead();
        let start = starts.then(|| StartRequest { command: command.clone() });
        let create = CreateRequest {
            command,
            config: Some(plan.machine.config.clone()),
            lease: Some(wire_lease(plan.lease)),
            resume_path: String::new(),
        };
        let jailed = plan.jail.is_on();
        let send = move || {
            let mut parcel = Parcel::default();
            if let Some(config) = create.config.as_ref().filter(|_| jailed) {
                parcel = whole_machine(config)?;
            }
            let sent = parcel.add_calls(&create, start.as_ref()).and_then(|()| parcel.send_on(&ours));
            sent.map_err(|error| io_status("cannot hand over to vmmd", &error))
        };
        Ok(Self { input, sending: spawn_blocking(send), starts })
    }

    /// How the sending went. Not before the process serves: it takes everything before that.
    async fn sent(self) -> Result<(), Status> {
        self.sending.await.map_err(|_| Status::internal("handing files over did not end"))?
    }
}

/// What a machine of this configuration is made of.
fn whole_machine(config: &VmConfig) -> Result<Parcel, Status> {
    let mut parcel = Parcel::of_machine(config);
    parcel.add_taps(&config.nics)?;
    parcel.add_vsock(config)?;
    Ok(parcel)
}

/// Hands over what a machine of this configuration is made of, and more.
async fn deliver_machine(
    dir: &RunDir,
    config: &VmConfig,
    more: impl FnOnce(&mut Parcel) -> Result<(), Status> + Send + 'static,
) -> Result<(), Status> {
    let config = config.clone();
    let parcel = move || {
        let mut parcel = whole_machine(&config)?;
        more(&mut parcel)?;
        Ok(parcel)
    };
    handover::deliver(dir, parcel).await
}

/// Builds the machine: with the guest that was suspended here, or from its disks where there is none, or none of use.
async fn create(
    vmmd: &Vmmd,
    (dir, suspended): (&RunDir, Option<&Suspended>),
    command: Command,
    (config, lease): (VmConfig, Lease),
) -> Result<VmInfo, Status> {
    let Some(suspended) = suspended else { return vmmd.create(command, (config, None), lease).await };
    let (vm, path) = (dir.vm(), suspended.path(dir.vm()));
    let opened = suspended.file(vm).map_err(|error| io_status("cannot open a suspended VM", &error))?;
    let parcel = Parcel::of_suspended(&path, opened);
    handover::deliver(dir, move || Ok(parcel)).await?;
    match vmmd.create(command.clone(), (config.clone(), Some(&path)), lease).await {
        // vmmd says that of a file which is of no use to anybody: it is damaged, or the VM has run in between. Where it fails
        // for another reason, the start does, and the file stays for the next.
        Err(status) if status.code() == Code::DataLoss => {
            warn!(%vm, error = status.message(), "the VM is started from its disks");
            suspended.remove(vm);
            // What was handed over before went with the machine that was not to be.
            deliver_machine(dir, &config, |_| Ok(())).await?;
            vmmd.create(command, (config, None), lease).await
        }
        other => other,
    }
}

/// The end of vmmd's log: it says why it ended.
fn last_words(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX);
        file.seek(SeekFrom::End(-length.min(LAST_WORDS)))?;
        let mut words = Vec::new();
        file.take(LAST_WORDS.unsigned_abs()).read_to_end(&mut words)?;
        Ok(String::from_utf8_lossy(&words).trim().to_owned())
    };
    match read() {
        Ok(words) if !words.is_empty() => format!("; its last words: {words}"),
        _ => String::new(),
    }
}

/// Ends a process. The proof comes by another way, whoever causes it; this says only if it takes too long.
pub(crate) async fn end(
    (vm, run): (VmId, Run),
    (process, vmmd): (Arc<Process>, Option<Vmmd>),
    how: EndHow,
    inbox: mpsc::Sender<Message>,
) {
    if let (EndHow::Gracefully { epoch }, Some(vmmd)) = (how, vmmd) {
        let command = Command { operation_id: Uuid::new_v4().to_string(), owner_epoch: epoch.get() };
        let stopping = async {
            match timeout(STOP_WITHIN, vmmd.stop(command)).await {
                Ok(Ok(info)) => {
                    // Its last report, which says why it ended.
                    inbox.send(Message::Info { vm, run, info }).await.ok();
                    timeout(EXIT_WITHIN, process.ended()).await.is_ok()
                }
                Ok(Err(status)) => {
                    debug!(%vm, error = status.message(), "vmmd did not stop when asked");
                    false
                }
                Err(_) => false,
            }
        };
        let gone = tokio::select! {
            gone = stopping => gone,
            _ = process.ended() => true,
        };
        if gone {
            return;
        }
        warn!(%vm, pid = process.pid(), "vmmd did not stop in time and is killed");
    }
    process.kill();
    if timeout(DEATH_WITHIN, process.ended()).await.is_err() {
        warn!(%vm, pid = process.pid(), "a killed process is still there");
        inbox.send(Message::Event(Event::EndOverdue { vm, run })).await.ok();
    }
}
