//! A vmmd in an emulated host, spoken to from here.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use drover_ids::{NodeId, OperationId, VmId, VolumeId};
use drover_test_emulated_host::{EmulatedHost, Running};
use drover_wire::vm::v1::{self as wire, vm_client::VmClient};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// For an answer that does not depend on the guest; emulated, and on a busy machine.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at what the guest has said.
const LOOK: Duration = Duration::from_millis(250);

/// A machine for Debian: over PCI, with an initramfs.
pub(crate) struct Guest {
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    /// Paths in the host.
    pub(crate) kernel: String,
    pub(crate) initrd: String,
    pub(crate) cmdline: String,
    /// Paths of raw images in the host, and whether the guest may only read them.
    pub(crate) disks: Vec<(String, bool)>,
    /// A reset ends the VM. Otherwise it starts anew.
    pub(crate) reset_ends: bool,
}

impl Guest {
    fn platform(&self) -> wire::Platform {
        let on_reset = if self.reset_ends { wire::GuestReset::End } else { wire::GuestReset::Unspecified };
        wire::Platform {
            bus: wire::DeviceBus::VirtioPci.into(),
            on_reset: on_reset.into(),
            ..wire::Platform::default()
        }
    }

    fn config(&self) -> wire::VmConfig {
        let disk = |(n, (path, read_only)): (usize, &(String, bool))| wire::Disk {
            volume_id: VolumeId::from_u128(0x100 + n as u128).to_string(),
            path: path.clone(),
            read_only: *read_only,
            ..wire::Disk::default()
        };
        wire::VmConfig {
            vm_id: VmId::from_u128(1).to_string(),
            name: "debian".to_owned(),
            vcpus: self.vcpus,
            memory_bytes: self.memory_mib << 20,
            kernel_path: self.kernel.clone(),
            initrd_path: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            platform: Some(self.platform()),
            disks: self.disks.iter().enumerate().map(disk).collect(),
            node_id: NodeId::from_u128(0xd).to_string(),
            ..wire::VmConfig::default()
        }
    }
}

/// A vmmd. Dropping it kills it.
pub(crate) struct Vmmd {
    process: Running,
    client: VmClient<Channel>,
    host: Arc<EmulatedHost>,
    run_dir: String,
    /// How much of the console has been read.
    read: usize,
    keyboard: Option<mpsc::Sender<wire::ConsoleInput>>,
    /// The newest status; nothing is missed between two questions.
    status: watch::Receiver<wire::VmInfo>,
}

impl Vmmd {
    /// Starts one and waits until it serves.
    pub(crate) async fn spawn(host: &Arc<EmulatedHost>, name: &str) -> anyhow::Result<Self> {
        let run_dir = format!("/disk/run/{name}");
        host.shell(&format!("mkdir -p {run_dir}"), ANSWER_DEADLINE)?;
        let socket = format!("{run_dir}/vmmd.sock");
        let mut process =
            host.spawn("/programs/drover-vmmd", &["--socket", &socket, "--run-dir", &run_dir])?;
        process.wait_for("serving", ANSWER_DEADLINE)?;
        let through = Arc::clone(host);
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let (host, socket) = (Arc::clone(&through), socket.clone());
            async move {
                let stream = host.connect(&socket).map_err(std::io::Error::other)?;
                stream.set_nonblocking(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(tokio::net::TcpStream::from_std(stream)?))
            }
        });
        let endpoint = Endpoint::from_static("http://vmmd");
        let connect = endpoint.connect_with_connector(connector);
        let channel = timeout(ANSWER_DEADLINE, connect).await.context("vmmd does not answer")??;
        let (mut client, host) = (VmClient::new(channel), Arc::clone(host));
        let (seen, status) = watch::channel(wire::VmInfo::default());
        let mut changes = client.watch(wire::WatchRequest {}).await?.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(info)) = changes.message().await {
                seen.send_replace(info);
            }
        });
        Ok(Self { process, client, host, run_dir, read: 0, keyboard: None, status })
    }

    /// Creates the machine and starts it.
    pub(crate) async fn boot(&mut self, guest: &Guest) -> anyhow::Result<()> {
        let create = wire::CreateRequest {
            command: command(1),
            config: Some(guest.config()),
            ..wire::CreateRequest::default()
        };
        self.client.create(create).await.context("cannot create the VM")?;
        self.client.start(wire::StartRequest { command: command(1) }).await.context("cannot start the VM")?;
        Ok(())
    }

    /// Types on the guest's console.
    pub(crate) async fn type_text(&mut self, text: &str) -> anyhow::Result<()> {
        let keyboard = match self.keyboard.take() {
            Some(keyboard) => keyboard,
            None => {
                let (keyboard, typed) = mpsc::channel(16);
                let mut output = self.client.console(ReceiverStream::new(typed)).await?.into_inner();
                // What the guest says is read from the file, which is whole when the process has ended.
                tokio::spawn(async move { while let Ok(Some(_)) = output.message().await {} });
                keyboard
            }
        };
        let input = wire::ConsoleInput { data: text.as_bytes().to_vec() };
        keyboard.send(input).await.context("the console is closed")?;
        self.keyboard = Some(keyboard);
        Ok(())
    }

    /// Reads the console until `text` has been said, and returns everything up to there. What follows is kept.
    pub(crate) async fn wait_for(&mut self, text: &str, deadline: Duration) -> anyhow::Result<String> {
        self.wait_for_any(&[text], deadline).await
    }

    /// [`wait_for`](Self::wait_for) the first of several texts.
    pub(crate) async fn wait_for_any(
        &mut self,
        texts: &[&str],
        deadline: Duration,
    ) -> anyhow::Result<String> {
        let end = Instant::now() + deadline;
        loop {
            // There is no file before the guest's first byte.
            let log = self.host.get(&format!("{}/console.log", self.run_dir)).unwrap_or_default();
            let said = String::from_utf8_lossy(&log).replace('\r', "");
            let new = said.get(self.read..).unwrap_or_default();
            let ends = texts.iter().filter_map(|text| Some(new.find(text)? + text.len()));
            if let Some(length) = ends.min() {
                self.read += length;
                return Ok(new[..length].to_owned());
            }
            if Instant::now() > end {
                let tail: Vec<_> = said.lines().rev().take(40).collect();
                let tail: Vec<_> = tail.into_iter().rev().collect();
                bail!(
                    "the guest did not say {texts:?} in {deadline:?}; what it said last:\n{}",
                    tail.join("\n")
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Follows the VM until it is as wanted.
    pub(crate) async fn reaches(
        &mut self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&wire::VmInfo) -> bool,
    ) -> anyhow::Result<wire::VmInfo> {
        let reached = timeout(deadline, self.status.wait_for(|info| wanted(info))).await;
        let reached = reached.map(|info| info.map(|info| info.clone()));
        match reached {
            Ok(Ok(info)) => Ok(info),
            Ok(Err(_)) => {
                bail!("the VM's process ended before this: {what}; it was {:?}", self.status.borrow())
            }
            Err(_) => bail!("not in {deadline:?}: {what}; the VM was {:?}", self.status.borrow()),
        }
    }

    /// Waits for the guest to end the VM, and for the process to end.
    pub(crate) async fn ends(mut self, deadline: Duration) -> anyhow::Result<wire::VmInfo> {
        let stopped = |info: &wire::VmInfo| info.state() == wire::VmState::Stopped;
        let info = self.reaches("the VM's end", deadline, stopped).await?;
        drop(self.client);
        self.process.finish(ANSWER_DEADLINE)?;
        Ok(info)
    }

    /// Waits for a migration, at this address of the host; returns the address with the port.
    pub(crate) async fn receive(&mut self, guest: &Guest, listen: &str) -> anyhow::Result<String> {
        let request = wire::MigrateInRequest {
            command: command(2),
            migration_id: migration_id(),
            config: Some(guest.config()),
            listen_address: listen.to_owned(),
            lease: None,
        };
        let answer = self.client.migrate_in(request).await.context("cannot receive")?.into_inner();
        Ok(answer.address)
    }

    /// Sends the VM there, and waits until it has gone.
    pub(crate) async fn send(
        &mut self,
        address: &str,
        deadline: Duration,
    ) -> anyhow::Result<wire::MigrationStatus> {
        let request = wire::MigrateOutRequest {
            command: command(1),
            migration_id: migration_id(),
            target_address: address.to_owned(),
            target_epoch: 2,
            downtime_target_ms: 0,
        };
        self.client.migrate_out(request).await.context("cannot send")?;
        let ended = |info: &wire::VmInfo| {
            let phase = info.migration.as_ref().map(wire::MigrationStatus::phase);
            matches!(phase, Some(wire::MigrationPhase::SourceRetired | wire::MigrationPhase::Aborted))
        };
        let info = self.reaches("the migration's end", deadline, ended).await?;
        let status = info.migration.context("a migration has a status")?;
        anyhow::ensure!(status.phase() == wire::MigrationPhase::SourceRetired, "{}", status.error);
        Ok(status)
    }
}

fn migration_id() -> String {
    drover_ids::MigrationId::from_u128(0x77).to_string()
}

/// A command of an operation of its own.
fn command(epoch: u64) -> Option<wire::Command> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let operation_id = OperationId::from_u128(NEXT.fetch_add(1, Ordering::Relaxed).into()).to_string();
    Some(wire::Command { operation_id, owner_epoch: epoch })
}
