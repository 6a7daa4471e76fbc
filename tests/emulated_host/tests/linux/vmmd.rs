//! A vmmd in an emulated host, spoken to from here.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use drover_ids::{NodeId, OperationId, VmId, VolumeId};
use drover_test_emulated_host::{EmulatedHost, Running, door::Handed};
use drover_wire::vm::v1::{self as wire, attach_device_request, detach_device_request, vm_client::VmClient};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::hosts::keep_words;

/// For an answer that does not depend on the guest; emulated, and on a busy machine.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at what the guest has said.
const LOOK: Duration = Duration::from_millis(250);

/// A machine for Debian: over PCI, with an initramfs.
#[derive(Default)]
pub(crate) struct Guest {
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u64,
    /// Paths in the host.
    pub(crate) kernel: String,
    pub(crate) initrd: String,
    pub(crate) cmdline: String,
    /// Paths of raw images in the host, and whether the guest may only read them.
    pub(crate) disks: Vec<(String, bool)>,
    /// Taps that are made for it in the host.
    pub(crate) nics: Vec<wire::Nic>,
    /// Images in a Ceph cluster that are its disks, before those with paths.
    pub(crate) images: Vec<wire::RbdImage>,
    /// Queues of each disk; 0 is one.
    pub(crate) queues: u32,
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

    /// What a process that opens nothing needs of it.
    fn handed(&self) -> Vec<Handed> {
        let images = [&self.kernel, &self.initrd].into_iter().filter(|path| !path.is_empty());
        let volume =
            |(path, read_only): &(String, bool)| Handed::Volume { path: path.clone(), read_only: *read_only };
        let images = images.cloned().map(Handed::Image);
        images.chain(self.disks.iter().map(volume)).chain(self.nics.iter().map(tap)).collect()
    }

    fn config(&self) -> wire::VmConfig {
        let image = |image: &wire::RbdImage| wire::Disk { rbd: Some(image.clone()), ..wire::Disk::default() };
        let file = |(path, read_only): &(String, bool)| wire::Disk {
            path: path.clone(),
            read_only: *read_only,
            ..wire::Disk::default()
        };
        let mut disks: Vec<_> = self.images.iter().map(image).chain(self.disks.iter().map(file)).collect();
        for (place, disk) in (1..).zip(&mut disks) {
            disk.volume_id = volume_in(place);
            disk.queues = self.queues;
        }
        wire::VmConfig {
            vm_id: VmId::from_u128(1).to_string(),
            name: "debian".to_owned(),
            vcpus: self.vcpus,
            memory_bytes: self.memory_mib << 20,
            kernel_path: self.kernel.clone(),
            initrd_path: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            platform: Some(self.platform()),
            disks,
            nics: self.nics.clone(),
            node_id: NodeId::from_u128(0xd).to_string(),
            ..wire::VmConfig::default()
        }
    }
}

fn tap(nic: &wire::Nic) -> Handed {
    Handed::Tap { name: nic.tap.clone(), queues: nic.queue_pairs.max(1) as u16 }
}

/// The volume of the disk in this place, counted from 1.
fn volume_in(place: u32) -> String {
    VolumeId::from_u128(0xff + u128::from(place)).to_string()
}

/// Where a VM's disks are: librbd makes connections by itself, so a VM with disks in Ceph has the host's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    Files,
    Ceph,
}

/// The user that a VM is, as the node agent would choose one.
const UID: u32 = 0x7000_0001;

/// A vmmd in its jail, as a node agent starts it. Dropping it kills it, and keeps what its guest has said unless it had
/// ended well.
pub(crate) struct Vmmd {
    process: Running,
    client: VmClient<Channel>,
    host: Arc<EmulatedHost>,
    name: String,
    run_dir: String,
    /// It has done what it should.
    well: bool,
    /// How much of the console has been read.
    read: usize,
    keyboard: Option<mpsc::Sender<wire::ConsoleInput>>,
    /// The newest status; nothing is missed between two questions.
    status: watch::Receiver<wire::VmInfo>,
}

impl Vmmd {
    /// Starts one and waits until it serves.
    pub(crate) async fn spawn(host: &Arc<EmulatedHost>, name: &str) -> anyhow::Result<Self> {
        Self::spawn_with(host, name, Storage::Files).await
    }

    /// The same, for disks that are elsewhere.
    pub(crate) async fn spawn_with(
        host: &Arc<EmulatedHost>,
        name: &str,
        storage: Storage,
    ) -> anyhow::Result<Self> {
        let run_dir = format!("/disk/run/{name}");
        host.shell(&format!("mkdir -p {run_dir}"), ANSWER_DEADLINE)?;
        let socket = format!("{run_dir}/vmmd.sock");
        let uid = format!("--jail-uid={UID}");
        let jail = ["--jail", "--seccomp=kill", &uid, "--jail-own-mounts"];
        let arguments = [&["--socket", &socket, "--run-dir", &run_dir][..], &jail].concat();
        let mut process = match storage {
            Storage::Files => host.spawn_apart("/programs/drover-vmmd", &arguments, true)?,
            Storage::Ceph => {
                host.spawn_apart("/programs/drover-vmmd", &[&arguments[..], &["--jail-rbd"]].concat(), false)?
            }
        };
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
        Ok(Self {
            process,
            client,
            host,
            name: name.to_owned(),
            run_dir,
            well: false,
            read: 0,
            keyboard: None,
            status,
        })
    }

    /// Creates the machine and starts it.
    pub(crate) async fn boot(&mut self, guest: &Guest) -> anyhow::Result<()> {
        self.host.hand_over(&self.run_dir, guest.handed())?;
        let create = wire::CreateRequest {
            command: command(1),
            config: Some(guest.config()),
            ..wire::CreateRequest::default()
        };
        self.client.create(create).await.context("cannot create the VM")?;
        self.client.start(wire::StartRequest { command: command(1) }).await.context("cannot start the VM")?;
        Ok(())
    }

    /// Attaches a disk (a raw image in the host) in this place, as a node agent does: handed over first.
    pub(crate) async fn attach_disk(&mut self, path: &str, place: u32) -> anyhow::Result<()> {
        let volume = Handed::Volume { path: path.to_owned(), read_only: false };
        let volume_id = volume_in(place);
        let disk = wire::Disk { path: path.to_owned(), volume_id, place, ..wire::Disk::default() };
        self.attach(volume, attach_device_request::Device::Disk(disk)).await
    }

    /// Attaches an interface on a tap, which is made.
    pub(crate) async fn attach_nic(&mut self, nic: wire::Nic) -> anyhow::Result<()> {
        self.attach(tap(&nic), attach_device_request::Device::Nic(nic)).await
    }

    async fn attach(&mut self, file: Handed, device: attach_device_request::Device) -> anyhow::Result<()> {
        self.host.hand_over(&self.run_dir, vec![file])?;
        let request = wire::AttachDeviceRequest { command: command(1), device: Some(device) };
        self.client.attach_device(request).await.context("cannot attach a device")?;
        Ok(())
    }

    /// Detaches the disk in this place, once the guest has let go of it.
    pub(crate) async fn detach_disk(&mut self, place: u32, wait: Duration) -> anyhow::Result<()> {
        self.detach(detach_device_request::Device::VolumeId(volume_in(place)), wait).await
    }

    /// The same for an interface.
    pub(crate) async fn detach_nic(&mut self, mac: &str, wait: Duration) -> anyhow::Result<()> {
        self.detach(detach_device_request::Device::Mac(mac.to_owned()), wait).await
    }

    async fn detach(&mut self, device: detach_device_request::Device, wait: Duration) -> anyhow::Result<()> {
        let wait_ms = u32::try_from(wait.as_millis())?;
        let request =
            wire::DetachDeviceRequest { command: command(1), device: Some(device), force: false, wait_ms };
        self.client.detach_device(request).await.context("cannot detach a device")?;
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
        self.process.read_to_end(ANSWER_DEADLINE)?;
        self.well = true;
        Ok(info)
    }

    /// Waits for a migration, at this address of the host; returns the address with the port.
    pub(crate) async fn receive(&mut self, guest: &Guest, listen: SocketAddr) -> anyhow::Result<SocketAddr> {
        let mut handed = guest.handed();
        handed.push(Handed::Listener(listen));
        self.host.hand_over(&self.run_dir, handed)?;
        let request = wire::MigrateInRequest {
            command: command(2),
            migration_id: migration_id(),
            config: Some(guest.config()),
            listen_address: listen.to_string(),
            lease: None,
        };
        let answer = self.client.migrate_in(request).await.context("cannot receive")?.into_inner();
        Ok(answer.address.parse()?)
    }

    /// Sends the VM there, and waits until it has gone.
    pub(crate) async fn send(
        &mut self,
        address: SocketAddr,
        deadline: Duration,
    ) -> anyhow::Result<wire::MigrationStatus> {
        self.host.hand_over(&self.run_dir, vec![Handed::Connection(address)])?;
        let request = wire::MigrateOutRequest {
            command: command(1),
            migration_id: migration_id(),
            target_address: address.to_string(),
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
        self.well = true;
        Ok(status)
    }

    /// Presses the guest's power button.
    pub(crate) async fn press_power_button(&mut self) -> anyhow::Result<()> {
        let request = wire::PressPowerButtonRequest { command: command(1) };
        self.client.press_power_button(request).await.context("cannot press the power button")?;
        Ok(())
    }
}

impl Drop for Vmmd {
    fn drop(&mut self) {
        if self.well {
            return;
        }
        let guest = self.host.get(&format!("{}/console.log", self.run_dir)).unwrap_or_default();
        self.process.catch_up();
        let words = format!(
            "---- vmmd\n{}\n---- the guest\n{}\n---- the emulated host\n{}",
            self.process.said(),
            String::from_utf8_lossy(&guest).replace('\r', ""),
            self.host.console()
        );
        keep_words(&self.name, &words);
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
