//! Virtual machines.

use std::time::Duration;

use drover_units::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use uuid::Uuid;

use crate::{
    Client, Error, PAGE_SIZE, PAGES_MAX, Result,
    api::{
        AttachNicRequest, AttachVolumeRequest, ConsoleRequest, CreateVmRequest, DeleteVmRequest,
        DetachNicRequest, DetachVolumeRequest, GetBalloonRequest, GetVmRequest, ListVmsRequest, LogsRequest,
        MigrateVmRequest, Operation, PressPowerButtonRequest, ReclaimFreeMemoryRequest, SetBalloonRequest,
        SetLimitsRequest, StartVmRequest, StopVmRequest, SuspendVmRequest, Vm, VmSpec, vms_client::VmsClient,
    },
    connect::{Repeat, request_id},
    vm_api::{BalloonStatus, ConsoleOutput, ReclaimFreeMemoryResponse},
};

/// Keystrokes that wait for a slow connection before the typist is held up.
const CONSOLE_INPUT_DEPTH: usize = 64;

/// Longest time for the answer to a suspension, which comes when the VM is in its file: what the control plane gives its
/// node, and some more.
const SUSPEND_WITHIN: Duration = Duration::from_secs(630);

/// Which part of the console log to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogRange {
    /// At most this many bytes of what has been written; `None` is all that is retained.
    pub tail: Option<Bytes>,
    /// Go on with what will be written.
    pub follow: bool,
}

/// A VM's serial console. Dropping it detaches.
#[derive(Debug)]
pub struct Console {
    /// What the guest prints, starting with the retained tail.
    pub output: Streaming<ConsoleOutput>,
    input: mpsc::Sender<ConsoleRequest>,
}

impl Console {
    /// Types `data` into the guest. False: the console has ended.
    pub async fn send(&self, data: Vec<u8>) -> bool {
        self.input.send(ConsoleRequest { vm: String::new(), data }).await.is_ok()
    }

    /// The two directions, for callers that drive them in one `select!`.
    #[must_use]
    pub fn split(self) -> (ConsoleInput, Streaming<ConsoleOutput>) {
        (ConsoleInput(self.input), self.output)
    }
}

/// The typing half of a [`Console`].
#[derive(Clone, Debug)]
pub struct ConsoleInput(mpsc::Sender<ConsoleRequest>);

impl ConsoleInput {
    /// Types `data` into the guest. False: the console has ended.
    pub async fn send(&self, data: Vec<u8>) -> bool {
        self.0.send(ConsoleRequest { vm: String::new(), data }).await.is_ok()
    }
}

macro_rules! vm_operation {
    ($(#[$doc:meta])* $name:ident, $request:ident) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// [`Error::NotFound`], [`Error::Refused`], and see [`Error`].
        pub async fn $name(&self, vm: &str) -> Result<Operation> {
            let request = $request { request_id: request_id(), vm: vm.to_owned() };
            self.call(Repeat::Safe, |channel| {
                let request = request.clone();
                async move { VmsClient::new(channel).$name(request).await }
            })
            .await
        }
    };
}

impl Client {
    /// Creates a VM and starts it; the operation ends when it runs.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the field, [`Error::Refused`] for a name that is taken, and see [`Error`].
    pub async fn create_vm(&self, spec: VmSpec) -> Result<Operation> {
        let request = CreateVmRequest { request_id: request_id(), spec: Some(spec) };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).create_vm(request).await }
        })
        .await
    }

    vm_operation! {
        /// Starts a stopped VM.
        start_vm, StartVmRequest
    }
    /// Stops a VM; its definition and its volumes stay.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`], and see [`Error`].
    pub async fn stop_vm(&self, vm: &str) -> Result<Operation> {
        self.stop_within(vm, 0).await
    }

    vm_operation! {
        /// Stops and forgets a VM; its volumes stay.
        delete_vm, DeleteVmRequest
    }

    /// Writes a VM into a file of its node and stops it; [`start_vm`](Self::start_vm) goes on where it was, and
    /// [`stop_vm`](Self::stop_vm) discards its memory. Returns when it is done.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] where it does not run, and see [`Error`]; it runs on then.
    pub async fn suspend_vm(&self, vm: &str) -> Result<Vm> {
        let request = SuspendVmRequest { request_id: request_id(), vm: vm.to_owned() };
        self.call_within(SUSPEND_WITHIN, Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).suspend_vm(request).await }
        })
        .await
    }

    /// How a running VM's balloon stands.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] where it does not run or has none, and see [`Error`].
    pub async fn balloon(&self, vm: &str) -> Result<BalloonStatus> {
        self.call(Repeat::Safe, |channel| {
            let request = GetBalloonRequest { vm: vm.to_owned() };
            async move { VmsClient::new(channel).get_balloon(request).await }
        })
        .await
    }

    /// Asks a VM's guest to have so much in its balloon. Returns at once.
    ///
    /// # Errors
    /// Those of [`balloon`](Self::balloon).
    pub async fn set_balloon(&self, vm: &str, target_bytes: u64) -> Result<BalloonStatus> {
        self.call(Repeat::Safe, |channel| {
            let request = SetBalloonRequest { vm: vm.to_owned(), target_bytes };
            async move { VmsClient::new(channel).set_balloon(request).await }
        })
        .await
    }

    /// Asks a VM's guest which pages are free and gives them back to the host.
    ///
    /// # Errors
    /// Those of [`balloon`](Self::balloon).
    pub async fn reclaim_free_memory(&self, vm: &str) -> Result<ReclaimFreeMemoryResponse> {
        self.call(Repeat::Safe, |channel| {
            let request = ReclaimFreeMemoryRequest { vm: vm.to_owned() };
            async move { VmsClient::new(channel).reclaim_free_memory(request).await }
        })
        .await
    }

    /// Moves a running VM: `target` names the node and the longest blackout to aim for, `request_id` is set here.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::NotFound`], [`Error::Refused`], and see [`Error`].
    pub async fn migrate_vm(&self, target: MigrateVmRequest) -> Result<Operation> {
        let request = MigrateVmRequest { request_id: request_id(), ..target };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).migrate_vm(request).await }
        })
        .await
    }

    /// Attaches a volume to a VM, running or not.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`], and see [`Error`].
    pub async fn attach_volume(&self, request: AttachVolumeRequest) -> Result<Vm> {
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).attach_volume(request).await }
        })
        .await
    }

    /// Attaches a network interface to a VM, running or not. One without an address is given one here, so that a call that is
    /// repeated attaches one interface.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`], and see [`Error`].
    pub async fn attach_nic(&self, mut request: AttachNicRequest) -> Result<Vm> {
        if let Some(nic) = request.nic.as_mut().filter(|nic| nic.mac.is_empty()) {
            nic.mac = random_mac();
        }
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).attach_nic(request).await }
        })
        .await
    }

    /// Takes a volume from a VM: with its guest's consent, or by force.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`], and see [`Error`].
    pub async fn detach_volume(&self, request: DetachVolumeRequest) -> Result<Vm> {
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).detach_volume(request).await }
        })
        .await
    }

    /// Takes a network interface from a VM: with its guest's consent, or by force.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`], and see [`Error`].
    pub async fn detach_nic(&self, request: DetachNicRequest) -> Result<Vm> {
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).detach_nic(request).await }
        })
        .await
    }

    /// Presses a VM's power button. Returns at once.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] where it does not run, and see [`Error`].
    pub async fn press_power_button(&self, vm: &str) -> Result<Vm> {
        let request = PressPowerButtonRequest { vm: vm.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).press_power_button(request).await }
        })
        .await
    }

    /// Presses a VM's power button and gives its guest `limit`, an hour at most, to shut itself down, then stops the VM. Once
    /// this has returned, it needs nobody who waits for it.
    ///
    /// # Errors
    /// Those of [`stop_vm`](Self::stop_vm). A button that cannot be pressed is no error: the VM is stopped.
    pub async fn stop_vm_gracefully(&self, vm: &str, limit: Duration) -> Result<Operation> {
        // Zero is at once; what is shorter than a millisecond is nearly that.
        self.stop_within(vm, u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1)).await
    }

    async fn stop_within(&self, vm: &str, graceful_ms: u32) -> Result<Operation> {
        let request = StopVmRequest { request_id: request_id(), vm: vm.to_owned(), graceful_ms };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).stop_vm(request).await }
        })
        .await
    }

    /// Changes what one of a VM's devices may do.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::NotFound`], and see [`Error`]; unavailable where the limits are kept and the node
    /// that runs the VM has not been reached.
    pub async fn set_limits(&self, request: SetLimitsRequest) -> Result<Vm> {
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).set_limits(request).await }
        })
        .await
    }

    /// One VM.
    ///
    /// # Errors
    /// [`Error::NotFound`], and see [`Error`].
    pub async fn get_vm(&self, vm: &str) -> Result<Vm> {
        let request = GetVmRequest { vm: vm.to_owned() };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).get_vm(request).await }
        })
        .await
    }

    /// Every VM.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_vms(&self) -> Result<Vec<Vm>> {
        let mut vms = Vec::new();
        let mut page_token = String::new();
        for _ in 0..PAGES_MAX {
            let request = ListVmsRequest { page_size: PAGE_SIZE, page_token };
            let page = self
                .call(Repeat::Safe, |channel| {
                    let request = request.clone();
                    async move { VmsClient::new(channel).list_vms(request).await }
                })
                .await?;
            vms.extend(page.vms);
            if page.next_page_token.is_empty() {
                return Ok(vms);
            }
            page_token = page.next_page_token;
        }
        Err(Error::EndlessList { what: "VMs" })
    }

    /// Attaches to a VM's serial console.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`] for a VM that does not run, and see [`Error`].
    pub async fn console(&self, vm: &str) -> Result<Console> {
        let (input, requests) = mpsc::channel(CONSOLE_INPUT_DEPTH);
        // The first message names the VM. The channel was made a line ago: it has room.
        let attach = ConsoleRequest { vm: vm.to_owned(), data: Vec::new() };
        input.try_send(attach).expect("a fresh channel has room");
        let answer = VmsClient::new(self.channel()).console(ReceiverStream::new(requests)).await;
        let output = answer.map_err(|status| self.error(&status))?.into_inner();
        Ok(Console { output, input })
    }

    /// Reads a VM's console log, also of one that has ended.
    ///
    /// # Errors
    /// [`Error::NotFound`], and see [`Error`].
    pub async fn logs(&self, vm: &str, range: LogRange) -> Result<Streaming<ConsoleOutput>> {
        let request = LogsRequest {
            vm: vm.to_owned(),
            follow: range.follow,
            tail_bytes: range.tail.map_or(0, Bytes::get),
        };
        self.call(Repeat::Safe, |channel| {
            let request = request.clone();
            async move { VmsClient::new(channel).logs(request).await }
        })
        .await
    }
}

/// An address that is administered locally, of one station (IEEE 802).
fn random_mac() -> String {
    let [a, b, c, d, e, ..] = *Uuid::new_v4().as_bytes();
    format!("52:{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}")
}
