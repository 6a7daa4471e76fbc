//! The agent's gRPC interface: parses, asks the agent's task, answers.

use std::{pin::Pin, sync::Arc};

use drover_ids::{MigrationId, NodeId, OperationId, VmId};
use drover_node_supervisor::Verb;
use drover_wire::{
    node,
    node::v1::{
        CancelMigrationRequest, ConsoleRequest, EnsureVmRequest, GetBalloonRequest, GrantEpochRequest,
        HoldQueuesRequest, ListVmsRequest, ListVmsResponse, LogsRequest, MigrateOutRequest, PauseVmRequest,
        PrepareIncomingRequest, PrepareIncomingResponse, ReclaimFreeMemoryRequest, ReleaseQueuesRequest,
        ResumeVmRequest, SetBalloonRequest, SetLimitsRequest, StopVmRequest, StopVmResponse,
        SuspendVmRequest, VmSpec, VmStatus, node_agent_server::NodeAgent,
    },
    vm::v1::{self as vm, Command, ConsoleOutput},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    console,
    handover::{self, Parcel},
    logs,
    machine::{self, Machine, Offers},
    message::{Asked, Body, Located, Message, Reply},
    nics,
    suspended::Suspended,
    vmmd::{Vmmd, io_status},
};

type Answer<T> = Result<Response<T>, Status>;
type Output = Pin<Box<dyn Stream<Item = Result<ConsoleOutput, Status>> + Send>>;

/// The service. Holds nothing of the VMs.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    node: NodeId,
    offers: Arc<Offers>,
    inbox: mpsc::Sender<Message>,
    suspended: Suspended,
}

impl Service {
    pub(crate) fn new(
        node: NodeId,
        offers: Offers,
        (inbox, suspended): (mpsc::Sender<Message>, Suspended),
    ) -> Self {
        Self { node, offers: Arc::new(offers), inbox, suspended }
    }

    async fn tell<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        let ended = || Status::unavailable("the agent is shutting down");
        self.inbox.send(message(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())
    }

    async fn ask(&self, asked: Asked) -> Result<Reply, Status> {
        self.tell(|reply| Message::Asked(asked, reply)).await?
    }

    async fn ask_status(&self, asked: Asked) -> Answer<VmStatus> {
        match self.ask(asked).await? {
            Reply::Status(status) => Ok(Response::new(*status)),
            other => Err(Status::internal(format!("unexpected answer {other:?}"))),
        }
    }

    fn machine(&self, spec: Option<VmSpec>, resume: bool) -> Result<(VmId, Body), Status> {
        let vm = vm_id("spec.vm_id", spec.as_ref().map(|spec| spec.vm_id.as_str()).unwrap_or_default())?;
        let mut machine = Machine::resolve(spec, self.node, &self.offers);
        if let Ok(machine) = &mut machine {
            machine.resume = resume;
        }
        Ok((vm, Body::Machine(Box::new(machine))))
    }

    /// The process of a VM that runs here.
    async fn running(&self, vm: &str) -> Result<Vmmd, Status> {
        let found = self.find(vm_id("vm_id", vm)?).await?;
        found.vmmd.ok_or_else(|| Status::failed_precondition("this VM does not run here"))
    }

    async fn find(&self, vm: VmId) -> Result<Located, Status> {
        self.tell(|reply| Message::Find(vm, reply)).await
    }
}

fn vm_id(field: &str, text: &str) -> Result<VmId, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("{field}: {error}")))
}

fn migration_id(text: &str) -> Result<MigrationId, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("migration_id: {error}")))
}

/// The command, if its operation is one.
fn command(command: Option<Command>) -> Result<Command, Status> {
    let command = command.ok_or_else(|| Status::invalid_argument("command is missing"))?;
    let parsed: Result<OperationId, _> = command.operation_id.parse();
    parsed.map_err(|error| Status::invalid_argument(format!("command.operation_id: {error}")))?;
    Ok(command)
}

fn asked(vm: VmId, verb: Verb, given: Option<Command>, body: Body) -> Result<Asked, Status> {
    Ok(Asked { vm, verb, command: command(given)?, body })
}

#[tonic::async_trait]
impl NodeAgent for Service {
    async fn ensure_vm(&self, request: Request<EnsureVmRequest>) -> Answer<VmStatus> {
        let request = request.into_inner();
        let (vm, body) = self.machine(request.spec, request.resume)?;
        self.ask_status(asked(vm, Verb::Ensure, request.command, body)?).await
    }

    async fn stop_vm(&self, request: Request<StopVmRequest>) -> Answer<StopVmResponse> {
        let request = request.into_inner();
        let vm = vm_id("vm_id", &request.vm_id)?;
        match self.ask(asked(vm, Verb::Stop, request.command, Body::None)?).await? {
            Reply::Stopped { ended } => Ok(Response::new(StopVmResponse { ended })),
            other => Err(Status::internal(format!("unexpected answer {other:?}"))),
        }
    }

    async fn prepare_incoming(
        &self,
        request: Request<PrepareIncomingRequest>,
    ) -> Answer<PrepareIncomingResponse> {
        let request = request.into_inner();
        let migration = migration_id(&request.migration_id)?;
        let (vm, body) = self.machine(request.spec, false)?;
        let asked = asked(vm, Verb::PrepareIncoming { migration }, request.command, body)?;
        match self.ask(asked).await? {
            Reply::Incoming { address } => Ok(Response::new(PrepareIncomingResponse { address })),
            other => Err(Status::internal(format!("unexpected answer {other:?}"))),
        }
    }

    async fn migrate_out(&self, request: Request<MigrateOutRequest>) -> Answer<VmStatus> {
        let request = request.into_inner();
        let vm = vm_id("vm_id", &request.vm_id)?;
        let body = Body::MigrateOut(vm::MigrateOutRequest {
            command: request.command.clone(),
            migration_id: migration_id(&request.migration_id)?.to_string(),
            target_address: request.target_address,
            target_epoch: request.target_epoch,
            downtime_target_ms: request.downtime_target_ms,
        });
        self.ask_status(asked(vm, Verb::MigrateOut, request.command, body)?).await
    }

    async fn cancel_migration(&self, request: Request<CancelMigrationRequest>) -> Answer<VmStatus> {
        let request = request.into_inner();
        let vm = vm_id("vm_id", &request.vm_id)?;
        let body = Body::CancelMigration { migration_id: migration_id(&request.migration_id)?.to_string() };
        self.ask_status(asked(vm, Verb::CancelMigration, request.command, body)?).await
    }

    async fn grant_epoch(&self, request: Request<GrantEpochRequest>) -> Answer<VmStatus> {
        let request = request.into_inner();
        let vm = vm_id("vm_id", &request.vm_id)?;
        self.ask_status(asked(vm, Verb::GrantEpoch, request.command, Body::None)?).await
    }

    async fn pause_vm(&self, request: Request<PauseVmRequest>) -> Answer<VmStatus> {
        let request = request.into_inner();
        let vm = vm_id("vm_id", &request.vm_id)?;
        self.ask_status(asked(vm, Verb::Pause, request.command, Body::None)?).await
    }

    async fn resume_vm(&self, request: Request<ResumeVmRequest>) -> Answer<VmStatus> {
        let request = request.into_inner();
        let vm = vm_id("vm_id", &request.vm_id)?;
        self.ask_status(asked(vm, Verb::Resume, request.command, Body::None)?).await
    }

    async fn hold_queues(&self, request: Request<HoldQueuesRequest>) -> Answer<vm::HoldQueuesResponse> {
        let HoldQueuesRequest { command: given, vm_id, limit_ms } = request.into_inner();
        let vmmd = self.running(&vm_id).await?;
        let request = vm::HoldQueuesRequest { command: Some(command(given)?), limit_ms };
        vmmd.client().hold_queues(request).await
    }

    async fn attach_device(
        &self,
        request: Request<node::v1::AttachDeviceRequest>,
    ) -> Answer<vm::AttachDeviceResponse> {
        use node::v1::attach_device_request::Device;
        let node::v1::AttachDeviceRequest { command: given, vm_id: text, device } = request.into_inner();
        let vm = vm_id("vm_id", &text)?;
        let Located { dir, vmmd, .. } = self.find(vm).await?;
        // It may run here in a moment: whoever asks does not learn that it cannot.
        let vmmd = vmmd.ok_or_else(|| Status::unavailable("this VM does not run here"))?;
        let command = self::command(given)?;
        let (device, wiring) = match device {
            Some(Device::Volume(volume)) => {
                let disk = machine::disk("volume", &volume, &self.offers)?;
                let handed = disk.clone();
                handover::deliver(&dir, move || {
                    let mut parcel = Parcel::default();
                    parcel.add_disk(&handed);
                    Ok(parcel)
                })
                .await?;
                (vm::attach_device_request::Device::Disk(disk), None)
            }
            Some(Device::Nic(nic)) => {
                let (nic, its) = nics::resolve_one((self.node, vm), (nic, 0), &self.offers.networks)?;
                let handed = nic.clone();
                handover::deliver(&dir, move || {
                    let mut parcel = Parcel::default();
                    // One that is there is this VM's, which has it, or has been handed it and not taken it yet.
                    if !nics::is_there(&handed) {
                        parcel.add_taps(&[handed])?;
                    }
                    Ok(parcel)
                })
                .await?;
                (vm::attach_device_request::Device::Nic(nic.clone()), Some((its, nic.mac)))
            }
            None => return Err(Status::invalid_argument("device is missing: valid is a volume or a nic")),
        };
        let request = vm::AttachDeviceRequest { command: Some(command.clone()), device: Some(device) };
        let answer = vmmd.client().attach_device(request).await?;
        let Some((wiring, mac)) = wiring else { return Ok(answer) };
        let Err(unconnected) = nics::connect(&[wiring]) else { return Ok(answer) };
        // A refusal must leave nothing behind.
        let device = Some(vm::detach_device_request::Device::Mac(mac));
        let undo = vm::DetachDeviceRequest { command: Some(command), device, force: true, wait_ms: 0 };
        match vmmd.client().detach_device(undo).await {
            Ok(_) => Err(unconnected),
            Err(status) => Err(Status::internal(format!(
                "{}; the interface is there, and in no network: {}",
                unconnected.message(),
                status.message()
            ))),
        }
    }

    async fn detach_device(
        &self,
        request: Request<node::v1::DetachDeviceRequest>,
    ) -> Answer<vm::DetachDeviceResponse> {
        use node::v1::detach_device_request::Device;
        let node::v1::DetachDeviceRequest { command: given, vm_id, device, force, wait_ms } =
            request.into_inner();
        let vmmd = self.running(&vm_id).await?;
        let device = device.map(|device| match device {
            Device::VolumeId(id) => vm::detach_device_request::Device::VolumeId(id),
            Device::Mac(mac) => vm::detach_device_request::Device::Mac(mac),
        });
        let request = vm::DetachDeviceRequest { command: Some(command(given)?), device, force, wait_ms };
        vmmd.client().detach_device(request).await
    }

    async fn press_power_button(
        &self,
        request: Request<node::v1::PressPowerButtonRequest>,
    ) -> Answer<vm::PressPowerButtonResponse> {
        let node::v1::PressPowerButtonRequest { command: given, vm_id } = request.into_inner();
        let vmmd = self.running(&vm_id).await?;
        let request = vm::PressPowerButtonRequest { command: Some(command(given)?) };
        vmmd.client().press_power_button(request).await
    }

    async fn set_limits(&self, request: Request<SetLimitsRequest>) -> Answer<vm::SetLimitsResponse> {
        use node::v1::set_limits_request::Device;
        let SetLimitsRequest { command: given, vm_id, device, limits } = request.into_inner();
        let vmmd = self.running(&vm_id).await?;
        let device = device.map(|device| match device {
            Device::VolumeId(id) => vm::set_limits_request::Device::VolumeId(id),
            Device::Mac(mac) => vm::set_limits_request::Device::Mac(mac),
        });
        let request = vm::SetLimitsRequest { command: Some(command(given)?), device, limits };
        vmmd.client().set_limits(request).await
    }

    async fn suspend_vm(&self, request: Request<SuspendVmRequest>) -> Answer<vm::VmInfo> {
        let SuspendVmRequest { command: given, vm_id: text } = request.into_inner();
        let (vm, given) = (vm_id("vm_id", &text)?, command(given)?);
        let Located { vmmd, dir, .. } = self.find(vm).await?;
        let vmmd = vmmd.ok_or_else(|| Status::failed_precondition("this VM does not run here"))?;
        let path = self.suspended.path(vm);
        let cannot = |error| io_status("cannot make the file of a suspended VM", &error);
        let file = self.suspended.file(vm).map_err(cannot)?;
        // Now: the VM is nowhere else once vmmd has written it, and nobody may be here then.
        self.suspended.settle().map_err(cannot)?;
        let parcel = Parcel::of_suspended(&path, file);
        handover::deliver(&dir, move || Ok(parcel)).await?;
        vmmd.suspend(given, &path).await.map(Response::new)
    }

    async fn set_balloon(&self, request: Request<SetBalloonRequest>) -> Answer<vm::BalloonStatus> {
        let SetBalloonRequest { command: given, vm_id, target_bytes } = request.into_inner();
        let vmmd = self.running(&vm_id).await?;
        let request = vm::SetBalloonRequest { command: Some(command(given)?), target_bytes };
        vmmd.client().set_balloon(request).await
    }

    async fn get_balloon(&self, request: Request<GetBalloonRequest>) -> Answer<vm::BalloonStatus> {
        let GetBalloonRequest { vm_id, wait_ms } = request.into_inner();
        let vmmd = self.running(&vm_id).await?;
        vmmd.client().get_balloon(vm::GetBalloonRequest { wait_ms }).await
    }

    async fn reclaim_free_memory(
        &self,
        request: Request<ReclaimFreeMemoryRequest>,
    ) -> Answer<vm::ReclaimFreeMemoryResponse> {
        let ReclaimFreeMemoryRequest { command: given, vm_id, limit_ms } = request.into_inner();
        let vmmd = self.running(&vm_id).await?;
        let request = vm::ReclaimFreeMemoryRequest { command: Some(command(given)?), limit_ms };
        vmmd.client().reclaim_free_memory(request).await
    }

    async fn release_queues(
        &self,
        request: Request<ReleaseQueuesRequest>,
    ) -> Answer<vm::ReleaseQueuesResponse> {
        let ReleaseQueuesRequest { command: given, vm_id } = request.into_inner();
        let vmmd = self.running(&vm_id).await?;
        vmmd.client().release_queues(vm::ReleaseQueuesRequest { command: Some(command(given)?) }).await
    }

    async fn list_vms(&self, _request: Request<ListVmsRequest>) -> Answer<ListVmsResponse> {
        let vms = self.tell(Message::List).await?;
        Ok(Response::new(ListVmsResponse { vms }))
    }

    type ConsoleStream = Output;

    async fn console(&self, request: Request<Streaming<ConsoleRequest>>) -> Answer<Self::ConsoleStream> {
        let mut input = request.into_inner();
        let first = input
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("the first message must name vm_id"))?;
        let vmmd = self.running(&first.vm_id).await?;
        Ok(Response::new(Box::pin(console::attach(&vmmd, first.data, input).await?)))
    }

    type LogsStream = Output;

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        let request = request.into_inner();
        let vm = vm_id("vm_id", &request.vm_id)?;
        let Located { dir, process, .. } = self.find(vm).await?;
        let follow = if request.follow { process } else { None };
        Ok(Response::new(Box::pin(logs::stream(dir, request.tail_bytes, follow).await?)))
    }
}
