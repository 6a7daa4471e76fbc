//! The agent's one task: owns the supervisor, turns messages into events and effects into work.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use drover_ids::VmId;
use drover_node_supervisor::{
    Answer, Effect, Event, LaunchFailed, Process as Found, Refusal, Run, Supervisor, Ticket, Verb,
};
use drover_wire::{
    node::v1::VmStatus,
    vm::v1::{ExtendLeaseRequest, VmInfo, VmState},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tonic::Status;
use tracing::{debug, info};

use crate::{
    adopt::{self, Adopted, Running},
    clock,
    config::Config,
    death_watch::DeathWatch,
    jail::Jail,
    launch::{self, How, Plan},
    message::{Asked, Body, Located, Message, Reply},
    process::Process,
    recorder::Recorder,
    registry::Registry,
    relay,
    state_dir::{Record, StateDir},
    status::{refused, vm_status},
    vmmd::{Vmmd, report, wire_lease},
};

/// Pauses between attempts to watch a vmmd whose stream broke.
const REWATCH_PAUSE: Duration = Duration::from_millis(100);
/// An adopted vmmd that has not answered after this is taken for hung.
const ADOPTION_WITHIN: Duration = Duration::from_secs(5);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Agent {
    config: Config,
    jail: Jail,
    state_dir: StateDir,
    registry: Registry,
    recorder: Recorder,
    deaths: DeathWatch,
    inbox: mpsc::Sender<Message>,
    supervisor: Supervisor,
    vms: BTreeMap<VmId, Local>,
    asked: BTreeMap<Ticket, (Asked, oneshot::Sender<Result<Reply, Status>>)>,
    last_ticket: u64,
}

/// What the agent holds of a VM's present or last process.
#[derive(Debug)]
struct Local {
    run: Run,
    process: Option<Arc<Process>>,
    vmmd: Option<Vmmd>,
    info: VmInfo,
    exit: Option<String>,
    /// Where an incoming VM waits.
    address: Option<String>,
    /// Why the launch failed.
    failure: Option<Status>,
    watch: Option<Watch>,
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Agent {
    pub(crate) fn new(
        (config, jail): (Config, Jail),
        state_dir: StateDir,
        registry: Registry,
        deaths: DeathWatch,
        inbox: mpsc::Sender<Message>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            config,
            jail,
            state_dir,
            registry,
            recorder: Recorder::start()?,
            deaths,
            inbox,
            supervisor: Supervisor::default(),
            vms: BTreeMap::new(),
            asked: BTreeMap::new(),
            last_ticket: 0,
        })
    }

    /// Adopts, then serves until every sender is gone.
    pub(crate) async fn run(mut self, adopted: Vec<Adopted>, mut messages: mpsc::Receiver<Message>) {
        for found in adopted {
            self.adopt(found);
        }
        self.step(Event::Tick);
        loop {
            let pause = self.supervisor.next_deadline().map(|due| due.since(clock::now()));
            let due = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => self.handle(message),
                    None => return,
                },
                () = due => self.step(Event::Tick),
            }
        }
    }

    fn step(&mut self, event: Event) {
        let effects = self.supervisor.step(clock::now(), event);
        for effect in effects {
            self.perform(effect);
        }
    }

    fn adopt(&mut self, found: Adopted) {
        let Adopted { dir, record, process } = found;
        let vm = dir.vm();
        let known = match &process {
            None if record.retired => Found::Retired,
            None => Found::Gone,
            Some(running) => Found::Alive(running.answer.as_ref().map(|(_, info)| report(info))),
        };
        let effects = self
            .supervisor
            .step(clock::now(), Event::Recovered { vm, epoch: record.epoch(), process: known });
        let Some(run) = self.supervisor.vms().find(|view| view.vm == vm).map(|view| view.run) else {
            return effects.into_iter().for_each(|effect| self.perform(effect));
        };
        let mut local =
            Local::new(run, VmInfo { vm_id: vm.to_string(), name: record.name, ..VmInfo::default() });
        match process {
            None => local.exit = Some("ended while no agent was watching".to_owned()),
            Some(Running { process, answer }) => {
                info!(%vm, pid = process.pid(), answers = answer.is_some(), "adopted");
                local.info.pid = process.pid();
                tell_end(&process, (vm, run), self.inbox.clone());
                local.process = Some(process);
                match answer {
                    Some((vmmd, info)) => local.connected(vmmd, info, (vm, run), &self.inbox),
                    None => {
                        let inbox = self.inbox.clone();
                        tokio::spawn(async move {
                            let message = match tokio::time::timeout(ADOPTION_WITHIN, adopt::ask(&dir)).await
                            {
                                Ok(Some((vmmd, info))) => Message::Connected { vm, run, vmmd, info },
                                _ => Message::Event(Event::Unresponsive { vm, run }),
                            };
                            inbox.send(message).await.ok();
                        });
                    }
                }
            }
        }
        self.vms.insert(vm, local);
        effects.into_iter().for_each(|effect| self.perform(effect));
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Asked(asked, reply) => self.ask(asked, reply),
            Message::List(reply) => {
                reply.send(self.statuses()).ok();
            }
            Message::Find(vm, reply) => {
                let local = self.vms.get(&vm).filter(|local| local.exit.is_none());
                let located = Located {
                    dir: self.state_dir.run_dir(vm),
                    vmmd: local.and_then(|local| local.vmmd.clone()),
                    process: local.and_then(|local| local.process.clone()),
                };
                reply.send(located).ok();
            }
            Message::Spawned { vm, run, process } => {
                tell_end(&process, (vm, run), self.inbox.clone());
                if let Some(local) = self.current(vm, run) {
                    local.info.pid = process.pid();
                    local.process = Some(process);
                }
                self.step(Event::Spawned { vm, run });
            }
            Message::Reachable { vm, run, vmmd } => {
                if let Some(local) = self.current(vm, run) {
                    local.vmmd = Some(vmmd);
                }
            }
            Message::Launched { vm, run, result } => self.launched(vm, run, result),
            Message::Connected { vm, run, vmmd, info } => {
                let inbox = self.inbox.clone();
                let known = report(&info);
                if let Some(local) = self.current(vm, run) {
                    local.connected(vmmd, info, (vm, run), &inbox);
                }
                self.step(Event::Reported { vm, run, report: known });
            }
            Message::Info { vm, run, info } => {
                let Some(local) = self.current(vm, run).filter(|local| info.revision >= local.info.revision)
                else {
                    return;
                };
                let known = report(&info);
                local.info = info;
                self.step(Event::Reported { vm, run, report: known });
            }
            Message::Address { vm, run, address } => {
                if let Some(local) = self.current(vm, run) {
                    local.address = Some(address);
                }
            }
            Message::Ended { vm, run, exit } => {
                if let Some(local) = self.current(vm, run) {
                    info!(%vm, pid = local.info.pid, exit, "a VM's process has ended");
                    local.exit = Some(exit);
                    local.watch = None;
                }
                self.step(Event::ProcessEnded { vm, run });
            }
            Message::Event(event) => self.step(event),
        }
    }

    fn ask(&mut self, asked: Asked, reply: oneshot::Sender<Result<Reply, Status>>) {
        // A VM that cannot be started here is no news to one that runs.
        if let Body::Machine(machine) = &asked.body
            && let Err(status) = &**machine
        {
            let epoch = asked.epoch();
            let here = |view: drover_node_supervisor::VmView| {
                view.vm == asked.vm && view.epoch == epoch && !view.ended
            };
            if !self.supervisor.vms().any(here) {
                reply.send(Err(status.clone())).ok();
                return;
            }
        }
        self.last_ticket += 1;
        let ticket = Ticket(self.last_ticket);
        let event = Event::Command { ticket, vm: asked.vm, epoch: asked.epoch(), verb: asked.verb };
        debug!(vm = %asked.vm, operation = asked.command.operation_id, verb = ?asked.verb, "command");
        self.asked.insert(ticket, (asked, reply));
        self.step(event);
    }

    fn launched(&mut self, vm: VmId, run: Run, result: Result<crate::message::Up, crate::message::NotUp>) {
        let inbox = self.inbox.clone();
        let local = self.current(vm, run);
        let result = match (result, local) {
            (Ok(up), local) => {
                let known = report(&up.info);
                if let Some(local) = local {
                    local.address = up.address;
                    local.connected(up.vmmd, up.info, (vm, run), &inbox);
                }
                Ok(known)
            }
            (Err(not_up), local) => {
                if let Some(local) = local {
                    local.info.detail = not_up.status.message().to_owned();
                    local.failure = Some(not_up.status);
                }
                Err(LaunchFailed { may_have_run: not_up.may_have_run })
            }
        };
        self.step(Event::Launched { vm, run, result });
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Launch { vm, run, epoch, ticket, lease } => self.launch((vm, run), epoch, ticket, lease),
            Effect::End { vm, run, how } => {
                let Some(local) = self.current(vm, run) else { return };
                let Some(process) = local.process.clone() else { return };
                let vmmd = local.vmmd.clone();
                tokio::spawn(launch::end((vm, run), (process, vmmd), how, self.inbox.clone()));
            }
            Effect::ExtendLease { vm, run, epoch, lease } => {
                let Some(vmmd) = self.current(vm, run).and_then(|local| local.vmmd.clone()) else { return };
                let request = ExtendLeaseRequest { owner_epoch: epoch.get(), lease: Some(wire_lease(lease)) };
                tokio::spawn(async move {
                    if let Err(status) = vmmd.extend_lease(request).await {
                        debug!(%vm, error = status.message(), "a lease could not be extended");
                    }
                });
            }
            Effect::Relay { ticket, vm, run } => self.relay(ticket, vm, run),
            Effect::Answer { ticket, answer } => self.answer(ticket, answer),
            Effect::Retire { vm, epoch } => {
                self.vms.remove(&vm);
                self.recorder.retire(self.state_dir.run_dir(vm), epoch);
            }
            Effect::Discard { vm } => self.recorder.discard(self.state_dir.run_dir(vm)),
            Effect::Register => self.spawn_event(self.registry.clone().register()),
            Effect::Heartbeat { sequence } => {
                let vms = self.statuses();
                self.spawn_event(self.registry.clone().heartbeat(sequence, vms));
            }
        }
    }

    fn launch(
        &mut self,
        (vm, run): (VmId, Run),
        epoch: drover_ids::OwnerEpoch,
        ticket: Ticket,
        lease: drover_node_supervisor::Lease,
    ) {
        let refuse = |agent: &Self, status| {
            let result = Err(crate::message::NotUp { status, may_have_run: false });
            // The inbox has room for a message per VM many times over; a full one means the agent is lost anyway.
            let inbox = agent.inbox.clone();
            tokio::spawn(async move { inbox.send(Message::Launched { vm, run, result }).await.ok() });
        };
        let machine = match self.asked.get(&ticket) {
            Some((Asked { body: Body::Machine(machine), verb, command, .. }, _)) => match &**machine {
                Ok(machine) => Ok((machine.clone(), *verb, command.clone())),
                Err(status) => Err(status.clone()),
            },
            _ => Err(Status::internal("a launch without a machine")),
        };
        let name = machine.as_ref().map(|(machine, ..)| machine.config.name.clone()).unwrap_or_default();
        let mut info = VmInfo {
            vm_id: vm.to_string(),
            name: name.clone(),
            owner_epoch: epoch.get(),
            ..VmInfo::default()
        };
        info.set_state(VmState::Empty);
        self.vms.insert(vm, Local::new(run, info));
        let (machine, verb, command) = match machine {
            Ok(found) => found,
            Err(status) => return refuse(self, status),
        };
        let how = match verb {
            Verb::PrepareIncoming { migration } => {
                How::Receive { migration, listen: self.migration_address() }
            }
            _ => How::Boot,
        };
        let dir = self.state_dir.run_dir(vm);
        let record = Record { name, epoch: epoch.get(), retired: false };
        let recorded = self.recorder.write(dir.clone(), record);
        let plan = Plan {
            vm,
            run,
            dir,
            vmmd: self.config.vmmd.clone(),
            jail: self.jail,
            machine,
            command,
            lease,
            how,
            deaths: self.deaths.clone(),
            suspended: self.state_dir.suspended().clone(),
        };
        tokio::spawn(launch::launch(plan, recorded, self.inbox.clone()));
    }

    /// Where a vmmd listens for a migration: on this node's address, on any port.
    fn migration_address(&self) -> String {
        std::net::SocketAddr::new(self.config.advertise, 0).to_string()
    }

    fn relay(&mut self, ticket: Ticket, vm: VmId, run: Run) {
        let listen = self.migration_address();
        let Some((asked, reply)) = self.asked.remove(&ticket) else { return };
        let Some(local) = self.current(vm, run) else {
            reply.send(Err(refused(Refusal::UnknownVm, None))).ok();
            return;
        };
        if let (Verb::PrepareIncoming { .. }, Some(address)) = (asked.verb, &local.address) {
            reply.send(Ok(Reply::Incoming { address: address.clone() })).ok();
            return;
        }
        let Some(vmmd) = local.vmmd.clone() else {
            reply.send(Err(Status::unavailable("vmmd does not answer yet"))).ok();
            return;
        };
        let lease = self.supervisor.lease();
        let recorded = (asked.verb == Verb::GrantEpoch).then(|| {
            let name = self.vms.get(&vm).map(|local| local.info.name.clone()).unwrap_or_default();
            let record = Record { name, epoch: asked.command.owner_epoch, retired: false };
            self.recorder.write(self.state_dir.run_dir(vm), record)
        });
        let (inbox, dir) = (self.inbox.clone(), self.state_dir.run_dir(vm));
        tokio::spawn(async move {
            let task = relay::Relay { vm, run, vmmd, dir, asked, listen, lease };
            reply.send(task.carry_out(recorded, &inbox).await).ok();
        });
    }

    fn answer(&mut self, ticket: Ticket, answer: Result<Answer, Refusal>) {
        let Some((asked, reply)) = self.asked.remove(&ticket) else { return };
        let local = self.vms.get(&asked.vm);
        let result = match answer {
            Ok(Answer::Stopped { ended }) => Ok(Reply::Stopped { ended }),
            Ok(Answer::Status) => match (asked.verb, local.and_then(|local| local.address.clone())) {
                (Verb::PrepareIncoming { .. }, Some(address)) => Ok(Reply::Incoming { address }),
                _ => self
                    .status_of(asked.vm)
                    .map(|status| Reply::Status(Box::new(status)))
                    .ok_or_else(|| Status::internal("a VM without a status")),
            },
            Err(refusal) => Err(refused(refusal, local.and_then(|local| local.failure.clone()))),
        };
        reply.send(result).ok();
    }

    fn statuses(&self) -> Vec<VmStatus> {
        self.supervisor
            .vms()
            .filter_map(|view| {
                let local = self.vms.get(&view.vm)?;
                Some(vm_status(view, &local.info, local.exit.as_deref()))
            })
            .collect()
    }

    fn status_of(&self, vm: VmId) -> Option<VmStatus> {
        let view = self.supervisor.vms().find(|view| view.vm == vm)?;
        let local = self.vms.get(&vm)?;
        Some(vm_status(view, &local.info, local.exit.as_deref()))
    }

    fn current(&mut self, vm: VmId, run: Run) -> Option<&mut Local> {
        self.vms.get_mut(&vm).filter(|local| local.run == run)
    }

    fn spawn_event(&self, event: impl Future<Output = Event> + Send + 'static) {
        let inbox = self.inbox.clone();
        tokio::spawn(async move { inbox.send(Message::Event(event.await)).await.ok() });
    }
}

impl Local {
    const fn new(run: Run, info: VmInfo) -> Self {
        Self { run, process: None, vmmd: None, info, exit: None, address: None, failure: None, watch: None }
    }

    fn connected(&mut self, vmmd: Vmmd, info: VmInfo, (vm, run): (VmId, Run), inbox: &mpsc::Sender<Message>) {
        self.info = info;
        self.watch = Some(Watch(tokio::spawn(watch(vmmd.clone(), (vm, run), inbox.clone()))));
        self.vmmd = Some(vmmd);
    }
}

/// Tells the agent when the process has ended.
fn tell_end(process: &Arc<Process>, (vm, run): (VmId, Run), inbox: mpsc::Sender<Message>) {
    let process = Arc::clone(process);
    tokio::spawn(async move {
        let exit = process.ended().await;
        inbox.send(Message::Ended { vm, run, exit }).await.ok();
    });
}

/// Passes on every change a vmmd reports, until it is aborted.
async fn watch(vmmd: Vmmd, (vm, run): (VmId, Run), inbox: mpsc::Sender<Message>) {
    loop {
        if let Ok(mut changes) = vmmd.watch().await {
            while let Ok(Some(info)) = changes.message().await {
                if inbox.send(Message::Info { vm, run, info }).await.is_err() {
                    return;
                }
            }
        }
        tokio::time::sleep(REWATCH_PAUSE).await;
    }
}
