//! drover.vm.v1 over the socket: understands messages, hands orders to the VM's thread, and streams what others want to
//! follow. Never blocks the runtime: the VM's thread does what takes time.

use std::{pin::Pin, sync::Arc, time::Duration};

use drover_lifecycle::Command;
use drover_machine::devices::Balloon;
use drover_wire::vm::v1::{self as wire, vm_server};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    balloon,
    console::Console,
    hold::{Held, Hold},
    hosted::{HostedVm, Instruments},
    metrics,
    order::{
        self, AttachOrder, Change, DetachOrder, HoldOrder, InvalidField, LimitedDevice, LimitsOrder, Order,
        Renewal,
    },
    refused::Refused,
    status::is_terminal,
    vm_thread::VmHandle,
};

/// Largest request, bytes: a VmConfig with every field at its limit is about 50 KiB.
const REQUEST_BYTES_MAX: usize = 256 << 10;
/// Chunks of console output that wait for a slow connection before its reader starts to fall behind in the ring.
const CONSOLE_CHUNKS_MAX: usize = 1;

/// The service for one VM.
#[derive(Debug)]
pub(crate) struct Service<M> {
    vm: VmHandle<M>,
    console: Arc<Console>,
    instruments: Instruments,
    hold: Hold,
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl<M: HostedVm> Service<M> {
    /// The server for the VM behind `vm`.
    pub(crate) fn server(
        vm: VmHandle<M>,
        console: Arc<Console>,
        instruments: Instruments,
    ) -> vm_server::VmServer<Self> {
        vm_server::VmServer::new(Self { vm, console, instruments, hold: Hold::default() })
            .max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    async fn order<T>(&self, request: Request<T>) -> Result<Response<wire::VmInfo>, Status>
    where
        Order: TryFrom<T, Error = InvalidField>,
    {
        let order = Order::try_from(request.into_inner()).map_err(Refused::Invalid)?;
        Ok(Response::new(self.vm.order(order).await?.info))
    }

    /// What the VM is, for a command of its present owner.
    /// Has the guest let go of a device.
    async fn ask_back(&self, device: LimitedDevice, wait: Duration) -> Result<(), Status> {
        let (Some(slot), Some(panel)) = (self.instruments.slot_of(device), self.instruments.panel()) else {
            return Ok(());
        };
        if !panel.ask_back(slot) {
            let text = "devices neither come to this machine nor go while it runs: its bus is not PCI";
            return Err(Refused::Precondition(text.to_owned()).into());
        }
        let asked = panel.clone();
        let waited = tokio::task::spawn_blocking(move || asked.wait_let_go(slot, wait)).await;
        let let_go =
            waited.map_err(|error| Refused::Failed(format!("waiting for the guest failed: {error}")))?;
        if !let_go && panel.withdraw(slot) {
            return Err(Status::deadline_exceeded(format!(
                "the guest has not let go within {} ms, and keeps it",
                wait.as_millis()
            )));
        }
        Ok(())
    }

    fn info_for(&self, command: Command) -> Result<wire::VmInfo, Status> {
        let info = self.vm.status().info();
        if command.epoch.get() != info.owner_epoch {
            let text = format!(
                "command.owner_epoch is {}: this VM belongs to epoch {}",
                command.epoch, info.owner_epoch
            );
            return Err(Refused::Precondition(text).into());
        }
        Ok(info)
    }

    fn balloon(&self) -> Result<Balloon, Refused> {
        self.instruments.balloon().ok_or_else(|| Refused::Precondition("the VM has no balloon".to_owned()))
    }
}

#[tonic::async_trait]
impl<M: HostedVm> vm_server::Vm for Service<M> {
    type WatchStream = BoxStream<wire::VmInfo>;
    type ConsoleStream = BoxStream<wire::ConsoleOutput>;

    async fn create(&self, request: Request<wire::CreateRequest>) -> Result<Response<wire::VmInfo>, Status> {
        self.order(request).await
    }

    async fn start(&self, request: Request<wire::StartRequest>) -> Result<Response<wire::VmInfo>, Status> {
        self.order(request).await
    }

    async fn pause(&self, request: Request<wire::PauseRequest>) -> Result<Response<wire::VmInfo>, Status> {
        self.order(request).await
    }

    async fn resume(&self, request: Request<wire::ResumeRequest>) -> Result<Response<wire::VmInfo>, Status> {
        self.order(request).await
    }

    async fn stop(&self, request: Request<wire::StopRequest>) -> Result<Response<wire::VmInfo>, Status> {
        let response = self.order(request).await;
        if response.is_ok() {
            self.vm.acknowledge_end();
        }
        response
    }

    async fn info(&self, _: Request<wire::InfoRequest>) -> Result<Response<wire::VmInfo>, Status> {
        Ok(Response::new(self.vm.status().info()))
    }

    async fn watch(&self, _: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (messages, changes) = mpsc::channel(1);
        let mut info = self.vm.status().subscribe();
        tokio::spawn(async move {
            loop {
                let newest = info.borrow_and_update().clone();
                let last = is_terminal(&newest);
                if messages.send(Ok(newest)).await.is_err() || last || info.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(changes))))
    }

    async fn console(
        &self,
        request: Request<Streaming<wire::ConsoleInput>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        let (chunks, output) = mpsc::channel(CONSOLE_CHUNKS_MAX);
        let mut reader = self.console.follow();
        tokio::spawn(async move {
            while let Some(chunk) = reader.next().await {
                let message = wire::ConsoleOutput { data: chunk.bytes, lost: chunk.lost };
                if chunks.send(Ok(message)).await.is_err() {
                    return;
                }
            }
        });
        let mut input = request.into_inner();
        let instruments = self.instruments.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = input.message().await {
                instruments.type_in(&message.data);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(output))))
    }

    async fn migrate_out(
        &self,
        request: Request<wire::MigrateOutRequest>,
    ) -> Result<Response<wire::VmInfo>, Status> {
        self.order(request).await
    }

    async fn cancel_migration(
        &self,
        request: Request<wire::CancelMigrationRequest>,
    ) -> Result<Response<wire::VmInfo>, Status> {
        self.order(request).await
    }

    async fn migrate_in(
        &self,
        request: Request<wire::MigrateInRequest>,
    ) -> Result<Response<wire::MigrateInResponse>, Status> {
        let order = Order::try_from(request.into_inner()).map_err(Refused::Invalid)?;
        let reply = self.vm.order(order).await?;
        let address = reply.listening.map(|address| address.to_string()).unwrap_or_default();
        Ok(Response::new(wire::MigrateInResponse { address, info: Some(reply.info) }))
    }

    async fn extend_lease(
        &self,
        request: Request<wire::ExtendLeaseRequest>,
    ) -> Result<Response<wire::ExtendLeaseResponse>, Status> {
        let renewal = Renewal::try_from(request.into_inner()).map_err(Refused::Invalid)?;
        self.vm.renew(renewal)?;
        Ok(Response::new(wire::ExtendLeaseResponse { state: self.vm.status().info().state }))
    }

    async fn hold_queues(
        &self,
        request: Request<wire::HoldQueuesRequest>,
    ) -> Result<Response<wire::HoldQueuesResponse>, Status> {
        let HoldOrder { command, limit } = request.into_inner().try_into().map_err(Refused::Invalid)?;
        let info = self.info_for(command)?;
        let state = info.state();
        let holder = match state {
            wire::VmState::Running | wire::VmState::Paused => self.instruments.holder(),
            _ => None,
        };
        let Some(holder) = holder else {
            let text = format!(
                "the disks are held of a VM that is RUNNING or PAUSED, and this is {}",
                state.as_str_name()
            );
            return Err(Refused::Precondition(text).into());
        };
        let drained = self.hold.take(holder, command.operation, limit).await?;
        Ok(Response::new(wire::HoldQueuesResponse { drained_us: drained.as_micros() as u64 }))
    }

    async fn release_queues(
        &self,
        request: Request<wire::ReleaseQueuesRequest>,
    ) -> Result<Response<wire::ReleaseQueuesResponse>, Status> {
        let command = order::command(request.into_inner().command).map_err(Refused::Invalid)?;
        let Held { lasted, expired } = self.hold.release(command.operation)?;
        // Held here, and perhaps writing elsewhere since.
        let has_left =
            !matches!(self.vm.status().info().state(), wire::VmState::Running | wire::VmState::Paused);
        let expired = expired || has_left;
        Ok(Response::new(wire::ReleaseQueuesResponse { held_us: lasted.as_micros() as u64, expired }))
    }

    async fn press_power_button(
        &self,
        request: Request<wire::PressPowerButtonRequest>,
    ) -> Result<Response<wire::PressPowerButtonResponse>, Status> {
        let command = order::command(request.into_inner().command).map_err(Refused::Invalid)?;
        self.info_for(command)?;
        if !self.instruments.press_power_button() {
            return Err(Refused::Precondition("there is no machine with a power button".to_owned()).into());
        }
        Ok(Response::new(wire::PressPowerButtonResponse {}))
    }

    async fn set_limits(
        &self,
        request: Request<wire::SetLimitsRequest>,
    ) -> Result<Response<wire::SetLimitsResponse>, Status> {
        let LimitsOrder { command, device, limits } =
            request.into_inner().try_into().map_err(Refused::Invalid)?;
        self.info_for(command)?;
        if !self.instruments.set_limits(device, limits) {
            let text = match device {
                LimitedDevice::Disk(volume) => format!("volume_id: this VM has no disk {volume}"),
                LimitedDevice::Nic(mac) => format!("mac: this VM has no interface {mac}"),
            };
            return Err(Refused::Precondition(text).into());
        }
        Ok(Response::new(wire::SetLimitsResponse {}))
    }

    async fn attach_device(
        &self,
        request: Request<wire::AttachDeviceRequest>,
    ) -> Result<Response<wire::AttachDeviceResponse>, Status> {
        let AttachOrder { command, part } = request.into_inner().try_into().map_err(Refused::Invalid)?;
        self.vm.change(command.epoch, Change::Attach(Box::new(part))).await?;
        Ok(Response::new(wire::AttachDeviceResponse {}))
    }

    async fn detach_device(
        &self,
        request: Request<wire::DetachDeviceRequest>,
    ) -> Result<Response<wire::DetachDeviceResponse>, Status> {
        let DetachOrder { command, device, wait } =
            request.into_inner().try_into().map_err(Refused::Invalid)?;
        self.info_for(command)?;
        if let Some(wait) = wait {
            self.ask_back(device, wait).await?;
        }
        self.vm.change(command.epoch, Change::Detach(device)).await?;
        Ok(Response::new(wire::DetachDeviceResponse {}))
    }

    async fn suspend(
        &self,
        request: Request<wire::SuspendRequest>,
    ) -> Result<Response<wire::VmInfo>, Status> {
        self.order(request).await
    }

    async fn set_balloon(
        &self,
        request: Request<wire::SetBalloonRequest>,
    ) -> Result<Response<wire::BalloonStatus>, Status> {
        let wire::SetBalloonRequest { command, target_bytes } = request.into_inner();
        self.info_for(order::command(command).map_err(Refused::Invalid)?)?;
        let balloon = self.balloon()?;
        balloon.set_target(drover_units::Bytes::new(target_bytes));
        Ok(Response::new(balloon::status(&balloon)))
    }

    async fn get_balloon(
        &self,
        request: Request<wire::GetBalloonRequest>,
    ) -> Result<Response<wire::BalloonStatus>, Status> {
        let limit = balloon::wait(request.into_inner().wait_ms).map_err(Refused::Invalid)?;
        let balloon = self.balloon()?;
        balloon::refresh(&balloon, limit).await;
        Ok(Response::new(balloon::status(&balloon)))
    }

    async fn reclaim_free_memory(
        &self,
        request: Request<wire::ReclaimFreeMemoryRequest>,
    ) -> Result<Response<wire::ReclaimFreeMemoryResponse>, Status> {
        let wire::ReclaimFreeMemoryRequest { command, limit_ms } = request.into_inner();
        let limit = balloon::reclaim_limit(limit_ms).map_err(Refused::Invalid)?;
        let command = order::command(command).map_err(Refused::Invalid)?;
        let reclaimed = self.vm.reclaim(command.epoch, limit).await?;
        Ok(Response::new(wire::ReclaimFreeMemoryResponse {
            named_bytes: reclaimed.named.get(),
            reclaimed_bytes: reclaimed.given_back.get(),
        }))
    }

    async fn metrics(
        &self,
        _: Request<wire::MetricsRequest>,
    ) -> Result<Response<wire::MetricsResponse>, Status> {
        let text = {
            let (disks, nics) = (self.instruments.disks(), self.instruments.nics());
            metrics::render(&self.vm.status().info(), self.console.written(), (&disks, &nics))
        };
        Ok(Response::new(wire::MetricsResponse { text }))
    }
}
